"""Hours that a stage takes on a device that is not here, by arithmetic: its work over what such devices sustain."""

from collections.abc import Mapping

from rub.errors import unknown

PEAKS: Mapping[str, Mapping[str, float]] = {
    "a100": {"float32": 19.5, "tf32": 156, "bfloat16": 312},
    "h100": {"float32": 67, "tf32": 495, "bfloat16": 989},
    "rtx3090": {"float32": 35.6, "tf32": 35.6, "bfloat16": 71},
    "rtx4090": {"float32": 82.6, "tf32": 82.6, "bfloat16": 165},
}
"""TFLOP/s without sparsity, of NVIDIA's data sheets (A100, H100 SXM) and white papers (Ampere GA102, Ada); bfloat16
with sums in float32."""
SUSTAINED: Mapping[str, float] = {"float32": 2 / 3, "tf32": 1 / 3, "bfloat16": 1 / 3}
"""Share of the peak that a UNet of convolutions and attention is taken to reach, 13 and 50 TFLOP/s of an A100: a guess
to a factor of 2, tensor cores wait for memory more than the rest does."""


def sustained(device: str, precision: str) -> float:
    """FLOP/s of a device in a precision: of TF32 at least those of float32, which it stands in for.

    Raises:
        RubError: an unknown device.

    Example:
        >>> f"{sustained('a100', 'float32'):.1e}", f"{sustained('a100', 'tf32'):.1e}"
        ('1.3e+13', '5.2e+13')
    """
    if device not in PEAKS:
        raise unknown("device", device, PEAKS)
    rates = {name: 1e12 * peak * SUSTAINED[name] for name, peak in PEAKS[device].items()}
    return max(rates[precision], rates["float32"])


def hours(device: str, work: Mapping[str, float]) -> float:
    """Hours of a device for so many FLOPs in each precision.

    Example:
        >>> round(hours("a100", {"tf32": 52e12 * 3600, "float32": 13e12 * 1800}), 2)
        1.5
    """
    return sum(flops / sustained(device, precision) for precision, flops in work.items()) / 3600
