"""Speed of UMA on classifiers against torchattacks, foolbox and ART: same model, images, eps, steps and hardware.

    python benchmarks/attack_classification.py                        # synthetic images
    python benchmarks/attack_classification.py --data-root DIR        # CIFAR-10's forgotten class
    python benchmarks/attack_classification.py --memory               # ten times the images, peak memory

A ResNet-18 (CIFAR stem, quarter width) is trained for a moment, then stands in for an unlearned model in two ways:
``early`` nudges the forgotten logit down, so that most images are recovered after few steps (what shallow unlearning
looks like), ``late`` holds it so far down that none is (a retrained or masked model). Every attack must end at the same
attacked UA within half a point; times include the final scoring of our side.
"""

import argparse
import copy
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
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
from rub.tasks.classification.attacks.harness import make_target, run_attack
from rub.tasks.classification.attacks.uma import uma

CLASSES, FORGOTTEN = 10, 0
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
        with torch.autocast("cpu", torch.bfloat16):
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


PEERS: dict[str, Peer] = {"torchattacks": torchattacks_pgd, "foolbox": foolbox_pgd, "ART": art_pgd}


def peer_run(peer: Peer, model: nn.Module, images: Tensor, labels: Tensor, args: argparse.Namespace) -> Tensor:
    parts = zip(to_unit(images).split(args.batch), labels.split(args.batch), strict=True)
    return torch.cat([peer(model, x, y, args).detach() for x, y in parts])


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    return 100 * float((torch.cat([model(part) for part in x.split(256)]).argmax(1) == labels).double().mean())


def compare(mode: str, share: float, original: nn.Module, images: Tensor, args: argparse.Namespace) -> bool:
    """Time every attack on one model; print rates, ratios and UA; return whether the goals hold."""
    labels = torch.full((len(images),), FORGOTTEN)
    model = held_down(original, images, share)
    target = make_target(original, model, images, labels, args.batch, torch.device("cpu"))
    context = AttackContext(seed=0, ids=torch.arange(len(images)), batch_size=args.batch)
    parameters = {
        "divergence": "ce", "steps": args.steps, "step_size": args.alpha / args.eps, "finish_below": math.inf
    }  # fmt: skip
    short = argparse.Namespace(**{**vars(args), "steps": 1})
    for peer in PEERS.values():  # imports and first calls are nobody's speed
        peer_run(peer, model, images[: args.batch], labels[: args.batch], short)
    start = time.perf_counter()
    found = run_attack(uma, parameters, target, images, Budget(args.levels), context)
    seconds = {"rub": time.perf_counter() - start}
    ua = {"rub": 100 * found.success_curve[-1]}
    for name, peer in PEERS.items():
        start = time.perf_counter()
        probes = peer_run(peer, model, images, labels, args)
        seconds[name] = time.perf_counter() - start
        # The peers return float images; as files they would be rounded, which is what is scored here.
        ua[name] = accuracy(model, (probes * 255).round() / 255, labels)
    rate = {name: len(images) / value for name, value in seconds.items()}
    for name, value in rate.items():
        spent = found.evaluations / len(images) if name == "rub" else args.steps
        print(
            f"{mode:5s} {name:12s} {value:7.1f} images/s   UA {ua[name]:6.2f}   evaluations/image {spent:.1f}",
            flush=True,
        )
    fastest = max(rate[name] for name in PEERS)
    goal = {"early": 5.0, "late": 1.5}[mode]
    gap = max(abs(ua["rub"] - ua[name]) for name in PEERS)
    good = rate["rub"] >= goal * fastest and gap <= 0.5
    verdict = "holds" if good else "DOES NOT HOLD"
    ratio = rate["rub"] / fastest
    print(f"{mode:5s} ratio to the fastest peer {ratio:.2f} (goal {goal}), UA gap {gap:.2f} (goal 0.5): {verdict}")
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
    run_attack(uma, {"steps": args.steps}, target, images, Budget(8), context)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="folder with cifar-10-batches-py; synthetic images without it")
    parser.add_argument("--images", type=int, default=512, help="forgotten images to attack")
    parser.add_argument("--levels", type=int, default=8, help="eps in 1/255")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--train-steps", type=int, default=120)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's choice")
    parser.add_argument("--memory", action="store_true", help="compare peak memory instead of speed")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.eps = args.levels / 255
    args.alpha = 2.5 * args.eps / args.steps
    return args


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
    clean = accuracy(original, to_unit(forget), torch.full((len(forget),), FORGOTTEN))
    setting = f"{len(forget)} images, eps {args.levels}/255, {args.steps} steps, {torch.get_num_threads()} threads"
    print(f"{setting}; the original's UA {clean:.1f}", flush=True)
    results = [compare(mode, share, original, forget, args) for mode, share in (("early", 0.1), ("late", 0.0))]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
