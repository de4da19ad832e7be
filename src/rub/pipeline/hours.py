"""Hours that a stage takes on a device that is not here, by arithmetic: its work over what such devices sustain."""

from collections.abc import Mapping
from dataclasses import dataclass

from rub.errors import unknown


@dataclass(frozen=True)
class Device:
    """What a data sheet says of a card, without sparsity.

    Attributes:
        peaks: FLOP/s in each precision; of bfloat16 with sums in float32.
        bandwidth: bytes per second of its memory.
    """

    peaks: Mapping[str, float]
    bandwidth: float


DEVICES: Mapping[str, Device] = {
    "a100": Device({"float32": 19.5e12, "tf32": 156e12, "bfloat16": 312e12}, 2.0e12),
    "h100": Device({"float32": 67e12, "tf32": 495e12, "bfloat16": 989e12}, 3.35e12),
    "rtx3090": Device({"float32": 35.6e12, "tf32": 35.6e12, "bfloat16": 71e12}, 0.94e12),
    "rtx4090": Device({"float32": 82.6e12, "tf32": 82.6e12, "bfloat16": 165e12}, 1.01e12),
}
"""Cards by name, of NVIDIA's data sheets (A100 SXM 80 GB, H100 SXM) and white papers (Ampere GA102, Ada)."""
REACHED = 2 / 3  # of a peak, where memory is fast enough
PER_BYTE = {"float32": 25.0, "tf32": 25.0, "bfloat16": 50.0}  # FLOPs of a UNet for each byte that memory moves
"""Both are guesses to a factor of 2, which give an A100 13, 50 and 100 TFLOP/s; large caches (RTX 4090) do better."""


def sustained(device: str, precision: str) -> float:
    """FLOP/s that a UNet gets, of convolutions and attention: two thirds of the peak, or less where memory is slower.

    Raises:
        RubError: an unknown device.

    Example:
        >>> [f"{sustained('a100', precision):.0e}" for precision in ("float32", "tf32", "bfloat16")]
        ['1e+13', '5e+13', '1e+14']
    """
    if device not in DEVICES:
        raise unknown("device", device, DEVICES)
    card = DEVICES[device]
    return min(REACHED * card.peaks[precision], PER_BYTE[precision] * card.bandwidth)


def hours(device: str, work: Mapping[str, float]) -> float:
    """Hours of a device for so many FLOPs in each precision.

    Example:
        >>> round(hours("a100", {"tf32": 50e12 * 3600, "float32": 13e12 * 1800}), 2)
        1.5
    """
    return sum(flops / sustained(device, precision) for precision, flops in work.items()) / 3600
