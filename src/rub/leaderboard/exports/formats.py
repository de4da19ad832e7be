"""Formats that ``rub export`` writes: name, what it is for, and the function from records to text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

from rub.errors import RubError
from rub.registry import load_target

if TYPE_CHECKING:
    from rub.store.records import Record

_FOLDER = ("suite", "command")  # what a result folder says besides; a format that has no place for it does without


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        summary: what is written, in a few words.
        target: ``module:function`` of records and, by keyword, some of ``method``, ``source``, ``suite`` and
            ``command``; it returns the text.
    """

    summary: str
    target: str


_HERE = "rub.leaderboard.exports"
FORMATS: Mapping[str, Format] = {
    "eval-results": Format("YAML for .eval_results/ of a Hub model", f"{_HERE}.eval_results:eval_results"),
    "model-card": Format("Markdown for its card", f"{_HERE}.model_card:model_card"),
    "eval-yaml": Format("eval.yaml of the Hub data set that names these results", f"{_HERE}.eval_yaml:eval_yaml"),
    "every-eval-ever": Format("JSON of the Every Eval Ever schema", f"{_HERE}.every_eval_ever:every_eval_ever"),
    "robustbench": Format("JSON like RobustBench's model_info", f"{_HERE}.robustbench:robustbench"),
}


def exported(name: str, records: "Sequence[Record]", **options: Any) -> str:
    """Records as text in a format.

    Args:
        name: of the format.
        records: of one result folder, or some of them.
        options: ``method`` and ``source``, where they were given; ``suite`` and ``command`` of the folder.

    Raises:
        RubError: an unknown format, an option that it needs or has no place for, or what the format itself refuses.

    Example:
        >>> exported("json", [])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        rub.errors.RubError: --format json: should be one of eval-results, model-card, ...
    """
    if name not in FORMATS:
        raise RubError(f"--format {name}: should be one of {', '.join(FORMATS)}")
    function = load_target(FORMATS[name].target)
    asked = signature(function).parameters
    if idle := [option for option in options if option not in (*asked, *_FOLDER)]:
        raise RubError(f"--format {name}: has no place for --{idle[0]}; leave it out")
    if "method" in asked and "method" not in options:
        raise RubError(f"--format {name}: is of one row; name it with --method")
    text: str = function(records, **{option: value for option, value in options.items() if option in asked})
    return text
