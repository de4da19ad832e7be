"""Speed of the default search on classifiers against torchattacks, foolbox and ART, at equal strength.

    python benchmarks/attack_classification.py                        # synthetic images
    python benchmarks/attack_classification.py --data-root DIR        # CIFAR-10's forgotten class
    python benchmarks/attack_classification.py --memory               # ten times the images, peak memory

A ResNet-18 (CIFAR stem, quarter width) is trained for a moment, then stands in for an unlearned model in two ways:
``early`` nudges the forgotten logit down, so that most images are recovered after few steps (what shallow unlearning
looks like), ``late`` holds it so far down that none is (a retrained or masked model). What is timed is a search with
the fewest of ``--steps`` that recovers 99 % of what all searches together recover, scored on 8-bit images; where
nothing is, a search of as many passes as the longest. PGD steps are 2.5 eps / steps, ART's Auto-PGD minimises the
cross-entropy. Times include the final scoring of our side.
"""

import argparse
import copy
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rub.attacks.base import AttackContext
from rub.data.samples import to_unit
from rub.models.network import build_network
from rub.models.weights import freeze
from rub.tasks.classification.attacks.base import Budget
from rub.tasks.classification.attacks.harness import make_target, run_attack, run_attacks
from rub.tasks.classification.attacks.uma import uma
from rub.tasks.classification.attacks.uma_momentum import uma_momentum

CLASSES, FORGOTTEN = 10, 0
GOALS = {"early": 5.0, "late": 1.5}
STATS = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.247, 0.2435, 0.2616)}
Peer = Callable[[nn.Module, Tensor, Tensor, argparse.Namespace], Tensor]


def synthetic(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ten classes of 32 x 32 images: a smooth pattern per class under noise."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.rand(CLASSES, 3, 4, 4, generator=torch.Generator().manual_seed(99))
    patterns = F.interpolate(patterns, size=32, mode="bicubic").clamp(0, 1)
    labels = torch.arange(count) % CLASSES
    noise = torch.rand(count, 3, 32, 32, generator=generator)
    return (255 * (0.35 * patterns[labels] + 0.65 * noise)).to(torch.uint8), labels


def load(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Training images of all classes: CIFAR-10 where it is, else synthetic ones."""
    if args.data_root is None:
        return synthetic(max(2000, CLASSES * args.images))
    from rub.data.sources import load_images

    train = load_images("cifar10", args.data_root).train
    return train.images, train.labels


def fit(images: Tensor, labels: Tensor, steps: int) -> nn.Module:
    model = build_network("resnet18", num_classes=CLASSES, width=16, stem="cifar", **STATS)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        pick = torch.randint(0, len(images), (128,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
            loss = F.cross_entropy(model(to_unit(images[pick])).float(), labels[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return freeze(model)


def held_down(original: nn.Module, images: Tensor, share: float) -> nn.Module:
    """The original with the forgotten logit lowered: below this share of the images' margins, or out of reach at 0."""
    model = copy.deepcopy(original)
    with torch.no_grad():
        logits = torch.cat([model(to_unit(part)) for part in images.split(256)])
        margin = logits[:, FORGOTTEN] - logits[:, 1:].amax(1)
        model.fc.bias[FORGOTTEN] -= 200.0 if share == 0 else float(margin.clamp_min(0).quantile(1 - share)) + 0.5
    return freeze(model)


def torchattacks_pgd(model: nn.Module, x: Tensor, y: Tensor, args: argparse.Namespace) -> Tensor:
    import torchattacks

    attack = torchattacks.PGD(model, eps=args.eps, alpha=args.alpha, steps=args.steps, random_start=False)
    attack.set_mode_targeted_by_label(quiet=True)
    return attack(x, y)


def foolbox_pgd(model: nn.Module, x: Tensor, y: Tensor, args: argparse.Namespace) -> Tensor:
    import foolbox

    attack = foolbox.attacks.LinfPGD(abs_stepsize=args.alpha, steps=args.steps, random_start=False)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    return attack(wrapped, x, foolbox.criteria.TargetedMisclassification(y), epsilons=args.eps)[1]


def art_pgd(model: nn.Module, x: Tensor, y: Tensor, args: argparse.Namespace) -> Tensor:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        model, loss=nn.CrossEntropyLoss(), input_shape=(3, 32, 32), nb_classes=CLASSES, clip_values=(0.0, 1.0)
    )
    attack = ProjectedGradientDescentPyTorch(
        classifier, eps=args.eps, eps_step=args.alpha, max_iter=args.steps, targeted=True, num_random_init=0,
        batch_size=args.batch, verbose=False,
    )  # fmt: skip
    return torch.from_numpy(attack.generate(x.numpy(), np.asarray(y)))


def art_apgd(model: nn.Module, x: Tensor, y: Tensor, args: argparse.Namespace) -> Tensor:
    from art.attacks.evasion import AutoProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        model, loss=nn.CrossEntropyLoss(), input_shape=(3, 32, 32), nb_classes=CLASSES, clip_values=(0.0, 1.0)
    )
    attack = AutoProjectedGradientDescent(
        classifier, eps=args.eps, eps_step=2 * args.eps, max_iter=args.steps, targeted=True, nb_random_init=1,
        batch_size=args.batch, loss_type="cross_entropy", verbose=False,
    )  # fmt: skip
    return torch.from_numpy(attack.generate(x.numpy(), np.eye(CLASSES, dtype=np.float32)[np.asarray(y)]))


PEERS: dict[str, Peer] = {
    "torchattacks PGD": torchattacks_pgd, "foolbox PGD": foolbox_pgd, "ART PGD": art_pgd, "ART Auto-PGD": art_apgd,
}  # fmt: skip


