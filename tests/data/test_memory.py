"""Images in memory, in every form that people hold them in, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

from rub.data.memory import samples_of
from rub.errors import RubError

PIXELS = torch.randint(0, 256, (6, 3, 5, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


class Pictures(Dataset):
    """A data set of (image, label), or of mappings, that makes each image when it is asked for."""

    def __init__(self, image, keys=None):
        self.image, self.keys = image, keys

    def __len__(self):
        return len(PIXELS)

    def __getitem__(self, index):
        pair = self.image(PIXELS[index]), LABELS[index].item()
        return pair if self.keys is None else dict(zip(self.keys, pair, strict=True))


def picture(pixels):
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    "given",
    [
        (PIXELS, LABELS),
        (PIXELS, LABELS.int()),
        (PIXELS, LABELS.tolist()),
        (PIXELS.numpy(), LABELS.numpy().astype(np.int32)),
        (PIXELS / 255, LABELS),
        (PIXELS.double().numpy() / 255, LABELS),
        (PIXELS.half() / 255, LABELS),
        (((PIXELS / 255).requires_grad_(), LABELS),),
        (TensorDataset(PIXELS, LABELS),),
        (TensorDataset(PIXELS / 255, LABELS.int()),),
        (Pictures(picture),),
        (Pictures(lambda pixels: pixels.numpy() / np.float32(255)),),
        (Pictures(picture, ("image", "label")),),
        (DataLoader(TensorDataset(PIXELS / 255, LABELS), batch_size=4),),
        (list(zip(PIXELS, LABELS, strict=True)),),
        (zip(PIXELS, LABELS, strict=True),),
    ],
    ids=lambda given: type(given[0]).__name__,
)
def test_the_same_images_in_every_form(given):
    found = samples_of(*given)
    assert torch.equal(found.images, PIXELS) and torch.equal(found.labels, LABELS)
    assert found.ids.tolist() == list(range(6))


def test_a_grey_picture_has_one_channel_and_ids_are_kept():
    grey = [(Image.fromarray(PIXELS[0, 0].numpy()), 3), (PIXELS[1, 0], 4)]
    found = samples_of(grey, ids=[7, 9])
    assert torch.equal(found.images, PIXELS[:2, :1]) and found.ids.tolist() == [7, 9]
    assert samples_of(found) is found


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (PIXELS[:, 0], LABELS, "shape (6, 5, 4); should be (N, C, H, W); for grey images, images[:, None]"),
        (PIXELS.permute(0, 2, 3, 1), LABELS, "permute(0, 3, 1, 2) puts them first"),
        (PIXELS.float(), LABELS, "should be in [0, 1], or uint8: divide by 255"),
        (PIXELS / 255 - 0.5, LABELS, "normalise inside the model"),
        (PIXELS / 255 * torch.nan, LABELS, "values from nan to nan"),
        (PIXELS.long(), LABELS, "torch.int64; should be uint8, or floats"),
        (PIXELS[:0], LABELS[:0], "there are none"),
        ([], None, "there are none"),
        (PIXELS, LABELS[:5], "6 images, 5 labels"),
        (PIXELS, torch.eye(6), "the labels: torch.float32 (6, 6); should be whole numbers (N,)"),
        (PIXELS, LABELS > 0, "the labels: torch.bool"),
        (PIXELS, ["cat"] * 6, "the labels: got list"),
        (PIXELS, None, "got Tensor without labels"),
        ("images", [1], "got str; should be a tensor or array"),
        (7, None, "got int without labels"),
        ([(PIXELS[0], 1), (PIXELS[1][:, :3], 1)], None, "differ in size"),
        ([PIXELS[0]], None, "an item is a Tensor; should be (image, label)"),
    ],
)
def test_what_is_no_image_or_label_is_refused_in_one_line(images, labels, says):
    with pytest.raises(RubError) as refused:
        samples_of(images, labels, name="forget")
    assert str(refused.value).startswith("forget: ")
    assert says in str(refused.value) and "\n" not in str(refused.value)
