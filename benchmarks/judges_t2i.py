"""How often two judges see what was asked for: in pictures that a stored original draws, and in real test photos.

The first judge is the one of the run, trained on the photos; the second a classifier of ImageNet in transformers'
format, such as MobileNetV2, whose argmax is taken over the ten classes at hand. Run it after the suite:

    rub run text-to-image-imagenette-small --data-root data --store DIR
    python benchmarks/judges_t2i.py DIR judges/mobilenet_v2_imagenet
"""

import argparse
import json
from pathlib import Path

import torch

from rub.api import make_runtime
from rub.images.data import load_bundle
from rub.statistics import wilson
from rub.store.artifacts import Artifact, Store
from rub.text_to_image.checkpoints import load_model
from rub.text_to_image.concepts import JUDGED, names_of, slug
from rub.text_to_image.judge_kinds.imagenet import imagenet
from rub.text_to_image.judges import load_judge
from rub.text_to_image.looking import JudgeContext
from rub.text_to_image.sampling import Sampler, initial_latents, sample

SEED = 9000  # first seed of the pictures: not those of any measurement
REAL = 100  # test photos of each class


def stored(store: Store, kind: str, label: str) -> Artifact:
    """Return the newest artifact of a kind and label."""
    paths = [
        path for path in store.root.glob(f"{kind}/*/manifest.json") if json.loads(path.read_text())["label"] == label
    ]
    if not paths:
        raise SystemExit(f"{store.root}: no stage '{label}'; run text-to-image-imagenette-small with this store first")
    found = store.find(kind, max(paths, key=lambda path: path.stat().st_mtime).parent.name)
    assert found is not None
    return found


def main() -> None:
    """Draw, look, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("judge", type=Path, help="folder of the second judge")
    parser.add_argument("--each", type=int, default=20, help="pictures of each class")
    parser.add_argument("--guidance", type=float, default=7.5)
    arguments = parser.parse_args()
    store, runtime = Store(arguments.store), make_runtime(device="cpu")
    original, data = stored(store, "train", "train original"), stored(store, "data", "read folder")
    bundle, model = load_bundle(data), load_model(original.file("model.safetensors"))
    names = [given[0] for given in names_of(bundle.classes)]
    own = load_judge(stored(store, "judge", "train the judge"), {"data": data}, runtime)
    among = tuple(JUDGED[slug(name)] for name in names)
    second = imagenet(arguments.judge, JudgeContext(arguments.judge.name), among=among)
    which = torch.arange(len(names)).repeat_interleave(arguments.each)
    context = model.context([f"a photo of {names[label]}" for label in which.tolist()]).detach()
    start = initial_latents(model, SEED + torch.arange(len(which)))
    guidance = torch.full((len(which),), arguments.guidance)
    drawn = model.to_images(sample(model, context, model.context([""]).detach(), start, guidance, Sampler("ddim", 12)))
    test = bundle.test
    chosen = torch.cat([(test.labels == label).nonzero().flatten()[:REAL] for label in range(len(names))])
    for what, images, labels in (("drawn", drawn, which), ("real", test.images[chosen], test.labels[chosen])):
        for judge, called in ((own, range(len(names))), (second, among)):
            look = judge(images)
            right = torch.stack([judge.hits(look, label) for label in called], 1)[torch.arange(len(labels)), labels]
            low, high = wilson(int(right.sum()), len(right))
            each = ", ".join(
                f"{name} {100 * right[labels == label].float().mean():.0f}" for label, name in enumerate(names)
            )
            print(
                f"{what}, {judge.name}: {100 * right.float().mean():.1f} % ({100 * low:.1f}-{100 * high:.1f}) of"
                f" {len(right)}; {each}"
            )


if __name__ == "__main__":
    main()
