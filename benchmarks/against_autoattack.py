"""Strength of the default search against auto-attack's APGD, on CIFAR-10: the same images, the same class to reach.

    python benchmarks/against_autoattack.py resnet20-12fca82f.th --data-root data --out against-autoattack.json

RL and DELETE models (class 0, lr .01) of a public ResNet-20, attacked on forgotten training images that the original
gets right. Prints Markdown: of each search the share of images for which the model says class 0, on float images and
after rounding to 8 bits, forward+backward passes per image, and seconds.

`apgd` is Auto-PGD (Croce & Hein, ICML 2020, algorithm 1) written anew from the paper; it shares no code with RUB. Its
targeted losses are the cross-entropy towards the class, and the difference-of-logits ratio of the paper's equation 6,
from the class that is said now to the class to reach. All searches leave an image as soon as its 8-bit form is
recovered; APGD has every recovered iterate rounded, which flatters it.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from known_truth import models as known_models
from torch import Tensor, nn
from torch.nn import functional as F

from rub.attacks.base import AttackContext
from rub.attacks.rules import MomentumDescent
from rub.attacks.search import Schedule
from rub.config.suite import protocols_of
from rub.data.samples import to_unit
from rub.data.sources import load_images
from rub.models.formats.classifier import load_weights
from rub.models.network import build_network
from rub.models.weights import freeze
from rub.registry import ATTACKS
from rub.tasks.classification.attacks.base import Budget, Target
from rub.tasks.classification.attacks.harness import make_target, run_attacks
from rub.tasks.classification.attacks.search import search

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Found(NamedTuple):
    """Which images a search recovered: as floats and after rounding, bool (N,); passes over one image in all."""

    floats: Tensor
    rounded: Tensor
    passes: int


def cross_entropy(logits: Tensor, said: Tensor, wanted: Tensor) -> Tensor:
    """log p(wanted), to be maximised."""
    return -F.cross_entropy(logits, wanted, reduction="none")


def logits_ratio(logits: Tensor, said: Tensor, wanted: Tensor) -> Tensor:
    """-(z_said - z_wanted) / (z_1 - (z_3 + z_4) / 2) with z_1 >= z_2 >= ..., to be maximised."""
    order = logits.sort(1, descending=True).values
    lead = logits.gather(1, said[:, None]) - logits.gather(1, wanted[:, None])
    return -lead[:, 0] / (order[:, 0] - (order[:, 2] + order[:, 3]) / 2 + 1e-12)


def apgd(
    model: nn.Module, clean: Tensor, said: Tensor, wanted: Tensor, eps: float, loss: Loss, *, steps: int = 100,
    batch: int = 256,
) -> Found:  # fmt: skip
    """Auto-PGD from a random start towards a class; images (N, C, H, W) in [0, 1]."""
    parts = zip(clean.split(batch), said.split(batch), wanted.split(batch), strict=True)
    found = [_apgd(model, *part, eps, loss, steps, seed) for seed, part in enumerate(parts)]
    return Found(
        torch.cat([part.floats for part in found]), torch.cat([part.rounded for part in found]),
        sum(part.passes for part in found),
    )  # fmt: skip


def _apgd(
    model: nn.Module, clean: Tensor, said: Tensor, wanted: Tensor, eps: float, loss: Loss, steps: int, seed: int
) -> Found:
    count = len(clean)
    floats, rounded = torch.zeros(2, count, dtype=torch.bool)
    alive, passes = torch.arange(count), 0
    noise = 2 * torch.rand(clean.shape, generator=torch.Generator().manual_seed(seed)) - 1
    x = (clean + eps * noise / noise.abs().amax((1, 2, 3), keepdim=True)).clamp(0, 1)
    before, lowest, highest = x.clone(), (clean - eps).clamp(0, 1), (clean + eps).clamp(0, 1)
    eta = torch.full((count, 1, 1, 1), 2 * eps)
    value, slope = torch.full((count,), -torch.inf), torch.zeros_like(x)
    best, best_x, best_slope = value.clone(), x.clone(), slope.clone()
    best_then, halved_then, gains = value.clone(), torch.ones(count, dtype=torch.bool), torch.zeros(count)
    interval, least, shorter = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    since = 0
    for step in range(steps + 1):
        leaf = x.detach().requires_grad_()
        logits = model(leaf)
        now = loss(logits, said[alive], wanted[alive])
        (slope,) = torch.autograd.grad(now.sum(), leaf)
        now, passes = now.detach(), passes + len(alive)
        reached = logits.argmax(1) == wanted[alive]
        if reached.any():
            rows = alive[reached]
            floats[rows] = True
            with torch.no_grad():
                rounded[rows] |= model((x[reached] * 255).round() / 255).argmax(1) == wanted[rows]
        gains += (now > value) & (step > 0)
        value, better = now, now > best
        best, column = torch.where(better, now, best), better[:, None, None, None]
        best_x, best_slope = torch.where(column, x, best_x), torch.where(column, slope, best_slope)
        if step == 0:
            best_then = best.clone()
        elif (since := since + 1) == interval:
            halve = (gains <= 0.75 * interval) | (~halved_then & (best <= best_then))
            column = halve[:, None, None, None]
            eta = torch.where(column, eta / 2, eta)
            x, slope = torch.where(column, best_x, x), torch.where(column, best_slope, slope)
            halved_then, best_then, gains = halve, best.clone(), torch.zeros_like(gains)
            since, interval = 0, max(interval - shorter, least)
        stay = ~rounded[alive]
        if not stay.any():
            break
        state = (alive, x, before, slope, lowest, highest, eta, value, best, best_x, best_slope)
        alive, x, before, slope, lowest, highest, eta, value, best, best_x, best_slope = (part[stay] for part in state)
        best_then, halved_then, gains = (part[stay] for part in (best_then, halved_then, gains))
        a = 0.75 if step else 1.0
        ahead = torch.minimum(torch.maximum(x + eta * slope.sign(), lowest), highest)
        moved = x + a * (ahead - x) + (1 - a) * (x - before)
        before, x = x, torch.minimum(torch.maximum(moved, lowest), highest)
    return Found(floats, rounded, passes)


def protocol_runs(name: str) -> list[tuple[Any, dict[str, Any]]]:
    """The searches of a protocol's main attack."""
    runs = protocols_of("classification")[name].attacks["uma"].runs
    return [(ATTACKS.get(run.name, "classification").load(), run.parameters) for run in runs]


