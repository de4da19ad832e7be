"""How much of a device RUB uses: training, attack and prompts per time, as shares of a large bfloat16 matrix product.

    python benchmarks/device.py                    # on a GPU: ResNet-50 with the CIFAR stem, all variants
    python benchmarks/device.py --tiny             # everything once, at a size for a CPU

Each variant runs RUB's own training loop and search on made-up images. FLOPs are counted on one batch by torch
(`FlopCounterMode`: convolutions and products, a multiply-add is two; the attack's backward pass to the input alone).
The share is FLOP/s over those of the product, the best of several, measured before. Below the best variant: where its
time goes, by kind of kernel. Goal on an H100-class GPU: at least 45 % for ResNet-50, training and attack.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from rub.attacks.base import AttackContext
from rub.data.samples import Samples, to_unit
from rub.models.network import build_network
from rub.pipeline.memory import retain_freed_memory
from rub.pipeline.runtime import device_name
from rub.tasks.classification.attacks.base import Budget, Target
from rub.tasks.classification.attacks.harness import make_target, run_attack
from rub.tasks.classification.attacks.scoring import Scorer
from rub.tasks.classification.attacks.uma import uma
from rub.tasks.classification.context import UnlearnContext
from rub.training.classifier import train

KINDS = {
    "convolutions and products": (
        "conv",
        "gemm",
        "mm",
        "xmma",
        "cutlass",
        "wgrad",
        "dgrad",
        "fprop",
        "mkldnn",
        "addmm",
    ),
    "normalisation": ("norm", "bn_"),
    "copies": ("memcpy", "copy", "memset", "cat"),
}


class Clock:
    """Progress that times the steps after the first `skip` (compiling, choosing kernels), up to step `stop`."""

    def __init__(self, device: torch.device, skip: int = 0, stop: int = 0) -> None:
        """`device` is waited for at the first and at the last of them."""
        self.device, self.skip, self.stop, self.steps, self.began, self.ended = device, skip, stop, 0, 0.0, 0.0

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Count a step."""
        self.steps += 1
        if self.steps == self.skip:
            self.began = self.now()
        elif self.steps == self.stop:
            self.ended = self.now()

    def now(self) -> float:
        """Return the time once the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def rate(self) -> float:
        """Return steps per second after the skipped ones."""
        return (self.stop - self.skip) / (self.ended - self.began)


def peak(device: torch.device, side: int) -> float:
    """Return the FLOP/s of a square bfloat16 product, the best of twelve."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    clock, best = Clock(device), 0.0
    for _ in range(12):
        start = clock.now()
        a @ b
        best = max(best, 2 * side**3 / (clock.now() - start))
    return best


def counted(work: Callable[[], object]) -> float:
    """Return the FLOPs of convolutions and products in some work."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


class Bench:
    """A network, made-up images, and the variants to run on a device."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Make images of `args.side` pixels, enough for the steps."""
        self.args, self.device = args, torch.device(args.device)
        draw = torch.Generator().manual_seed(0)
        count = args.batch * args.steps
        shape = (count, 3, args.side, args.side)
        images = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
        self.samples = Samples(images, torch.randint(0, 10, (count,), generator=draw), torch.arange(count))

    def network(self, seed: int = 0) -> torch.nn.Module:
        """Build the network on the device."""
        size = {"width": self.args.width} if self.args.width else {}
        made = build_network(self.args.arch, num_classes=10, channels=3, stem="cifar", mean=(0.5,) * 3, std=(0.25,) * 3,
                             seed=seed, **size)  # fmt: skip
        return made.to(self.device)

    def training_flops(self) -> float:
        """Return the FLOPs of a forward and a backward pass, per image."""
        x, model = to_unit(self.samples.take(slice(self.args.batch)).to(self.device)), self.network().train()
        return counted(lambda: model(x).sum().backward()) / len(x)

    def training(self, precision: str, compile_: bool) -> float:
        """Return images per second of training."""
        clock = Clock(self.device, self.args.skip, self.args.steps)
        context = UnlearnContext(
            seed=0, num_classes=10, batch_size=self.args.batch, precision=precision, device=self.device,
            progress=clock, compile=compile_,
        )  # fmt: skip
        train(self.network(), self.samples, context, epochs=1, lr=0.01)
        return clock.rate() * self.args.batch

    def target(self) -> tuple[Samples, Target]:
        """Return the images of an attack, and what it aims at."""
        part = self.samples.select(range(self.args.batch))
        original, unlearned = (self.network(seed).eval().requires_grad_(False) for seed in (0, 1))
        return part, make_target(original, unlearned, part.images, part.labels, self.args.batch, self.device)

    def attack_flops(self) -> float:
        """Return the FLOPs of a forward pass and a backward pass to the input, per image."""
        part, target = self.target()
        context = AttackContext(seed=0, ids=part.ids, batch_size=len(part), device=self.device, fast=False)
        scorer, x = Scorer(target, "kl", context), to_unit(part.images.to(self.device))
        rows = torch.arange(len(part), device=self.device)
        return counted(lambda: scorer.guide(x, rows, gradient=True)) / len(part)

    def attack(self, fast: bool, compile_: bool) -> float:
        """Return images per second of the search: a forward and a backward pass each."""
        part, target = self.target()
        clock = Clock(self.device, self.args.skip, self.args.steps)
        context = AttackContext(
            seed=0, ids=part.ids, batch_size=len(part), device=self.device, fast=fast, progress=clock, compile=compile_
        )
        # Nobody leaves: what is measured is the full batch.
        run_attack(uma, {"steps": self.args.steps, "finish_below": 0.0}, target, part.images, Budget(8), context)
        return clock.rate() * len(part)


