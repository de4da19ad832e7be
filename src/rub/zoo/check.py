"""Whether a model of a zoo is what it says."""

from pathlib import Path

from rub.errors import RubError
from rub.zoo.entry import checked, shelf_of


def problem(folder: Path) -> str:
    """What is wrong with a model, one line; "" where its files are whole, its weights fit, its outputs are finite."""
    try:
        model = checked(folder)
        shelf = shelf_of(model.task)
        given = shelf.probe(shelf.read(folder, model), model)
    except RubError as error:
        return str(error)
    return "" if bool(given.isfinite().all()) else f"{folder}: its outputs are not finite"
