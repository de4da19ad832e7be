"""`Samples` of what a caller holds in memory: tensors, NumPy arrays, a `Dataset` or a `DataLoader`."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from rub.data.samples import Samples
from rub.errors import RubError

Images: TypeAlias = "Samples | tuple[Any, Any] | Iterable[Any] | torch.utils.data.Dataset[Any]"
"""What `samples_of` takes: a pair (images, labels), a `Dataset` or `DataLoader` of (image, label), or `Samples`."""
OUTSIDE = 1e-4  # rounding of a resize or of a float16 may leave [0, 1] by so much


def samples_of(images: Any, labels: Any = None, ids: Any = None, *, name: str = "images") -> Samples:
    """Samples of images in memory; floats are rounded to the nearest of 256 levels, since RUB's images have 8 bits.

    Args:
        images: uint8, or floats in [0, 1], shape (N, C, H, W): a tensor or an array. Or a `Dataset` or `DataLoader` of
            (image, label), where an image is such a tensor or array (C, H, W), or a PIL image; or a pair
            (images, labels); or `Samples`.
        labels: integers (N,), class indices; None where `images` has them.
        ids: integers (N,), which decide the random numbers of each sample in an attack; None: 0 to N - 1.
        name: what these images are called in an error.

    Raises:
        RubError: images or labels of another form, not as many of one as of the other, or none at all.

    Example:
        >>> samples_of(np.full((2, 1, 4, 4), 0.5), [0, 3]).images.unique()
        tensor([128], dtype=torch.uint8)
    """
    if isinstance(images, Samples):
        return images
    if labels is None:
        pair = isinstance(images, tuple) and len(images) == 2
        images, labels = images if pair else _collected(images, name)
    pixels, classes = _pixels(images, name), _integers(labels, f"{name}: the labels")
    numbers = torch.arange(len(classes)) if ids is None else _integers(ids, f"{name}: the ids")
    if not len(pixels) == len(classes) == len(numbers):
        raise RubError(f"{name}: {len(pixels)} images, {len(classes)} labels, {len(numbers)} ids: should be as many")
    return Samples(pixels, classes, numbers)


def _collected(source: Any, name: str) -> tuple[Tensor, Tensor]:
    """Images and labels of a data set, item by item, or of a loader, batch by batch."""
    batched = isinstance(source, torch.utils.data.DataLoader)
    images, labels = [], []
    for item in _items(source, name):
        image, label = _image_and_label(item, name)
        images.append(_pixels(image if batched else _with_channels(image), name))
        labels.append(_integers(label if batched else [label], f"{name}: the labels"))
    if len({image.shape[-3:] for image in images}) > 1:
        raise RubError(f"{name}: its images differ in size; resize them to one")
    if not images:
        raise RubError(f"{name}: there are none; give one at least")
    return torch.cat(images), torch.cat(labels)


def _items(source: Any, name: str) -> Iterator[Any]:
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, Tensor | np.ndarray):
        return (source[index] for index in range(len(source)))  # its __iter__, if any, may know no end
    if isinstance(source, Iterable) and not isinstance(source, Tensor | np.ndarray):
        return iter(source)
    raise RubError(f"{name}: got {type(source).__name__} without labels; give labels too, or a Dataset of both")


def _image_and_label(item: Any, name: str) -> tuple[Any, Any]:
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    if isinstance(item, dict):
        found = [next((item[key] for key in keys if key in item), None) for keys in (_IMAGE_KEYS, _LABEL_KEYS)]
        if all(part is not None for part in found):
            return found[0], found[1]
    raise RubError(f"{name}: an item is a {type(item).__name__}; should be (image, label)")


_IMAGE_KEYS, _LABEL_KEYS = ("image", "img", "pixel_values"), ("label", "labels", "fine_label")


def _with_channels(image: Any) -> Any:
    """Tensor or array (1, C, H, W) of one image; a PIL image, or (H, W), is given its channels."""
    if not isinstance(image, Tensor | np.ndarray):
        image = np.array(image)  # PIL: (H, W) or (H, W, C)
        image = image.transpose(2, 0, 1) if image.ndim == 3 else image
    return (image if image.ndim == 3 else image[None])[None]


def _pixels(images: Any, name: str) -> Tensor:
    """Images as uint8 (N, C, H, W)."""
    try:
        values = torch.as_tensor(images).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise RubError(f"{name}: got {type(images).__name__}; should be a tensor or array (N, C, H, W)") from None
    if values.ndim != 4:
        hint = "; for grey images, images[:, None]" if values.ndim == 3 else ""
        raise RubError(f"{name}: shape {tuple(values.shape)}; should be (N, C, H, W){hint}")
    if not len(values):
        raise RubError(f"{name}: there are none; give one at least")
    if values.shape[1] not in (1, 3, 4) and values.shape[3] in (1, 3, 4):
        raise RubError(f"{name}: shape {tuple(values.shape)} has channels last; permute(0, 3, 1, 2) puts them first")
    if values.dtype == torch.uint8:
        return values
    if not values.is_floating_point():
        raise RubError(f"{name}: {values.dtype}; should be uint8, or floats in [0, 1]")
    low, high = values.min().item(), values.max().item()
    if not (low >= -OUTSIDE and high <= 1 + OUTSIDE):  # so that NaN is refused
        hint = "divide by 255" if low >= 0 else "normalise inside the model"
        raise RubError(f"{name}: values from {low:.4g} to {high:.4g}; should be in [0, 1], or uint8: {hint}")
    return (values.float().clamp(0, 1) * 255).round().to(torch.uint8)


def _integers(values: Any, name: str) -> Tensor:
    try:
        numbers = torch.as_tensor(values).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise RubError(f"{name}: got {type(values).__name__}; should be whole numbers (N,)") from None
    if numbers.ndim != 1 or numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise RubError(f"{name}: {numbers.dtype} {tuple(numbers.shape)}; should be whole numbers (N,)")
    return numbers.long()
