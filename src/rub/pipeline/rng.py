"""Named random streams: generators of training, and numbers of a search that are keyed by sample."""

from hashlib import sha256

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # splitmix64's increment and multipliers, written as signed 64-bit integers
MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
MIX_2 = 0x94D049BB133111EB - 2**64


def seeded(seed: int, stream: str) -> torch.Generator:
    """CPU generator for a named stream: seed = first 63 bits of SHA-256(``"seed:stream"``)."""
    digest = sha256(f"{seed}:{stream}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def keyed_uniform(seed: int, stream: str, ids: Tensor, counter: Tensor | int, count: int) -> Tensor:
    """Uniform numbers in [0, 1) that depend on (seed, stream, id, counter) and on nothing else.

    A counter-based generator: splitmix64 (Steele, Lea & Flood 2014) of the key of each row plus j times its
    increment, so that a row's numbers are the same in any batch, order and device.

    Args:
        seed: the attack seed.
        stream: a name that separates uses.
        ids: int64 (N,), sample ids.
        counter: int64 (N,) or one number: restart, step, draw.
        count: numbers per row.

    Returns:
        float32 (N, count), multiples of 2**-24.

    Example:
        >>> one = keyed_uniform(0, "start", torch.tensor([7]), 1, 4)
        >>> torch.equal(one, keyed_uniform(0, "start", torch.tensor([3, 7]), 1, 4)[1:])
        True
    """
    digest = sha256(f"{seed}:{stream}".encode()).digest()
    key = int.from_bytes(digest[:8], "big", signed=True)
    row = _mix(_mix(ids * GOLDEN + key) + torch.as_tensor(counter, device=ids.device) * GOLDEN)
    column_index = torch.arange(1, count + 1, device=ids.device)
    bits = _mix(row[:, None] + column_index * GOLDEN)
    return ((bits >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24


def _mix(z: Tensor) -> Tensor:
    z = (z ^ ((z >> 30) & (2**34 - 1))) * MIX_1
    z = (z ^ ((z >> 27) & (2**37 - 1))) * MIX_2
    return z ^ ((z >> 31) & (2**33 - 1))
