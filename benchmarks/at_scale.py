"""Run the large tables one after the other, as far as the time allows, and leave a result folder of each.

    python benchmarks/at_scale.py --data-root data --minutes 27 --out results --compile
    python benchmarks/at_scale.py --only table1-cifar10-resnet18 --set training.epochs=1 --seeds 1 --minutes 5 ...

`at_scale.yaml` lists the jobs. Each first chooses the hyperparameters of its methods by the declared rule
(`choose_hyperparameters.py`), which it writes down, then runs with one unlearning seed, two, three, ...: the folder
holds the last number of seeds that was finished, and its records say how many. A job may use its share of the time that
is left. Everything is kept in the store: the same command again goes on.
"""

import argparse
import json
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from choose_hyperparameters import choose
from rich.console import Console

from rub import load_suite
from rub.api import default_store, make_runtime, reproducible, run
from rub.errors import RubError
from rub.pipeline.progress import Display, clock
from rub.pipeline.runtime import Runtime
from rub.store.artifacts import Store
from rub.store.manifest import read_manifest, seal_folder

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Job:
    """One table.

    Attributes:
        name: of its result folder.
        suite: whose experiments are run.
        task: of these.
        share: of the time that is left when it starts; 0: only where it is asked for by name.
        seeds: numbers of unlearning seeds, in turn.
        set: overrides.
        grid: file of settings to choose from; "": those of the suite.
        choosing: names of the experiments that choose, for the others too; []: all.
    """

    name: str
    suite: str
    task: str
    share: float
    seeds: list[int]
    set: list[str] = field(default_factory=list)
    grid: str = ""
    choosing: list[str] = field(default_factory=list)


class TimeIsUp(BaseException):
    """The job's time has ended."""


def ring(number: int, frame: FrameType | None) -> None:
    """End the job."""
    raise TimeIsUp


def perform(job: Job, args: argparse.Namespace, runtime: Runtime) -> str:
    """Run a job until its end or its time is up, and say how far it came."""
    said, out, fresh = "nothing", args.out / job.name, args.out / f".{job.name}"
    overrides = [*job.set, *args.set]
    try:
        chosen: dict[str, Any] = {}
        choice = args.out / f"{job.name}-hyperparameters.json"
        if job.grid:
            grid = yaml.safe_load((HERE / job.grid).read_text())
            if args.methods:
                grid = {name: grid[name] for name in args.methods.split(",")}
            suite = load_suite(job.suite, task=job.task, overrides=overrides)
            experiments = [item for item in suite.experiments if not job.choosing or item.name in job.choosing]
            chosen = choose(
                experiments, grid, Store(args.store), runtime, choice, workers=args.workers, quiet=args.quiet
            )
            said = "hyperparameters chosen"
            overrides.append(f"methods={json.dumps(chosen)}")
        for seeds in args.seeds or job.seeds:
            suite = load_suite(job.suite, task=job.task, overrides=overrides, seeds=seeds)
            suite = suite.model_copy(update={"name": job.name})
            display = Display(Console(), quiet=args.quiet)
            command = "python benchmarks/at_scale.py " + reproducible(sys.argv[1:]).removeprefix("rub ")
            result = run(suite, store=args.store, out=fresh, runtime=runtime, workers=args.workers, display=display,
                         command=command)  # fmt: skip
            if chosen:
                facts = read_manifest(fresh)
                (fresh / "hyperparameters.json").write_text(choice.read_text())
                seal_folder(fresh, {name: facts[name] for name in ("command", "code_version", "data")})
            shutil.rmtree(out, ignore_errors=True)
            fresh.rename(out)
            said = f"{seeds} unlearning seeds, {len(result.records)} records, {len(result.failures)} stages failed"
    except TimeIsUp:
        return f"time is up after: {said}"
    except RubError as error:  # the next job may do better
        return f"failed after: {said}: {error}"
    return said


def main() -> None:
    """Run the jobs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=27.0, help="for all jobs")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--store", type=Path, default=default_store())
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=1000, help="images per forward pass")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the work; for a CPU")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--only", action="append", help="job; repeatable")
    parser.add_argument("--methods", help="only these, comma-separated")
    parser.add_argument("--seeds", type=int, nargs="*", help="numbers of unlearning seeds instead of the jobs'")
    parser.add_argument("--set", action="append", default=[], help="more overrides, as of rub run")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    runtime = make_runtime(
        data_root=args.data_root, device=args.device, batch_size=args.batch_size, compile=args.compile
    )
    args.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    signal.signal(signal.SIGALRM, ring)
    for given in yaml.safe_load((HERE / "at_scale.yaml").read_text())["jobs"]:
        job, left = Job(**given), end - time.monotonic()
        asked = job.name in args.only if args.only else job.share > 0
        if not asked or left <= 0:
            continue
        start = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, left * (1.0 if args.only else job.share))
        try:
            said = perform(job, args, runtime)
        except TimeIsUp:
            said = "time is up"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        print(f"{job.name}: {said} ({clock(time.monotonic() - start)})", flush=True)


if __name__ == "__main__":
    main()
