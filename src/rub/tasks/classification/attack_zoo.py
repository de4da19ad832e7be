"""Attacks against the models of a zoo: the same images, the same budgets, one row per model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rub.data.samples import Samples
from rub.data.splits import subset
from rub.errors import RubError
from rub.metrics.statistics import wilson
from rub.pipeline.runtime import Runtime
from rub.tasks.classification.recover import Recovery, recover
from rub.tasks.classification.zoo import splits_of
from rub.training.classifier import predict
from rub.zoo.entry import WEIGHTS, ZooModel, read_model
from rub.zoo.lookup import folder_of, load_folder, models_in, original_of, root_of

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn


@dataclass(frozen=True, eq=False)
class Attacked:
    """One model of a zoo after attacks on the same images.

    Attributes:
        model: its facts.
        unlearned: its module.
        original: SHA-256 of the weights of the original that it is compared with.
        found: attack -> what it gave.
    """

    model: ZooModel
    unlearned: "nn.Module"
    original: str
    found: Mapping[str, Recovery]


@dataclass(frozen=True)
class Row:
    """What attacks gave on one model: attack and budget in 1/255 -> share of images recovered, with its interval."""

    model: ZooModel
    images: int
    clean: float
    shares: Mapping[tuple[str, int], tuple[float, float, float]]
    passes: Mapping[str, int]
    """Attack -> images that the networks were given."""


def attack_models(
    names: Sequence[str],
    attacks: Sequence[str],
    budgets: Sequence[int],
    images: int,
    runtime: Runtime,
    *,
    original: str | None = None,
) -> Iterator[Attacked]:
    """Yield what all attacks give on each model, on the same forgotten training images that its original gets right.

    Args:
        names: models, or folders of a zoo, whose classifiers are attacked.
        attacks: names of ``rub list attacks``, or of plug-ins; each with its default settings.
        budgets: in 1/255.
        images: at most so many.
        runtime: where, and where the data are.
        original: the original model; None: of each model's own zoo.

    Raises:
        RubError: a model without its original, of another task, or whose data are not there.
    """
    if not attacks or not budgets:
        raise RubError("give an attack and a budget at least: --attacks uma-momentum --budgets 4,8,16")
    for folder in _folders(names):
        model = read_model(folder)
        if model.task != "classification":
            raise RubError(f"{model.name}: rub attack takes classifiers; this is a model of {model.task}")
        place = folder_of(original) if original else original_of(root_of(folder, model), model)
        before, after = load_folder(place), load_folder(folder)
        chosen = eligible(before, splits_of(model, runtime.data_root)[1].forget, images)
        found = {name: search(after, before, chosen, name, budgets, runtime) for name in attacks}
        yield Attacked(model, after, read_model(place).files[WEIGHTS], found)


def search(
    unlearned: "nn.Module",
    original: "nn.Module",
    samples: Samples,
    attack: str,
    budgets: Sequence[int],
    runtime: Runtime,
) -> Recovery:
    """What an attack with its default settings gives on these images, each budget from the probes of the one before."""
    return recover(
        unlearned, original, samples.images, samples.labels, budgets, attack=attack, device=runtime.device,
        batch_size=runtime.batch_size, ids=samples.ids, warm_start=True,
    )  # fmt: skip


def eligible(original: "nn.Module", samples: Samples, count: int) -> Samples:
    """A fixed draw of at most so many of the images that the original gets right.

    Raises:
        RubError: it gets none right.
    """
    right = predict(original, samples).argmax(1) == samples.labels
    kept = samples.select(right.nonzero()[:, 0])
    if not len(kept.ids):
        raise RubError("the original gets none of the forgotten images right")
    return subset(kept, count, "attack")


def row_of(attacked: Attacked) -> Row:
    """The row of a model: shares with their intervals, and what each attack spent."""
    found, any_of = attacked.found, next(iter(attacked.found.values()))
    return Row(
        attacked.model,
        len(any_of),
        float(any_of.clean.double().mean()),
        {(name, level): _share(result, level) for name, result in found.items() for level in result.eps},
        {name: sum(result[level].evaluations for level in result.eps) for name, result in found.items()},
    )


def tables(rows: Iterable[Row]) -> "Iterator[Table]":
    """Yield a table per network: UA (%) before and after each attack, with its interval; the most of a budget is bold.

    Raises:
        RubError: there are no rows.
    """
    from rich.table import Column, Table

    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault("/".join(row.model.name.split("/")[:3]), []).append(row)
    if not found:
        raise RubError("no classifier to attack; see rub zoo list")
    for network, own in found.items():
        made = Table(
            Column("", no_wrap=True, min_width=10),
            "N",
            Column("clean", no_wrap=True),
            box=None,
            title=f"{network}: UA (%) of forgotten images",
        )
        cells = list(own[0].shares)
        for name, level in cells:
            made.add_column(f"{name}\n{level}/255", justify="right", no_wrap=True)
        levels = (f"{level}/255" for level in sorted({level for _, level in cells}, reverse=True))
        known = next((one for one in levels if any(one in row.model.attacked for row in own)), "")
        if known:
            made.add_column(f"published\n{known}", justify="right", no_wrap=True)
        for row in own:
            most = {level: max(row.shares[one][0] for one in cells if one[1] == level) for _, level in cells}
            told = (_told(row.shares[cell], bold=row.shares[cell][0] == most[cell[1]]) for cell in cells)
            name = "/".join(row.model.name.split("/")[3:])
            before = row.model.attacked.get(known)
            published = [] if not known else ["" if before is None else f"{100 * before:.1f}"]
            made.add_row(name, str(row.images), f"{100 * row.clean:.1f}", *told, *published)
        spent = (f"{name} {sum(row.passes[name] for row in own):,}" for name in own[0].passes)
        said = "; published: the main attack of the suite that made the models, on its images" if known else ""
        made.caption = f"images given to a network: {', '.join(spent)}{said}"
        yield made


def _told(share: tuple[float, float, float], *, bold: bool) -> str:
    value, low, high = (100 * part for part in share)
    text = f"{value:.1f}\n{low:.0f}-{high:.0f}"
    return f"[b]{text}[/b]" if bold else text


def _folders(names: Sequence[str]) -> Iterator[Path]:
    for name in names:
        place = Path(name)
        if place.is_dir():
            yield from (folder for folder, model in models_in(place) if model.task == "classification")
        else:
            yield folder_of(name)


def _share(result: Recovery, level: int) -> tuple[float, float, float]:
    hits = np.asarray((result[level].step >= 0).numpy())
    return (float(hits.mean()), *wilson(int(hits.sum()), len(hits)))
