"""Speed of UnlearnDiffAtk's search, many prompts together, against its upstream design, one prompt at a time.

    python benchmarks/attack_t2i.py --model FOLDER_OR_FILE --unlearned FILE --judge FILE
    python benchmarks/attack_t2i.py                      # trains a miniature on digits and unlearns by ESD-x first

Same models, prompts, seeds, guidance, tokens, steps, sampler and judge. The plain loop is the upstream design: one
prompt and one noise at a time, a one-hot matrix over the whole vocabulary times the embedding table, autograd through
both, torch's Adam, the projection on the simplex by bisection, and classifier-free guidance in two calls. Both sides
stop a prompt at its first success. Prints prompts per hour, the ratio, ASR of both with Wilson intervals, and how much
memory each batch size takes. Goal: at least 4 times on two cores, 10 times on a GPU.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from rub import load_suite
from rub.api import make_runtime
from rub.text_to_image.attacks.harness import Drawing, drawn, make_target
from rub.text_to_image.probing import Target


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
    """Train a miniature on digits, unlearn the seven by ESD-x, train the judge: the stages of a suite."""
    from rub.pipeline.plan import in_order
    from rub.registry import TASKS
    from rub.store.artifacts import Store
    from rub.text_to_image.stages import drawing_of, model_of, prompts_in
    from rub.text_to_image.task import Graph

    place = Path(args.store or tempfile.mkdtemp(prefix="rub-bench-"))
    runtime = make_runtime(device=args.device)
    suite = load_suite(args.suite, task="text-to-image", methods=[args.method])
    experiment = suite.experiments[0].model_copy(update={"retrains": 0})
    graph = Graph(experiment, None)
    stages = [graph.reference, graph.model(args.method, 0)]
    from rich.console import Console

    from rub.pipeline.engines import run_inline
    from rub.pipeline.progress import Display

    store = Store(place)
    task = TASKS.get("text-to-image", "text-to-image").load()
    with Display(Console(), quiet=True) as display:
        outcomes = run_inline(stages, {"text-to-image": task}, store, runtime, display)
    found = {item.key: outcomes[item.key].artifact for item in in_order(stages)}
    inputs = {role: found[item.key] for role, item in graph.reference.inputs.items()}
    inputs |= {"reference": found[graph.reference.key], "unlearned": found[graph.model(args.method, 0).key]}
    drawing = drawing_of(inputs, "unlearned", graph.reference.spec, runtime)
    prompts = prompts_in(inputs["prompts"]).select(list(range(args.prompts)))
    before = drawn(drawing_of(inputs, "original", graph.reference.spec, runtime), prompts, 16)
    target = make_target(model_of(inputs, "original", runtime), drawing.model, prompts, before, 16, concept="seven")
    return target, drawing
