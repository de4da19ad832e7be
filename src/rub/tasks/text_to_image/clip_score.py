"""CLIP score of pictures and their prompts, where CLIP's weights are on disk."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rub.pipeline.runtime import Runtime
from rub.tasks.text_to_image.metrics import CLIP


def clip_score_or_none(images: Tensor, texts: Sequence[str], runtime: Runtime) -> float | None:
    """CLIP score of uint8 images (N, C, H, W) and N prompts, or None where `CLIP` is not on this machine.

    The mean of max(100 cos, 0) over pictures (Hessel et al. 2021, without its factor 2.5); grey images are repeated.
    """
    metric = runtime.cache.get(("clip", runtime.device), lambda: _load(runtime))
    if metric is None:
        return None
    coloured = images if images.shape[1] == 3 else images.repeat(1, 3, 1, 1)
    metric.reset()
    for start in range(0, len(texts), 16):
        metric.update(coloured[start : start + 16].to(runtime.device), list(texts[start : start + 16]))
    return float(metric.compute())


def _load(runtime: Runtime) -> Any:
    # Where the weights are neither below the data root nor in the hub's cache: nothing is downloaded.
    from huggingface_hub import try_to_load_from_cache
    from torchmetrics.multimodal import CLIPScore

    folder = None if runtime.data_root is None else runtime.data_root / CLIP.rpartition("/")[2]
    if folder is not None and folder.is_dir():
        return CLIPScore(model_name_or_path=str(folder)).to(runtime.device)
    if isinstance(try_to_load_from_cache(CLIP, "config.json"), str):
        return CLIPScore(model_name_or_path=CLIP).to(runtime.device)
    return None
