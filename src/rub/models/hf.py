"""Image classifiers of transformers: any that a folder, a hub id or a config names, and two miniatures."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

from torch import Tensor, nn

from rub.config.hyperparameters import Hyper
from rub.models.lookup import hub_config

OTHERS = frozenset(
    {"id2label", "label2id", "architectures", "dtype", "torch_dtype", "auto_map", "attn_implementation"}
    | {"quantization_config", "experts_implementation", "use_kernels"}
)
"""Fields of a config that say something of its checkpoint, or that fetch code; not of the network."""

Width = Annotated[int, Hyper("width of the tokens, a multiple of 16", ge=16, le=1024)]
Patch = Annotated[int | None, Hyper("side of a patch in pixels; None: an eighth of the images'", ge=1, le=64)]


def classifier(
    num_classes: int,
    channels: int,
    size: int,
    *,
    name: Annotated[str, Hyper("folder or hub id of a model, or its config.json")],
    config: Annotated[dict[str, Any] | None, Hyper("what its config.json says; None: it is read")] = None,
) -> nn.Module:
    """Image classifier of transformers, of the architecture that a config names; no weights are read.

    Images are resized to the config's ``image_size`` where it has one. With `config` nothing is read.

    Raises:
        RubError: there is no such config.
        ValueError: transformers has no image classifier of this kind.
    """
    given = hub_config(name) if config is None else config
    side = given.get("image_size")
    network = _built(num_classes, channels, given)
    network.input_size = side[0] if isinstance(side, list | tuple) else side  # type: ignore[assignment]
    return network


def vit_mini(
    num_classes: int,
    channels: int,
    size: int,
    *,
    width: Width = 64,
    depth: Annotated[int, Hyper("number of blocks", ge=1, le=64)] = 4,
    patch: Patch = None,
) -> nn.Module:
    """Vision transformer of 0.1 M parameters that two cores can train: 64 patches, 4 blocks, 4 heads.

    Dosovitskiy et al., ICLR 2021 (arXiv 2010.11929).
    """
    config = {
        "model_type": "vit", "image_size": size, "patch_size": patch or max(size // 8, 1), "hidden_size": width,
        "num_hidden_layers": depth, "num_attention_heads": 4, "intermediate_size": 2 * width,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    return _built(num_classes, channels, config)


def swin_mini(num_classes: int, channels: int, size: int, *, width: Width = 32, patch: Patch = None) -> nn.Module:
    """Swin transformer of 0.1 M parameters that two cores can train: two stages of two blocks, windows of 4 x 4.

    Liu et al., ICCV 2021 (arXiv 2103.14030).
    """
    patch = patch or max(size // 8, 1)
    window = max(min(size // patch // 2, 4), 1)  # two fit into a side of the first stage, one into the second's
    config = {
        "model_type": "swin", "image_size": size, "patch_size": patch, "embed_dim": width,
        "depths": [2, 2], "num_heads": [2, 4], "window_size": window, "mlp_ratio": 2.0, "drop_path_rate": 0.0,
    }  # fmt: skip
    return _built(num_classes, channels, config)


def _built(num_classes: int, channels: int, config: Mapping[str, Any]) -> nn.Module:
    import transformers

    given = _network_alone(config)
    kind = given.pop("model_type", "")
    made = transformers.AutoConfig.for_model(kind, **{**given, "num_labels": num_classes, "num_channels": channels})
    # Attention as plain products: on CPUs torch's fused one is slower, and gives no gradient per sample.
    network: nn.Module = transformers.AutoModelForImageClassification.from_config(made, attn_implementation="eager")
    return network.float()


def _network_alone(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _network_alone(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name not in OTHERS and not name.startswith("_")
    }


def described(
    network: nn.Module, classes: Sequence[str], mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """File -> content with which transformers reads a classifier's ``model.safetensors``; none of another library's.

    Args:
        network: of normalised images, as `classifier` builds it.
        classes: names, in the order of the logits.
        mean: of its normalisation, per channel, in [0, 1] pixel space.
        std: likewise.
    """
    from transformers import PretrainedConfig

    config, side = getattr(network, "config", None), getattr(network, "input_size", None)
    if not isinstance(config, PretrainedConfig):
        return {}
    names = dict(enumerate(classes))
    own = {**config.to_diff_dict(), "architectures": [type(network).__name__], "id2label": names}
    pixels = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(mean)}
    resized = {"do_resize": side is not None, "size": {"height": side, "width": side}} if side else {"do_resize": False}
    processor = {"image_processor_type": "ViTImageProcessor", **pixels, "image_std": list(std), **resized}
    return {
        "config.json": own | {"label2id": {name: number for number, name in names.items()}},
        "preprocessor_config.json": processor,
    }


def renamed(network: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of any version of transformers under the names of the installed one, by its own rules.

    Names that mean nothing to it stay as they are.
    """
    prefix = f"{network.base_model_prefix}."
    if network.state_dict().keys() <= state.keys() or not any(name.startswith(prefix) for name in state):
        return dict(state)
    with _quiet():
        try:
            made, report = type(network).from_pretrained(
                None, config=network.config, state_dict=dict(state), output_loading_info=True
            )
        except (RuntimeError, ValueError):  # shapes of another network: the names are compared as they are
            return dict(state)
    known = {name: value for name, value in made.state_dict().items() if name not in report["missing_keys"]}
    return {**known, **{name: state[name] for name in report["unexpected_keys"] if name in state}}


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # RUB shows its own
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
