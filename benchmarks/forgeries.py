"""Forged result folders: one change of one fact, or of all places that a careless forger knows, sealed again."""

import json
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import pyarrow.parquet
import yaml

from rub.metrics.statistics import wilson
from rub.store.manifest import read_manifest, seal_folder
from rub.store.records import Record, read_records, write_records


@dataclass
class Folder:
    """What a forger changes: records, samples, curves, claims of witnesses and the suite, as plain data."""

    records: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    curves: list[dict[str, Any]]
    claims: dict[str, dict[str, Any]]
    suite: dict[str, Any]
    stages: list[dict[str, Any]]

    @classmethod
    def read(cls, place: Path) -> "Folder":
        return cls(
            [record.model_dump() for record in read_records(place)],
            pyarrow.parquet.read_table(place / "samples.parquet").to_pylist(),
            json.loads((place / "curves.json").read_text()),
            {path.name: json.loads(path.read_text()) for path in sorted((place / "witnesses").glob("*.json"))},
            yaml.safe_load((place / "suite.yaml").read_text()),
            json.loads((place / "stages.json").read_text()),
        )

    def write(self, place: Path, like: Path) -> Path:
        """Write the folder and seal it, as `rub run` would."""
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(like / "witnesses", place / "witnesses")
        write_records([Record.model_validate(row) for row in self.records], {"samples": self.samples}, place)
        (place / "curves.json").write_text(json.dumps(self.curves))
        (place / "suite.yaml").write_text(yaml.safe_dump(self.suite, sort_keys=False))
        (place / "stages.json").write_text(json.dumps(self.stages))
        for path in sorted((place / "witnesses").glob("*.json")):
            if path.name in self.claims:
                path.write_text(json.dumps(self.claims[path.name]))
            else:
                path.unlink()
                path.with_suffix(".safetensors").unlink()
        facts = read_manifest(like)
        seal_folder(place, {name: facts[name] for name in ("command", "code_version", "data")})
        return place


Forgery = Callable[[Folder, Random], object]
CELL = ("method", "unlearn_seed", "attack", "budget", "split")
RATES = {"classification": "ua", "inpainting": "recovered", "text-to-image": "asr_post"}
"""Task -> the metric that is the share of recovered samples."""


def attacked(folder: Folder, draw: Random, metric: str = "ua") -> dict[str, Any]:
    return draw.choice([row for row in folder.records if row["attack"] != "none" and row["metric"] == metric])


def behind(rows: list[dict[str, Any]], row: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in rows if all(one[name] == row[name] for name in CELL)]


def lower(folder: Folder, draw: Random) -> None:
    """A rate after an attack is another whole number of its samples, with its interval."""
    row = attacked(folder, draw)
    hits = draw.choice([k for k in range(row["n"] + 1) if k != round(row["value"] * row["n"])])
    low, high = wilson(hits, row["n"])
    row.update(value=hits / row["n"], ci_low=low, ci_high=high)


def derived(folder: Folder, draw: Random) -> None:
    """An excess, a ratio or an average gap."""
    row = draw.choice([r for r in folder.records if r["metric"] in ("residual_knowledge", "residual_ratio", "avg_gap")])
    row["value"] = min(row["value"] + draw.uniform(0.01, 0.2), 1.0) if row["value"] < 0.9 else row["value"] - 0.1


def fraction(folder: Folder, draw: Random) -> None:
    """A share that is no whole number of its samples."""
    rows = [r for r in folder.records if r["metric"] in ("ta", "ua", "ra", "ua_test", "mia_svc") and r["n"] > 2]
    draw.choice(rows).update(value=draw.random())


def interval(folder: Folder, draw: Random) -> None:
    """A narrower interval."""
    row = draw.choice([r for r in folder.records if r["metric"] in ("ta", "ua", "ra") and r["ci_low"] is not None])
    row["ci_low"] = (row["ci_low"] + row["value"]) / 2
    row["ci_high"] = (row["ci_high"] + row["value"]) / 2


def count(folder: Folder, draw: Random) -> None:
    """More samples than there are."""
    attacked(folder, draw)["n"] *= draw.choice((2, 3, 10))


def recovered(folder: Folder, draw: Random) -> None:
    """Outcomes of samples."""
    row = draw.choice(folder.samples)
    row["recovered"] = not row["recovered"]


def cleaned(folder: Folder, draw: Random) -> None:
    """Which samples were recognised without the attack."""
    row = draw.choice(folder.samples)
    row["clean"] = not row["clean"]


