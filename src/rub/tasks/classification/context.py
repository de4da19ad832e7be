"""What an unlearning method of classifiers receives besides its model and data."""

from dataclasses import dataclass

from rub.training.context import TrainContext


@dataclass(frozen=True, kw_only=True)
class UnlearnContext(TrainContext):
    """Everything an unlearning method may use besides its model and data; the rest is in `TrainContext`.

    Attributes:
        num_classes: number of classes C of the data set (and of the model's logits).
        forget_classes: classes that are forgotten whole; empty for a random or listed forget set.
    """

    num_classes: int
    forget_classes: tuple[int, ...] = ()
