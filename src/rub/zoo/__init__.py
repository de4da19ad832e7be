"""The zoo: the models behind the numbers, as folders that anyone can read, check and attack.

A model is a folder of ``config.json``, whose object ``rub`` says all that is known of it (`ZooModel`), and its weights
as safetensors. `rub.zoo.publish` writes them from a result and its store; `load_model` reads one that ships with RUB,
lies on disk, or is on the Hugging Face Hub, after comparing every file with its SHA-256. No file of a zoo is ever run.
"""

from rub.zoo.entry import ZooModel
from rub.zoo.lookup import load_model

__all__ = ["ZooModel", "load_model"]
