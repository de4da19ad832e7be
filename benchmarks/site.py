"""How long the site of 10,000 records takes, how large its leaderboard is, and how fast it sorts in Chromium.

    python benchmarks/site.py --records 10000

Records are made up in the shape of Table 1: suites of 14 methods and 3 controls, 3 unlearning x 2 MIA seeds, two
attacked budgets, each suite on a network of its own. Sorting is timed in the page, from the click until the rows are
laid out; without Chromium it is left out. `--verify` scores so many classification witnesses of a small network again.
"""

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from pathlib import Path

from rub.api import make_runtime, verify
from rub.registry import METHODS
from rub.reports.writing import write_reports
from rub.store.manifest import seal_folder
from rub.store.records import Record, write_records
from rub.tasks.classification.metrics import cell

METHODS = ("original", "retrain", *(entry.name for entry in METHODS.entries("classification")))
CLEAN = (
    ("ta", "test"), ("ra", "retain"), ("ua", "forget"), ("ua_test", "forget_test"), ("log_odds_auc", "test"),
    ("probe_accuracy", "forget_test"), ("mia_svc", "forget"), ("mia_rmia", "forget"),
)  # fmt: skip
CLICK = """() => new Promise((done) => {
  const button = document.querySelector('table.board thead tr:last-child th:nth-child(2) button');
  const start = performance.now();
  button.click();
  document.body.getBoundingClientRect();
  requestAnimationFrame(() => done(performance.now() - start));
})"""


def main() -> None:
    """Make up, build, sort, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--verify", type=int, default=1000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        print(f"records in one file: {given.records}")
        build(Path(place) / "one", given.records, 1)
        print("records in suites of about 1,400")
        index = build(Path(place) / "many", given.records, max(given.records // 1400, 1))
        sort(index)
        check(Path(place), given.verify)


def build(folder: Path, count: int, suites: int) -> Path:
    """Write result folders with so many records in all, and time their site."""
    for number in range(suites):
        made(folder / f"suite-{number}", number, count // suites)
    start = time.perf_counter()
    index, refused = write_reports([folder], folder / "site", workers=os.cpu_count() or 1)
    took = time.perf_counter() - start
    assert not refused
    size = sum(path.stat().st_size for path in (folder / "site").rglob("*") if path.is_file())
    print(f"  site: {took:.1f} s, leaderboard {index.stat().st_size / 2**20:.2f} MiB, all files {size / 2**20:.1f} MiB")
    return index


def made(folder: Path, number: int, count: int) -> None:
    """Write one result folder of made-up records."""
    draw = random.Random(number)
    rows: list[Record] = []
    curves = []
    copies = 0
    while len(rows) < count:
        common = {
            "task": "classification", "suite": f"suite-{number}", "experiment": "", "protocol": "rub-paper-1",
            "dataset": "cifar10", "model": f"resnet-{copies}", "n": 4500, "device": "cpu",
            "code_version": "0.1.0+0123456789",
            "created": "2026-01-01T00:00:00+00:00", "weights_sha256": f"{draw.getrandbits(256):064x}",
            "library_versions": {"torch": "2.13.0"},
        }  # fmt: skip
        for method in METHODS:
            for seed in range(1 if method in ("original", "sham") else 3):
                for where, value in cells(method, seed, draw):
                    keys = {"key": f"{draw.getrandbits(256):064x}", "inputs": [f"{draw.getrandbits(256):064x}"] * 6}
                    rows.append(Record.model_validate({**common, **keys, **where, "value": value}))
                for budget in ("8/255", "16/255"):
                    shared = {
                        name: common[name] for name in ("task", "suite", "experiment", "protocol", "dataset", "model")
                    }
                    steps = sorted(draw.random() for _ in range(101))
                    curves.append({
                        **shared, "method": method, "unlearn_seed": seed, "attack": "uma", "budget": budget,
                        "split": "forget", "success_curve": steps, "loss_curve": steps[::-1], "evaluations": 9,
                        "converged": True,
                    })  # fmt: skip
        copies += 1
    write_records(rows[:count], [], folder)
    (folder / "curves.json").write_text(json.dumps(curves), encoding="utf-8")
    (folder / "suite.yaml").write_text(f"name: suite-{number}\nexperiments: []\n", encoding="utf-8")
    seal_folder(folder, {"command": f"rub run suite-{number}", "code_version": ""})


def cells(method: str, seed: int, draw: random.Random):
    """Yield the fields and the value of every record of one model."""
    for metric, split in CLEAN:
        yield cell(method, seed, metric, split), draw.random()
    for budget in ("8/255", "16/255"):
        at = {"attack": "uma", "budget": budget}
        for metric, split in (("ua", "forget"), ("ua", "retain"), ("residual_knowledge", "forget")):
            yield cell(method, seed, metric, split, **at), draw.random()
        yield from ((cell(method, seed, "mia_shadow", mia_seed=mia, **at), draw.random()) for mia in range(2))
    yield from ((cell(method, seed, "mia_shadow", mia_seed=mia), draw.random()) for mia in range(2))


def sort(index: Path) -> None:
    """Sort the leaderboard a few times in Chromium and print the longest."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        print("  sort: no Chromium here")
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(index.as_uri())
        rows = page.locator("table.board tbody tr").count()
        times = [page.evaluate(CLICK) for _ in range(6)]
        browser.close()
    print(f"  sort: {rows} rows, longest of 6: {max(times):.0f} ms")


def check(folder: Path, count: int) -> None:
    """Make so many witnesses of a small network on digits, and time their verification."""
    from rub import load_suite, run

    changes = ["evaluation.attack_samples=130", "model.width=8"]
    suite = load_suite("quick", task="classification", methods=["ft", "ga"], overrides=changes)
    run(suite, store=folder / "store", out=folder / "out", runtime=make_runtime(device="cpu"))
    start, held, broken = time.perf_counter(), 0, 0
    for one in verify(folder / "out", store=folder / "store", runtime=make_runtime(device="cpu")):
        held, broken = held + one.held, broken + len(one.broken)
    took = time.perf_counter() - start
    print(f"verify: {held} witnesses held, {broken} not, {took:.1f} s; {count} would take {took * count / held:.1f} s")


if __name__ == "__main__":
    main()
