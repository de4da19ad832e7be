"""All of the task on a folder in the shape of Stable Diffusion 1.4, which the hub gives as it is, with fewer channels.

Every method, every attack, published files in every format as rows, an audit, tables, witnesses; few and short steps.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from rub import load_suite, run
from rub.api import audit, make_runtime, verify
from rub.models.diffusion.checkpoints import load_model, load_unlearned, save_pipeline, to_compvis
from rub.models.diffusion.model import frozen
from rub.registry import ATTACKS, METHODS

pytestmark = pytest.mark.slow

METHOD_SETTINGS = {
    "esd-x": {"iterations": 1}, "esd-u": {"iterations": 1}, "fmn": {"iterations": 1}, "spm": {"iterations": 1},
    "salun": {"iterations": 1, "mask_batches": 1}, "erasediff": {"iterations": 1, "inner_steps": 1},
    "scissorhands": {"iterations": 1, "prune_batches": 1},
    "advunlearn": {"iterations": 2, "warmup": 1, "attack_steps": 1, "retain_batch": 1},
    "concept-ablation": {"iterations": 1, "pictures": 2}, "uce": {}, "rece": {}, "sld": {}, "negative-prompt": {},
}  # fmt: skip
ATTACK_SETTINGS = {
    "uma": {"inner_steps": 1}, "unlearndiffatk": {"inner_steps": 1}, "p4d": {"inner_steps": 1},
    "concept-inversion": {"inner_steps": 1}, "ring-a-bell": {"generations": 1, "population": 4},
    "random-prefix": {}, "seed-search": {}, "inverted-latent": {}, "img2img": {}, "inpaint-centre": {},
    "recall": {"inner_steps": 1}, "shared-soft-prompt": {"inner_steps": 1, "batch": 2},
}  # fmt: skip
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
BASE = {
    "task": "text-to-image", "retain": ["tench", "parachute"], "retrains": 0, "batch_size": 1,
    "evaluation": {"prompts": 2, "retained": 2, "pictures": 8, "gallery": 1},
}  # fmt: skip


def protocol(attacks):
    """A protocol of one's own, the same for suites and audits."""
    runs = {name: {"cap": 1, "run": {"name": name, **ATTACK_SETTINGS[name]}} for name in attacks}
    return {"name": "tiny-1", "attacks": runs, "sampler_steps": 2}


def text_encoder(model, prefix):
    state = model.text_encoder.state_dict()
    return {prefix + name.removeprefix("text_model."): value.clone() for name, value in state.items()}


