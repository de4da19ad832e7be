"""Make the models that ship with RUB again: run the suite `zoo-digits`, and publish its models into the package.

    python benchmarks/make_zoo.py --workers 2
    python benchmarks/make_zoo.py --suite table1-cifar10-small --data-root data --out zoo --store DIR --workers 2

The second line makes a larger zoo of any suite, elsewhere. Cards keep the numbers; the YAML of every number
(`.eval_results`, 40 KiB a model) is left out of the package, where autoencoders and text-to-image models have weights
of 16 bits.
"""

import argparse
import shutil
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from rub import load_suite, run
from rub.api import default_store, make_runtime
from rub.pipeline.progress import Display
from rub.store.artifacts import Store
from rub.zoo.check import problem
from rub.zoo.lookup import models_in
from rub.zoo.publish import publish

SHIPPED = Path(str(files("rub") / "zoo" / "models"))


def main() -> None:
    """Run the suite and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="zoo-digits")
    parser.add_argument("--store", type=Path, default=default_store())
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    runtime = make_runtime(data_root=args.data_root, device="cpu")
    tasks = dict.fromkeys(experiment.task for experiment in load_suite(args.suite).experiments)
    with TemporaryDirectory() as place:
        for task in tasks:
            run(load_suite(args.suite, task=task), store=args.store, out=Path(place, task), runtime=runtime,
                workers=args.workers, display=Display(Console()), command=f"rub run {args.suite}")  # fmt: skip
        if args.out == SHIPPED:
            shutil.rmtree(SHIPPED, ignore_errors=True)
        for task in tasks:
            dtype = "float16" if args.out == SHIPPED and task != "classification" else "float32"
            publish(Path(place, task), Store(args.store), args.out, dtype=dtype, licence="mit")
    if args.out == SHIPPED:
        for evals in SHIPPED.rglob(".eval_results"):
            shutil.rmtree(evals)
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    bad = [found for folder, _ in models_in(args.out) if (found := problem(folder))]
    print(f"{args.out}: {sum(1 for _ in models_in(args.out))} models, {size / 2**20:.1f} MiB", *bad, sep="\n")


if __name__ == "__main__":
    main()
