"""Classifiers that a caller has in memory: a frozen float32 copy that gives logits, whatever the module returns."""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from rub.data.samples import to_unit
from rub.errors import RubError, first_line
from rub.models.network import outputs


class Live(nn.Module):
    """A network that gives the logits among what a module returns: a tensor, a tuple of them, or ``logits``.

    Attributes:
        inner: the module.
        head_name: the layer whose inputs are the penultimate features; None: the last `nn.Linear`.
        classes: C, the number of logits.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.answer = inner, nn.Identity()
        name = getattr(inner, "head_name", None)
        self.head_name: str | None = None if name is None else f"inner.{name}"
        self.classes = 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C) of images (N, C, H, W) in [0, 1]."""
        found = self.inner(x)
        if isinstance(found, dict) and "logits" in found:  # outputs of transformers are dicts too
            found = found["logits"]
        elif not isinstance(found, Tensor):
            found = found[0] if isinstance(found, tuple | list) else getattr(found, "logits", None)
        return cast(Tensor, self.answer(found))

    def fold(self) -> None:
        """Fold batch norms where the module can."""
        if callable(fold := getattr(self.inner, "fold", None)):
            fold()


@torch.no_grad()
def live_copy(model: Any, role: str, images: Tensor, device: torch.device) -> Live:
    """A copy of a classifier for measuring, in eval mode and float32, without gradients; the module stays as it is.

    Its penultimate features are the inputs of its last `nn.Linear`, or of the layer that its attribute ``head_name``
    names; where that does not give the logits, they are the logits. The first of `images`, uint8 (N, C, H, W), is shown
    to it; `role` is what errors call it.

    Raises:
        RubError: no module, one that cannot be copied, that does not take the images, or that gives no logits.

    Example:
        >>> module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> live = live_copy(module, "original", torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.device("cpu"))
        >>> live(torch.zeros(5, 1, 2, 2)).shape
        torch.Size([5, 3])
    """
    if not isinstance(model, nn.Module):
        raise RubError(f"{role}: got {type(model).__name__}; should be a torch.nn.Module")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    # Pruning and weight norm leave a computed tensor in the module, which nobody can copy; it is computed anew.
    attributes = (value for module in model.modules() for value in vars(module).values())
    computed = {
        id(value): value.detach().clone() for value in attributes if isinstance(value, Tensor) and value.grad_fn
    }
    try:
        copied = copy.deepcopy(model, computed)
    except Exception as error:
        raise RubError(f"{role}: cannot be copied ({type(error).__name__}: {error}); give a plain module") from error
    live = Live(copied).eval().requires_grad_(False).float().to(device)
    shape, first = tuple(images.shape[1:]), to_unit(images[:1]).to(device)
    try:
        logits = live(first)
    except Exception as error:
        line = str(error).split("\n")[0]
        raise RubError(f"{role}: fails on an image {shape}: {type(error).__name__}: {line}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2 or not logits.is_floating_point():
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise RubError(f"{role}: gives {got} for one image {shape}; should be logits (1, C) of two classes or more")
    live.classes = logits.shape[1]
    try:
        outputs(live, first)
    except RubError:
        live.head_name = "answer"
    return live


def device_of(model: Any, asked: str | torch.device | None = None) -> torch.device:
    """The device that is asked for; None: that of a module's first parameter or buffer, or the CPU."""
    tensors = (*model.parameters(), *model.buffers()) if isinstance(model, nn.Module) else ()
    try:
        device = torch.device(asked) if asked is not None else tensors[0].device if tensors else torch.device("cpu")
        torch.empty(0, device=device)
    except Exception as error:  # torch says it in several ways
        raise RubError(f"device {asked!r}: {first_line(error)}") from None
    return device
