"""Kill, damage and crowd runs, and count what is lost: the figures of the README's table of reliability.

    python benchmarks/soak.py --kills 50 --fuzz 10000

A small suite is killed (SIGKILL, the whole process group) at random moments, under both engines, and started again
until it ends; its records must equal those of an undisturbed run. It keeps a checkpoint after every step. Four
processes start it on one store at once. A disk that is too small grows by a little whenever it is full (a tmpfs in a
mount namespace of its own). Readers get made-up and mutated files and must answer with one line.
Result folders are forged and sealed again; what contradicts something in them must be refused. Under 30 minutes on
two cores with these numbers.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from safetensors.numpy import save

from rub import load_suite, read_records
from rub.data.readers import read_cifar10, read_npz
from rub.errors import RubError
from rub.models.weights import read_state
from rub.reports.folders import read_folder
from rub.store.records import identity
from rub.witness.claims import read_witness

SUITE = {
    "name": "soak",
    "summary": "a run of a few seconds",
    "experiments": [{
        "task": "classification", "dataset": "digits", "model": {"arch": "resnet10", "stem": "cifar", "width": 2},
        "training": {"epochs": 1, "lr": 0.1, "schedule": "onecycle", "batch_size": 64, "padding": 1},
        "forget": {"classes": [0]}, "evaluation": {"attack_samples": 8, "control_samples": 4, "retain_samples": 200},
        "protocol": {"name": "rub-paper-1", "attacks": {
            "uma": {"runs": [{"name": "uma", "steps": 3}], "budgets": [32], "splits": ["forget", "retain"]},
            "noise": {"runs": [{"name": "noise", "steps": 2}], "budgets": [0]},
        }},
        "methods": {"ft": {"epochs": 1}, "rl": {"epochs": 1}},
    }],
}  # fmt: skip


ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
PARTS = ("kills", "crowd", "disk", "fuzz", "forgeries")


def main() -> None:
    """Run every part and print its row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--fuzz", type=int, default=10_000)
    parser.add_argument("--forgeries", type=int, default=25, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    parser.add_argument("--reader", help="of the fuzzed readers, those whose name holds this")
    parser.add_argument("--kib", type=int, default=16, help="by how much the full disk grows")
    given = parser.parse_args()
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as place:
        suite = Path(place) / "soak.yaml"
        suite.write_text(yaml.safe_dump(SUITE))
        whole = started(suite, Path(place) / "whole", "inline")
        assert whole.wait() == 0
        expected = records_of(Path(place) / "whole")
        parts: dict[str, Callable[[], Iterable[str]]] = {
            "kills": lambda: (
                killed(suite, Path(place) / engine, engine, given.kills // 2, expected, draw)
                for engine in ("inline", "ray")
            ),
            "crowd": lambda: [crowded(suite, Path(place) / "crowd", expected)],
            "disk": lambda: [filled(suite, Path(place) / "disk", given.kib, expected)],
            "fuzz": lambda: fuzzed(Path(place), given.fuzz, draw, given.reader or ""),
            "forgeries": lambda: forgeries(Path(place), given.forgeries),
        }
        for part in [given.only] if given.only else PARTS:
            for line in parts[part]():
                print(line, flush=True)


def started(suite: Path, folder: Path, engine: str) -> subprocess.Popen[bytes]:
    """Start a run in a process group of its own."""
    command = [sys.executable, "-m", "rub.cli.main", "run", suite, "--store", folder / "store", "--out", folder / "out"]
    command += [
        "--device",
        "cpu",
        "--checkpoint",
        "0",
        "--engine",
        engine,
        *(["--workers", "2"] if engine == "ray" else []),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "said.txt").open("ab") as said:
        return subprocess.Popen(
            [str(word) for word in command], stdout=said, stderr=subprocess.STDOUT, start_new_session=True,
            env=ONE_THREAD,
        )  # fmt: skip


def records_of(folder: Path) -> list[dict[str, object]]:
    """Return the records of a run without what may differ between two equal ones."""
    return [identity(record) for record in read_records(folder / "out")]


def filled(suite: Path, folder: Path, kib: int, expected: object) -> str:
    """Run on a disk that grows by so much whenever it is full; return the row."""
    (folder / "mount").mkdir(parents=True)
    script = Path(__file__).parent / "full_disk.py"
    words = ["unshare", "-rm", sys.executable, script, suite, folder / "mount", folder / "out", "--kib", kib]
    said = subprocess.run([str(word) for word in words], check=True, stdout=subprocess.PIPE, text=True, env=ONE_THREAD)
    times, size = said.stdout.split()[-2:]
    return (
        f"disk full: {times} times on the way from {kib} to {size} KiB, each one line, the store whole each time;"
        f" records equal: {records_of(folder) == expected}"
    )


def killed(suite: Path, folder: Path, engine: str, kills: int, expected: object, draw: random.Random) -> str:
    """Kill runs until there were enough kills; return the row."""
    done = equal = whole = inside = 0
    began = time.monotonic()
    assert started(suite, folder / "undisturbed", engine).wait() == 0
    longest = 0.9 * (time.monotonic() - began)  # most runs are killed before they end
    while done < kills:
        place = folder / str(whole)
        while True:
            process = started(suite, place, engine)
            deadline = time.monotonic() + draw.uniform(1.0, longest)
            while process.poll() is None and time.monotonic() < deadline and done < kills:
                time.sleep(0.02)
            if process.poll() is None and done < kills:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                done += 1
                inside += any((place / "store" / "partial").glob("*/*.state"))
                continue
            assert process.wait() == 0
            break
        whole += 1
        equal += records_of(place) == expected
    return (
        f"kills ({engine}): {done} SIGKILLs in {whole} runs, {inside} of them inside a stage that had a checkpoint;"
        f" records equal an undisturbed run's: {equal} of {whole}"
    )


def crowded(suite: Path, folder: Path, expected: object) -> str:
    """Start four processes on one store at once; return the row."""
    (folder / "store").mkdir(parents=True)
    for number in range(4):
        (folder / str(number)).mkdir()
        (folder / str(number) / "store").symlink_to(folder / "store")
    crew = [started(suite, folder / str(number), "inline") for number in range(4)]
    codes = [process.wait() for process in crew]
    same = sum(records_of(folder / str(number)) == expected for number in range(4))
    kept = len(list((folder / "store").glob("*/*/manifest.json")))
    said = [(folder / str(number) / "said.txt").read_text() for number in range(4)]
    made = sum(int(found[1]) for text in said if (found := re.search(r"(\d+) stages run", text)))
    return (
        f"four processes on one store: exit codes {codes}, {made} stages run for {kept} kept, equal records {same} of 4"
    )


def fuzzed(place: Path, count: int, draw: random.Random, only: str = "") -> Iterator[str]:
    """Yield a row for each reader: how many made-up and mutated inputs, and how many of them ended in a traceback."""
    for name, (seeds, suffix, read) in readers(place).items():
        if only not in name:
            continue
        (place / f"fuzz{suffix}").write_bytes(seeds[0])
        read(place / f"fuzz{suffix}")  # what is mutated was valid
        wrong, refused = [], 0
        for number in range(count):
            path = place / f"fuzz{suffix}"
            path.write_bytes(mutated(draw.choice(seeds), draw))
            try:
                read(path)
            except RubError:
                refused += 1
            except Exception as error:  # what this looks for
                wrong.append(f"{number}: {type(error).__name__}: {error}")
        yield f"fuzz {name}: {count} inputs, {refused} refused, {len(wrong)} tracebacks {wrong[:2] or ''}"


def readers(place: Path) -> dict[str, tuple[list[bytes], str, Callable[[Path], object]]]:
    """Return each reader with valid files to mutate, the suffix it goes by, and how it is called."""
    import io

    import torch

    whole = place / "whole" / "out"
    tensors = save({"fc.weight": np.zeros((2, 3), np.float32), "fc.bias": np.zeros(2, np.float32)})
    checkpoint, arrays, picture = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"fc.weight": torch.zeros(2, 3)}, checkpoint)
    np.savez(arrays, x_train=np.zeros((4, 4, 4), np.uint8), y_train=np.zeros(4, np.int64),
             x_test=np.zeros((4, 4, 4), np.uint8), y_test=np.zeros(4, np.int64))  # fmt: skip
    Image.new("L", (8, 8)).save(picture, "PNG")
    claim = next(iter(sorted((whole / "witnesses").glob("*.json"))))
    rows = json.dumps(json.loads((whole / "records.json").read_text())[:3])
    probes = claim.with_suffix(".safetensors").read_bytes()

    def witness(path: Path) -> object:
        path.with_suffix(".safetensors").write_bytes(probes)
        return read_witness(path)

    def cifar(path: Path) -> object:
        folder = place / "cifar-10-batches-py"
        folder.mkdir(exist_ok=True)
        (folder / "batches.meta").write_bytes(pickled({b"label_names": [f"c{k}".encode() for k in range(10)]}))
        for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
            (folder / name).write_bytes(path.read_bytes())
        return read_cifar10(folder)

    def image(path: Path) -> object:
        from rub.data.selection import Selection
        from rub.data.sources import load_images

        for part in ("train/a", "train/b", "val/a", "val/b"):
            (place / "pictures" / part).mkdir(parents=True, exist_ok=True)
            (place / "pictures" / part / "0.png").write_bytes(path.read_bytes())
        return load_images("folder", None, path=place / "pictures", size=8, selection=Selection())

    return {
        "suite YAML": ([yaml.safe_dump(SUITE).encode()], ".yaml", lambda path: load_suite(str(path))),
        "--set strings": (
            [b"classification.training.epochs=3", b"methods.ft.lr=0.1", b"evaluation.samples=[1, {a: 2}]"], ".txt",
            lambda path: load_suite("quick", overrides=[path.read_bytes().decode("utf-8", "replace")]),
        ),
        "records JSON": ([rows.encode(), b"[{}]"], ".json", read_records),
        "records parquet": ([(whole / "records.parquet").read_bytes()], ".parquet", read_records),
        "witness claim": ([claim.read_bytes()], ".json", witness),
        "safetensors": ([tensors], ".safetensors", read_state),
        "torch checkpoint": ([checkpoint.getvalue()], ".pt", read_state),
        "npz": ([arrays.getvalue()], ".npz", read_npz),
        "image file": ([picture.getvalue()], ".bin", image),
        "CIFAR batches": ([pickled({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]})], ".bin", cifar),
        "result folder": ([(whole / "manifest.json").read_bytes()], ".json", lambda path: folder_of(path, whole)),
    }  # fmt: skip


