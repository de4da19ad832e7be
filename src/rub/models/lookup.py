"""From what a suite says of a network to its registered builder and what that is given. Free of torch."""

from collections.abc import Mapping
from typing import Any

from rub.registry import NETWORKS, Entry, load_component, resolve, source_hash

TASK = "classification"
UNSAID: Mapping[str, Any] = {"stem": "cifar", "width": None}
"""What every spec of a network has, though only some networks know it: their default values say nothing."""
BESIDE = frozenset({"arch", "mean", "std", "source", "classes"})
"""Fields of a spec that are no hyperparameters of the builder."""


def network_entry(arch: str) -> tuple[Entry[Any], dict[str, Any]]:
    """Registered builder of a network, and the hyperparameters that its name says already.

    Args:
        arch: a registered name, ``FILE.py:builder``, or a family with what it is to be: ``timm:NAME``.

    Raises:
        RubError: an unknown name, or a file that cannot be used.
    """
    family, _, rest = arch.partition(":")
    if family.endswith(".py"):
        return load_component(NETWORKS, arch, TASK), {}
    if rest and any(entry.name == f"{family}:*" for entry in NETWORKS.entries(TASK)):
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
    """What a stage's spec says of a network: the suite's words and, of a plug-in, the hash of its source.

    Args:
        spec: ``arch``, ``mean``, ``std`` and hyperparameters.

    Raises:
        RubError: an unknown network, or a hyperparameter that it does not have or allow.
    """
    entry, named = network_entry(spec["arch"])
    resolve(entry, {**named, **hyperparameters_in(spec)}, "model")
    source = source_hash(entry)
    return {**spec, **({"source": source} if source else {})}
