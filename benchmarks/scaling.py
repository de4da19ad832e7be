"""What the pipeline itself costs per stage, how long plans take, and what Ray gains on two cores.

    python benchmarks/scaling.py

Overhead: stages that only write a number, run inline with key, lock, write, checksum and read, at three sizes.
Planning: graphs of Table 1 with more and more seeds. Ray: stages that keep one core busy, against the inline engine.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from rich.console import Console

from rub import load_suite
from rub.api import make_runtime, plan
from rub.pipeline.graph import Stage, in_order
from rub.pipeline.inline import run_inline
from rub.pipeline.progress import Display
from rub.pipeline.ray import cluster, run_ray
from rub.store.artifacts import Store


class Task:
    """Two kinds of stage: one that writes a number, one that computes for a while."""

    functions: Mapping[str, str] = MappingProxyType({"write": "scaling:write", "busy": "scaling:busy"})


def write(stage, inputs, out, runtime):
    """Write a number."""
    (out / "value.json").write_text(json.dumps(stage.spec["number"]))


def busy(stage, inputs, out, runtime):
    """Keep one core busy for about the asked seconds of work, the same work every time."""
    total = 0
    for number in range(stage.spec["work"]):
        total += number * number % 7
    (out / "value.json").write_text(json.dumps(total))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=5000)
    parser.add_argument("--busy", type=int, default=40)
    given = parser.parse_args()
    here = str(Path(__file__).resolve().parent)
    sys.path.insert(0, here)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])  # for Ray's workers
    for count in (given.stages // 10, given.stages // 3, given.stages):
        with tempfile.TemporaryDirectory() as place:
            seconds, again = overhead(Path(place), count)
        print(
            f"{count} stages inline: {1000 * seconds / count:.2f} ms each; from the store {1000 * again / count:.2f} ms"
        )
    for seeds in (70, 210, 700):
        start = time.perf_counter()
        [(_, graph)] = plan(
            load_suite("table1-cifar10", overrides=["dataset=digits"], seeds=seeds), make_runtime(device="cpu")
        )
        count = len(in_order(graph.stages))
        print(f"plan of {count} stages: {time.perf_counter() - start:.2f} s")
    gain(given.busy)


def quiet() -> Display:
    """Return a display that shows nothing."""
    return Display(Console(), quiet=True)


def overhead(place: Path, count: int) -> tuple[float, float]:
    """Return the seconds that so many empty stages take, and that reading them again takes."""
    root = Stage("t", "write", 1, "root", {"number": -1})
    stages = [Stage("t", "write", 1, f"stage {k}", {"number": k}, {"root": root}) for k in range(count)]
    times = []
    for _ in range(2):
        start = time.perf_counter()
        run_inline(stages, {"t": task()}, Store(place / "store"), make_runtime(device="cpu"), quiet())
        times.append(time.perf_counter() - start)
    return times[0], times[1]


def gain(count: int) -> None:
    """Print Ray's time on two workers beside that of the inline engine, for the same busy stages."""
    work = 8_000_000
    stages = [Stage("t", "busy", 1, f"busy {k}", {"number": k, "work": work + k}) for k in range(count)]
    with tempfile.TemporaryDirectory() as place:
        runtime = make_runtime(device="cpu")
        start = time.perf_counter()
        run_inline(stages, {"t": task()}, Store(Path(place) / "inline"), runtime, quiet())
        inline = time.perf_counter() - start
        with cluster(None, 2):
            warm = [Stage("t", "busy", 1, f"warm {k}", {"number": -k, "work": k}) for k in range(1, 5)]
            run_ray(warm, {"t": task()}, Store(Path(place) / "ray"), runtime, quiet(), {})
            start = time.perf_counter()
            run_ray(stages, {"t": task()}, Store(Path(place) / "ray"), runtime, quiet(), {})
            took = time.perf_counter() - start
    print(f"{count} busy stages: inline {inline:.1f} s, Ray with 2 workers {took:.1f} s, ratio {took / inline:.2f}")


def task():
    """Return the task by its importable name, which Ray's workers find too."""
    import scaling

    return scaling.Task()


if __name__ == "__main__":
    main()
