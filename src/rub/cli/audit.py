"""``rub audit``: one command per task, for checkpoints that RUB did not make."""

import sys
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from rub.cli.options import BATCH, DATA, DEVICE, PLUGIN, STORE, console, load_plugins
from rub.errors import RubError

N = TypeVar("N", int, float)

audit_app = typer.Typer(help="Measure checkpoints that RUB did not make, and end in a verdict.", no_args_is_help=True)


@audit_app.command(
    "classification",
    epilog="Example: rub audit classification --original before.pth --unlearned after.pth --arch resnet18 "
    "--data cifar10 --data-root data --forget-classes 0",
)
def audit_classification(
    original: Annotated[Path, typer.Option(help="Checkpoint before unlearning.")],
    unlearned: Annotated[Path, typer.Option(help="Checkpoint after unlearning.")],
    arch: Annotated[str, typer.Option(help="A name from rub list models.")],
    data: Annotated[str, typer.Option(help="A name from rub list datasets, or the path of an image folder or .npz.")],
    forget_classes: Annotated[str, typer.Option(help="Forgotten classes, such as 0,3.")],
    retrained: Annotated[Path | None, typer.Option(help="Checkpoint trained without the forget set.")] = None,
    stem: Annotated[str, typer.Option(help="cifar, imagenet or half.")] = "cifar",
    width: Annotated[int | None, typer.Option(help="Channels of the first stage.")] = None,
    size: Annotated[int | None, typer.Option(help="Side in pixels for images of a folder.")] = None,
    mean: Annotated[str | None, typer.Option(help="Mean that inputs were normalised with, if not the data's.")] = None,
    std: Annotated[str | None, typer.Option(help="Standard deviation, likewise, such as 0.247,0.243,0.262.")] = None,
    protocol: Annotated[str, typer.Option(help="A name from rub list protocols.")] = "rub-audit-1",
    samples: Annotated[int, typer.Option(min=10, help="Forget images to attack (half as many controls).")] = 256,
    store: STORE = None,
    out: Annotated[Path | None, typer.Option(help="Result folder to write.")] = None,
    data_root: DATA = None,
    device: DEVICE = "auto",
    batch_size: BATCH = 256,
    plugin: PLUGIN = None,
) -> None:
    """Measure an unlearned classifier against its original: recovered, hidden, no residual found, or cannot tell."""
    from rub import api
    from rub.pipeline.progress import Display

    load_plugins(plugin)
    screen = console()
    report = api.audit(
        "classification",
        original=original,
        unlearned=unlearned,
        retrained=retrained,
        model={
            "arch": arch,
            "stem": stem,
            "width": width,
            "mean": None if mean is None else _numbers("--mean", mean, float),
            "std": None if std is None else _numbers("--std", std, float),
        },
        data=data,
        size=size,
        forget_classes=_numbers("--forget-classes", forget_classes, int),
        protocol=protocol,
        samples=samples,
        store=store,
        runtime=api.make_runtime(data_root=data_root, device=device, batch_size=batch_size),
        display=Display(screen),
        out=out,
        command=api.reproducible(sys.argv[1:]),
    )
    _tell(report, screen)


