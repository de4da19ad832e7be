"""Image classifiers of timm, by any of its names."""

from collections.abc import Sequence
from typing import Annotated, Any

from torch import nn

from rub.config.hyperparameters import Hyper
from rub.errors import RubError, unknown


def classifier(
    num_classes: int,
    channels: int,
    size: int,
    *,
    name: Annotated[str, Hyper("a name of timm, such as vit_tiny_patch16_224")],
    image_size: Annotated[
        int | None, Hyper("side that images are resized to; None: as published, where the network needs it", ge=1)
    ] = None,
) -> nn.Module:
    """Image classifier of timm, named with or without the tag of its weights, which are not downloaded.

    Raises:
        RubError: timm is not installed, or does not know the name.
    """
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch ends in RuntimeError
        raise RubError(f"network timm:{name}: {error}; pip install 'rub-bench[timm]'") from None
    if name.partition(".")[0] not in (known := timm.list_models()):
        raise unknown("timm network", name, known)
    network: Any = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=channels)
    facts = network.pretrained_cfg
    last = facts.get("classifier")
    network.head_name = last[0] if isinstance(last, tuple) else last
    published = facts["input_size"][-1] if facts.get("fixed_input_size") else None
    network.input_size = image_size or published
    made: nn.Module = network
    return made


def described(
    network: nn.Module, classes: Sequence[str], mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """File -> content with which ``timm.create_model("local-dir:...")`` reads a classifier's ``model.safetensors``.

    None of another library's; arguments as of `rub.models.hf.described`.
    """
    facts = getattr(network, "pretrained_cfg", None)
    if not isinstance(facts, dict) or "architecture" not in facts:
        return {}
    own = {name: facts[name] for name in ("input_size", "interpolation", "crop_pct", "classifier", "first_conv")
           if name in facts}  # fmt: skip
    made = {"architecture": facts["architecture"], "num_classes": len(classes), "label_names": list(classes)}
    return {"config.json": made | {"pretrained_cfg": {**own, "mean": list(mean), "std": list(std)}}}
