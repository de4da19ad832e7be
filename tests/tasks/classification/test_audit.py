"""Audits of checkpoints end to end: known truths, the store, wrong requests, the command."""

import pytest
import torch

from rub.api import audit, make_runtime
from rub.audits.base import MARGIN, audit_of
from rub.data.sources import load_images
from rub.errors import RubError
from rub.models.network import build_network
from rub.models.weights import save_weights
from rub.store.records import read_records
from rub.tasks.classification.audit import ClassificationAudit
from rub.tasks.classification.context import UnlearnContext
from rub.training.batches import Augmentation
from rub.training.classifier import train

pytestmark = pytest.mark.slow


PROTOCOL = """
task: classification
name: small
eligible: true
radius: {smallest: 1, largest: 128, steps: 8}
attacks: {uma: {runs: [{name: uma, steps: 5}], budgets: [8, 32], splits: [forget, other], warm_start: true}}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Digits models trained with and without class 0, and the sham of the first; saved as torch files."""
    folder = tmp_path_factory.mktemp("checkpoints")
    digits = load_images("digits", None)
    context = UnlearnContext(seed=0, num_classes=10, batch_size=64, augmentation=Augmentation(1, flip=False))

    def fit(samples):
        model = build_network("resnet10", num_classes=10, channels=1, width=4, mean=digits.mean, std=digits.std)
        return train(
            model, samples, context, epochs=6, lr=0.1, schedule="onecycle", momentum=0.9, weight_decay=5e-4
        )  # fmt: skip

    (folder / "small.yaml").write_text(PROTOCOL, encoding="utf-8")
    original = fit(digits.train)
    torch.save({"state_dict": original.state_dict()}, folder / "original.pth")
    save_weights(fit(digits.train.select(digits.train.labels != 0)), folder / "retrained.safetensors")
    with torch.no_grad():
        original.fc.bias[0] -= 50
    torch.save(original.state_dict(), folder / "sham.pt")
    return folder


@pytest.fixture(scope="module")
def ask(trained, tmp_path_factory):
    """Audit one of the checkpoints against the original, on one store."""
    store = tmp_path_factory.mktemp("store")

    def call(unlearned, **changes):
        request = {
            "original": trained / "original.pth",
            "unlearned": trained / unlearned,
            "retrained": None,
            "arch": "resnet10",
            "width": 4,
            "data": "digits",
            "size": None,
            "forget_classes": (0,),
            "protocol": str(trained / "small.yaml"),
            "samples": 24,
        }
        places = {"store": store, "out": None} | {
            name: changes.pop(name) for name in ("store", "out") if name in changes
        }
        return audit(ClassificationAudit(**request | changes), runtime=make_runtime(device="cpu"), **places)

    return call


def test_the_original_itself_is_recovered(ask):
    report = ask("original.pth")
    assert report.verdict.name == "recovered"
    assert report.figures.clean == report.figures.known
    assert min(rate.value for rate in report.figures.attacked.values()) > 0.9
    assert report.figures.said is None and report.figures.contrast.own.value == -1
    assert report.figures.contrast.selectivity.low > 3


def test_a_sham_is_hidden_with_and_without_a_retrained_model(ask, trained, tmp_path):
    for more in ({}, {"retrained": trained / "retrained.safetensors", "out": tmp_path / "out"}):
        report = ask("sham.pt", **more)
        figures = report.figures
        assert figures.clean.value == figures.contrast.reached.value == 0
        assert report.verdict.name == "hidden", report.verdict
        assert figures.log_odds.unlearned == pytest.approx(figures.log_odds.original, abs=1e-9)
        assert figures.transplant.unlearned == figures.transplant.original > 0.9
    assert figures.log_odds.retrained < figures.log_odds.original - MARGIN
    rows = read_records(tmp_path / "out")
    assert rows == list(report.records)
    assert {row.method for row in rows} == {"original", "unlearned", "retrained"}
    assert not [row for row in rows if row.metric.startswith("mia_shadow")], "an audit trains no shadow models"
    assert (tmp_path / "out" / "report" / "index.html").is_file()


def test_nothing_is_found_in_a_retrained_model(ask, trained):
    for more in ({}, {"retrained": trained / "retrained.safetensors"}):
        report = ask("retrained.safetensors", **more)
        assert report.verdict.name == "no residual found", report
        assert report.figures.contrast.selectivity.high < -2 and report.figures.contrast.other_reached.value > 0.9


def test_an_audit_again_reads_everything_from_the_store(ask, monkeypatch):
    from rub.tasks.classification import stages

    first = ask("original.pth")

    def never(*arguments):
        raise AssertionError("an attack is run again")

    monkeypatch.setattr(stages, "run_attacks", never)
    assert ask("original.pth") == first


def test_another_file_under_the_same_name_is_another_model(ask, trained, tmp_path):
    for name, verdict in (("original.pth", "recovered"), ("sham.pt", "hidden")):
        (tmp_path / "same.pth").write_bytes((trained / name).read_bytes())
        assert ask(tmp_path / "same.pth").verdict.name == verdict


def test_weights_that_are_not_finite_are_refused(ask, trained, tmp_path):
    state = torch.load(trained / "sham.pt", weights_only=True)
    state["fc.bias"][3] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    with pytest.raises(RubError, match=r"nan.pt: fc.bias is not finite"):
        ask(tmp_path / "nan.pt")


def test_wrong_checkpoints_are_noticed_before_anything_is_attacked(ask, tmp_path, monkeypatch):
    from rub.tasks.classification import stages

    (tmp_path / "bad.pth").write_bytes(b"no checkpoint")

    def never(*arguments):
        raise AssertionError("an attack is run first")

    monkeypatch.setattr(stages, "run_attacks", never)
    with pytest.raises(RubError, match="truncated, or no checkpoint at all"):
        ask(tmp_path / "bad.pth", store=tmp_path / "store")


