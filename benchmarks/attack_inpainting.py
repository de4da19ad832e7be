"""Speed of UMA on masked autoencoders against a plain loop over transformers' ``ViTMAEForPreTraining``.

    python benchmarks/attack_inpainting.py                       # 32 px, patch 4, width 192, depth 6
    python benchmarks/attack_inpainting.py --size base           # ViT-B at 224 px, few images and steps
    python benchmarks/attack_inpainting.py --exact               # our search in float32 too

Same weights, masks, images, eps, steps, batch and hardware. The plain loop is what one writes first: eval mode, fixed
noise, signed gradient steps on the masked MSE of the logits to a fixed target. It is timed with ``loss.backward()``
(which also computes the gradients of all weights) and with ``torch.autograd.grad`` (the input's only). Our time
includes scoring the clean images and the final probes in float32. Every side is judged by transformers' model on its
8-bit probes and must bring D equally far down. The unlearned model is the original with noise on its encoder's weights.
"""

import argparse
import copy
import math
import sys
import time

import torch
from torch import Tensor, nn

from rub.data.samples import to_unit
from rub.models.mae.layouts import to_transformers
from rub.models.mae.masks import Mask, keyed_noise, make_mask
from rub.models.mae.model import MAEConfig, MaskedAutoencoder
from rub.models.weights import freeze
from rub.tasks.inpainting.attacks.base import AttackContext, Budget, Target, apply_delta
from rub.tasks.inpainting.attacks.harness import make_target, run_attack
from rub.tasks.inpainting.attacks.uma import uma

# config, images, steps, batch
SIZES = {
    "mini": (MAEConfig(32, 4, 3, 64, 4, 4, 48, 2, 4), 256, 20, 256),
    "small": (MAEConfig(32, 4, 3, 192, 6, 6, 128, 4, 4), 128, 20, 64),
    "base": (MAEConfig(224, 16, 3, 768, 12, 12, 512, 8, 16), 4, 10, 4),
}
# The claim is about the plain loop; the one that asks for the input's gradient alone shows what part is that alone.
GOALS = {"plain, backward()": 2.0, "plain, autograd.grad": 1.0}
ALIKE = 0.05  # how far the falls of D may differ, in units of the fall


def plain_copy(model: MaskedAutoencoder) -> nn.Module:
    """Transformers' model with the same weights, as its config makes it: parameters keep requires_grad."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    c = model.config
    config = ViTMAEConfig(
        image_size=c.image_size, patch_size=c.patch_size, num_channels=c.channels, hidden_size=c.dim,
        num_hidden_layers=c.depth, num_attention_heads=c.heads, intermediate_size=int(c.dim * c.mlp_ratio),
        decoder_hidden_size=c.decoder_dim, decoder_num_hidden_layers=c.decoder_depth,
        decoder_num_attention_heads=c.decoder_heads, decoder_intermediate_size=int(c.decoder_dim * c.mlp_ratio),
        layer_norm_eps=c.eps, mask_ratio=0.75,
    )  # fmt: skip
    theirs = ViTMAEForPreTraining(config)
    theirs.load_state_dict(to_transformers(model.state_dict()), strict=True)
    return theirs.eval()


class Plain:
    """The loop over transformers' model."""

    def __init__(self, model: MaskedAutoencoder, noise: Tensor, mask: Mask, reference: Tensor) -> None:
        self.model, self.noise, self.mask, self.reference = plain_copy(model), noise, mask, reference
        self.mean, self.std = (torch.tensor(part).view(1, 3, 1, 1) for part in (model.config.mean, model.config.std))
        self.patch_mean, self.patch_std = model.mean, model.std

    def loss(self, x: Tensor, rows: slice) -> Tensor:
        """D of each image, in pixel space."""
        logits = self.model((x - self.mean) / self.std, noise=self.noise[rows]).logits
        hidden = self.mask.hidden[rows]
        masked = logits.gather(1, hidden[..., None].expand(-1, -1, logits.shape[-1]))
        return ((masked * self.patch_std + self.patch_mean - self.reference[rows]) ** 2).mean((1, 2))

    def attack(self, images: Tensor, args: argparse.Namespace, *, backward: bool, steps: int | None = None) -> Tensor:
        """Return attacked 8-bit images, uint8."""
        done = []
        for start in range(0, len(images), args.batch):
            rows = slice(start, start + args.batch)
            clean = to_unit(images[rows])
            x = clean.clone()
            for _ in range(steps or args.steps):
                x.requires_grad_()
                loss = self.loss(x, rows).mean()
                if backward:
                    self.model.zero_grad()
                    loss.backward()
                    gradient = x.grad
                else:
                    gradient = torch.autograd.grad(loss, x)[0]
                with torch.no_grad():
                    x = clean + (x - args.alpha * gradient.sign() - clean).clamp(-args.eps, args.eps)
                    x = x.clamp(0, 1)
            done.append((x * 255).round().to(torch.uint8))
        return torch.cat(done)

    @torch.no_grad()
    def judge(self, images: Tensor, batch: int) -> float:
        """Mean D of 8-bit images."""
        parts = [slice(start, start + batch) for start in range(0, len(images), batch)]
        return float(torch.cat([self.loss(to_unit(images[rows]), rows) for rows in parts]).double().mean())


