"""``eval.yaml`` of the data set on the Hugging Face Hub that a task's leaderboards belong to.

It declares the task ids that ``.eval_results`` files name (https://huggingface.co/docs/hub/eval-results). The Hub
checks the file when it is pushed, its ``evaluation_framework`` against ``EVALUATION_FRAMEWORKS`` of huggingface.js, a
list that frameworks are added to by a pull request.
"""

from collections.abc import Sequence

from rub.config.documents import write_yaml
from rub.errors import RubError
from rub.leaderboard.exports.scores import boards_of, task_id
from rub.reports.task_report import reports_of
from rub.reports.text import printable
from rub.store.records import Record

FRAMEWORK = "rub-bench"
_WHOLE = {"config": "default", "split": "test"}  # the format's defaults: which rows of the data set a task is of


def eval_yaml(records: Sequence[Record]) -> str:
    """Every leaderboard that the rows of one task have a number in.

    Args:
        records: of one task, of any methods and controls.

    Returns:
        A YAML mapping of name, description, evaluation_framework, and a task for each id that `eval_results` gives to
        these records, in their order.

    Raises:
        RubError: records of several tasks, or none that is measured.

    Example:
        >>> fields = {"task": "classification", "suite": "s", "experiment": "", "protocol": "rub-paper-1", "key": "k"}
        >>> fields |= {"dataset": "digits", "model": "resnet10", "attack": "none", "budget": "none", "split": "test"}
        >>> row = {"method": "ft", "metric": "ta", "value": 0.9, "n": 100, "unlearn_seed": 0, "mia_seed": None}
        >>> print(eval_yaml([Record(**fields, **row, direction="up")]).partition("evaluation_framework: ")[2], end="")
        rub-bench
        tasks:
        - id: ta/test/none/none/rub-paper-1/digits
          config: default
          split: test
    """
    tasks = list(dict.fromkeys(record.task for record in records))
    if len(tasks) > 1:
        raise RubError(f"records of {len(tasks)} tasks, each of which has a data set of its own: give --task, one of"
                       f" {', '.join(map(printable, tasks[:10]))}")  # fmt: skip
    ids = dict.fromkeys(
        task_id(found[0])
        for _, board in boards_of(records)
        for found in board.values()
        if any(record.value is not None for record in found)
    )
    if not ids:
        raise RubError("no record is measured: there is no leaderboard to declare")
    reports = reports_of(tasks)
    title = reports[tasks[0]].title if reports else printable(tasks[0])
    document = {
        "name": f"RUB: {title}",
        "description": f"Robust Unlearning Benchmark, {title}: can what a model was made to forget be brought back by"
        " changing only its input? A task is one number: metric, split, attack, budget, protocol, data set.",
        "evaluation_framework": FRAMEWORK,
        "tasks": [{"id": name, **_WHOLE} for name in ids],
    }
    return write_yaml(document, allow_unicode=True, width=120)
