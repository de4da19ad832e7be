"""Unlearn one class from a public CIFAR-10 checkpoint, in a process of its own, so that there is something to audit.

Then ``rub audit classification --original resnet20-12fca82f.th --unlearned unlearned.th --arch resnet20 --data cifar10
--data-root data --forget-classes 0``.
"""

import argparse
from pathlib import Path

import torch

from rub.data.sources import load_images
from rub.models.formats.classifier import load_weights
from rub.models.network import build_network
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.methods.rl import random_label
from rub.training.classifier import predict


def main() -> None:
    """Fine-tune with random labels on the forgotten class and a share of the rest, and save in the same key style."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--forget-class", type=int, default=0)
    parser.add_argument("--retain-samples", type=int, default=10_000)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    images = load_images("cifar10", arguments.data_root)
    model = build_network(arguments.arch, num_classes=10, mean=images.mean, std=images.std)
    load_weights(arguments.checkpoint, model)  # sets the mean and std that this checkpoint was trained with
    forgotten = images.train.labels == arguments.forget_class
    context = UnlearnContext(seed=0, num_classes=10, forget_classes=(arguments.forget_class,))
    kept = (~forgotten).nonzero()[:, 0]
    kept = kept[torch.randperm(len(kept), generator=context.generator("share"))[: arguments.retain_samples]]
    forget, retain = images.train.select(forgotten.nonzero()[:, 0]), images.train.select(kept)
    unlearned = random_label(model, forget, retain, context, lr=arguments.lr, epochs=arguments.epochs).eval()

    right = predict(unlearned, images.test).argmax(1) == images.test.labels
    of_class = images.test.labels == arguments.forget_class
    forgotten_accuracy, other_accuracy = (right[part].float().mean() for part in (of_class, ~of_class))
    print(f"test accuracy: forgotten class {forgotten_accuracy:.3f}, others {other_accuracy:.3f}")
    state = {f"module.{name.replace('fc.', 'linear.')}": value for name, value in unlearned.state_dict().items()}
    torch.save({"state_dict": state}, arguments.out)


if __name__ == "__main__":
    main()
