"""Peak memory of unlearning methods and attacks on Stable Diffusion 1.4 at 512 px, without a GPU and without weights.

    python benchmarks/memory_t2i.py            # all, some ten minutes
    python benchmarks/memory_t2i.py esd-x fmn

The methods themselves run for two steps on a model of Stable Diffusion's sizes whose tensors have shapes and no content
(torch's ``meta`` device), with the pictures per step of `table3-stable-diffusion-full`; the bytes of all live tensors
are counted after every operation. Attention is taken to be of the kind that keeps its inputs, its output and one number
per row. Not counted: the CUDA context, workspaces of convolutions, and gaps between blocks of the allocator (2 GB).
What draws without a gradient is stood in for by one guided prediction; what asks for numbers is left out.
"""

import argparse
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rub.config.hyperparameters import resolve
from rub.config.suite import load_suite
from rub.models.diffusion.model import Diffusion, frozen
from rub.models.diffusion.tokenizer import make_tokenizer, train_vocabulary
from rub.pipeline.hours import hours
from rub.registry import METHODS, card_of
from rub.tasks.text_to_image.context import Side, UnlearnContext

META = torch.device("meta")
UNET = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "norm_num_groups": 32,
    "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip
TEXT = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 77,
}  # fmt: skip
VAE = {
    "in_channels": 3, "out_channels": 3, "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
    "latent_channels": 4, "sample_size": 512,
}  # fmt: skip
PASS = 0.803e12  # FLOPs of one pass, as `rub.tasks.text_to_image.work.pass_flops` counts them
DEVICES = (("rtx4090", "float32"), ("rtx4090", "bfloat16"), ("a100", "float32"), ("a100", "tf32"), ("h100", "bfloat16"))
STEPS = {"iterations": 2, "warmup": 0, "attack_steps": 1, "prune_batches": 1, "mask_batches": 1, "inner_steps": 1}
SMALL = {"pictures": 8}


class Live(TorchDispatchMode):
    """Counts the bytes of tensors on the meta device while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        return made

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if tensor.device != META or key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.drop, key, size)

    def drop(self, key: int, size: int) -> None:
        """Count it no more."""
        self.known.discard(key)
        self.now -= size


class Attention(torch.autograd.Function):
    """Attention that keeps q, k, v, its output and the logarithm of each row's sum."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Output, of the shape of q."""
        made = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, made, q.new_empty(q.shape[:-1]))
        return made

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Gradients of q, k and v."""
        return tuple(torch.empty_like(part) for part in ctx.saved_tensors[:3])


def stable_diffusion() -> Diffusion:
    """Model of the sizes of Stable Diffusion 1.4, on the meta device; its tokenizer is a small one."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = make_tokenizer(*train_vocabulary(["a photo of a church"] * 2, 600), 77)
    with META:
        unet, vae = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE)
        text_encoder = CLIPTextModel(CLIPTextConfig(**TEXT, eos_token_id=tokenizer.eos_token_id))
    return Diffusion(unet, text_encoder, vae, tokenizer).eval().to(META)


def _partial(self: UnlearnContext, model: Diffusion, prompt: str, generator: Any, **_: Any) -> tuple[Tensor, Tensor]:
    x = self.normal((self.batch_size, *model.latent_shape), generator)
    with torch.no_grad():
        both = model.context([prompt, ""]).repeat_interleave(len(x), 0)
        x = x + model.predict(torch.cat([x, x]), 3, both)[: len(x)]
    return x, torch.zeros(len(x), dtype=torch.int64, device=META)


