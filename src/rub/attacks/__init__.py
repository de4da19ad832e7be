"""What the tasks' attacks share: steps inside a ball, the search, and attacks of other libraries (`adapt`)."""

from typing import Any


def __getattr__(name: str) -> Any:
    # lazily, so that naming an attack does not import torch
    if name != "adapt":
        raise AttributeError(f"module 'rub.attacks' has no attribute '{name}'")
    from rub.attacks.foreign import adapt

    return adapt
