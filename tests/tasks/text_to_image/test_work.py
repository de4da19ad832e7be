"""Hours on a device that is not here: FLOPs of a pass, the precision of each stage, and what `rub plan` says."""

import json

import pytest
import torch

from rub import api
from rub.cli.main import app
from rub.config.suite import load_suite
from rub.errors import RubError
from rub.pipeline.graph import Stage, in_order
from rub.pipeline.hours import DEVICES, hours, sustained
from rub.tasks.text_to_image.work import pass_flops, work_of

STABLE_DIFFUSION = {  # unet/config.json of CompVis/stable-diffusion-v1-4
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "norm_num_groups": 32,
    "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768, "attention_head_dim": 8,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}  # fmt: skip


@pytest.fixture
def root(tmp_path):
    """A data root with a folder of Stable Diffusion's configs, and a judge's; files in place of weights."""
    for folder in ("CompVis/stable-diffusion-v1-4", "microsoft/resnet-50"):
        (tmp_path / folder).mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (tmp_path / folder / name).write_text(folder)
    unet = tmp_path / "CompVis/stable-diffusion-v1-4/unet"
    unet.mkdir()
    (unet / "config.json").write_text(json.dumps(STABLE_DIFFUSION))
    return tmp_path


def flops_by_hand(unet, x, given):
    """Twice the multiply-adds of convolutions, linear layers, and of both products of every attention."""
    total = []

    def convolution(layer, inputs, made):
        total.append(2 * layer.weight[0].numel() * made.numel())

    def linear(layer, inputs, made):
        total.append(2 * layer.in_features * made.numel())

    def attention(layer, args, kwargs, made):
        hidden, context = args[0], kwargs["encoder_hidden_states"]
        keys = hidden if context is None else context
        total.append(2 * 2 * hidden.shape[0] * hidden.shape[1] * keys.shape[1] * layer.to_q.out_features)

    for name, layer in unet.named_modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(convolution)
        elif isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(linear)
        elif name.endswith(("attn1", "attn2")):
            layer.register_forward_hook(attention, with_kwargs=True)
    with torch.no_grad():
        unet(x, 3, encoder_hidden_states=given)
    return sum(total)


def test_the_flops_of_a_pass_are_those_of_its_layers(make_model, tmp_path):
    unet = make_model().unet
    unet.save_config(tmp_path)
    expected = flops_by_hand(unet, torch.randn(1, 1, 8, 8), torch.randn(1, 77, 32))
    assert pass_flops(tmp_path / "config.json") == expected


def test_a_pass_of_stable_diffusion(root):
    found = pass_flops(root / "CompVis/stable-diffusion-v1-4/unet/config.json")
    assert found == pytest.approx(0.803e12, rel=1e-3)


@pytest.mark.parametrize("config", [{"block_out_channels": 7}, {"sample_size": "x"}, {"in_channels": -1}])
def test_a_config_that_makes_no_unet_is_refused(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RubError, match="makes no UNet"):
        pass_flops(tmp_path / "config.json")


def planned(root, *overrides):
    suite = load_suite("table3-stable-diffusion-full", methods=["esd-u", "sld"], overrides=overrides)
    suite = suite.model_copy(update={"experiments": suite.experiments[:1]})
    return api.plan(suite, api.make_runtime(data_root=root, device="cpu"))


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_a_search_descends_in_tf32_and_draws_in_the_chosen_precision(root, precision):
    [(experiment, graph)] = planned(root, f"protocol.precision={precision}")
    work, once = work_of(experiment, root), pass_flops(root / "CompVis/stable-diffusion-v1-4/unet/config.json")
    for stage in in_order(graph.stages):
        found = work(stage)
        assert sum(found.values()) == pytest.approx(stage.cost * once)
        if stage.kind == "attack" and stage.spec["run"]["name"] == "uma" and precision != "tf32":
            assert found["tf32"] / found[precision] == pytest.approx(120 / 100)  # 40 x 3 passes, and 2 x 50 to draw
        if stage.kind == "unlearn":
            assert found[precision] == pytest.approx(stage.cost * once)
        if stage.kind == "reference":
            assert found["float32"] == pytest.approx(stage.cost * once)


def test_hours_are_work_over_rate(root):
    plans = planned(root)
    found = api.hours_of(plans, "a100", root)
    [unlearn] = [stage for stage in in_order(plans[0][1].stages) if stage.label.startswith("unlearn esd-u")]
    # 1000 steps of 25 DDIM steps with two passes, two passes of the original, one forward and backward pass
    assert found[unlearn.key] == pytest.approx(1000 * 55 * 0.803e12 / (19.5e12 * 2 / 3) / 3600, rel=0.01)
    assert set(found) == {stage.key for stage in in_order(plans[0][1].stages)}


@pytest.mark.parametrize("device", DEVICES)
def test_less_precision_is_never_slower(device):
    assert sustained(device, "float32") <= sustained(device, "tf32") <= sustained(device, "bfloat16")
    assert hours(device, {}) == 0


@pytest.mark.parametrize(("task", "said"), [("classification", "task classification"), ("text-to-image", "miniatures")])
def test_what_is_not_known_is_said_in_one_line(task, said):
    plans = api.plan(load_suite("quick", task=task), api.make_runtime(device="cpu"))
    with pytest.raises(RubError, match=said):
        api.hours_of(plans, "a100", None)


def test_an_unknown_device_is_told_the_nearest():
    with pytest.raises(RubError, match="unknown device 'a10': did you mean 'a100'"):
        sustained("a10", "float32")


def test_the_plan_has_a_column_of_hours(root, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    suite = load_suite("table3-stable-diffusion-full", methods=["esd-x", "uce"])
    suite = suite.model_copy(update={"experiments": suite.experiments[:1]})
    monkeypatch.setattr("rub.config.suite.load_suite", lambda *args, **options: suite)
    command = ["plan", "table3-stable-diffusion-full", "--data-root", str(root), "--store", str(root / "store")]
    app([*command, "--hours-on", "h100"], standalone_mode=False)
    said = capsys.readouterr().out
    assert "hours on h100" in said
    assert "hours on one h100, by arithmetic" in said


def test_stages_without_passes_take_no_time(root):
    [(experiment, _)] = planned(root)
    free = Stage("text-to-image", "attack", 1, "free", {"run": {"parameters": {}}, "sampler": {"steps": 50}})
    assert sum(work_of(experiment, root)(free).values()) == 0
