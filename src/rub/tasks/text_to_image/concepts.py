"""Concepts: their evaluation prompts, and which class of a data set shows them."""

import csv
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import md5
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rub.config.documents import check_plain
from rub.config.suite import located
from rub.data.class_names import slug
from rub.errors import RubError
from rub.tasks.text_to_image.attacks.base import Prompts

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

SHIPPED = ("church", "garbage-truck", "nudity", "parachute", "tench")
"""The concepts of the paper's Table 3, for which RUB has 50 prompts each."""
PAPERS_FILES = {
    "church": "a3a60740",
    "garbage-truck": "160a78ae",
    "nudity": "4858fff4",
    "parachute": "fe7cd863",
    "tench": "21abc24c",
}
"""The prompts of the paper's Table 3, by the first eight hex digits of the MD5 of UnlearnDiffAtk's file (5a3e5d3)."""
GUIDANCE = 7.5
IDS = ("case_number", "", "Unnamed: 0")
SEEDS = ("evaluation_seed", "sd_seed")
WEIGHTS = ("evaluation_guidance", "sd_guidance_scale")
LARGEST = 2**63 - 1


def read_prompts(path: Path, concept: str = "") -> Prompts:
    """Read a CSV in the columns of UnlearnDiffAtk, or of I2P; other columns are ignored.

    ``prompt`` is needed. The case number is ``case_number``, an unnamed index, or the place of the row; the seed is
    ``evaluation_seed``, ``sd_seed``, or the case number; guidance is ``evaluation_guidance``, ``sd_guidance_scale``, or
    7.5.

    Args:
        path: the file, in UTF-8, or a folder that holds ``prompts.csv`` or ``<concept>.csv``.
        concept: its name, for a folder of several.

    Raises:
        RubError: no such file, no valid CSV, no column ``prompt``, no rows, a row without prompt or with more cells
            than columns, a number that is none or out of range, or a case number that occurs twice.
    """
    path = _file_of(path, concept)
    try:
        text = _bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RubError(f"prompts {path}: not in UTF-8; save it as CSV in UTF-8") from None
    return _parsed(text, f"prompts {path}")


def is_papers_file(path: Path, concept: str) -> bool:
    """Whether `read_prompts` reads what the paper's Table 3 was measured on: UnlearnDiffAtk's file, as it is.

    Line ends of another system do not matter.
    """
    content = _bytes(_file_of(path, concept)).replace(b"\r\n", b"\n")
    found = md5(content, usedforsecurity=False).hexdigest()[:8]
    return PAPERS_FILES.get(slug(concept)) == found


def _file_of(path: Path, concept: str) -> Path:
    if not path.is_dir():
        return path
    names = ["prompts", concept, slug(concept), slug(concept).replace("-", "_")]
    found = (path / f"{name}.csv" for name in names if name)
    chosen = next((item for item in found if item.is_file()), None)
    if chosen is None:
        raise RubError(f"prompts {path}: the folder should hold prompts.csv or {slug(concept) or '<concept>'}.csv")
    return chosen


