"""Common corruptions: what comes back when the input is changed without an adversary."""

import torch
from torch import Tensor

from rub.attacks.base import AttackContext, Probes
from rub.attacks.corruptions import CORRUPTIONS, corrupted
from rub.attacks.linf import better, column
from rub.errors import RubError
from rub.registry import Card, attack
from rub.tasks.classification.attacks.base import Target
from rub.tasks.classification.attacks.scoring import Scorer
from rub.tasks.classification.budgets import Budget

CARD = Card(
    paper="Hendrycks, Dietterich: Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR"
    " 2019 (arXiv:1903.12261)",
    equation="the best of c_s(x) over corruptions c, at one severity s",
    upstream="hendrycks/robustness ca36008, make_cifar_c.py: strengths of CIFAR-10-C",
    differences=(
        "fog, snow, frost, spatter and glass blur are left out",
        "the corruption that brings an image back counts (their union); the paper takes means over corruptions",
        "lengths in pixels grow with the image's shorter side; they are the paper's at 32 px",
        "each image has one version of each corruption: random numbers are keyed by its id, not by the attack's seed",
        "grey stays grey when saturated; motion and zoom blur and the elastic map are read between pixels",
    ),
    budgets=("corruption",),
)


@attack("corruptions", task="classification", card=CARD)
def corruptions(target: Target, images: Tensor, budget: Budget, context: AttackContext) -> Probes:
    """Corrupt each image in every way of one severity, and keep what recovers it best; no search, no gradient."""
    if budget.kind != "corruption":
        raise RubError(f"attack 'corruptions': cannot search within {budget.name}; give corruption:1 to corruption:5")
    scorer, rows = Scorer(target, "kl", context), torch.arange(len(images))
    score, best = scorer.exact(images, rows), images.clone()
    step = torch.where(score.recovered, 0, -1)
    successes, losses = [float(score.recovered.double().mean())], [float(score.loss.double().mean())]
    for number, name in enumerate(CORRUPTIONS, start=1):
        found = corrupted(name, images, context.ids, int(budget.size))
        new = scorer.exact(found, rows)
        win = better(new.recovered, new.loss, score.recovered, score.loss)
        best = torch.where(column(win.cpu(), best), found, best)
        step = torch.where(new.recovered & (step < 0), number, step)
        score = score._replace(loss=torch.where(win, new.loss, score.loss), recovered=score.recovered | new.recovered)
        successes.append(float(score.recovered.double().mean()))
        losses.append(float(score.loss.double().mean()))
        context.progress(number, len(CORRUPTIONS), name)
    curves = tuple(successes), tuple(losses)
    return Probes(best, score.loss.cpu(), step.cpu(), *curves, scorer.evaluations, converged=True)
