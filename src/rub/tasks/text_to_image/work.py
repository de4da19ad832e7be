"""The FLOPs of a stage: its passes, times those of one pass, which are counted without the weights."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from rub.errors import RubError
from rub.models.diffusion.files import find_frame, find_model
from rub.models.diffusion.folders import read_json
from rub.pipeline.graph import Stage
from rub.tasks.text_to_image.spec import TextToImageExperiment

Work = Callable[[Stage], Mapping[str, float]]
"""Stage -> FLOPs by the precision that they are in on a GPU."""


def work_of(experiment: TextToImageExperiment, data_root: Path | None) -> Work:
    """FLOPs of an experiment's stages; a search's gradients are in TF32 whatever the precision of what it draws.

    The UNet alone is counted: decoding a picture of Stable Diffusion costs as much as 3 of its 100 passes.

    Raises:
        RubError: no diffusers folder, or one whose config makes no UNet.
    """
    weights = experiment.model.weights
    if weights is None:
        raise RubError(f"model {experiment.model.arch}: hours are known of Stable Diffusion, not of miniatures")
    place = find_model(weights, data_root=data_root)
    folder = place if place.is_dir() else find_frame(experiment.model.config or "", data_root=data_root)
    once, precision = pass_flops(folder / "unet" / "config.json"), experiment.protocol.precision

    def work(stage: Stage) -> Mapping[str, float]:
        searched = 0.0
        if stage.kind == "attack":
            gradients = 3.0 * float(stage.spec["run"]["parameters"].get("inner_steps", 0))
            searched = gradients / (gradients + 2.0 * float(stage.spec["sampler"]["steps"]))
        own = precision if "precision" in stage.spec else "float32"
        found = {"tf32": searched * stage.cost * once}
        found[own] = found.get(own, 0.0) + (1 - searched) * stage.cost * once
        return found

    return work


@cache
def pass_flops(config: Path) -> float:
    """FLOPs of one forward pass of one picture by the UNet of a config; a multiply-add is two.

    Convolutions and products are counted, by torch, on tensors without content.

    Raises:
        RubError: no such file, or it makes no UNet that takes its own sizes.
    """
    from diffusers import UNet2DConditionModel

    values = read_json(config)
    try:
        with torch.device("meta"), FlopCounterMode(display=False) as counted, torch.no_grad():
            unet = UNet2DConditionModel.from_config(values)
            size, given = unet.config.sample_size, torch.empty(1, 77, unet.config.cross_attention_dim)
            sides = (size, size) if isinstance(size, int) else size
            unet(torch.empty(1, unet.config.in_channels, *sides), torch.zeros(1), encoder_hidden_states=given)
    except Exception as error:  # whatever the library raises on values that it does not expect
        raise RubError(f"checkpoint {config}: makes no UNet ({type(error).__name__})") from None
    return float(counted.get_total_flops())
