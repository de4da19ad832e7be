"""`recover`: two classifiers in memory, some images, and what changing only the input brings back."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

from rub.attacks.base import AttackContext, Probes
from rub.attacks.foreign import adapt
from rub.config.hyperparameters import resolve
from rub.data.memory import samples_of
from rub.errors import Diverged, RubError
from rub.metrics.statistics import wilson
from rub.models.live import device_of, live_copy
from rub.pipeline.callback import Progress, silent
from rub.pipeline.execution import one_line
from rub.registry import ATTACKS, Entry
from rub.tasks.classification.attacks.base import Attack, Budget
from rub.tasks.classification.attacks.harness import MISSED, make_target, run_attack
from rub.training.device import tf32


@dataclass(frozen=True, eq=False, repr=False)
class Recovery:
    """What an attack brought back from an unlearned classifier, image by image.

    N images, E budgets. Every claim is made in float32 on an 8-bit image. Tensors are on the CPU.

    Attributes:
        eps: the budgets, in 1/255 steps of ||delta||_inf, ascending.
        attack: name of the attack.
        parameters: its hyperparameters, defaults included.
        images: uint8 (N, C, H, W), the clean images.
        labels: int64 (N,).
        ids: int64 (N,).
        original: bool (N,), whether the original model classifies the clean image as its label (control).
        clean: bool (N,), whether the unlearned model does.
        found: the attack's own result at each budget: probes, distances, steps, curves, evaluations, convergence.

    Example:
        >>> import rub
        >>> from rub.models.network import build_network
        >>> original, unlearned = (build_network("resnet10", num_classes=3, width=2, seed=seed) for seed in (0, 1))
        >>> images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
        >>> result = rub.recover(unlearned, original, images, labels, eps=[8, 64], steps=5)
        >>> result.recovered.shape, result.probes.dtype, len(result.success_curves[0])
        (torch.Size([2, 4]), torch.uint8, 6)
        >>> (result[64].inputs.int() - result.images.int()).abs().max().item() <= 64
        True
    """

    eps: tuple[int, ...]
    attack: str
    parameters: Mapping[str, Any]
    images: Tensor
    labels: Tensor
    ids: Tensor
    original: Tensor
    clean: Tensor
    found: Mapping[int, Probes]

    def __getitem__(self, eps: int) -> Probes:
        """The attack's result at one budget."""
        if eps not in self.found:
            raise KeyError(f"eps = {eps!r}: attacked at {', '.join(map(str, self.eps))}")
        return self.found[eps]

    def __len__(self) -> int:
        """N, the number of images."""
        return len(self.labels)

    @property
    def recovered(self) -> Tensor:
        """Whether the unlearned model classifies the probe as the label, bool (E, N)."""
        return self.steps >= 0

    @property
    def steps(self) -> Tensor:
        """Step at which an image was first recovered, int64 (E, N); 0: before the first; -1: never."""
        return self._stacked("step")

    @property
    def distance(self) -> Tensor:
        """Divergence D[f_u(probe), f(x)] of each best probe, float32 (E, N)."""
        return self._stacked("loss")

    @property
    def probes(self) -> Tensor:
        """Best probe of each image, uint8 (E, N, C, H, W), at most eps levels from it."""
        return self._stacked("inputs")

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the images that are recovered at each budget."""
        return tuple(self.recovered.double().mean(1).tolist())

    @property
    def converged(self) -> tuple[bool, ...]:
        """Whether the search had levelled off at each budget; where it had not, more steps may recover more.

        One that misses images which a smaller budget recovered has not.
        """
        return tuple(self.found[eps].converged for eps in self.eps)

    @property
    def success_curves(self) -> tuple[tuple[float, ...], ...]:
        """Share recovered after each step, for each budget; the first value is before the first step."""
        return tuple(self.found[eps].success_curve for eps in self.eps)

    @property
    def loss_curves(self) -> tuple[tuple[float, ...], ...]:
        """Mean lowest divergence after each step, for each budget."""
        return tuple(self.found[eps].loss_curve for eps in self.eps)

    def rows(self) -> list[dict[str, Any]]:
        """One row for each budget and image: id, label, eps, original, clean, recovered, distance, step, linf."""
        linf = (self.probes.int() - self.images.int()).abs().amax(dim=(2, 3, 4)).tolist()
        shared = [
            {"id": number, "label": label, "original": known, "clean": kept}
            for number, label, known, kept in zip(
                self.ids.tolist(), self.labels.tolist(), self.original.tolist(), self.clean.tolist(), strict=True
            )
        ]
        per_image = zip(self.recovered.tolist(), self.distance.tolist(), self.steps.tolist(), linf, strict=True)
        return [
            {**row, "eps": eps, "recovered": hit, "distance": distance, "step": step, "linf": far}
            for eps, columns in zip(self.eps, per_image, strict=True)
            for row, hit, distance, step, far in zip(shared, *columns, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Summary of JSON values: shares with their 95 % Wilson intervals over images, and the curves."""
        return {
            "attack": self.attack,
            "parameters": dict(self.parameters),
            "images": len(self),
            "original": _share(self.original),
            "clean": _share(self.clean),
            "eps": {
                eps: {
                    **_share(found.step >= 0),
                    "median_step": _median_step(found.step),
                    "converged": found.converged,
                    "evaluations": found.evaluations,
                    "success_curve": list(found.success_curve),
                    "loss_curve": list(found.loss_curve),
                }
                for eps, found in self.found.items()
            },
        }

    def __repr__(self) -> str:
        title, header, rows = self._table()
        lines = ["{:18}{:>13}{:>18}{:>13}{:>11}".format(*row).rstrip() for row in (header, *rows)]
        return "\n".join([title[:80], *lines])

    def _repr_html_(self) -> str:
        title, header, rows = self._table()
        cells = [[f"<td>{escape(cell)}</td>" for cell in row] for row in rows]
        body = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        return f"<table><caption>{escape(title)}</caption><tr>{head}</tr>{body}</table>"

    def _table(self) -> tuple[str, list[str], list[list[str]]]:
        plural = "" if len(self) == 1 else "s"
        facts = self.to_dict()
        clean = (("original, clean", "original"), ("unlearned, clean", "clean"))
        rows = [[name, *_percent(facts[key]), "", ""] for name, key in clean]
        for eps, at in facts["eps"].items():
            step = "" if at["median_step"] is None else f"{at['median_step']:g}"
            rows.append([f"probes, {eps}/255", *_percent(at), step, "yes" if at["converged"] else "no"])
        header = ["", "as labelled", "95 % interval", "median step", "converged"]
        return f"Recovery of {len(self)} image{plural} by {self.attack}", header, rows

    def _stacked(self, name: str) -> Tensor:
        return torch.stack([getattr(self.found[eps], name) for eps in self.eps])