def _backward(self: UnlearnContext, loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    return 0.0


@contextmanager
def standing_in() -> Iterator[None]:
    """Put shapes where methods would ask for numbers."""
    methods = "rub.tasks.text_to_image.methods."
    stubs: dict[str, Any] = {
        "rub.tasks.text_to_image.context.UnlearnContext.partial": _partial,
        "rub.training.context.TrainContext.backward": _backward,
        "rub.training.context.TrainContext.autocast": lambda self: nullcontext(),
        methods + "spm.draw_anchors": lambda target, count, generator: target.new_empty(count, *target.shape[1:]),
        "rub.models.diffusion.adapters.Attached.adapter": lambda self, prompts: None,
        methods + "fmn.concept_positions": lambda *_, **__: torch.zeros(72, dtype=torch.int64, device=META),
        methods + "concept_ablation.anchor_pictures": lambda *_: torch.empty(8, 4, 64, 64, device=META),
        "torch.nn.functional.scaled_dot_product_attention": lambda q, k, v, *_, **__: Attention.apply(q, k, v),
    }
    patches = [patch(target, stub) for target, stub in stubs.items()]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


def side(prompt: str) -> Side:
    """Pictures of one side, on the meta device."""
    return Side((prompt,), torch.empty(32, 4, 64, 64, device=META), (prompt,) * 32)


def method_peak(name: str, given: dict[str, Any], batch: int, micro_batch: int | None) -> float:
    """Most bytes that two steps of a method hold, the model's own among them."""
    entry = METHODS.get(name, "text-to-image")
    defaults = resolve(entry, given, "methods")
    few = {key: value for key, value in {**STEPS, **SMALL}.items() if defaults.get(key)}
    context = UnlearnContext(seed=0, batch_size=batch, device=META)
    with standing_in(), Live() as live:
        model = frozen(stable_diffusion()).requires_grad_(True)  # of which only the copy is left
        model.micro_batch = micro_batch
        for tensor in model.state_dict().values():
            live.add(tensor)
        live.peak = live.now
        entry.load()(model, side("church"), side("parachute"), context, **{**defaults, **few})
    return live.peak


def attack_peak(prompts: int) -> float:
    """Most bytes that a gradient step of eq. 3 holds for so many prompts: original, unlearned and one graph."""
    with standing_in(), Live() as live:
        models = [stable_diffusion().requires_grad_(False) for _ in range(2)]
        for tensor in (value for model in models for value in model.state_dict().values()):
            live.add(tensor)
        live.peak = live.now
        x, t = torch.empty(prompts, 4, 64, 64, device=META), torch.zeros(prompts, dtype=torch.int64, device=META)
        soft = torch.empty(prompts, 77, 768, device=META, requires_grad=True)
        with torch.no_grad():
            goal = models[0].predict(x, t, models[0].encode(torch.zeros(prompts, 77, dtype=torch.int64, device=META)))
        loss = F.mse_loss(models[1].predict(x, t, models[1].encode_soft(soft)), goal)
        torch.autograd.grad(loss, soft)
    return live.peak


def picture_peak(pictures: int) -> float:
    """Most bytes that decoding so many pictures holds, one model among them."""
    with standing_in(), Live() as live:
        model = stable_diffusion().requires_grad_(False)
        for tensor in model.state_dict().values():
            live.add(tensor)
        live.peak = live.now
        with torch.no_grad():
            model.vae.decode(torch.empty(pictures, 4, 64, 64, device=META))  # type: ignore[union-attr]
    return live.peak


def method_hours(name: str, given: dict[str, Any], batch: int, settings: dict[str, int]) -> tuple[float, list[float]]:
    """(million passes, hours of each of `DEVICES`) that a method takes for one concept."""
    entry = METHODS.get(name, "text-to-image")
    passes = card_of(entry).passes
    assert passes is not None
    count = float(passes(**resolve(entry, given, "methods"), batch=batch, **settings))
    return count / 1e6, [hours(device, {precision: count * PASS}) for device, precision in DEVICES]


def main() -> None:
    """Print the tables of docs/stable-diffusion.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", help="only these, and no attacks")
    wanted = parser.parse_args().methods
    experiment = load_suite("table3-stable-diffusion-full").experiments[0]
    settings = {"sampler_steps": experiment.protocol.sampler_steps, "shown": experiment.evaluation.pictures}
    titles = ["pictures per step", "GB, all at once", "GB, one at a time", "million passes"]
    titles += [f"h, {device} {precision}" for device, precision in DEVICES]
    print(f"| method | {' | '.join(titles)} |\n|:--|{'--:|' * len(titles)}")
    for name in wanted or ("esd-x", *experiment.methods):
        if name in ("sld", "negative-prompt", "uce", "rece"):  # which take no gradients
            continue
        given, batch = experiment.methods.get(name, {}), experiment.batch_sizes.get(name, experiment.batch_size)
        # one at a time: of a step of two pictures, as more of them only take turns
        sizes = ((batch, None), (min(batch, 2), 1))
        peaks = [method_peak(name, dict(given), size, micro) / 1e9 for size, micro in sizes]
        count, times = method_hours(name, dict(given), batch, settings)
        told = [*(f"{peak:.1f}" for peak in peaks), f"{count:.3f}", *(f"{time:.1f}" for time in times)]
        print(f"| {name} | {batch} | {' | '.join(told)} |", flush=True)
    if wanted:
        return
    print("\n| prompts that advance together | GB, gradient step of eq. 3 |\n|--:|--:|")
    for prompts in (1, 2, 4, 8, 16, 32):
        print(f"| {prompts} | {attack_peak(prompts) / 1e9:.1f} |", flush=True)
    print("\n| pictures decoded together | GB |\n|--:|--:|")
    for pictures in (1, 4, 32):
        print(f"| {pictures} | {picture_peak(pictures) / 1e9:.1f} |", flush=True)


if __name__ == "__main__":
    main()