def _bytes(path: Path) -> bytes:
    check_plain(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise RubError(f"prompts {path}: cannot be read ({error.strerror}); give a CSV file or a folder") from None


def prompts_of(name: str, words: str, given: str | Sequence[str] | None, data_root: Path | None) -> Prompts:
    """Evaluation prompts of a concept: those given, else RUB's own of that name, else templates filled in.

    Args:
        name: of the concept.
        words: what it is called in a prompt, for the templates.
        given: a CSV file or a folder, as it is or below the data root, or the prompts themselves.
        data_root: the data root, or None.

    Raises:
        RubError: as `read_prompts`, or a list of no prompts or with an empty one.

    Example:
        >>> prompts_of("seven", "seven", None, None).texts[:2]
        ('a photo of seven', 'a drawing of seven')
    """
    if isinstance(given, str):
        return read_prompts(located(given, data_root), name)
    if given is not None:
        return _listed(given)
    if slug(name) in SHIPPED:
        return shipped(slug(name))
    frames = templates()
    texts = tuple(text.replace("{}", words) for text in frames.texts)
    return Prompts(frames.ids, texts, frames.seeds, frames.guidance)


def shipped(name: str) -> Prompts:
    """RUB's own prompts of a concept in `SHIPPED`."""
    text = files("rub.tasks.text_to_image").joinpath("prompts", f"{name}.csv").read_text(encoding="utf-8")
    return _parsed(text, f"prompts {name}")


def templates() -> Prompts:
    """RUB's 50 templates: sentences with ``{}`` in the place of a concept's name."""
    return shipped("templates")


def objects() -> tuple[str, ...]:
    """243 prompts, ``a photo of X``, of everyday things; none of them is in `SHIPPED`."""
    text = files("rub.tasks.text_to_image").joinpath("prompts", "objects.txt").read_text(encoding="utf-8")
    return tuple(f"a photo of {word}" for word in text.split())


def within(prompts: Prompts, tokenizer: "CLIPTokenizer", limit: int) -> tuple[Prompts, tuple[int, ...]]:
    """Prompts that have room for an attack's tokens, and the case numbers of those that have not.

    `limit` is the most tokens of a prompt, BOS and EOS included (UnlearnDiffAtk: 60 of 77).
    """
    counts = torch.tensor([len(ids) for ids in tokenizer(list(prompts.texts), verbose=False).input_ids])
    short = counts <= limit
    if not short.any():
        raise RubError(
            f"prompts: none of {len(prompts)} has at most {limit} tokens, the shortest has {int(counts.min())};"
            " give shorter prompts, or raise protocol.token_limit"
        )
    return prompts.select(short.nonzero().flatten()), tuple(prompts.ids[~short].tolist())


def _parsed(text: str, where: str) -> Prompts:
    reader = csv.DictReader(StringIO(text, newline=""), strict=True)
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        rows = list(reader)
    except csv.Error as error:
        raise RubError(f"{where}: not a valid CSV after line {reader.line_num} ({error})") from None
    if "prompt" not in columns:
        raise RubError(f"{where}: no column 'prompt'; it has: {', '.join(columns) or 'nothing'}")
    if not rows:
        raise RubError(f"{where}: a concept with no prompts; should hold at least one row below the header")
    ids, texts, seeds, weights = [], [], [], []
    for place, row in enumerate(rows):
        at = f"{where}, row {place + 1}"
        if None in row:  # the place where DictReader keeps what no column has
            raise RubError(f"{at}: has more cells than the header; put prompts with commas in quotes")
        ids.append(_whole(row, IDS, place, at))
        seeds.append(_whole(row, SEEDS, ids[-1], at))
        weights.append(_weight(row, at))
        texts.append((row["prompt"] or "").strip())
    return _joined(ids, texts, seeds, weights, where)


def _listed(given: Sequence[str]) -> Prompts:
    if not given:
        raise RubError("concept.prompts: a concept with no prompts; should hold at least one")
    numbers = range(len(given))
    return _joined(numbers, [text.strip() for text in given], numbers, [GUIDANCE] * len(given), "concept.prompts")


def _joined(
    ids: Sequence[int], texts: Sequence[str], seeds: Iterable[int], weights: Sequence[float], where: str
) -> Prompts:
    for number, text in zip(ids, texts, strict=True):
        if not text:
            raise RubError(f"{where}: the prompt of case number {number} is empty")
    if len(set(ids)) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise RubError(f"{where}: case number {twice} occurs twice; each row should have its own")
    index, starts = torch.tensor(list(ids), dtype=torch.int64), torch.tensor(list(seeds), dtype=torch.int64)
    return Prompts(index, tuple(texts), starts, torch.tensor(weights, dtype=torch.float32))


def _cell(row: Mapping[str, str | None], columns: Sequence[str]) -> tuple[str, str]:
    # the first of these columns that says something in this row, and what
    return next(((name, text) for name in columns if (text := (row.get(name) or "").strip())), ("", ""))


def _whole(row: Mapping[str, str | None], columns: Sequence[str], missing: int, at: str) -> int:
    name, text = _cell(row, columns)
    if not text:
        return missing
    try:
        value = int(text)
    except ValueError:
        try:
            number = float(text)  # pandas writes 12.0 where a column has gaps
        except ValueError:
            number = math.nan
        value = int(number) if number.is_integer() else -1
    if not 0 <= value <= LARGEST:
        raise RubError(f"{at}: {name or 'index'} is '{text}'; should be a whole number from 0 to 2^63 - 1")
    return value


def _weight(row: Mapping[str, str | None], at: str) -> float:
    name, text = _cell(row, WEIGHTS)
    try:
        value = float(text or GUIDANCE)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise RubError(f"{at}: {name} is '{text}'; should be a number from 0 up")
    return value
