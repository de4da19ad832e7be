"""How often two judges see what was asked for: in pictures that a suite's original draws, and in real test photos.

    python benchmarks/judges_t2i.py --data-root data --judge judges/mobilenet_v2_imagenet --store DIR

The first judge is the suite's own, trained on the photos; the second a classifier of ImageNet in transformers' format,
whose argmax is taken over the classes at hand. Original and judge are taken from the store, or made first.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from rub import load_suite
from rub.api import make_runtime
from rub.data.class_names import IMAGENET_LABELS, names_of, slug
from rub.data.samples import Samples
from rub.data.splits import input_dataset
from rub.judges.base import JudgeContext
from rub.judges.imagenet import imagenet
from rub.judges.stage import load_judge, measured
from rub.metrics.statistics import wilson
from rub.pipeline.inline import run_inline
from rub.pipeline.progress import Display
from rub.registry import TASKS
from rub.store.artifacts import Store
from rub.tasks.text_to_image.attacks.base import Prompts
from rub.tasks.text_to_image.graph import TextToImageGraph
from rub.tasks.text_to_image.stages import clean_images, drawing_of

SEED = 9000  # first seed of the pictures: not those of any measurement


def main() -> None:
    """Draw, look, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="text-to-image-imagenette-small")
    parser.add_argument("--set", action="append", default=[], help="overrides, as of rub run")
    parser.add_argument("--judge", type=Path, required=True, help="folder of the second judge")
    parser.add_argument("--each", type=int, default=20, help="pictures of each class")
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--store", type=Path, default=Path(tempfile.gettempdir()) / "rub-benchmark", help="for reuse")
    args = parser.parse_args()
    runtime = make_runtime(data_root=args.data_root, device="cpu")
    experiment = load_suite(args.suite, task="text-to-image", overrides=args.set).experiments[0]
    graph = TextToImageGraph(experiment, runtime.data_root)
    task, wanted = TASKS.get("text-to-image", "text-to-image").load(), graph.reference
    with Display(Console(stderr=True)) as display:
        outcomes = run_inline([wanted], {"text-to-image": task}, Store(args.store), runtime, display)
    inputs = {role: outcomes[stage.key].artifact for role, stage in wanted.inputs.items()}
    dataset = input_dataset(inputs, runtime)
    names = [given[0] for given in names_of(dataset.classes)]
    labels = torch.arange(len(names)).repeat_interleave(args.each)
    ids, weights = torch.arange(len(labels)), torch.full((len(labels),), args.guidance)
    asked = Prompts(ids, tuple(f"a photo of {names[label]}" for label in labels.tolist()), SEED + ids, weights)
    images = clean_images(drawing_of(inputs, "original", wanted.spec, runtime), asked, 64)
    among = tuple(IMAGENET_LABELS[slug(name)] for name in names)
    judges = (
        (load_judge(inputs["judge"], inputs, runtime), True),
        (imagenet(args.judge, JudgeContext(args.judge.name), among=among), False),
    )
    for what, shown in (("drawn", replace(dataset, test=Samples(images, labels, ids))), ("real", dataset)):
        for judge, own in judges:
            found = measured(judge, shown, SEED, own=own)
            low, high = wilson(round(found["accuracy"] * found["n"]), found["n"])
            each = ", ".join(f"{name} {100 * share:.0f}" for name, share in found["by_class"].items())
            print(f"{what}, {judge.name}: {100 * found['accuracy']:.1f} % ({100 * low:.1f}-{100 * high:.1f}) of"
                  f" {found['n']}; {each}")  # fmt: skip


if __name__ == "__main__":
    main()
