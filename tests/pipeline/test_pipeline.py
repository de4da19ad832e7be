"""The pipeline on stages that do arithmetic: keys, order, caching, failures, interruption, sharing, display."""

import errno
import io
import os
import random
import socket
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest
from rich.console import Console

from rub import load_suite
from rub.api import make_runtime, plan
from rub.errors import Diverged, RubError
from rub.pipeline.cache import Cache
from rub.pipeline.graph import Stage, in_order
from rub.pipeline.inline import run_inline
from rub.pipeline.progress import Display, clock
from rub.pipeline.runtime import Runtime
from rub.store.artifacts import Store

CALLS: list[str] = []


def work(stage, inputs, out, runtime):
    """Write the sum of a stage's own number and its inputs', or do what its spec says instead."""
    CALLS.append(stage.label)
    runtime.progress(1, 2, "half way")
    time.sleep(stage.spec.get("seconds", 0))
    (out / "partial.bin").write_bytes(b"x")
    match stage.spec.get("then"):
        case "diverge":
            raise Diverged("the loss became nan")
        case "break":
            raise ValueError("first line\nsecond line")
        case "refuse":
            raise RubError("the request is wrong")
        case "interrupt":
            raise KeyboardInterrupt
        case "fill the disk":
            raise OSError(errno.ENOSPC, "No space left on device")
    total = stage.spec["number"] + sum(int(item.file("sum").read_text()) for item in inputs.values())
    (out / "sum").write_text(str(total))


class Arithmetic:
    """A task whose stages add numbers."""

    functions: ClassVar = {"add": f"{__name__}:work"}


TASKS = {"arithmetic": Arithmetic()}


def stage(number, *needs, **spec):
    inputs = {f"input_{index}": need for index, need in enumerate(needs)}
    return Stage("arithmetic", "add", 1, f"add {number}", {"number": number, **spec}, inputs, cost=1.0)


def diamond(**top):
    """a feeds b and c, which feed d; e stands alone."""
    a = stage(1, **top)
    b, c = stage(10, a), stage(100, a)
    return {"a": a, "b": b, "c": c, "d": stage(1000, b, c), "e": stage(5)}


def run(stages, store, **options):
    CALLS.clear()
    screen = Console(file=io.StringIO(), width=200)
    with Display(screen, **options) as display:
        outcomes = run_inline(list(stages), TASKS, Store(store), Runtime(), display)
    return outcomes, screen.file.getvalue()


def partial(store):
    return [path for path in Path(store).rglob("*") if path.name.startswith(".") or path.name == "half"]


def test_every_stage_runs_once_and_sees_its_inputs(tmp_path):
    stages = diamond()
    outcomes, _ = run(stages.values(), tmp_path)
    assert sorted(CALLS) == ["add 1", "add 10", "add 100", "add 1000", "add 5"]
    sums = {name: int(outcomes[item.key].artifact.file("sum").read_text()) for name, item in stages.items()}
    assert sums == {"a": 1, "b": 11, "c": 101, "d": 1112, "e": 5}
    assert {outcome.status for outcome in outcomes.values()} == {"done"}


def test_a_manifest_says_where_an_artifact_comes_from(tmp_path):
    stages = diamond()
    outcomes, _ = run([stages["d"]], tmp_path)
    manifest = outcomes[stages["d"].key].artifact.manifest
    assert manifest["inputs"] == {"input_0": stages["b"].key, "input_1": stages["c"].key}
    assert (manifest["kind"], manifest["task"], manifest["label"]) == ("add", "arithmetic", "add 1000")
    assert manifest["seconds"] >= 0
    deciding = {"diffusers", "numpy", "scikit-learn", "scipy", "torch", "transformers"}
    assert set(manifest["library_versions"]) == deciding


def test_running_again_runs_nothing(tmp_path):
    first, _ = run(diamond().values(), tmp_path)
    again, said = run(diamond().values(), tmp_path)
    assert CALLS == []
    assert {outcome.status for outcome in again.values()} == {"cached"}
    assert {key: item.artifact.path for key, item in first.items()} == {k: i.artifact.path for k, i in again.items()}
    assert said == "5 stages, 5 in the store, 0 to run\n"


def test_only_what_is_missing_and_what_follows_a_change_runs(tmp_path):
    stages = diamond()
    run([stages["b"]], tmp_path)
    run(stages.values(), tmp_path)
    assert sorted(CALLS) == ["add 100", "add 1000", "add 5"]
    run([stage(2000, stages["b"], stages["c"])], tmp_path)
    assert CALLS == ["add 2000"]
    run(diamond(more=1).values(), tmp_path)
    assert sorted(CALLS) == ["add 1", "add 10", "add 100", "add 1000"]