def twice(folder: Folder, draw: Random) -> None:
    """A sample that counts twice."""
    row = draw.choice(folder.samples)
    row["sample_id"] = draw.choice([one for one in behind(folder.samples, row) if one is not row])["sample_id"]


def doubled(folder: Folder, draw: Random) -> None:
    """Rows of samples or records that are there twice."""
    rows = draw.choice((folder.samples, folder.records))
    rows.append(dict(draw.choice(rows)))


def dropped(folder: Folder, draw: Random) -> None:
    """Samples of a search, or its curve, left out."""
    row = attacked(folder, draw)
    kind = draw.choice(("samples", "curves"))
    rows = getattr(folder, kind)
    setattr(folder, kind, [one for one in rows if one not in behind(rows, row)])


def others(folder: Folder, draw: Random) -> None:
    """A search on other images than the rows beside it."""
    row = attacked(folder, draw)
    for one in behind(folder.samples, row):
        one["sample_id"] += draw.randrange(5000, 9000)


def reached(folder: Folder, draw: Random) -> None:
    """A probe outside the budget, or of another search."""
    row = draw.choice(folder.samples)
    row.update(
        draw.choice(({"linf": 33 + draw.randrange(200)}, {"probe": f"{'a' * 64}:0"}, {"label": row["label"] + 1}))
    )
    if row["split"] == "retain":
        row["linf"] = 99


def curved(folder: Folder, draw: Random) -> None:
    """The end of a curve, its passes, or whether it had levelled off."""
    curve = draw.choice(folder.curves)
    kind = draw.randrange(3)
    if kind == 0:
        curve["success_curve"][-1] = (curve["success_curve"][-1] + 0.5) % 1
    elif kind == 1:
        curve["evaluations"] += draw.randrange(1, 100)
    else:
        curve["converged"] = not curve["converged"]


def swapped(folder: Folder, draw: Random) -> None:
    """Roles: two rows change their names in the records."""
    one, other = draw.choice(("original", "ft")), draw.choice(("retrain", "sham", "zero-row"))
    for row in folder.records:
        row["method"] = {one: other, other: one}.get(row["method"], row["method"])


def relabelled(folder: Folder, draw: Random) -> None:
    """A row under another name, attack or budget, in the records alone."""
    name, value = draw.choice((("method", "mine"), ("unlearn_seed", 7), ("budget", "4/255"), ("attack", "mine")))
    row = attacked(folder, draw)
    for one in behind(folder.records, row):
        one[name] = value


def direction(folder: Folder, draw: Random) -> None:
    """Which way is better."""
    row = draw.choice([r for r in folder.records if r["direction"] != "reference"])
    row["direction"] = {"up": "down", "down": "up"}[row["direction"]]


def weights(folder: Folder, draw: Random) -> None:
    """Weights of another model for a single number, or a stage of another row."""
    row, other = attacked(folder, draw), attacked(folder, draw)
    while other["method"] == row["method"]:
        other = attacked(folder, draw)
    name = draw.choice(("weights_sha256", "key"))
    row[name] = other[name]


def suites(folder: Folder, draw: Random) -> None:
    """Another suite, or experiment, than the one that is told."""
    if draw.random() < 0.5:
        folder.suite["name"] = f"suite-{draw.randrange(1000)}"
    else:
        folder.suite["experiments"][0]["name"] = f"experiment-{draw.randrange(1000)}"


def claimed(folder: Folder, draw: Random) -> None:
    """Witnesses of another row, other weights, one sample twice, or one that was not recovered."""
    claim = folder.claims[draw.choice(sorted(folder.claims))]
    kind = draw.randrange(4)
    if kind == 0:
        claim["method"] = draw.choice(("retrain", "sham", "mine"))
    elif kind == 1:
        claim["models"]["unlearned"]["sha256"] = "a" * 64
    elif kind == 2:
        claim["samples"].append(dict(claim["samples"][0]))
    else:
        claim["samples"][0]["id"] += 5000


def failed(folder: Folder, draw: Random) -> None:
    """A bad number that is said to have failed."""
    attacked(folder, draw).update(value=None, ci_low=None, ci_high=None, n=0, status="failed", reason="out of memory")


def tuned(folder: Folder, draw: Random) -> None:
    """Hyperparameters, training or network of the suite other than those that ran."""
    experiment = folder.suite["experiments"][0]
    part = draw.choice((experiment["methods"]["ft"], experiment["training"], experiment["model"]))
    name = draw.choice([name for name, value in part.items() if isinstance(value, int | float)])
    part[name] = part[name] * 2 + 1