def nudged(model: MaskedAutoencoder, share: float) -> MaskedAutoencoder:
    """The model with noise of this share of their deviation on the encoder's matrices."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in other.encoder_parameters():
            if parameter.ndim > 1:
                parameter.add_(share * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return other


def ours(target: Target, images: Tensor, args: argparse.Namespace, steps: int | None = None) -> Tensor:
    context = AttackContext(
        seed=0, ids=torch.arange(len(images)), batch_size=args.batch, threshold=0.0, fast=not args.exact
    )
    parameters = {"steps": steps or args.steps, "step_size": args.alpha / args.eps}
    found = run_attack(uma, parameters, target, images, Budget.parse(args.levels), context)
    return (apply_delta(images, found.inputs) * 255).round().to(torch.uint8)


def compare(args: argparse.Namespace) -> bool:
    """Time both loops and ours; print rates, ratios and D; return whether the goals hold."""
    config, count, _, _ = SIZES[args.size]
    count = args.images or count
    shape = (count, 3, config.image_size, config.image_size)
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    noise = keyed_noise(torch.arange(count), config.patches)
    mask = make_mask(noise, 0.75)
    original = MaskedAutoencoder(config)
    target = make_target(original, freeze(nudged(original, 0.5)), images, mask, args.batch, torch.device("cpu"))
    peer = Plain(target.model, noise, mask, target.reference)
    sides = {
        "rub": lambda part, steps: ours(part_of(target, part), images[part], args, steps),
        "plain, backward()": lambda part, steps: peer.attack(images[part], args, backward=True, steps=steps),
        "plain, autograd.grad": lambda part, steps: peer.attack(images[part], args, backward=False, steps=steps),
    }
    clean, seconds, fall = peer.judge(images, args.batch), dict.fromkeys(sides, math.inf), {}
    print(f"{args.size}: {count} images, batch {args.batch}, {args.steps} steps, eps {args.levels}/255,"
          f" {torch.get_num_threads()} threads, clean D {clean:.5f}", flush=True)  # fmt: skip
    for side in sides.values():
        side(slice(args.batch), 1)  # first calls are nobody's speed
    for _ in range(args.rounds):  # in turns: other work on the machine hits all sides alike
        for name, side in sides.items():
            start = time.perf_counter()
            probes = side(slice(None), args.steps)
            seconds[name] = min(seconds[name], time.perf_counter() - start)
            fall[name] = clean - peer.judge(probes, args.batch)
    rate = {name: count * args.steps / value for name, value in seconds.items()}
    for name, value in rate.items():
        print(f"{name:22s} {value:8.1f} steps x images/s   D falls by {fall[name]:.5f}")
    return verdict(rate, fall)


def part_of(target: Target, part: slice) -> Target:
    return Target(target.model, target.mask.select(part), target.reference[part])


def verdict(rate: dict[str, float], fall: dict[str, float]) -> bool:
    good = True
    for name in [name for name in rate if name != "rub"]:
        ratio, gap = rate["rub"] / rate[name], abs(fall["rub"] - fall[name]) / fall[name]
        holds = ratio >= GOALS[name] and gap <= ALIKE
        good &= holds
        print(f"ratio to {name}: {ratio:.2f} (goal {GOALS[name]}), falls of D differ by {100 * gap:.1f} % (goal"
              f" {100 * ALIKE:.0f} %): {'holds' if holds else 'DOES NOT HOLD'}")  # fmt: skip
    return good


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--images", type=int, default=0, help="0: the size's own number")
    parser.add_argument("--steps", type=int, default=0, help="0: the size's own number")
    parser.add_argument("--batch", type=int, default=0, help="0: the size's own number")
    parser.add_argument("--levels", type=int, default=8, help="eps in 1/255")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's choice")
    parser.add_argument("--rounds", type=int, default=3, help="the best time of so many counts, for every side")
    parser.add_argument("--exact", action="store_true", help="our search in float32")
    args = parser.parse_args()
    args.steps, args.batch = args.steps or SIZES[args.size][2], args.batch or SIZES[args.size][3]
    args.eps = args.levels / 255
    args.alpha = 2.5 * args.eps / args.steps
    return args


def main() -> int:
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    return 0 if compare(args) else 1


if __name__ == "__main__":
    sys.exit(main())