def recover(
    unlearned: nn.Module,
    original: nn.Module,
    images: Any,
    labels: Any = None,
    eps: int | float | Iterable[int | float] = (1, 2, 8),
    *,
    attack: str | Callable[..., Any] = "uma-momentum",
    batch_size: int = 256,
    device: str | torch.device | None = None,
    seed: int = 0,
    ids: Any = None,
    warm_start: bool = False,
    progress: Progress = silent,
    **hyperparameters: Any,
) -> Recovery:
    """Search each image's neighbourhood for a probe that the unlearned classifier takes for the forgotten label.

    It is what suites and audits measure, on models in memory: the same search, on the same 8-bit images, with the same
    float32 claims. Both modules are copied and stay as they are. A share says little alone: compare it with a model
    that never saw the images, under the same call.

    Args:
        unlearned: f_u: any module of images (N, C, H, W) in [0, 1] to logits; it normalises inside.
        original: f, before unlearning, with the same classes.
        images: uint8, or floats in [0, 1], (N, C, H, W): a tensor or an array; or a `Dataset` or `DataLoader` of
            (image, label).
        labels: integers (N,); None where `images` has them.
        eps: budgets in 1/255 steps of ||delta||_inf, 0 to 255, or fractions such as ``8/255``; one or several.
        attack: a name of ``rub list attacks``, an attack function ``(target, images, budget, context, *, ...)``, or an
            attack object that `rub.attacks.adapt` takes.
        batch_size: images per forward pass; does not change results beyond rounding.
        device: where to compute; None: where `unlearned` is.
        seed: seed of the attack.
        ids: integers (N,), which decide each image's random numbers; None: 0 to N - 1.
        warm_start: whether each budget starts from the probes of the next smaller one, as in ``rub-audit-2``.
        progress: called as ``progress(done, total, note)``.
        hyperparameters: of the attack, such as ``divergence="margin"`` and ``steps=100`` (``rub show uma-momentum``).

    Raises:
        RubError: images, labels, a budget, a model or a hyperparameter that cannot be used.
    """
    samples = samples_of(images, labels, ids)
    budgets = levels_of(eps)
    name, function, parameters = _attack(attack, hyperparameters)
    place = device_of(unlearned, device)
    check_batch_size(batch_size)
    found = {}
    try:
        with torch.inference_mode(False), torch.autocast(place.type, enabled=False), tf32(False):
            after = live_copy(unlearned, "unlearned", samples.images, place)
            before = live_copy(original, "original", samples.images, place)
            check_labels(samples.labels, after.classes, before.classes)
            context = AttackContext(seed=seed, ids=samples.ids, batch_size=batch_size, device=place, progress=progress)
            target = make_target(before, after, samples.images, samples.labels, batch_size, place)
            if not target.reference.isfinite().all():
                raise RubError("original: its outputs are not finite on these images")
            clean = run_attack(function, parameters, target, samples.images, Budget(0), context)
            for level in budgets:
                found[level] = run_attack(function, parameters, target, samples.images, Budget(level), context)
                context = replace(context, start=found[level].inputs) if warm_start else context
            found = _consistent(found)
    except Diverged as error:
        raise RubError(str(error)) from None
    except RubError:
        raise
    except Exception as error:
        raise RubError(f"attack '{name}': {one_line(error)}") from error
    return Recovery(
        budgets, name, parameters, samples.images, samples.labels, samples.ids,
        original=target.reference.argmax(1) == samples.labels, clean=clean.step >= 0, found=found,
    )  # fmt: skip