def test_a_damaged_artifact_is_made_again_and_its_followers_stay(tmp_path):
    stages = diamond()
    outcomes, _ = run(stages.values(), tmp_path)
    outcomes[stages["b"].key].artifact.file("sum").write_text("12")
    again, _ = run(stages.values(), tmp_path)
    assert CALLS == ["add 10"]
    assert again[stages["b"].key].artifact.file("sum").read_text() == "11"
    assert again[stages["d"].key].status == "cached"


@pytest.mark.parametrize(
    ("then", "reason"),
    [("diverge", "add 1: diverged: the loss became nan"), ("break", "add 1: ValueError: first line")],
)
def test_a_failure_blocks_only_what_needs_it(tmp_path, then, reason):
    stages = diamond(then=then)
    outcomes, said = run(stages.values(), tmp_path)
    statuses = {name: outcomes[item.key].status for name, item in stages.items()}
    assert statuses == {"a": "failed", "b": "blocked", "c": "blocked", "d": "blocked", "e": "done"}
    [said_once] = {outcomes[stages[name].key].reason for name in "abcd"}
    assert said_once.startswith(reason)
    assert (f"({Path(__file__).name}:" in said_once) == (then == "break"), "an error of the code says where"
    assert f"FAILED {reason}" in said
    assert partial(tmp_path) == []
    assert not Store(tmp_path).has("add", stages["a"].key)
    run(stages.values(), tmp_path)
    assert CALLS == ["add 1"], "a failed stage is tried again, a finished one is not"


@pytest.mark.parametrize(
    ("then", "error", "says"),
    [
        ("refuse", RubError, "the request is wrong"),
        ("fill the disk", RubError, "the disk is full"),
        ("interrupt", KeyboardInterrupt, None),
    ],
)
def test_what_ends_a_run_keeps_the_finished_stages(tmp_path, then, error, says):
    first, second = stage(1), stage(2)
    stages = [first, second, stage(3, first, then=then), stage(4, second)]
    with pytest.raises(error, match=says):
        run(stages, tmp_path)
    assert CALLS == ["add 1", "add 2", "add 3"]
    assert partial(tmp_path) == []
    assert sorted(path.name for path in (tmp_path / "add").iterdir()) == sorted([first.key, second.key])
    outcomes, _ = run([first, second, stage(4, second)], tmp_path)
    assert CALLS == ["add 4"]
    assert {outcome.status for outcome in outcomes.values()} == {"cached", "done"}


