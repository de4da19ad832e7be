"""Attacks of other libraries as attacks of RUB: objects of foolbox, torchattacks and secml-torch, or any callable."""

import copy
import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rub.errors import RubError

Call = Callable[[nn.Module, Tensor, Tensor, float], Any]
"""(model, images, labels, eps) -> images: float32 (B, C, H, W) in [0, 1], driven towards int64 (B,) within eps."""


def adapt(attack: Any, *, name: str | None = None) -> Callable[..., Tensor]:
    """An attack of RUB that runs one of another library, for `rub.recover`, or for suites under `rub.attack`.

    It is aimed at the forgotten labels: by its own targeted mode where it has one, else at a view of the model in
    which all other labels are one (`OneAgainstRest`), from which it drives away. What it finds is projected into the
    budget and rounded to 8 bits; the harness scores it in float32 like every other result. Random numbers come from
    torch's generator, seeded with the attack seed, so that results may depend on the batch size.

    Args:
        attack: one of

            - an attack of foolbox, called with each budget as its ``epsilons``;
            - an attack of torchattacks, of which a copy is given the model, and the budget as ``eps`` (``alpha`` is
              scaled with it);
            - an attack of secml-torch, of which a copy is given each label as ``y_target``; it keeps its radius;
            - a function of ``eps``, a fraction of the pixel range, that makes one of these;
            - a callable ``(model, images, labels, eps) -> images``: float32 (B, C, H, W) in [0, 1], int64 (B,).
        name: what it is called; the name of its class or function when None.

    Raises:
        RubError: none of these.

    Example:
        >>> def brighter(model, images, labels, eps):
        ...     return images + eps
        >>> adapt(brighter).__name__
        'brighter'
    """
    kind = type(attack).__name__
    own = getattr(attack, "__name__", kind)
    made = inspect.isfunction(attack) and len(inspect.signature(attack).parameters) == 1
    if not (made or callable(attack)):
        raise RubError(
            f"attack {kind}: should be an attack of {', '.join(_LIBRARIES)}, or a callable; see adapt's help"
        )

    def search(target: Any, images: Tensor, budget: Any, context: Any) -> Tensor:
        call = _call_of(attack(budget.eps) if made else attack)
        found = torch.empty_like(images)
        with torch.enable_grad(), torch.random.fork_rng():
            torch.manual_seed(context.seed)
            for start in range(0, len(images), context.batch_size):
                part = slice(start, start + context.batch_size)
                clean = images[part].to(context.device)
                result = call(target.model, clean / 255, target.labels[part].to(context.device), budget.eps)
                found[part] = _within(result, clean, budget, search.__name__).cpu()
                context.progress(min(part.stop, len(images)), len(images))
        return found

    search.__name__ = search.__qualname__ = name or own
    search.__doc__ = f"{own} of {_library_of(attack) or 'a callable'}, adapted."
    search.__module__ = sys._getframe(1).f_globals["__name__"]  # a plug-in's own, where it is registered
    return search


class OneAgainstRest(nn.Module):
    """A classifier's logits rearranged: the best of all labels but one, that one, and constants below both.

    The second is the largest exactly where the classifier gives that one label.
    """

    def __init__(self, model: nn.Module, label: int) -> None:
        super().__init__()
        self.model, self.label = model, label
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C) of images (N, C, H, W)."""
        logits = self.model(x)
        own = logits[:, self.label]
        others = torch.cat([logits[:, : self.label], logits[:, self.label + 1 :]], 1).amax(1)
        low = logits.detach().amin(1, keepdim=True) - 1
        return torch.cat([others[:, None], own[:, None], low.expand(-1, logits.shape[1] - 2)], 1)


def _library_of(attack: Any) -> str | None:
    packages = {base.__module__.split(".")[0] for base in type(attack).__mro__}
    return next((name for name in _LIBRARIES if name in packages), None)


def _call_of(attack: Any) -> Call:
    library = _library_of(attack)
    return attack if library is None else _LIBRARIES[library](attack)


def _by_label(call: Callable[[nn.Module, Tensor, int, float], Any]) -> Call:
    def every(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
        found = images.clone()
        for label in sorted(set(labels.tolist())):
            found[labels == label] = call(model, images[labels == label], label, eps)
        return found

    return every


def _foolbox(attack: Any) -> Call:
    foolbox: Any = importlib.import_module("foolbox")

    def run(model: nn.Module, images: Tensor, criterion: Any, eps: float) -> Any:
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
        return attack(wrapped, images, criterion, epsilons=eps)[1]

    def away(model: nn.Module, images: Tensor, label: int, eps: float) -> Any:
        away_from = foolbox.Misclassification(torch.zeros(len(images), dtype=torch.int64, device=images.device))
        return run(OneAgainstRest(model, label), images, away_from, eps)

    def towards(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Any:
        try:
            return run(model, images, foolbox.TargetedMisclassification(labels), eps)
        except ValueError as error:
            if "criterion" not in str(error):
                raise
            return _by_label(away)(model, images, labels, eps)

    return towards


def _torchattacks(attack: Any) -> Call:
    def fitted(model: nn.Module, images: Tensor, eps: float) -> Any:
        # Wherever the attack, or one of those that it consists of, holds its model, the copy has this one.
        made = copy.deepcopy(attack, {id(attack.model): model})
        made.set_device(images.device)
        for one in (made, *made._attacks.values()):
            if getattr(one, "eps", None):
                if isinstance(getattr(one, "alpha", None), float):
                    one.alpha *= eps / one.eps
                one.eps = eps
        return made

    def away(model: nn.Module, images: Tensor, label: int, eps: float) -> Any:
        zeros = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        return fitted(OneAgainstRest(model, label), images, eps)(images, zeros)

    def towards(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Any:
        made = fitted(model, images, eps)
        made.set_mode_targeted_by_label(quiet=True)
        return made(images, labels)

    return towards if "targeted" in attack.supported_mode else _by_label(away)


def _secmlt(attack: Any) -> Call:
    from torch.utils.data import DataLoader, TensorDataset

    def towards(model: nn.Module, images: Tensor, label: int, eps: float) -> Tensor:
        made = copy.deepcopy(attack)
        made.y_target = label
        labels = torch.full((len(images),), label, device=images.device)
        batches = made(model, DataLoader(TensorDataset(images, labels), batch_size=len(images)))
        return torch.cat([found for found, _ in batches]).to(images.device)

    return _by_label(towards)


_LIBRARIES: dict[str, Callable[[Any], Call]] = {"foolbox": _foolbox, "torchattacks": _torchattacks, "secmlt": _secmlt}


def _within(result: Any, clean: Tensor, budget: Any, name: str) -> Tensor:
    found = torch.as_tensor(result, device=clean.device).detach()
    if found.shape != clean.shape or not found.is_floating_point():
        wanted = f"floats {tuple(clean.shape)}"
        raise RubError(f"attack '{name}': wanted {wanted}, got {found.dtype} {tuple(found.shape)}")
    if not found.isfinite().all():
        raise RubError(f"attack '{name}': gives images that are not finite")
    origin = clean / 255
    stored: Tensor = budget.region.stored(budget.confine(found, origin), origin)
    return stored