def prompts_per_hour(args: argparse.Namespace, compile_: bool) -> tuple[float, float]:
    """Return prompts per hour of UMA on a miniature that was never trained, and FLOPs per prompt.

    No prompt ever succeeds: every one takes all steps, which is the most that a search can cost.
    """
    from rub.models.diffusion.mini import build_mini
    from rub.models.diffusion.sampling import Sampler
    from rub.models.diffusion.tokenizer import make_tokenizer, train_vocabulary
    from rub.models.weights import freeze
    from rub.tasks.text_to_image.attacks.base import AttackContext, Budget, Prompts
    from rub.tasks.text_to_image.attacks.harness import Drawing, make_target, run_attack
    from rub.tasks.text_to_image.attacks.uma import uma

    device = torch.device(args.device)
    tokenizer = make_tokenizer(*train_vocabulary(["a photo of a church", "a photo of a tench"] * 4, 700), 32)
    model = build_mini(args.diffusion, channels=3, size=args.pictures, tokenizer=tokenizer, seed=0)
    model = freeze(model.to(device))
    count = args.prompts
    prompts = Prompts(
        torch.arange(count), ("a photo of a church",) * count, torch.arange(count), torch.full((count,), 7.5)
    )

    def never(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(images), dtype=torch.bool), torch.zeros(len(images))

    before = torch.zeros(count, 3, args.pictures, args.pictures, dtype=torch.uint8)
    target = make_target(model, model, prompts, before, count, concept="church")
    drawing = Drawing(model, Sampler("ddim", args.ddim), never)
    settings = {"inner_steps": args.inner}

    def search(cap: int, compile_: bool) -> None:
        context = AttackContext(batch_size=count, device=device, compile=compile_)
        run_attack(uma, settings, target, Budget(cap), context, drawing)

    search(1, compile_)
    flops = counted(lambda: search(1, False)) * args.cap / count  # the clean picture of each run is in it, once a step
    clock = Clock(device)
    start = clock.now()
    search(args.cap, compile_)
    return 3600 * count / (clock.now() - start), flops


def kernels(work: Callable[[], object], device: torch.device) -> list[str]:
    """Return where the time of some work goes, by kind of kernel, and the longest ones."""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
        start = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize(device)
        wall = time.perf_counter() - start
    times: dict[str, float] = {}
    for event in seen.key_averages():
        own = event.self_device_time_total if cuda else event.self_cpu_time_total
        times[event.key] = times.get(event.key, 0.0) + own / 1e6
    busy, left = sum(times.values()), dict(times)
    lines = [f"device busy {100 * min(busy / wall, 1):.0f} % of the time" if cuda else "time on the CPU, by operation"]
    for kind, words in KINDS.items():
        found = [name for name in left if any(word in name.lower() for word in words)]
        lines.append(f"{kind}: {100 * sum(left.pop(name) for name in found) / busy:.0f} %")
    lines.append(f"everything else (elementwise, reductions): {100 * sum(left.values()) / busy:.0f} %")
    longest = sorted(times.items(), key=lambda item: -item[1])[:6]
    return [*lines, *(f"  {100 * seconds / busy:5.1f} %  {name[:90]}" for name, seconds in longest)]