def published(original, folder):
    """Row -> a checkpoint in one of the formats that people publish, all of a model that is not the original."""
    made = frozen(original)
    with torch.no_grad():
        made.unet.get_submodule(LAYER).weight.add_(0.1)
        made.token_embeddings.add_(0.01)
    unet = {name: value.clone() for name, value in made.unet.state_dict().items()}
    down, up = torch.ones(2, 32), torch.ones(32, 2)
    files = {}

    def place(row, name):
        files[row] = folder / row / name
        files[row].parent.mkdir()
        return files[row]

    torch.save(unet, place("unet", "esd.pt"))
    torch.save({"state_dict": to_compvis(unet, made.unet.config)}, place("compvis", "salun.pt"))
    safetensors.torch.save_file({f"{LAYER}.weight": unet[f"{LAYER}.weight"]}, place("part", "uce.safetensors"))
    torch.save(
        {"unet": unet, "text_encoder": text_encoder(made, "text_model."), "optimizer": {"state": {}}},
        place("two-parts", "both.pt"),
    )
    safetensors.torch.save_file(text_encoder(made, "text_model."), place("encoder", "model.safetensors"))
    files["encoder"] = folder / "encoder"
    names = [f"diffusion_pytorch_model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    halves = [dict(list(unet.items())[start::2]) for start in (0, 1)]
    index = place("shards", "diffusion_pytorch_model.safetensors.index.json")
    for half, name in zip(halves, names, strict=True):
        safetensors.torch.save_file(half, index.with_name(name))
    places = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    index.write_text(json.dumps({"weight_map": places}))
    files["shards"] = index.parent
    safetensors.torch.save_file(unet, place("non-ema", "diffusion_pytorch_model.non_ema.safetensors"))
    files["non-ema"] = folder / "non-ema"
    lora = {}
    for name in (f"lora_unet_{LAYER.replace('.', '_')}", "lora_te_text_model_encoder_layers_0_self_attn_q_proj"):
        lora |= {f"{name}.lora_down.weight": down.clone(), f"{name}.lora_up.weight": up.clone()}
        lora[f"{name}.alpha"] = torch.tensor(0.1)
    safetensors.torch.save_file(lora, place("kohya", "lora.safetensors"))
    peft = {f"unet.{LAYER}.lora_A.weight": down, f"unet.{LAYER}.lora_B.weight": up * 0.05}
    safetensors.torch.save_file(peft, place("peft", "pytorch_lora_weights.safetensors"))
    place("guidance", "guidance.json").write_text(json.dumps({"guidance": "negative-prompt", "concept": "church"}))
    save_pipeline(made, folder / "pipeline")
    files["pipeline"] = folder / "pipeline"
    return files


@dataclass(frozen=True)
class Ran:
    """What the suite gave, and where."""

    result: object
    out: Path
    store: Path


def bright(self, look, label):
    """A judge that sees the concept in some pictures, by a rule that the picture alone decides."""
    return look.scores[:, 0] > look.scores[:, 1]


@pytest.fixture(scope="module")
def files(sd_folder, tmp_path_factory):
    """Row -> its checkpoint, one in each format."""
    return published(load_model(sd_folder), tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def ran(sd_folder, files, image_classifier, tmp_path_factory):
    """A suite of three experiments: every method, every attack, every format."""
    import rub.judges.base as judges

    folder = tmp_path_factory.mktemp("sd-shape")
    shared = {
        **BASE, "model": {"arch": "stable-diffusion", "weights": str(sd_folder)},
        "judge": {"name": "imagenet", "weights": str(image_classifier)},
    }  # fmt: skip
    concept = {"name": "church", "anchor": "a photo"}
    experiments = [
        {"name": "methods", "methods": METHOD_SETTINGS, "protocol": protocol(["uma"])},
        {"name": "attacks", "checkpoints": {"theirs": str(files["unet"])}, "protocol": protocol(ATTACK_SETTINGS)},
        {
            "name": "formats", "protocol": protocol(["random-prefix"]),
            "checkpoints": {row: str(file) for row, file in files.items()},
        },
    ]  # fmt: skip
    path = folder / "suite.yaml"
    rows = [{**shared, "concept": concept, **one} for one in experiments]
    path.write_text(yaml.safe_dump({"name": "sd-shape", "experiments": rows}, sort_keys=False))
    patch = pytest.MonkeyPatch()
    patch.setattr(judges.Argmax, "hits", bright)
    try:
        runtime = make_runtime(device="cpu")
        result = run(load_suite(str(path)), store=folder / "store", out=folder / "out", runtime=runtime)
    finally:
        patch.undo()
    return Ran(result, folder / "out", folder / "store")


def rows_of(ran, experiment, metric, attack="none"):
    return {
        row.method: row for row in ran.result.records
        if (row.experiment, row.metric, row.attack) == (experiment, metric, attack)
    }  # fmt: skip


CONTROLS = ["original", "sham", "random_init"]


def test_every_method_makes_a_model_and_is_measured(ran):
    assert ran.result.failures == ()
    assert set(METHOD_SETTINGS) == {entry.name for entry in METHODS.entries("text-to-image")}
    for metric, attack in (("asr_pre", "none"), ("fid", "none"), ("asr_post", "uma"), ("steps_mean", "uma")):
        assert list(rows_of(ran, "methods", metric, attack)) == [*CONTROLS, *METHOD_SETTINGS]
    hashes = {row.weights_sha256 for row in rows_of(ran, "methods", "asr_pre").values()}
    assert len(hashes) == len(CONTROLS) + len(METHOD_SETTINGS), "each of them is another model"


def test_every_attack_runs(ran):
    searched = {row.attack for row in ran.result.records if row.experiment == "attacks" and row.attack != "none"}
    assert searched == {entry.name for entry in ATTACKS.entries("text-to-image")}
    for attack in searched:
        assert list(rows_of(ran, "attacks", "asr_post", attack)) == [*CONTROLS, "theirs"]


def test_every_format_is_a_row(ran, files, sd_folder):
    assert list(rows_of(ran, "formats", "asr_post", "random-prefix")) == [*CONTROLS, *files]
    shown = rows_of(ran, "formats", "asr_pre")
    assert len({shown[row].weights_sha256 for row in ("unet", "compvis", "shards", "non-ema", "part")}) == 1, (
        "the same change, in the form in which RUB keeps it"
    )
    both = load_unlearned(load_model(sd_folder), files["two-parts"])
    whole = load_model(files["pipeline"])
    assert torch.equal(both.token_embeddings, whole.token_embeddings)
    assert torch.equal(both.unet.get_submodule(LAYER).weight, whole.unet.get_submodule(LAYER).weight)


def test_the_table_has_every_row(ran, files):
    text = "".join(path.read_text() for path in (ran.out / "tables").glob("table3-*.md")).replace("\\", "")
    assert all(f"| {row} " in text or f"{row} |" in text for row in [*METHOD_SETTINGS, "theirs", *files])
    assert (ran.out / "report" / "index.html").is_file()


def test_witnesses_of_published_files_hold(ran, monkeypatch):
    import rub.judges.base as judges

    monkeypatch.setattr(judges.Argmax, "hits", bright)
    checks = list(verify(ran.out, store=ran.store, runtime=make_runtime(device="cpu")))
    assert checks and all(not check.reason and not check.broken for check in checks)
    assert {"theirs", "unet"} & {check.witness.method for check in checks}


def test_an_audit_of_an_original_in_one_file_and_a_published_checkpoint(
    sd_ldm, sd_folder, files, image_classifier, tmp_path
):
    torch.save({"state_dict": sd_ldm}, tmp_path / "sd-v1-4.ckpt")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(protocol(["uma", "random-prefix"])))
    report = audit(
        "text-to-image", original=str(tmp_path / "sd-v1-4.ckpt"), config=str(sd_folder), unlearned=files["two-parts"],
        concept="church", count=2, judge_weights=str(image_classifier), retain=("tench",),
        protocol=str(tmp_path / "tiny.yaml"), store=tmp_path / "store", runtime=make_runtime(device="cpu"),
    )  # fmt: skip
    assert report.failures == ()
    assert report.verdict.name in ("recovered", "cannot tell", "no residual found at this budget")
    assert {row.method for row in report.records} == {"original", "unlearned"}
