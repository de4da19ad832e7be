"""Bad Teacher: learn from a random network on the forget set and from the original on the retain set."""

from copy import deepcopy
from dataclasses import replace
from typing import Annotated

import torch
from torch import nn
from torch.nn import functional as F

from rub.config.hyperparameters import Epochs, Fraction, Hyper, Positive, Rate
from rub.data.samples import Samples, concatenate
from rub.errors import RubError
from rub.models.weights import frozen
from rub.registry import Card, method
from rub.tasks.classification.context import UnlearnContext

CARD = Card(
    paper="Chundawat et al., Can Bad Teaching Induce Forgetting?, AAAI 2023, arXiv 2205.08096",
    equation="min_theta l_u KL(T_d(x) || f_theta(x)) + (1 - l_u) KL(T_s(x) || f_theta(x)),"
    " l_u = 1 on D_u; T_d random, T_s original",
    upstream="vikram2000b/bad-teaching-unlearning f1aa988; if-loops/selective-synaptic-dampening cdfdc0e, unlearn.py",
    differences=(
        "KL is averaged over the batch; upstream's reduction 'mean' also divides by C, which"
        " Adam's step cancels (up to its eps)",
        "the student trains in train mode; upstream leaves the mode to the caller",
        "the random teacher uses every layer's own reset_parameters and is in eval mode, as upstream",
        "batch size is the experiment's; upstream 256",
    ),
)


def randomised(model: nn.Module, seed: int) -> nn.Module:
    """Copy whose every layer is re-initialised by its own reset_parameters.

    Raises:
        RubError: a layer owns weights but cannot reset them, so that trained weights would stay.
    """
    copy = deepcopy(model)
    device = next(copy.parameters()).device
    copy.to("cpu")  # one stream of random numbers for every device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in copy.named_modules():
            if next(module.parameters(recurse=False), None) is None:
                continue
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if reset is None:
                raise RubError(f"bad-teacher: layer '{name}' ({type(module).__name__}) needs a reset_parameters method")
            reset()
    return copy.to(device)


@method("bad-teacher", task="classification", card=CARD)
def bad_teacher(
    model: nn.Module, forget: Samples, retain: Samples, context: UnlearnContext, *,
    lr: Annotated[Rate, Hyper("learning rate of Adam", source="selective-synaptic-dampening repository")] = 1e-4,
    epochs: Annotated[Epochs, Hyper("passes over the forget set and the retain share together",
        source="selective-synaptic-dampening repository")] = 1,
    retain_fraction: Annotated[Fraction, Hyper("share of the retain set", source="upstream")] = 0.3,
    temperature: Annotated[Positive, Hyper("T of the softmaxes",
        source="selective-synaptic-dampening repository")] = 1.0,
) -> nn.Module:  # fmt: skip
    """Distil from a randomly initialised teacher on forget samples and from the original on retain samples.

    Raises:
        RubError: a layer cannot be re-initialised.
    """
    draw = context.generator("bad-teacher")
    good, bad = frozen(model), frozen(randomised(model, int(torch.randint(2**31, (), generator=draw))))
    share = retain.select(torch.randperm(len(retain), generator=draw)[: round(retain_fraction * len(retain))])
    both = concatenate([forget, share])
    is_forget = torch.cat([torch.ones(len(forget), dtype=torch.long), torch.zeros(len(share), dtype=torch.long)])
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    marked = replace(both, labels=is_forget)
    for x, chosen in context.epochs(marked, epochs, {"model": model, "optimizer": optimizer}):
        with torch.no_grad():
            teacher = torch.where(chosen[:, None] == 1, context.forward(bad, x), context.forward(good, x))
        student = F.log_softmax(context.forward(model, x) / temperature, dim=1)
        target = F.log_softmax(teacher / temperature, dim=1)
        context.descend(F.kl_div(student, target, reduction="batchmean", log_target=True), optimizer)
    return model
