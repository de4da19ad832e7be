"""From what a suite says of a network to its registered builder and what that is given. Free of torch."""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rub.config.hyperparameters import resolve
from rub.errors import RubError
from rub.models.hub import HubName, snapshot
from rub.registry import NETWORKS, Entry, check_builder, load_component, source_hash

TASK = "classification"
UNSAID: Mapping[str, Any] = {"stem": "cifar", "width": None}
"""What every spec of a network has, though only some networks know it: their default values say nothing."""
BESIDE = frozenset({"arch", "mean", "std", "source", "classes"})
"""Fields of a spec that are no hyperparameters of the builder."""


def network_entry(arch: str) -> tuple[Entry[Any], dict[str, Any]]:
    """Registered builder of a network, and the hyperparameters that its name says already.

    A registered name, ``FILE.py:builder``, or one of a family: ``hf:FOLDER_OR_ID``, ``timm:NAME``.

    Raises:
        RubError: an unknown name, or a file that cannot be used.
    """
    family, _, rest = arch.partition(":")
    if family.endswith(".py"):
        entry = load_component(NETWORKS, arch, TASK)
        check_builder(arch, entry.load())
        return entry, {}
    if rest and any(entry.name == f"{family}:*" for entry in NETWORKS.entries(TASK)):
        if family == "timm" and find_spec("timm") is None:
            raise RubError(f"network {arch}: timm is not installed; pip install 'rub-bench[timm]'")
        return NETWORKS.get(f"{family}:*", TASK), {"name": rest}
    return NETWORKS.get(arch, TASK), {}


def without_defaults(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters without those that a spec has by default, see `UNSAID`.

    Example:
        >>> without_defaults({"stem": "cifar", "width": 16})
        {'width': 16}
    """
    return {name: value for name, value in parameters.items() if name not in UNSAID or value != UNSAID[name]}


def hyperparameters_in(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters of the builder that a spec gives.

    Example:
        >>> hyperparameters_in({"arch": "vit-mini", "stem": "cifar", "width": None, "mean": None, "depth": 3})
        {'depth': 3}
    """
    return without_defaults({name: value for name, value in spec.items() if name not in BESIDE})


def network_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage's spec says of a network, so that the stage depends on nothing else.

    The suite's words and, of a plug-in, the hash of its source; of an ``hf:`` network, its config and the
    normalisation beside it (``preprocessor_config.json``), and of its place no more than the name.

    Raises:
        RubError: an unknown network, or a hyperparameter that it does not have or allow.
    """
    made = dict(spec)
    entry, named = network_entry(made["arch"])
    if entry.name == "hf:*" and "config" not in made:
        made["config"] = hub_config(named["name"])
        made |= {name: value for name, value in _normalisation(named["name"]).items() if made.get(name) is None}
        made["arch"] = network_title(made["arch"])
    resolve(entry, {**named, **hyperparameters_in(made)}, "model")
    source = source_hash(entry)
    return {**made, **({"source": source} if source else {})}


def claimed_arch(spec: Mapping[str, Any]) -> str:
    """Name under which a claim's network (a `network_spec`) is registered here: a claim never has code loaded.

    Raises:
        RubError: it is code that was not given, or changed since.
    """
    arch, source = spec["arch"], spec.get("source", "")
    _, _, function = arch.rpartition(":")
    if arch.partition(":")[0].endswith(".py"):
        mine = (entry for entry in NETWORKS.entries(TASK) if entry.origin != "rub" and source_hash(entry) == source)
        found = next((entry.name for entry in mine if getattr(entry.load(), "__name__", "") == function), None)
        if found is None:
            raise RubError(f"the claim's network {arch} is code; decorate it with @rub.network, and give --plugin FILE")
        return found
    if arch.startswith("hf:") and not isinstance(spec.get("config"), Mapping):
        raise RubError(f"the claim's network {arch} lacks its config")
    if source_hash(network_entry(arch)[0]) != source:
        raise RubError(f"the claim's network {arch} is another one here; give the file that it was made with: --plugin")
    return str(arch)


def network_title(arch: str) -> str:
    """Name of a network without the folders of its files.

    Example:
        >>> network_title("hf:google/vit-base-patch16-224"), network_title("nets/mine.py:build")
        ('hf:vit-base-patch16-224', 'mine.py:build')
    """
    family, colon, rest = arch.partition(":")
    return f"{Path(family).name}{colon}{Path(rest).name}"


def hub_config(name: str) -> dict[str, Any]:
    """Config of a model of transformers: of a folder, a file, or a hub id (from the hub's cache or downloaded)."""
    place = Path(name)
    if not place.exists():
        wanted = ("config.json", "preprocessor_config.json")
        place = snapshot(HubName.parse(name, "network hf:"), wanted=wanted)
    file = place / "config.json" if place.is_dir() else place
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict) or "model_type" not in config:
        raise RubError(f"network hf:{name}: {file} should be a config of transformers: a JSON object with model_type")
    return config


def _normalisation(name: str) -> dict[str, Any]:
    place = Path(name)
    if not place.exists():
        place = snapshot(HubName.parse(name, "network hf:"), wanted=("preprocessor_config.json",))
    try:
        facts = json.loads((place / "preprocessor_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    said = {"mean": facts.get("image_mean"), "std": facts.get("image_std")} if facts.get("do_normalize", True) else {}
    return {name: value for name, value in said.items() if isinstance(value, list)}
