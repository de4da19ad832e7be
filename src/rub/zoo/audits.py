"""Models of a zoo as what is audited: what they know of themselves need not be said. Free of torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rub.errors import RubError
from rub.zoo.entry import ZooModel, checked, is_zoo_model, shelf_of
from rub.zoo.lookup import PREFIX, folder_of

ROLES = ("original", "unlearned", "retrained")


def with_facts(given: Mapping[str, Any], task: str) -> dict[str, Any]:
    """An audit's options, in which models of a zoo are their folders or files.

    What the original says of its network, data and forget set stands where nothing else is said; a model's files are
    compared with their SHA-256.

    Raises:
        RubError: no such model, one of another task, or one whose files are not what they should be.
    """
    made = dict(given)
    found: dict[str, ZooModel] = {}
    for role in ROLES:
        name = str(given.get(role) or "")
        named = name.startswith(PREFIX) and not Path(name).exists()
        if name and (named or is_zoo_model(Path(name))):
            folder = folder_of(name, f"--{role}")
            found[role] = model = checked(folder)
            if model.task != task:
                raise RubError(f"--{role} {name}: is a model of {model.task}; give one of {task}")
            made[role] = shelf_of(task).audited(folder, model)
    original = found.get("original")
    return made if original is None else {**made, **shelf_of(task).unsaid(original, made)}


def images_of(original: ZooModel, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of an audit that say which images an original was trained on, where none is given."""
    chosen = any(original.data.get(name) for name in ("path", "classes", "per_class", "test_per_class"))
    if given.get("data") or chosen:  # a folder, or a choice from one, is the user's to name
        return {}
    return _known({"data": original.data.get("name"), "size": given.get("size") or original.data.get("size")})


def forgotten_classes_of(original: ZooModel, given: Mapping[str, Any]) -> dict[str, Any]:
    """The option of an audit that says which classes were forgotten, where no forget set is given."""
    forget = original.forget
    drawn = any(forget.get(name) for name in ("fraction", "ids", "files"))  # depends on what is held out
    said = any(given.get(f"forget_{name}") for name in ("classes", "ids", "files", "fraction"))
    return {} if drawn or said else _known({"forget_classes": forget.get("classes")})


def _known(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