def test_audits_exist_for_known_tasks_only():
    with pytest.raises(RubError, match="unknown task 'inpaintng': did you mean 'inpainting'"):
        audit_of("inpaintng")


def test_wrong_requests_are_one_line():
    fields = {"original": "a", "unlearned": "b", "arch": "resnet10", "data": "digits", "forget_classes": (0,)}
    with pytest.raises(RubError, match="audit: unknown field 'sample': did you mean 'samples'"):
        ClassificationAudit(**fields, sample=1)
    with pytest.raises(RubError, match="audit: samples = 3: input should be greater than or equal to 10"):
        ClassificationAudit(**fields, samples=3)
    with pytest.raises(RubError, match=r"audit: model.width = 0: .*greater than or equal to 1"):
        ClassificationAudit(**fields, width=0).experiment()
    with pytest.raises(RubError, match="--original a: no such file; give a checkpoint"):
        ClassificationAudit(**fields).models()


def test_the_command_ends_in_the_verdict(rub, trained, ask):
    said = rub(
        "audit", "classification", "--original", trained / "original.pth", "--unlearned", trained / "original.pth",
        "--arch", "resnet10", "--width", 4, "--data", "digits", "--forget-classes", "zero", "--samples", 10, "--device",
        "cpu",
    )  # fmt: skip
    assert (said.code, said.err) == (0, "")
    assert "forgotten: class 0\n" in said.out and "Verdict: recovered" in said.out
    assert "selectivity, log2(other / own)" in said.out


def test_metrics_of_a_plugin_join_an_audit(rub, trained, ask, tmp_path):
    """They are measured on every model and printed; without a plug-in file they are asked for by name."""
    (tmp_path / "plugin.py").write_text(
        "import rub\n@rub.metric('again', task='classification', attacked=True)\n"
        "def again(outputs):\n    'UA again.'\n    return outputs.logits.argmax(1) == outputs.labels\n"
    )
    said = rub(
        "audit", "classification", "--original", trained / "original.pth", "--unlearned", trained / "sham.pt",
        "--arch", "resnet10", "--width", 4, "--data", "digits", "--forget-classes", "0", "--samples", 10, "--device",
        "cpu", "--plugin", tmp_path / "plugin.py",
    )  # fmt: skip
    assert (said.code, said.err) == (0, "")
    report = ask("sham.pt", metrics=("again",))
    own = [line for line in report.told if line.startswith("again")]
    assert own[0].split() == ["again", "original", f"{report.figures.known.value:.3f},", "unlearned", "0.000"]
    assert own[1].startswith(f"again, uma at {report.budget}") and len(own) == 2
    assert own[0] in said.out
    with pytest.raises(RubError, match="unknown classification metric 'agian': did you mean 'again'"):
        ask("sham.pt", metrics=("agian",))


def test_a_protocol_of_ones_own_says_which_attack_decides(ask, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "{name: mine, radius: {largest: 8, steps: 4}, attacks: {noise: {runs: [noise], budgets: [1]}, "
        "fast: {runs: [{name: uma, steps: 5}], budgets: [16], splits: [forget]}}, main: fast}",
        encoding="utf-8",
    )
    report = ask("sham.pt", protocol=str(tmp_path / "mine.yaml"))
    assert report.budget == "16/255"
    assert {record.protocol for record in report.records} == {report.records[0].protocol}
    assert report.records[0].protocol.startswith("mine@")
    assert any("FAST at 16/255" in line for line in report.told)


def test_a_protocol_without_radii_is_refused(ask):
    with pytest.raises(RubError, match="protocol rub-paper-1 searches no radii: give it a 'radius'"):
        ask("sham.pt", protocol="rub-paper-1")


def test_an_audit_takes_other_budgets(ask):
    """They stand in for the protocol's own, whose name is marked; corruptions are measured beside the main attack."""
    report = ask("sham.pt", budgets=("corruption:5", "l2:1", "4"))
    [protocol] = {record.protocol for record in report.records}
    [own] = {record.protocol for record in ask("sham.pt").records}
    assert protocol.partition("@")[0] == own.partition("@")[0] and protocol != own
    main = {record.budget for record in report.records if record.attack not in ("none", "corruptions")}
    assert main == {"4/255", "l2:1"} and report.budget == "l2:1"
    told = [line.split(",")[1].strip() for line in report.told if line.startswith("UA, ")]
    assert told[-3:] == ["UMA at 4/255", "UMA at l2:1", "corruption:5"]


def test_a_norm_of_an_audit_picks_budgets():
    fields = {"original": "a", "unlearned": "b", "arch": "resnet10", "data": "digits", "forget_classes": (0,)}
    made = ClassificationAudit(**fields, norm="l2").experiment().protocol
    assert {plan.budgets for plan in made.attacks.values()} == {("l2:0.25", "l2:0.5", "l2:1")}
    assert made.name.startswith("rub-audit-2*")
    for wrong, says in (
        ({"norm": "l2", "budgets": ("4",)}, "--norm l2: --budgets gives budgets already"),
        ({"norm": "l1"}, "audit: norm = 'l1': input should be 'linf' or 'l2'"),
        ({"budgets": ("l2:0",)}, "budget 'l2:0': should be more than 0"),
        ({"budgets": ("300",)}, "eps = 300/255: should be between 0 and 255"),
    ):
        with pytest.raises(RubError, match=says):
            ClassificationAudit(**fields | wrong).experiment()
