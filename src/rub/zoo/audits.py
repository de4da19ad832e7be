"""Models of a zoo as what is audited: what they know of themselves need not be said. Free of torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rub.models.lookup import UNSAID, claimed_arch, hyperparameters_in
from rub.zoo.entry import ZooModel, checked, is_zoo_model
from rub.zoo.lookup import PREFIX, folder_of

_ELSEWHERE = {"stem", "width", "channels", "size"}  # hyperparameters that have an option, or none


def with_facts(given: Mapping[str, Any], roles: Sequence[str]) -> dict[str, Any]:
    """An audit's options, in which models of a zoo are their folders.

    What the original says of its network, data and forget set stands where nothing else is said; a model's files are
    compared with their SHA-256.

    Raises:
        RubError: no such model, or one whose files are not what they should be.
    """
    made = dict(given)
    found: dict[str, ZooModel] = {}
    for role in roles:
        name = str(given.get(role) or "")
        named = name.startswith(PREFIX) and not Path(name).exists()
        if name and (named or is_zoo_model(Path(name))):
            made[role] = folder_of(name, f"--{role}")
            found[role] = checked(made[role])
    original = found.get("original")
    return made if original is None else {**made, **_unsaid(original, made)}


def _unsaid(original: ZooModel, given: Mapping[str, Any]) -> dict[str, Any]:
    network, data, forget = original.network, original.data, original.forget
    known: dict[str, Any] = {}
    if not given.get("arch") and not given.get("network"):
        own = {name: value for name, value in hyperparameters_in(network).items() if name not in _ELSEWHERE}
        more = ",".join(f"{name}={value}" for name, value in own.items())
        known |= {"arch": claimed_arch(network), "parameters": more}
        known |= {name: network.get(name) for name in ("width", "mean", "std")}
        if given.get("stem", UNSAID["stem"]) == UNSAID["stem"]:
            known["stem"] = network.get("stem")
    chosen = any(data.get(name) for name in ("path", "classes", "per_class", "test_per_class"))
    if not given.get("data") and not chosen:  # a folder, or a choice from one, is the user's to name
        known |= {"data": data.get("name"), "size": data.get("size")}
    whole = not any(forget.get(name) for name in ("fraction", "ids", "files"))  # whose draw depends on what is held out
    if whole and not any(given.get(f"forget_{name}") for name in ("classes", "ids", "files", "fraction")):
        known["forget_classes"] = forget.get("classes")
    said = ("arch", "parameters", "stem")
    return {name: value for name, value in known.items() if value is not None and (name in said or not given.get(name))}