def main() -> None:
    """Read the options, and measure."""
    args = parsed()
    with retain_freed_memory() if args.keep_memory else nullcontext():
        measure(args)


def parsed() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--width", type=int, help="channels of the first stage")
    parser.add_argument("--side", type=int, default=32, help="pixels")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--skip", type=int, default=10, help="steps before the clock starts")
    parser.add_argument("--product", type=int, default=8192, help="side of the matrices")
    parser.add_argument("--diffusion", default="sd-medium", help="miniature")
    parser.add_argument("--pictures", type=int, default=64, help="pixels")
    parser.add_argument("--prompts", type=int, default=32, help="0: images only")
    parser.add_argument("--cap", type=int, default=5, help="attack steps")
    parser.add_argument("--inner", type=int, default=40, help="gradient steps per attack step")
    parser.add_argument("--ddim", type=int, default=25)
    parser.add_argument("--compile", choices=("no", "yes", "both"), default="both")
    parser.add_argument("--keep-memory", action=argparse.BooleanOptionalAction, default=True,
                        help="as stages do, see rub.pipeline.memory")  # fmt: skip
    parser.add_argument("--tiny", action="store_true", help="everything once, at a size for a CPU")
    args = parser.parse_args()
    if args.tiny:
        parser.set_defaults(arch="resnet10", width=16, side=16, batch=32, steps=6, skip=2, product=1024,
                            diffusion="sd-nano", pictures=16, prompts=4, cap=1, inner=2, ddim=3)  # fmt: skip
        args = parser.parse_args()
    return args


def measure(args: argparse.Namespace) -> None:
    """Print the product's FLOP/s, a row for each variant, and what bounds the best training and attack."""
    device = torch.device(args.device)
    top = peak(device, args.product)
    print(f"{device_name(args.device)}, torch {torch.__version__}; bfloat16 product of {args.product}: "
          f"{top / 1e12:.2f} TFLOP/s", flush=True)  # fmt: skip
    print(f"{args.arch}, {args.side} px, batches of {args.batch}\n\n| what | variant | rate | TFLOP/s | share |")
    print("|:---|:---|---:|---:|---:|")
    bench = Bench(args)

    def row(what: str, variant: str, rate: float, flops: float, unit: str, per: float) -> float:
        share = rate / per * flops / top
        print(f"| {what} | {variant} | {rate:,.0f} {unit} | {rate / per * flops / 1e12:.3f} | {100 * share:.1f} % |",
              flush=True)  # fmt: skip
        return share

    best: dict[str, tuple[float, Callable[[], object]]] = {}
    flops = {"training": bench.training_flops(), "attack": bench.attack_flops()}
    for compile_ in {"no": (False,), "yes": (True,), "both": (False, True)}[args.compile]:
        works = [
            ("training", name, partial(bench.training, name, compile_)) for name in ("float32", "tf32", "bfloat16")
        ]
        works += [
            ("attack", name, partial(bench.attack, fast, compile_))
            for name, fast in (("float32", False), ("bfloat16", True))
        ]
        for what, variant, work in works:
            named = f"{variant}, compiled" if compile_ else variant
            share = row(what, named, work(), flops[what], "images/s", 1)
            if share > best.get(what, (0.0,))[0]:
                best[what] = share, work
        if args.prompts:
            named = f"{args.diffusion}, float32{', compiled' if compile_ else ''}"
            row("UMA on prompts", named, *prompts_per_hour(args, compile_), "prompts/h", 3600)
    for what, (share, work) in best.items():
        print(f"\nbest {what} ({100 * share:.1f} %), the whole call with its set-up:")
        print("\n".join(kernels(work, device)), flush=True)


if __name__ == "__main__":
    main()
