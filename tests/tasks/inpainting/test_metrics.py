"""Per-image scores by hand, and against torchmetrics."""

import pytest
import torch
from torchmetrics.image import StructuralSimilarityIndexMeasure

from rub.metrics import lpips
from rub.tasks.inpainting.measure import eight_bit
from rub.tasks.inpainting.metrics import METRICS, cell, psnr, ssim


def test_psnr_of_known_errors():
    assert psnr(torch.tensor([1.0, 0.1, 0.0025])).tolist() == pytest.approx([0, 10, 26.0206], abs=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_torchmetrics_of_each_pair(channels):
    torch.manual_seed(0)
    one, other = torch.rand(2, 5, channels, 16, 16)
    scores = ssim(one, other)
    for row in range(5):
        alone = StructuralSimilarityIndexMeasure(data_range=1.0)(one[row : row + 1], other[row : row + 1])
        assert float(scores[row]) == pytest.approx(float(alone), abs=1e-5)
    assert ssim(one, one).tolist() == pytest.approx([1.0] * 5, abs=1e-5)


def test_directions_depend_on_the_side():
    kept, gone = (cell("i2i", 0, "is", split)["direction"] for split in ("retain", "forget"))
    assert (kept, gone) == ("up", "reference")
    assert cell("i2i", 0, "residual_knowledge", "forget")["direction"] == "down"
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_pictures_are_rounded_not_truncated():
    assert eight_bit(torch.tensor([0.9999, 0.5, -0.2, 1.7])).tolist() == [255, 128, 0, 255]


def test_lpips_is_left_out_where_its_network_is_not(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    lpips.lpips_or_none.cache_clear()
    assert lpips.lpips_or_none("cpu") is None
    lpips.lpips_or_none.cache_clear()
