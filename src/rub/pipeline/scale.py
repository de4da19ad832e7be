"""The stage that places a method on the dose scale, or says of each metric whether it goes with the dose at all."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rub.metrics.dose import DOSES, FLAT, SPEARMAN, Measurement, Place, Validity, dose_equivalent, dose_of, validity
from rub.pipeline.graph import Stage
from rub.pipeline.runtime import Runtime
from rub.store.artifacts import Artifact
from rub.store.records import number

Found = Mapping[Place, Mapping[str, list[Measurement]]]
"""Place -> row -> what each model of that row measured there."""


def place_on_scale(stage: Stage, inputs: Mapping[str, Artifact], out: Path, runtime: Runtime) -> None:
    """Write the dose-equivalents of one method, or, for `DOSES`, how each metric goes with the dose."""
    found = measurements(inputs.values(), stage.spec["originals"])
    rows = list(_rows(stage.spec["method"], stage.cells, found, stage.spec["rising"]))
    (out / "rows.json").write_text(json.dumps(rows, allow_nan=False), encoding="utf-8")


def measurements(artifacts: Iterable[Artifact], originals: Mapping[str, int]) -> Found:
    """What measuring stages found, gathered by place and row: the mean over MIA seeds, with images where there are any.

    Args:
        artifacts: of measuring stages.
        originals: ``"method seed"`` -> number of the original that the row belongs to; 0 where left out.
    """
    values: dict[tuple[Place, str, int], list[Mapping[str, Any]]] = defaultdict(list)
    images: dict[tuple[Place, str, int], dict[int | str, float]] = defaultdict(dict)
    for artifact in artifacts:
        for row in artifact.json("rows.json"):
            if row["value"] is not None:
                values[Place.of(row), row["method"], row["unlearn_seed"]].append(row)
        for row in artifact.json("values.json") if "values.json" in artifact.manifest["files"] else ():
            images[Place.of(row), row["method"], row["unlearn_seed"]][row["sample_id"]] = row["value"]
    found: dict[Place, dict[str, list[Measurement]]] = defaultdict(lambda: defaultdict(list))
    for (place, method, seed), rows in values.items():
        own, original = images.get((place, method, seed)), originals.get(f"{method} {seed}", 0)
        value = float(np.mean(list(own.values()) if own else [row["value"] for row in rows]))
        low, high = (rows[0].get("ci_low"), rows[0].get("ci_high")) if len(rows) == 1 else (None, None)
        found[place][method].append(Measurement(value, low, high, own, original))
    return found


def _rows(
    method: str, cells: Iterable[Mapping[str, Any]], found: Found, rising: Mapping[str, bool]
) -> Iterator[dict[str, Any]]:
    judged: dict[Place, Validity] = {}  # two cells of each metric ask for it
    for cell in cells:
        metric, _, what = cell["metric"].rpartition("_")
        place = Place.of({**cell, "metric": metric})
        models = found[place]
        scale = {dose: measured for row, measured in models.items() if (dose := dose_of(row)) is not None}
        if len(scale) < 2 or (method != DOSES and method not in models):  # a metric may have no value of a model
            yield {**cell, "value": None, "n": 0}
            continue
        if method != DOSES:
            at = dose_equivalent(scale, models[method], seed=0, rising=rising[metric])
            ends = {"ci_low": at.low, "ci_high": at.high}
            yield {**cell, "value": at.percent, **ends, "n": len(models[method]), "setting": at.side}
            continue
        if place not in judged:
            judged[place] = validity(scale, seed=0, rising=rising[metric])
        said = judged[place]
        value = said.spearman if f"_{what}" == SPEARMAN else said.smallest
        yield {
            **cell,
            "value": number(value),
            "n": said.models,
            "setting": f"p = {said.p:.2g}" + f", {FLAT}" * (not said.rises),
        }
