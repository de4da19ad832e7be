"""The unlearning methods of image classification, one file each.

Every method has the signature ``method(model, forget, retain, context, *, hyperparameters) -> Module``: `model` is a
private, trainable copy of the original model, changed in place; `forget` and `retain` are `Samples`; `context` is an
`UnlearnContext`, from which alone random numbers, batches and steps come. Trained models are left in train mode.

Example:
    >>> import torch
    >>> from rub.tasks.classification.context import UnlearnContext
    >>> from rub.tasks.classification.methods.ft import fine_tune
    >>> from rub.data.samples import Samples
    >>> images = torch.arange(8 * 16).reshape(8, 1, 4, 4).to(torch.uint8)
    >>> data = Samples(images, torch.tensor([0, 1] * 4), torch.arange(8))
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    >>> context = UnlearnContext(seed=0, num_classes=2, forget_classes=(0,), batch_size=4)
    >>> unlearned = fine_tune(model, data.select(data.labels == 0), data.select(data.labels == 1), context, epochs=1)
"""
