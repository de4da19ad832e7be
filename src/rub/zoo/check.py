"""Whether a model of a zoo is what it says."""

from pathlib import Path

from rub.errors import RubError
from rub.zoo.entry import read_model, shelf_of
from rub.zoo.lookup import load_folder


def problem(folder: Path) -> str:
    """What is wrong with a model, one line; "" where its files are whole, its weights fit, its outputs are finite."""
    try:
        made = load_folder(folder)
        model = read_model(folder)
        try:
            given = shelf_of(model.task).probe(made, model)
        except (RuntimeError, MemoryError, ValueError, TypeError, KeyError) as error:
            return f"{folder}: gives no output ({type(error).__name__})"
    except RubError as error:
        return str(error)
    return "" if bool(given.isfinite().all()) else f"{folder}: its outputs are not finite"