def forgeries(place: Path, each: int) -> Iterator[str]:
    """Yield a row for each kind of forged result folder: how many, and how many of them reading refuses."""
    from forgeries import CONTRADICTING, SILENT, forged

    made: dict[str, list[bool]] = {}
    for name, folder in forged(place / "forged", place / "whole" / "out", (*CONTRADICTING, *SILENT), each):
        try:
            read_folder(folder)
        except RubError:
            made.setdefault(name, []).append(True)
        else:
            made.setdefault(name, []).append(False)
    yield from (f"forged {name}: {len(found)} folders, {sum(found)} refused" for name, found in made.items())


def pickled(value: object) -> bytes:
    """Return a value as CIFAR's archives hold it."""
    import pickle

    return pickle.dumps(value, protocol=2)


def folder_of(path: Path, whole: Path) -> object:
    """Read a result folder under another manifest."""
    before = (whole / "manifest.json").read_bytes()
    try:
        (whole / "manifest.json").write_bytes(path.read_bytes())
        return read_folder(whole)
    finally:
        (whole / "manifest.json").write_bytes(before)


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Return the content with some bytes changed, cut out, doubled or made up."""
    made = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        place = draw.randrange(len(made) + 1)
        length = min(draw.choice((1, 1, 2, 8, 64)), len(made) - place)
        kind = draw.randrange(5)
        if kind == 0:
            made[place : place + length] = draw.randbytes(length)
        elif kind == 1:
            del made[place : place + length]
        elif kind == 2:
            made[place:place] = made[place : place + length] * draw.randrange(1, 4)
        elif kind == 3:
            made[place:place] = draw.choice(
                (b"\0", b"[", b"{", b"'", b"-1", b"1e999", b"&a *a", b"!!python/name:os.system")
            )
        elif made:
            place = min(place, len(made) - 1)
            made[place] ^= 1 << draw.randrange(8)
    return bytes(made)


if __name__ == "__main__":
    main()
