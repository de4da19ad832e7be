"""One method's results for its model repository on the Hugging Face Hub: an ``.eval_results`` file.

The file follows https://huggingface.co/docs/hub/eval-results (huggingface_hub 1.4 or later writes it). An entry is one
number of one leaderboard, named by data set and task id; the format has no field for a direction, N, an interval or the
controls' values, so they stand in the notes.
"""

from collections.abc import Iterator, Sequence

from rub.config.documents import write_yaml
from rub.errors import RubError
from rub.leaderboard.exports.scores import BENCHMARK, BETTER, Score, check_measured, check_source, scores_of
from rub.reports.tables import label
from rub.reports.text import printable, slug
from rub.store.records import Record


def eval_results(records: Sequence[Record], *, method: str, source: str = "") -> str:
    """One method's results as text for ``.eval_results/rub.yaml`` of its model repository.

    Values are means over seeds in the metric's own unit; failed cells are left out.

    Args:
        records: of one run; other methods' are left out, except that the notes name the controls' values.
        method: as records name it.
        source: address of a page or folder with the records, or "".

    Returns:
        A YAML list with one entry for each measured cell, in the order of the records.

    Raises:
        RubError: no measured record of the method, two values for one task id, or a source that is no web address.

    Example:
        >>> fields = {"task": "classification", "suite": "s", "experiment": "", "protocol": "rub-paper-1", "key": "k"}
        >>> fields |= {"dataset": "digits", "model": "resnet10", "attack": "none", "budget": "none", "split": "test"}
        >>> row = {"method": "ft", "metric": "ta", "value": 0.9, "n": 100, "unlearn_seed": 0, "mia_seed": None}
        >>> text = eval_results([Record(**fields, **row, direction="up")], method="ft")
        >>> print("".join(text.splitlines(keepends=True)[:4]), end="")
        - dataset:
            id: rub-bench/classification
            task_id: ta/test/none/none/rub-paper-1/digits
          value: 0.9
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    check_measured(records, method)
    check_source(source)
    found: dict[tuple[str, str], Score] = {}
    for score in scores_of(records, method):
        known = found.setdefault((BENCHMARK.format(task=slug(score.group.task)), score.task_id), score)
        if known is not score:
            both = f"{label(known.group)} and {label(score.group)}"
            raise RubError(f"two values of '{printable(method)}' for {score.task_id}: {both}; give one of them")
    entries = [
        EvalResultEntry(
            dataset_id=benchmark,
            task_id=name,
            value=score.interval.mean,
            date=score.date,
            source_url=source or None,
            source_name="RUB records" if source else None,
            notes=printable("; ".join(_notes(score, method))),
        )
        for (benchmark, name), score in found.items()
    ]
    return write_yaml(eval_result_entries_to_yaml(entries), allow_unicode=True, width=120)


def _notes(score: Score, method: str) -> Iterator[str]:
    group, interval = score.group, score.interval
    yield f"{score.place.metric} of {method} {score.where}"
    yield ", ".join((*((score.metric.stored_unit,) if score.metric else ()), BETTER[score.measured[0].direction]))
    if score.count:
        yield f"N {score.count}"
    told = f"95 % interval {interval.low:.4g} to {interval.high:.4g} over {score.over}" if score.over else "no interval"
    yield f"{score.models}, {told}"
    yield from score.remarks()
    if beside := [f"{name} {control.mean:.4g}" for name, control in score.controls.items()]:
        yield f"controls: {', '.join(beside)}"
    yield f"protocol {group.protocol}, data {group.dataset}, model {group.model}, suite {group.suite}"
    yield from score.conditions()