def peer_run(peer: Peer, model: nn.Module, images: Tensor, labels: Tensor, args: argparse.Namespace) -> Tensor:
    parts = zip(to_unit(images).split(args.batch), labels.split(args.batch), strict=True)
    return torch.cat([peer(model, x, y, args).detach() for x, y in parts])


@torch.no_grad()
def reached(model: nn.Module, x: Tensor) -> Tensor:
    """Which images are recovered, bool (N,), once they are rounded to 8 bits."""
    x = (x * 255).round() / 255
    return torch.cat([model(part) for part in x.split(256)]).argmax(1) == FORGOTTEN


def compare(mode: str, share: float, original: nn.Module, images: Tensor, args: argparse.Namespace) -> bool:
    """Time every search on one model and budget; print times and shares; return whether the goal holds."""
    labels = torch.full((len(images),), FORGOTTEN)
    model = held_down(original, images, share)
    target = make_target(original, model, images, labels, args.batch, torch.device("cpu"))
    context = AttackContext(seed=0, ids=torch.arange(len(images)), batch_size=args.batch)

    def own(steps: int) -> Tensor:
        runs = [(uma_momentum, {"divergence": name, "steps": steps // 2}) for name in ("kl", "margin")]
        runs = [(function, {**given, "finish_below": torch.inf}) for function, given in runs]
        return run_attacks(runs, target, images, Budget(args.levels), context).step >= 0

    def theirs(peer: Peer, steps: int) -> Tensor:
        given = argparse.Namespace(**{**vars(args), "steps": steps, "alpha": 2.5 * args.eps / steps})
        return reached(model, peer_run(peer, model, images, labels, given))

    searches: dict[str, Callable[[int], Tensor]] = {"RUB": own}
    searches |= {name: partial(theirs, peer) for name, peer in PEERS.items()}
    timed: dict[str, list[tuple[int, float, Tensor]]] = {}
    for name, search in searches.items():
        search(2)  # imports and first calls are nobody's speed
        timed[name] = []
        for steps in args.steps:
            start = time.perf_counter()
            hits = search(steps)
            timed[name].append((steps, time.perf_counter() - start, hits))
    union = torch.stack([hits for runs in timed.values() for _, _, hits in runs]).any(0).sum()
    seconds = {}
    for name, runs in timed.items():
        enough = [(steps, spent) for steps, spent, hits in runs if union and hits.sum() >= 0.99 * union]
        steps, spent = min(enough, key=lambda run: run[1]) if enough else runs[-1][:2]
        if enough or not union:
            seconds[name] = spent
        hit = 100 * float(runs[-1][2].double().mean())
        note = "" if enough or not union else "   does not reach 99 % of the union"
        print(
            f"{mode:5s} {args.levels}/255 {name:17s} {spent:7.2f} s at {steps:3d} steps   UA {hit:6.2f}{note}",
            flush=True,
        )
    if "RUB" not in seconds:
        print(f"{mode:5s} {args.levels}/255 RUB DOES NOT REACH 99 % of the union")
        return False
    ratio = min((value for name, value in seconds.items() if name != "RUB"), default=float("inf")) / seconds["RUB"]
    good = ratio >= GOALS[mode]
    verdict = "holds" if good else "DOES NOT HOLD"
    share_found = 100 * float(union) / len(images)
    print(
        f"{mode:5s} {args.levels}/255 union {share_found:.1f} %, {ratio:.2f} times the fastest peer"
        f" (goal {GOALS[mode]}): {verdict}"
    )
    return good


def memory(args: argparse.Namespace) -> bool:
    """Attack N and 10 N images in fresh processes and compare their peak memory."""
    peaks = []
    for count in (args.images, 10 * args.images):
        command = [sys.executable, __file__, "--memory-of", str(count), "--steps", "2", "--batch", str(args.batch)]
        peaks.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]))
        print(f"memory {count:6d} images: peak {peaks[-1]:.0f} MiB", flush=True)
    good = peaks[1] <= 1.2 * peaks[0]
    print(f"memory ratio {peaks[1] / peaks[0]:.3f} (goal 1.2): {'holds' if good else 'DOES NOT HOLD'}")
    return good


def memory_of(count: int, args: argparse.Namespace) -> None:
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    model = freeze(build_network("resnet18", num_classes=CLASSES, width=16, **STATS))
    labels = torch.zeros(count, dtype=torch.int64)
    target = make_target(model, model, images, labels, args.batch, torch.device("cpu"))
    context = AttackContext(seed=0, ids=torch.arange(count), batch_size=args.batch)
    run_attack(uma, {"steps": args.steps[0]}, target, images, Budget(8), context)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="folder with cifar-10-batches-py; synthetic images without it")
    parser.add_argument("--images", type=int, default=512, help="forgotten images to attack")
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2, 8], help="eps in 1/255")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 50, 100])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--train-steps", type=int, default=120)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's choice")
    parser.add_argument("--memory", action="store_true", help="compare peak memory instead of speed")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.memory_of:
        memory_of(args.memory_of, args)
        return 0
    if args.memory:
        return 0 if memory(args) else 1
    images, labels = load(args)
    original = fit(images, labels, args.train_steps)
    forget = images[labels == FORGOTTEN][: args.images]
    known = 100 * float(reached(original, to_unit(forget)).double().mean())
    print(f"{len(forget)} images, {torch.get_num_threads()} threads; the original's UA {known:.1f}", flush=True)
    results = [
        compare(
            mode, share, original, forget, argparse.Namespace(**{**vars(args), "levels": level, "eps": level / 255})
        )
        for level in args.levels
        for mode, share in (("early", 0.1), ("late", 0.0))
    ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