def restaged(folder: Folder, draw: Random) -> None:
    """A stage's settings, inputs or version other than those that its key is the hash of."""
    row = draw.choice([row for row in folder.stages if row["inputs"]])
    kind = draw.randrange(3)
    if kind == 0:
        row["version"] += 1
    elif kind == 1:
        row["spec"]["validation"] = draw.random()
    else:
        row["inputs"][draw.choice(sorted(row["inputs"]))] = 0 if draw.random() < 0.5 else len(folder.stages)
        row["spec"]["validation"] = draw.random()


def told(
    own: list[dict[str, Any]], reference: list[dict[str, Any]], budget: str
) -> tuple[dict[str, tuple[int, int]], dict[str, float]]:
    """What samples of a row and of the retrained model give: metric -> count and of how many, and metric -> value."""
    hits, others, n = sum(one["recovered"] for one in own), sum(one["recovered"] for one in reference), len(own)
    gone = sum(not one["clean"] for one in own)
    shares = {"recovered": (hits, n)} | ({"back": (hits - n + gone, gone)} if gone else {})
    values = {"residual_knowledge": (hits - others) / n, "residual_ratio": (1 + hits) / (1 + others)}
    if budget.isdecimal():  # attack steps
        steps = [int(budget) if one["step"] < 0 else one["step"] for one in own]
        values |= {"steps_mean": sum(steps) / n, "steps_median": median(steps)}
    return shares, values


def consistent(folder: Folder, draw: Random) -> None:
    """A method's robustness everywhere: rates, intervals, samples, curves, steps, differences and witnesses agree."""
    method, rate = next(iter(folder.suite["experiments"][0]["methods"])), RATES[folder.records[0]["task"]]
    ids = sorted({row["sample_id"] for row in folder.samples if row["method"] == method})
    kept = {identity for identity in ids if draw.random() < 0.2}
    for row in folder.samples:
        if row["method"] == method and row["sample_id"] not in kept and not row["clean"]:
            row.update(recovered=False, step=-1)
    for row in [r for r in folder.records if r["method"] == method and r["attack"] != "none"]:
        own, other = (behind(folder.samples, {**row, "method": name}) for name in (method, "retrain"))
        shares, values = told(own, other, row["budget"]) if own else ({}, {})
        if (metric := "recovered" if row["metric"] == rate else row["metric"]) in shares:
            hits, n = shares[metric]
            low, high = wilson(hits, n)
            row.update(value=hits / n, ci_low=low, ci_high=high)
        elif metric in values:
            row["value"] = values[metric]
    for curve in folder.curves:
        if curve["method"] == method:
            own = behind(folder.samples, curve)
            end = sum(one["recovered"] for one in own) / len(own)
            curve["success_curve"] = [min(value, end) for value in curve["success_curve"][:-1]] + [end]
    for name, claim in list(folder.claims.items()):
        if claim["method"] == method:
            hit = {one["sample_id"] for one in behind(folder.samples, claim) if one["recovered"]}
            claim["samples"] = [one for one in claim["samples"] if one["id"] in hit] or claim["samples"]
            if not any(one["id"] in hit for one in claim["samples"]):
                del folder.claims[name]


def unattacked(folder: Folder, draw: Random) -> None:
    """A number that has no part in the folder: an AUC, or an accuracy that stays a whole number of images."""
    row = draw.choice(
        [r for r in folder.records if r["metric"] in ("mia_rmia", "log_odds_auc", "ta_all", "probe_accuracy")]
    )
    hits = draw.randrange(row["n"] + 1)
    row["value"] = hits / row["n"]
    if row["ci_low"] is not None:
        row["ci_low"], row["ci_high"] = wilson(hits, row["n"])
    if row["metric"] == "mia_rmia":
        row["ci_low"] = row["ci_high"] = None


CONTRADICTING: tuple[Forgery, ...] = (
    lower, derived, fraction, interval, count, recovered, cleaned, twice, doubled, dropped, others, reached, curved,
    swapped, relabelled, direction, weights, suites, claimed, failed, tuned, restaged,
)  # fmt: skip
"""Forgeries that something else in the folder contradicts."""
SILENT: tuple[Forgery, ...] = (consistent, unattacked)
"""Forgeries that nothing in the folder contradicts: the first takes its weights to be found."""


def forged(place: Path, like: Path, kinds: tuple[Forgery, ...], each: int) -> Iterator[tuple[str, Path]]:
    """Yield the name of the kind and the forged folder, one after the other at the same place."""
    whole = Folder.read(like)
    for forgery in kinds:
        for seed in range(each):
            folder = deepcopy(whole)
            forgery(folder, Random(f"{forgery.__name__}-{seed}"))
            yield forgery.__name__, folder.write(place, like)
