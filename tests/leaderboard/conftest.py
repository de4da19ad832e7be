"""What tests of entries share: folders that are changed, made to agree with themselves again, and sealed again."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest

from rub.metrics.statistics import wilson
from rub.reports.lineage import StageFacts, keys_of
from rub.store.manifest import read_manifest, seal_folder

BESIDE = ("values.parquet", "verdict.json")


@pytest.fixture(scope="module")
def kinds(benchmark_script):
    return benchmark_script("forgeries")


@pytest.fixture
def forge(kinds, tmp_path):
    """Change a folder's parts, or its files, let all that depends on them agree, and seal it as the product does."""

    def forged(
        like: Path, edit: Callable = lambda folder: None, files: Callable = lambda place: None, *, agree: bool = True
    ) -> Path:
        folder = kinds.Folder.read(like)
        before = keys_of([StageFacts.model_validate(row) for row in deepcopy(folder.stages)])
        edit(folder)
        if agree:
            recount(folder, kinds.behind)
            rekey(folder, before)
        place = folder.write(tmp_path / "forged", like)
        for path in (place / "witnesses").glob("*.json"):
            if path.name not in folder.claims:
                path.unlink()
                path.with_suffix(".safetensors").unlink()
        for name in BESIDE:
            if (like / name).is_file():
                (place / name).write_bytes((like / name).read_bytes())
        files(place)
        seal_folder(place, {name: read_manifest(like)[name] for name in ("command", "code_version", "data")})
        return place

    return forged


def recount(folder, behind) -> None:
    """Rates, intervals and curves as the samples give them, and witnesses of recovered images alone."""
    for row in folder.records:
        if row["metric"] in ("ua", "ua_before", "ua_test") and row["attack"] != "none":
            own = behind(folder.samples, row)
            hits = sum(one["clean" if row["metric"] == "ua_before" else "recovered"] for one in own)
            low, high = wilson(hits, len(own))
            row.update(value=hits / len(own), n=len(own), ci_low=low, ci_high=high)
    for curve in folder.curves:
        own = behind(folder.samples, curve)
        end = sum(one["recovered"] for one in own) / len(own)
        curve["success_curve"] = [min(value, end) for value in curve["success_curve"][:-1]] + [end]
    for name, claim in list(folder.claims.items()):
        hit = {one["sample_id"] for one in behind(folder.samples, claim) if one["recovered"]}
        if not hit & {one["id"] for one in claim["samples"]}:
            del folder.claims[name]


def rekey(folder, before) -> None:
    """Keys as changed stages give them, wherever they stand."""
    after = keys_of([StageFacts.model_validate(row) for row in folder.stages])
    new = dict(zip(before, after, strict=True))
    for row in folder.records:
        row["key"] = new.get(row["key"], row["key"])
        row["inputs"] = tuple(new.get(key, key) for key in row["inputs"])
    for row in folder.samples:
        key, _, number = row["probe"].partition(":")
        row["probe"] = f"{new.get(key, key)}:{number}"
