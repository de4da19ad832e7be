"""Speed of UnlearnDiffAtk's search, many prompts together, against its upstream design, one prompt at a time.

    python benchmarks/attack_t2i.py                                  # the quick suite's miniature, ESD-x
    python benchmarks/attack_t2i.py --suite text-to-image-digits --method salun --prompts 50

Same models, prompts, seeds, guidance, tokens, steps, sampler and judge. The plain loop is the upstream design: one
prompt and one noise at a time, a one-hot matrix over the whole vocabulary times the embedding table, autograd through
both, torch's Adam, the projection on the simplex by bisection, and classifier-free guidance in two calls. Both sides
stop a prompt at its first success. Prints prompts per hour, the ratio, ASR of both with Wilson intervals, and how much
memory each batch size takes. Goal: at least 4 times on two cores, 10 times on a GPU.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from rub import load_suite
from rub.api import make_runtime
from rub.metrics.statistics import wilson
from rub.pipeline.inline import run_inline
from rub.pipeline.progress import Display
from rub.registry import TASKS
from rub.store.artifacts import Store
from rub.tasks.text_to_image.attacks.base import AttackContext, Budget, Target
from rub.tasks.text_to_image.attacks.harness import Drawing, make_target, run_attack
from rub.tasks.text_to_image.attacks.uma import unlearndiffatk
from rub.tasks.text_to_image.graph import TextToImageGraph
from rub.tasks.text_to_image.stages import clean_images, drawing_of, model_of, prompts_in


class OneHot(torch.autograd.Function):
    """A sampled one-hot matrix whose gradient passes straight through, clipped to [-1, 1]."""

    @staticmethod
    def forward(ctx, rows):
        return nn.functional.one_hot(rows.clamp_min(0).multinomial(1)[:, 0], rows.shape[1]).to(rows.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clamp(-1, 1)


def bisect(rows: Tensor, tolerance: float = 1e-5) -> Tensor:
    """Project rows on the simplex by bisection on the threshold."""
    low, high = rows.amin(1, keepdim=True) - 1, rows.amax(1, keepdim=True)
    while bool((high - low).max() > tolerance):
        middle = (low + high) / 2
        over = (rows - middle).clamp_min(0).sum(1, keepdim=True) > 1
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return (rows - (low + high) / 2).clamp_min(0)


def two_calls(model, context: Tensor, latents: Tensor, guidance: float, sampler) -> Tensor:
    """Draw one picture with classifier-free guidance in two calls per step."""
    scheduler, empty = sampler.scheduler(model), model.context([""])
    x = latents * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        without, given = model.predict(scaled, t, empty), model.predict(scaled, t, context)
        x = scheduler.step(without + guidance * (given - without), t, x).prev_sample
    return model.to_images(x)


class Plain:
    """The upstream design."""

    def __init__(self, target: Target, drawing: Drawing, args: argparse.Namespace) -> None:
        self.target, self.drawing, self.args, self.model = target, drawing, args, target.unlearned

    def seen(self, row: int, ids: Tensor) -> bool:
        prompts = self.target.prompts
        noise = torch.randn(self.model.latent_shape, generator=torch.Generator().manual_seed(int(prompts.seeds[row])))
        with torch.no_grad():
            context = self.model.encode(ids[None])
            image = two_calls(
                self.model,
                context,
                noise[None].to(self.model.device),
                float(prompts.guidance[row]),
                self.drawing.sampler,
            )
        return bool(self.drawing.seen(image)[0])

    def attack(self, row: int) -> int:
        """Return the step of the first success, -1 for none."""
        tokens, count, model = self.target.tokens[row], self.args.tokens, self.model
        if self.seen(row, tokens):
            return 0
        table = model.token_embeddings
        rows = torch.full((count, len(table)), 1 / len(table), device=table.device)
        rows.requires_grad_(True)
        optimizer = torch.optim.Adam([rows], lr=self.args.lr, weight_decay=0.1)
        width = model.timesteps // self.args.cap
        for step in range(1, self.args.cap + 1):
            t = torch.tensor([width // 2 + (step - 1) * width], device=table.device)
            for _ in range(self.args.inner):
                inserted = OneHot.apply(rows) @ table
                whole = torch.cat([table[tokens[:1]], inserted, table[tokens[1:-count]]])
                noise = torch.randn_like(self.target.x0[row : row + 1])
                x = model.noised(self.target.x0[row : row + 1], t, noise)
                loss = nn.functional.mse_loss(model.predict(x, t, model.encode_soft(whole[None])), noise)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    rows.copy_(bisect(rows))
            if self.seen(row, torch.cat([tokens[:1], rows.argmax(1), tokens[1:-count]])):
                return step
        return -1


def prepared(args: argparse.Namespace) -> tuple[Target, Drawing]:
    """Train a miniature on digits, its judge, and unlearn the seven: stages of a suite, kept in its store."""
    suite = load_suite(args.suite, task="text-to-image", methods=[args.method])
    experiment = suite.experiments[0].model_copy(update={"retrains": 0})
    graph, runtime = TextToImageGraph(experiment, None), make_runtime(device=args.device)
    wanted, task = [graph.reference, graph.model(args.method, 0)], TASKS.get("text-to-image", "text-to-image").load()
    with Display(Console(stderr=True)) as display:
        outcomes = run_inline(wanted, {"text-to-image": task}, Store(args.store), runtime, display)
    inputs = {role: outcomes[stage.key].artifact for role, stage in graph.reference.inputs.items()}
    inputs["unlearned"] = outcomes[wanted[1].key].artifact
    asked = prompts_in(inputs["prompts"])
    prompts = asked.select(list(range(min(args.prompts, len(asked)))))
    spec = graph.reference.spec
    before = clean_images(drawing_of(inputs, "original", spec, runtime), prompts, 16)
    drawing = drawing_of(inputs, "unlearned", spec, runtime)
    original = model_of(inputs, "original", runtime)
    return make_target(original, drawing.model, prompts, before, 16, concept="seven"), drawing


def ours(target: Target, drawing: Drawing, args: argparse.Namespace, batch_size: int) -> list[int]:
    """Return the step of every prompt by RUB's batched search, fed as ids, as the plain loop feeds them."""
    context = AttackContext(batch_size=batch_size, device=torch.device(args.device))
    settings = {"tokens": args.tokens, "inner_steps": args.inner, "lr": args.lr, "fed": "ids"}
    return run_attack(unlearndiffatk, settings, target, Budget(args.cap), context, drawing).step.tolist()


