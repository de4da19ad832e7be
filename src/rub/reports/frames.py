"""The numbers of a result folder as DataFrames."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rub.metrics.dose import DOSES
from rub.reports.folders import experiment_in, read_folder
from rub.reports.samples import tables_in
from rub.reports.text import told

if TYPE_CHECKING:
    import pandas

SAMPLE_COLUMNS: Mapping[str, str] = {
    "task": "classification, inpainting or text-to-image",
    "experiment": "name of the experiment in its suite",
    "protocol": "of the experiment",
    "scenario": "`samples` where single samples were forgotten, else empty",
    "dataset": "name of the data set",
    "model": "name of the network",
    "suite": "name of the suite",
    "method": "row: a method or a control",
    "unlearn_seed": "seed of the unlearning",
    "original": "number of the original model",
    "attack": "name of the attack in its protocol",
    "budget": "as in records: `8/255`, `unbounded`, or the steps of a search of prompts",
    "split": "`forget`, `retain`, `forget_test` (unseen images of the class), `other` (them, to another class)",
    "sample_id": "id in the data set: images of classes by their place in it, those of folders by their file's name",
    "label": "class of the image",
    "class": "its name",
    "file": "its file below the folder of images, where there is one",
    "clean": "whether the model gave it away without the attack",
    "recovered": "whether it did after the attack",
    "distance": "what the attack made small: divergence to the original's answer, or squared error to its completion",
    "score": "the judge's score of the picture for the concept",
    "step": "step at which it was first recovered; 0 before the first, -1 never",
    "gradient_steps": "steps along a gradient until then",
    "evaluations": "pictures that were judged until then",
    "linf": "largest change of a pixel, in 1/255",
    "probe": "the attacked input: key of the stage that keeps it, and its row there",
    "metric": "name of a metric that is a mean over samples",
    "value": "what it is for this sample",
}
"""Column of ``samples.parquet`` and ``values.parquet`` -> what it holds; a task has those that it needs."""


@dataclass(frozen=True)
class Results:
    """What a result folder holds.

    Attributes:
        records: a row for each measured number, with the columns of `rub.store.records.Record` and ``hyperparameters``,
            those that the suite gives to the row's method.
        samples: a row for each attacked sample, with columns of `SAMPLE_COLUMNS`; empty where there is none.
        values: a row for each sample of a metric that is a mean over samples, likewise.
    """

    records: "pandas.DataFrame"
    samples: "pandas.DataFrame"
    values: "pandas.DataFrame"


def read_results(folder: str | Path) -> Results:
    """The numbers of a result folder as pandas DataFrames; the folder is compared with its seal first.

    Raises:
        RubError: no result folder, one that was changed since, or whose numbers contradict each other.
    """
    import pandas

    place = Path(folder)
    found = read_folder(place)
    records = pandas.DataFrame([record.model_dump() for record in found.records])
    methods = {
        (row.task, row.experiment): experiment_in(found.suite, row.task, row.experiment).get("methods") or {}
        for row in found.records
    }
    records["hyperparameters"] = [
        "" if row.method == DOSES else told(methods[row.task, row.experiment].get(row.method) or {})
        for row in found.records
    ]
    samples, values = (pandas.DataFrame() if one is None else one.to_pandas() for one in tables_in(place))
    return Results(records, samples, values)
