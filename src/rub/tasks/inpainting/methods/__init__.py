"""The unlearning methods of masked autoencoders, one file each.

Every method has the signature ``method(model, forget, retain, context, *, hyperparameters) -> Module``: `model` is a
private, trainable copy of the original, changed in place; `forget` and `retain` are `Samples`; `context` is an
`UnlearnContext`, from which alone random numbers, masks, batches and steps come. Every step sees as many forget as
retain images, with fresh masks. Trained models are left in train mode.

Example:
    >>> import torch
    >>> from rub.data.samples import Samples
    >>> from rub.tasks.inpainting.context import UnlearnContext
    >>> from rub.models.mae.model import MAEConfig, MaskedAutoencoder
    >>> from rub.tasks.inpainting.methods.i2i import i2i
    >>> images = torch.arange(8 * 64).reshape(8, 1, 8, 8).to(torch.uint8)
    >>> data = Samples(images, torch.tensor([0, 1] * 4), torch.arange(8))
    >>> model = MaskedAutoencoder(MAEConfig(8, 2, 1, 8, 1, 2, 8, 1, 2, mean=(0.5,), std=(0.25,)))
    >>> context = UnlearnContext(seed=0, batch_size=4)
    >>> unlearned = i2i(model, data.select(data.labels == 0), data.select(data.labels == 1), context, epochs=1)
"""