def test_threads_on_one_store_compute_every_stage_once(tmp_path):
    CALLS.clear()
    given = []

    def assist():
        stages = [stage(number, stage(-1, seconds=0.02), seconds=0.02) for number in range(6)]
        with Display(Console(file=io.StringIO()), quiet=True) as display:
            given.append(run_inline(stages, TASKS, Store(tmp_path), Runtime(), display))

    crew = [threading.Thread(target=assist) for _ in range(3)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join(60)
    assert sorted(CALLS) == sorted(["add -1", *(f"add {number}" for number in range(6))])
    assert len(given) == 3
    for outcomes in given:
        assert len(outcomes) == 7
        assert {outcome.status for outcome in outcomes.values()} <= {"done", "cached"}
    done = [key for outcomes in given for key, outcome in outcomes.items() if outcome.status == "done"]
    assert len(done) == len(set(done)) == 7


@pytest.mark.slow
def test_waiting_for_another_process_is_said_once(tmp_path):
    held = stage(1)
    opened = Store(tmp_path)
    screen = Console(file=io.StringIO(), width=200)

    def release():
        with opened.try_lock(held.key) as ours:
            assert ours
            ready.set()
            time.sleep(0.5)

    ready = threading.Event()
    other = threading.Thread(target=release)
    other.start()
    assert ready.wait(10)
    with Display(screen) as display:
        outcomes = run_inline([held], TASKS, Store(tmp_path), Runtime(), display)
    other.join(10)
    assert outcomes[held.key].status == "done"
    assert screen.file.getvalue().count(f"waiting for process {os.getpid()} on {socket.gethostname()}: add 1") == 1


def random_graph(seed):
    """Forty stages, each of which needs up to three earlier ones."""
    draw, stages = random.Random(seed), []
    for number in range(40):
        stages.append(stage(number, *draw.sample(stages, min(len(stages), draw.randrange(4)))))
    return stages


@pytest.mark.parametrize("seed", range(5))
def test_the_order_is_complete_and_inputs_come_first(seed):
    stages = random_graph(seed)
    wanted = random.Random(seed).sample(stages, 7)
    ordered = in_order(wanted)
    place = {item.key: index for index, item in enumerate(ordered)}
    assert len(place) == len(ordered), "every stage once"
    assert all(place[need.key] < place[item.key] for item in ordered for need in item.inputs.values())

    def closure(item):
        return {item.key}.union(*(closure(need) for need in item.inputs.values()))

    assert set(place) == set().union(*(closure(item) for item in wanted))


def test_a_key_holds_what_decides_the_result():
    one = stage(1, stage(0))
    assert one.key == stage(1, stage(0)).key
    same = Stage("arithmetic", "add", 1, "another label", {"number": 1}, {"input_0": stage(0)}, {"f": Path("x")}, 9.0)
    assert same.key == one.key, "label, paths and cost are not in the key"
    others = [
        stage(2, stage(0)),
        stage(1, stage(7)),
        stage(1),
        stage(1, stage(0), seed=1),
        Stage("arithmetic", "add", 2, "add 1", {"number": 1}, {"input_0": stage(0)}),
        Stage("arithmetic", "multiply", 1, "add 1", {"number": 1}, {"input_0": stage(0)}),
        Stage("geometry", "add", 1, "add 1", {"number": 1}, {"input_0": stage(0)}),
        Stage("arithmetic", "add", 1, "add 1", {"number": 1}, {"role": stage(0)}),
    ]
    assert len({item.key for item in others} | {one.key}) == len(others) + 1


def test_a_large_plan_is_whole():
    suite = load_suite("table1-cifar10", overrides=["dataset=digits"])
    [(experiment, graph)] = plan(suite, make_runtime(device="cpu"))
    ordered = in_order(graph.stages)
    assert len({item.key for item in ordered}) == len(ordered)
    kinds = {kind: sum(item.kind == kind for item in ordered) for kind in {item.kind for item in ordered}}
    rows = 1 + 3 + 10 * 15  # original, sham, zero-row, drift, and ten seeds of retrain and fourteen methods
    doses = 5 * 2  # of two seeds; of attacks they have the main one
    assert len(experiment.methods) == 14
    assert kinds["data"] == 1
    assert kinds["train"] == 1 + 10 + doses
    assert kinds["shadow"] == 5 * 2
    assert kinds["unlearn"] == 3 + 14 * 10
    assert kinds["measure"] == kinds["radius"] == kinds["relearn"] == rows + doses
    assert kinds["measure-attack"] == rows * (2 + 1) + doses * 2, "uma at 8/255 and 16/255, noise at 16/255"
    assert kinds["attack"] == rows * (2 * 2 + 1) + doses * 2 * 2, "two sets of images for uma, one for noise"
    assert kinds["scale"] == 1 + 3 + 14, "of the metrics, the controls and the methods"


def test_the_memo_keeps_the_most_recently_used():
    memo, made = Cache(size=2), []

    def get(key):
        return memo.get(key, lambda: made.append(key) or key.upper())

    assert [get(key) for key in "abacaba"] == list("ABACABA")
    assert made == ["a", "b", "c", "b"]


def test_clock():
    assert [clock(seconds) for seconds in (0, 59.4, 59.6, 190, 3599.6, 7500)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "3 min 10 s",
        "1 h 00 min",
        "2 h 05 min",
    ]


def test_lines_instead_of_a_live_display(tmp_path):
    _, said = run(diamond(then="diverge").values(), tmp_path)
    lines = said.splitlines()
    assert lines[0] == "5 stages, 0 in the store, 5 to run"
    assert any(line.startswith("[5/5] add 5 (") for line in lines)
    _, said = run([stage(3), stage(4)], tmp_path)
    assert " left)" in said.splitlines()[1]
    assert " left)" not in said.splitlines()[2]
    _, said = run([stage(8)], tmp_path, quiet=True)
    assert said == ""


def test_the_live_display_draws_and_goes_away(tmp_path):
    screen = Console(file=io.StringIO(), force_terminal=True, width=80)
    with Display(screen) as display:
        outcomes = run_inline(list(diamond().values()), TASKS, Store(tmp_path), Runtime(), display)
    assert len(outcomes) == 5
    assert "stages" in screen.file.getvalue()


def test_a_long_stage_says_how_far_it_is_without_a_terminal():
    screen = Console(file=io.StringIO(), width=200)
    display = Display(screen)
    display.began(stage(1))
    display.step(512, 60_000, "training")
    assert screen.file.getvalue() == ""
    display._step_said -= 31
    display.step(1024, 60_000, "training")
    display.step(1536, 60_000, "training")
    assert screen.file.getvalue() == "add 1: 1,024 of 60,000 training\n"


def test_time_left_goes_by_the_cost_of_each_kind(tmp_path):
    display = Display(Console(file=io.StringIO()), quiet=True)
    stages = [Stage("t", kind, 1, kind, {"n": n}, cost=cost) for kind, n, cost in
              (("train", 0, 10.0), ("train", 1, 30.0), ("attack", 0, 5.0))]  # fmt: skip
    display.start(stages, Store(tmp_path))
    assert display.seconds_left() == 0, "nothing is known yet"
    display._stage_began = time.monotonic() - 20
    display.ended(stages[0], "done", "")
    # 2 s per cost of training: 60 s for the next; attacks have not been seen, and count like the mean so far.
    assert display.seconds_left() == pytest.approx(60 + 10, rel=0.05)
