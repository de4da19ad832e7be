"""Two models in memory: what a naive way of forgetting leaves behind, and what changing only the input brings back.

    python examples/in_memory.py

A small network learns handwritten digits. Then its answer "0" is pushed down, which looks like forgetting: hardly any
zero is recognised. Nothing here is RUB's but the last two calls.
"""

import copy
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rub


def train(images: torch.Tensor, labels: torch.Tensor, epochs: int) -> nn.Sequential:
    """A network of [0, 1] images to logits, in evaluation mode."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 16, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(epochs):
        for x, y in DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.eval()


def main(epochs: int = 30, steps: int = 100, samples: int = 64, protocol: Any = "rub-audit-2") -> None:
    """Forget the zeros, and look for them."""
    digits = load_digits()
    images, labels = torch.tensor(digits.images[:, None] / 16).float(), torch.tensor(digits.target)
    seen, zero = torch.arange(len(images)) < 1400, labels == 0
    original = train(images[seen], labels[seen], epochs)
    retrained = train(images[seen & ~zero], labels[seen & ~zero], epochs)
    unlearned = copy.deepcopy(original)
    with torch.no_grad():
        unlearned.get_parameter("4.bias")[0] -= 15

    forgotten = images[seen & zero][:samples], labels[seen & zero][:samples]
    for name, model in (("unlearned", unlearned), ("retrained, for comparison", retrained)):
        print(name)
        print(rub.recover(model, original, *forgotten, eps=[8, 16, 32], steps=steps))
        print()

    report = rub.audit(
        original=original,
        unlearned=unlearned,
        retrained=retrained,
        forget=(images[seen & zero], labels[seen & zero]),
        retain=TensorDataset(images[seen & ~zero], labels[seen & ~zero]),
        test=TensorDataset(images[~seen], labels[~seen]),
        protocol=protocol,
        samples=samples,
    )
    print(report)


if __name__ == "__main__":
    main()
