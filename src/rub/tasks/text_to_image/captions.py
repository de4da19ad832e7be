"""Captions for the training of miniatures: sentences in which one class is named, and no other."""

import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from rub.data.class_names import known_names
from rub.tasks.text_to_image.concepts import SHIPPED, shipped, templates

T = TypeVar("T")
TEMPLATE, BARE = 0.5, 0.1  # shares of captions; the rest is a name among random words
FEWEST, MOST = 2, 8  # random words around a name


def words_in(texts: Iterable[str]) -> set[str]:
    """Distinct words of texts, in lower case.

    Example:
        >>> sorted(words_in(["A photo of {}", "a chain-saw"]))
        ['a', 'chain', 'of', 'photo', 'saw']
    """
    return {word for text in texts for word in re.findall(r"[^\W_]+", text.lower())}


def _context_words() -> tuple[str, ...]:
    named = words_in(name for group in known_names().values() for names in group.values() for name in names)
    said = words_in(text for name in SHIPPED for text in shipped(name).texts) | words_in(templates().texts)
    return tuple(sorted(said - named))


CONTEXT_WORDS = _context_words()
"""The words of all shipped prompts and templates but those that name a class of any data set that RUB knows."""


class Captioner:
    """Writes captions: a template or the bare name (60 %), or the name among random words.

    The random words teach a small text encoder to find the class's word in any sentence, prompts of an attack among
    them. The main name is twice as likely as each other one. Templates and words in which a class is named are left
    out, so that a caption names the class of its label only.

    Args:
        names: of every class, in the order of the labels.
    """

    def __init__(self, names: Sequence[tuple[str, ...]]) -> None:
        taken = words_in(name for found in names for name in found)
        self._names = [(found[0], *found) for found in names]
        self._templates = [text for text in templates().texts if not taken & words_in([text])] or ["{}"]
        self._words = [word for word in CONTEXT_WORDS if word.lower() not in taken]

    def caption(self, label: int, generator: torch.Generator) -> str:
        """Caption for an image of this class; takes the same count of random numbers every time."""
        kind, which, form, place, *rest = torch.rand(4 + MOST, generator=generator).tolist()
        name = _pick(self._names[label], which)
        if kind < TEMPLATE:
            return _pick(self._templates, form).replace("{}", name)
        if kind < TEMPLATE + BARE:
            return name
        around = [_pick(self._words, draw) for draw in rest[: _pick(range(FEWEST, MOST + 1), form)]]
        around.insert(_pick(range(len(around) + 1), place), name)
        return " ".join(around)

    def captions(self, labels: Tensor, generator: torch.Generator) -> list[str]:
        """Caption for each label, int64 (B,)."""
        return [self.caption(label, generator) for label in labels.tolist()]


def vocabulary_texts(names: Sequence[tuple[str, ...]]) -> list[str]:
    """Texts that a miniature's tokenizer is trained on: every template with every name, all words, all prompts."""
    every = [name for found in names for name in found]
    filled = [text.replace("{}", name) for text in templates().texts for name in every]
    prompts = [text for concept in SHIPPED for text in shipped(concept).texts]
    return [*filled, *every, *templates().texts, *CONTEXT_WORDS, *prompts]


def _pick(items: Sequence[T], draw: float) -> T:
    return items[int(draw * len(items))]