def report(name: str, steps: list[int], seconds: float) -> float:
    """Print a side, and return its prompts per hour."""
    hits = sum(step >= 0 for step in steps)
    low, high = wilson(hits, len(steps))
    rate = 3600 * len(steps) / seconds
    print(f"{name:<28} {rate:10.0f} prompts/h   ASR {hits}/{len(steps)} (95 %: {low:.2f} to {high:.2f})", flush=True)
    return rate


def peak() -> float:
    """Return the most memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="quick", help="whose model, judge and method are used")
    parser.add_argument("--method", default="esd-x", help="unlearning method of that suite")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--cap", type=int, default=10, help="attack steps")
    parser.add_argument("--inner", type=int, default=40, help="gradient steps per attack step")
    parser.add_argument("--tokens", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--batch", type=int, default=16, help="prompts that advance together")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--store", type=Path, default=Path(tempfile.gettempdir()) / "rub-benchmark", help="for reuse")
    args = parser.parse_args()
    target, drawing = prepared(args)
    size = sum(parameter.numel() for parameter in target.unlearned.unet.parameters())
    machine = f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.device}"
    print(f"{size / 1e6:.1f} M UNet, {len(target.prompts)} prompts, {args.cap} x {args.inner} steps, {machine}")
    ours(target, drawing, argparse.Namespace(**{**vars(args), "cap": 1, "inner": 1}), args.batch)  # warm up
    start = time.perf_counter()
    rate = report(f"RUB, batches of {args.batch}", ours(target, drawing, args, args.batch), time.perf_counter() - start)
    start = time.perf_counter()
    torch.manual_seed(0)
    plain = Plain(target, drawing, args)
    peer = report("one prompt at a time", [plain.attack(row) for row in range(len(target.prompts))],
                  time.perf_counter() - start)  # fmt: skip
    goal = 10.0 if args.device == "cuda" else 4.0
    print(f"ratio {rate / peer:.1f} (goal {goal:.0f}); peak memory {peak():.0f} MiB")
    return 0 if rate / peer >= goal else 1


if __name__ == "__main__":
    sys.exit(main())