def default_runs() -> list[tuple[Any, dict[str, Any]]]:
    """The default search: that of rub-curve-2."""
    return protocol_runs("rub-curve-2")


def by_protocol(name: str, target: Target, images: Tensor, level: int, context: AttackContext) -> Found:
    """The search of a protocol, until an image is recovered; it claims 8-bit images alone."""
    runs = [(function, {**given, "finish_below": torch.inf}) for function, given in protocol_runs(name)]
    found = run_attacks(runs, target, images, Budget(level), context)
    return Found(found.step >= 0, found.step >= 0, found.evaluations)


def on_floats(target: Target, images: Tensor, level: int, context: AttackContext) -> Found:
    """The default search with iterates that are scored as floats and rounded at the end."""

    def floating(target: Target, images: Tensor, budget: Budget, context: AttackContext, **given: Any) -> Any:
        rule = MomentumDescent(eps=budget.eps, steps=given["steps"])
        return search(rule, Schedule(given["steps"]), target, images, budget, context, grid=False, **{
            "divergence": given["divergence"], "finish_below": torch.inf,
        })  # fmt: skip

    runs = [(floating, {**given, "finish_below": torch.inf}) for _, given in default_runs()]
    found = run_attacks(runs, target, images, Budget(level), context)
    return Found(found.step >= 0, found.step >= 0, found.evaluations)


def union(first: Found, second: Found) -> Found:
    """Two searches as one."""
    return Found(first.floats | second.floats, first.rounded | second.rounded, first.passes + second.passes)