@audit_app.command(
    "inpainting",
    epilog="Example: rub audit inpainting --original mae_visualize_vit_large.pth --unlearned after.pth --data photos "
    "--size 224 --forget-classes 0,1",
)
def audit_inpainting(
    original: Annotated[Path, typer.Option(help="Checkpoint before unlearning: .pth, .safetensors or a HF folder.")],
    unlearned: Annotated[Path, typer.Option(help="Checkpoint after unlearning.")],
    data: Annotated[str, typer.Option(help="A name from rub list datasets, or the path of an image folder or .npz.")],
    forget_classes: Annotated[str, typer.Option(help="Forgotten classes, such as 0,3.")],
    retrained: Annotated[Path | None, typer.Option(help="Checkpoint trained without the forget set.")] = None,
    size: Annotated[int | None, typer.Option(help="Side in pixels for images of a folder, or of digits.")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads, where neither file nor size tells.")] = None,
    decoder_heads: Annotated[int | None, typer.Option(help="Attention heads of the decoder, likewise.")] = None,
    mean: Annotated[str | None, typer.Option(help="Mean that inputs are normalised with, if not ImageNet's.")] = None,
    std: Annotated[str | None, typer.Option(help="Standard deviation, likewise, such as 0.229,0.224,0.225.")] = None,
    mask_ratio: Annotated[float, typer.Option(help="Fraction of masked patches.")] = 0.75,
    protocol: Annotated[str, typer.Option(help="A name from rub list protocols.")] = "rub-audit-1",
    samples: Annotated[int, typer.Option(min=10, help="Forget images, and as many retained ones.")] = 200,
    judge_epochs: Annotated[int, typer.Option(min=1, help="Training of the classifier behind FID and IS.")] = 10,
    store: STORE = None,
    out: Annotated[Path | None, typer.Option(help="Result folder to write.")] = None,
    data_root: DATA = None,
    device: DEVICE = "auto",
    batch_size: BATCH = 256,
    plugin: PLUGIN = None,
) -> None:
    """Measure an unlearned masked autoencoder against its original: recovered, no residual found, or cannot tell."""
    from rub import api
    from rub.pipeline.progress import Display

    load_plugins(plugin)
    screen = console()
    report = api.audit(
        "inpainting",
        original=original,
        unlearned=unlearned,
        retrained=retrained,
        model={"arch": "foreign", "mask_ratio": mask_ratio},
        sizes={
            "heads": heads,
            "decoder_heads": decoder_heads,
            "mean": None if mean is None else _numbers("--mean", mean, float),
            "std": None if std is None else _numbers("--std", std, float),
        },
        data=data,
        size=size,
        forget_classes=_numbers("--forget-classes", forget_classes, int),
        protocol=protocol,
        samples=samples,
        judge_epochs=judge_epochs,
        store=store,
        runtime=api.make_runtime(data_root=data_root, device=device, batch_size=batch_size),
        display=Display(screen),
        out=out,
        command=api.reproducible(sys.argv[1:]),
    )
    _tell(report, screen)


@audit_app.command(
    "text-to-image",
    epilog="Example: rub audit text-to-image --original CompVis/stable-diffusion-v1-4 --unlearned esd-church.pt "
    "--concept church --judge imagenet --judge-weights microsoft/resnet-50",
)
def audit_text_to_image(
    original: Annotated[str, typer.Option(help="Model before unlearning: a diffusers folder or a hub id.")],
    unlearned: Annotated[Path, typer.Option(help="A UNet (or part), a text encoder, an SPM adapter, or a folder.")],
    concept: Annotated[str, typer.Option(help="What was to be forgotten, such as church.")],
    retrained: Annotated[Path | None, typer.Option(help="The same model, trained without the concept.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What it is called in a prompt, if not its name.")] = None,
    prompts: Annotated[str | None, typer.Option(help="CSV in UnlearnDiffAtk's columns, or its folder.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="The first so many prompts; all when left out.")] = None,
    judge: Annotated[str, typer.Option(help="A name from rub list judges.")] = "imagenet",
    judge_weights: Annotated[str | None, typer.Option(help="Model folder or hub id of the judge.")] = None,
    judged_as: Annotated[str | None, typer.Option(help="What the judge calls it: a label or an index.")] = None,
    retain: Annotated[str, typer.Option(help="Other concepts, such as parachute,tench.")] = "",
    protocol: Annotated[str, typer.Option(help="A name from rub list protocols.")] = "rub-audit-1",
    cap: Annotated[int | None, typer.Option(min=1, help="Attack steps instead of the protocol's.")] = None,
    store: STORE = None,
    out: Annotated[Path | None, typer.Option(help="Result folder to write.")] = None,
    data_root: DATA = None,
    device: DEVICE = "auto",
    batch_size: BATCH = 256,
    plugin: PLUGIN = None,
) -> None:
    """Measure an unlearned diffusion model against its original: recovered, no residual found, or cannot tell."""
    from rub import api
    from rub.pipeline.progress import Display

    load_plugins(plugin)
    screen = console()
    report = api.audit(
        "text-to-image",
        original=original,
        unlearned=unlearned,
        retrained=retrained,
        concept=concept,
        prompt=prompt,
        prompts=prompts,
        count=count,
        judge_name=judge,
        judge_weights=judge_weights,
        judged_as=judged_as,
        retain=tuple(name for name in retain.split(",") if name),
        protocol=protocol,
        cap=cap,
        store=store,
        runtime=api.make_runtime(data_root=data_root, device=device, batch_size=batch_size),
        display=Display(screen),
        out=out,
        command=api.reproducible(sys.argv[1:]),
    )
    _tell(report, screen)


def _numbers(option: str, text: str, kind: type[N]) -> tuple[N, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise RubError(f"{option} {text}: should be {what} with commas between them, such as 0,3") from None


def _tell(report: Any, screen: Console) -> None:
    """Print an audit's figures and verdict."""
    from rub.audits.base import lines

    for line in lines(report):
        screen.print(line, highlight=False, soft_wrap=True)
    if report.failures:
        raise typer.Exit(3)