def levels_of(eps: int | float | Iterable[int | float]) -> tuple[int, ...]:
    """Budgets in 1/255 steps, ascending, each once; fractions below 1 must be whole steps.

    Example:
        >>> levels_of([8 / 255, 1, 8])
        (1, 8)
    """
    levels = set()
    for given in eps if isinstance(eps, Iterable) and not isinstance(eps, str) else (eps,):
        value = given.item() if hasattr(given, "item") else given  # of an array or a tensor
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        step = value * 255 if number and isinstance(value, float) and 0 < value < 1 else value
        if not number or (isinstance(value, float) and value == 1) or abs(step - round(step)) > 1e-3:
            raise RubError(f"eps = {value!r}: should be whole steps of 1/255, such as 8, or the fraction 8/255")
        if not 0 <= step <= 255:
            raise RubError(f"eps = {value!r}: should be 0 to 255 steps of 1/255")
        levels.add(round(step))
    if not levels:
        raise RubError("eps: there are none; give one at least, such as eps=8")
    return tuple(sorted(levels))


def check_batch_size(size: int) -> None:
    """Raise `RubError` where no batch has so many images."""
    if not isinstance(size, int) or size < 1:
        raise RubError(f"batch_size = {size!r}: should be 1 or more")


def check_labels(labels: Tensor, classes: int, expected: int, role: str = "unlearned", name: str = "images") -> None:
    """Raise `RubError` where a model has other classes than the original, or a label is none of them."""
    if classes != expected:
        raise RubError(f"{role}: gives {classes} logits, and the original {expected}; should be as many")
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        found = f"labels from {int(labels.min())} to {int(labels.max())}"
        raise RubError(f"{name}: {found}; the models have classes 0 to {classes - 1}")


def _attack(attack: Any, given: Mapping[str, Any]) -> tuple[str, Attack, dict[str, Any]]:
    """Name, function and all hyperparameters of what was asked for."""
    if isinstance(attack, str):
        entry = ATTACKS.get(attack, "classification")
    else:
        ready = inspect.isfunction(attack) and len(inspect.signature(attack).parameters) > 1
        function = attack if ready else adapt(attack)
        entry = Entry(function.__name__, "classification", "", function, "caller")
    return entry.name, entry.load(), resolve(entry, given, "recover")


def _consistent(found: Mapping[int, Probes]) -> dict[int, Probes]:
    # what a smaller budget recovered lies within every larger one
    checked, known = {}, torch.tensor(False)
    for level, probes in sorted(found.items()):
        missed = float((known & (probes.step < 0)).double().mean())
        checked[level] = replace(probes, converged=probes.converged and missed <= MISSED)
        known = known | (probes.step >= 0)
    return checked


def _share(hits: Tensor) -> dict[str, float]:
    count = int(hits.sum())
    low, high = wilson(count, len(hits))
    return {"share": count / len(hits), "low": low, "high": high}


def _percent(share: Mapping[str, float]) -> list[str]:
    return [f"{100 * share['share']:.1f} %", f"{100 * share['low']:.1f} to {100 * share['high']:.1f}"]


def _median_step(steps: Tensor) -> float | None:
    """Median step among the images that needed one; None without any."""
    searched = steps[steps > 0]
    return float(searched.double().quantile(0.5)) if len(searched) else None
