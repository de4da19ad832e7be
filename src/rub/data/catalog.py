"""The data sets that ship with RUB.

Mean and standard deviation are those of Unlearn-Saliency (its `setup_model_dataset`), whose last row is ImageNet's as
everywhere else.
"""

from rub.data import readers
from rub.data.base import DatasetSource
from rub.data.class_names import known_names
from rub.data.folders import (
    class_folders,
    folder_fingerprint,
    folder_names,
    imagenet_classes,
    imagenet_fingerprint,
    imagenet_names,
    read_folder,
    read_imagenet,
)
from rub.data.hub import HubDataset
from rub.data.imagenet import HubImageNet


def names(data: str) -> tuple[str, ...]:
    """Classes of a data set that RUB knows by name."""
    return tuple(known_names()[data])


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

DIGITS = DatasetSource(
    "digits", readers.read_digits, fingerprint=readers.digits_fingerprint, images=1433, classes=names("digits")
)
CIFAR10 = DatasetSource(
    "cifar10", readers.read_cifar10, "cifar-10-batches-py",
    hub=HubDataset("uoft-cs/cifar10", "img", "label", "test"),
    mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
    flip=True, images=50_000, classes=names("cifar10"),
)  # fmt: skip
CIFAR100 = DatasetSource(
    "cifar100", readers.read_cifar100, "cifar-100-python",
    hub=HubDataset("uoft-cs/cifar100", "img", "fine_label", "test"),
    mean=(0.5071, 0.4866, 0.4409), std=(0.2673, 0.2564, 0.2762),
    flip=True, images=50_000, classes=100, named=readers.cifar100_names,
)  # fmt: skip
CIFAR100_COARSE = DatasetSource(
    "cifar100-coarse", readers.read_cifar100_coarse, "cifar-100-python",
    hub=HubDataset("uoft-cs/cifar100", "img", "coarse_label", "test"),
    mean=CIFAR100.mean, std=CIFAR100.std, flip=True, images=50_000, classes=20, named=readers.cifar100_names,
)  # fmt: skip
TINY_IMAGENET = DatasetSource(
    "tiny-imagenet", readers.read_tiny_imagenet, "tiny-imagenet-200",
    hub=HubDataset("zh-plus/tiny-imagenet", "image", "label", "valid"),
    mean=IMAGENET_MEAN, std=IMAGENET_STD,
    flip=True, images=100_000, classes=200,
)  # fmt: skip
IMAGENET = DatasetSource(
    "imagenet", read_imagenet, "imagenet", "{train,val}/<wnid>/",
    hub=HubImageNet(), fingerprint=imagenet_fingerprint,
    mean=IMAGENET_MEAN, std=IMAGENET_STD, flip=True, classes=imagenet_classes, named=imagenet_names,
)  # fmt: skip
FOLDER = DatasetSource(
    "folder", read_folder, by_path=True, fingerprint=folder_fingerprint, flip=True, classes=class_folders,
    named=folder_names,
)  # fmt: skip
NPZ = DatasetSource("npz", readers.read_npz, by_path=True, classes=readers.npz_names)
