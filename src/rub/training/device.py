"""What makes a device faster without changing the equations: TF32 products, compiled networks, data kept on the device.

Nothing here takes part in a stage's identity, as the device does not: results agree to rounding. Claims are made
without it, in float32 by the networks as they are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from rub.data.samples import Samples

F = TypeVar("F", bound=Callable[..., Any])

SHARE = 0.25  # of a device's free memory that data may take
SHAPES = 64  # a network is compiled for each mode and batch size; torch gives up after eight
_ON_DEVICE: WeakIdKeyDictionary = WeakIdKeyDictionary()  # stored images -> device -> copy; goes with the original


@contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """Let float32 products and convolutions of a CUDA device round their factors to TF32 (10 bits) in the body.

    Example:
        >>> with tf32(True):
        ...     torch.backends.cudnn.allow_tf32
        True
    """
    flags: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [flag.allow_tf32 for flag in flags]
    try:
        for flag in flags:
            flag.allow_tf32 = enabled
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


@contextmanager
def reduced(precision: str, device: torch.device) -> Iterator[None]:
    """Compute the body in a precision; weights stay float32.

    Args:
        precision: ``"float32"``, ``"tf32"`` (see `tf32`), or ``"bfloat16"`` (autocast).
        device: where the body computes.

    Example:
        >>> with reduced("bfloat16", torch.device("cpu")):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.bfloat16
    """
    with tf32(precision == "tf32"), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        yield


def compiled(function: F, enabled: bool = True) -> F:
    """Network, or a function of one, compiled for the shapes that it meets; as it is where not `enabled`.

    Networks of one architecture share what was compiled: a second seed costs nothing.
    """
    if not enabled:
        return function
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
    return cast(F, torch.compile(function, dynamic=False))


def compiled_batches(function: Callable[..., Tensor], most: int, enabled: bool) -> Callable[..., Tensor]:
    """Function of batches compiled for a few sizes; as it is where not `enabled`.

    For calls that need a gradient: without one, compiling again would take longer than it saves.
    """
    return PaddedBatches(compiled(function), most) if enabled else function


class PaddedBatches:
    """A function of batches that meets only a few sizes: `most`, its half, its quarter, ...

    A batch is filled up with its last row, and what comes of the filling is dropped, so that a search whose samples
    leave one by one does not compile a network for every size.
    """

    def __init__(self, function: Callable[..., Tensor], most: int) -> None:
        """Wrap a function whose results have a row for each row of its arguments."""
        self.function, self.most = function, most

    def __call__(self, *parts: Tensor) -> Tensor:
        """Call it on arguments with the same number of rows."""
        count = len(parts[0])
        size = bucket(count, self.most)
        if size > count:
            parts = tuple(torch.cat([part, part[-1:].expand(size - count, *part.shape[1:])]) for part in parts)
        return self.function(*parts)[:count]


def bucket(count: int, most: int) -> int:
    """Smallest of most, most / 2, most / 4, ... that holds so many; `count` where none does.

    Example:
        >>> [bucket(count, 64) for count in (64, 33, 32, 5, 1, 100)]
        [64, 64, 32, 8, 1, 100]
    """
    if count > most:
        return count
    size = most
    while size // 2 >= max(count, 1):
        size //= 2
    return size


def copy_to_host_async(value: Tensor) -> Callable[[], Tensor]:
    """Start to copy a value to the host, and return what waits for it: until it is there, not until all else is done.

    Example:
        >>> copy_to_host_async(torch.tensor(2.0))()
        tensor(2.)
    """
    here = value.to("cpu", non_blocking=True)
    if value.device.type != "cuda":
        return lambda: here
    ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
    ready.record(torch.cuda.current_stream(value.device))

    def wait() -> Tensor:
        ready.synchronize()
        return here

    return wait


def on_device(samples: Samples, device: torch.device) -> Samples:
    """Samples whose array is on the device, copied there once for all subsets, where it takes little room."""
    if device.type != "cuda":
        return samples
    copies: dict[torch.device, Tensor] = _ON_DEVICE.setdefault(samples.stored, {})  # type: ignore[no-untyped-call]
    if device not in copies:
        if samples.stored.nbytes > SHARE * torch.cuda.mem_get_info(device)[0]:
            return samples
        copies[device] = samples.stored.to(device)
    stored = copies[device]
    return replace(samples, stored=stored, rows=None if samples.rows is None else samples.rows.to(device))