def compare(name: str, target: Target, images: Tensor, level: int, batch: int) -> Iterator[dict[str, Any]]:
    """One row for each search."""
    context = AttackContext(seed=0, ids=torch.arange(len(images)), batch_size=batch)
    x, wanted = to_unit(images), target.labels
    with torch.no_grad():
        first, second = torch.cat([target.model(part) for part in x.split(batch)]).topk(2, 1).indices.T
    said = torch.where(first == wanted, second, first)
    searches: dict[str, Callable[[], Found]] = {
        "rub-audit-1 (PGD, KL)": lambda: by_protocol("rub-audit-1", target, images, level, context),
        "default": lambda: by_protocol("rub-curve-2", target, images, level, context),
        "default, on floats": lambda: on_floats(target, images, level, context),
        "APGD-CE": lambda: apgd(target.model, x, said, wanted, level / 255, cross_entropy, batch=batch),
        "APGD-T": lambda: apgd(target.model, x, said, wanted, level / 255, logits_ratio, batch=batch),
    }
    made: dict[str, tuple[Found, float]] = {}
    for title, run in searches.items():
        began = time.perf_counter()
        made[title] = run(), time.perf_counter() - began
    (ce, ce_seconds), (t, t_seconds) = made["APGD-CE"], made["APGD-T"]
    made["APGD-CE + APGD-T"] = union(ce, t), ce_seconds + t_seconds
    for title, (found, seconds) in made.items():
        rounded, floats = (round(100 * float(part.double().mean()), 1) for part in (found.rounded, found.floats))
        yield {
            "model": name, "eps": level, "n": len(images), "search": title,
            "floats": floats if "APGD" in title else None, "rounded": rounded,
            "passes": round(found.passes / len(images), 1), "seconds": round(seconds, 1),
        }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    floats = "" if row["floats"] is None else f"{row['floats']:.1f}"
    cells = (row["model"], row["eps"], row["search"], floats, f"{row['rounded']:.1f}", row["passes"], row["seconds"])
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--methods", nargs="+", default=["rl", "delete"], choices=["rl", "delete"])
    parser.add_argument("--retain-samples", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", type=Path, default=Path("against-autoattack-models"), help="where models are kept")
    parser.add_argument("--out", type=Path, default=Path("against-autoattack.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = load_images("cifar10", args.data_root)
    original = build_network("resnet20", num_classes=10, mean=data.mean, std=data.std)
    load_weights(args.checkpoint, original)
    freeze(original)
    forgotten = (data.train.labels == 0).nonzero()[:, 0]
    order = forgotten[torch.randperm(len(forgotten), generator=torch.Generator().manual_seed(0))]
    chosen = data.train.select(order[: 2 * args.images])
    with torch.no_grad():
        right = torch.cat([original(to_unit(part)) for part in chosen.images.split(256)]).argmax(1) == 0
    images = chosen.images[right][: args.images]
    labels = torch.zeros(len(images), dtype=torch.int64)
    args.models.mkdir(parents=True, exist_ok=True)
    rows = []
    print("| model | eps | search | floats % | 8 bits % | passes/image | seconds |\n|:--|--:|:--|--:|--:|--:|--:|")
    for name, model in unlearned(original, data, args):
        target = make_target(original, model, images, labels, args.batch, torch.device("cpu"))
        for level in args.levels:
            for row in compare(name, target, images, level, args.batch):
                rows.append(row)
                print(line(row), flush=True)
            args.out.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")


def unlearned(original: nn.Module, data: Any, args: argparse.Namespace) -> Iterator[tuple[str, nn.Module]]:
    """RL and DELETE models, made once and kept."""
    if not all((args.models / f"{name}.pt").exists() for name in ("rl", "delete")):
        for name, model in known_models(copy.deepcopy(original).requires_grad_(True), data, args.retain_samples):
            if name in ("rl", "delete"):
                torch.save(model.state_dict(), args.models / f"{name}.pt")
            if name == "delete":
                break
    for name in args.methods:
        model = copy.deepcopy(original)
        model.load_state_dict(torch.load(args.models / f"{name}.pt", weights_only=True))
        yield name, freeze(model)


if __name__ == "__main__":
    main()
