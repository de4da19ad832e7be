"""Audits: the rules of the verdict one by one, and two checkpoints end to end."""

from dataclasses import replace

import pytest
import torch

from rub.api import audit, make_runtime
from rub.audits.base import MARGIN, Rate, Report, Verdict, audit_of, lines
from rub.audits.base import conclude as conclude_at
from rub.data.sources import load_images
from rub.errors import RubError
from rub.metrics.statistics import wilson
from rub.models.network import build_network
from rub.models.weights import save_weights
from rub.store.records import Record, read_records
from rub.tasks.classification.audit import AUDIT, ClassificationAudit, told
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.verdict import Figures, conclude
from rub.training.batches import Augmentation
from rub.training.classifier import train

pytestmark = pytest.mark.slow


def rate(hits, count=100):
    """A rate with the Wilson interval of so many hits."""
    return Rate(hits / count, *wilson(hits, count))


FORGOTTEN = Figures(
    original=rate(99),
    clean=rate(0),
    attacked=rate(2),
    converged=True,
    steered=rate(1),
    retrained=None,
    bias_free={"logit_auc": (0.99, 0.55, None), "probe_accuracy": (0.98, 0.40, None)},
)
REFERENCED = replace(
    FORGOTTEN,
    retrained=rate(3),
    bias_free={"logit_auc": (0.99, 0.55, 0.50), "probe_accuracy": (0.98, 0.40, 0.35)},
)


@pytest.mark.parametrize(
    ("figures", "name", "says"),
    [
        (FORGOTTEN, "no residual found at this budget", "no retrained model was given"),
        (REFERENCED, "no residual found at this budget", "the reference (the retrained model) is at 3.0 %"),
        # 1: an original that does not know the class shows nothing, whatever else is measured.
        (replace(FORGOTTEN, original=rate(40)), "cannot tell", "the original model itself classifies only 40.0 %"),
        (replace(FORGOTTEN, original=rate(4, 7), attacked=rate(90)), "cannot tell", "the original model itself"),
        # 2: recovered, above the steered share or above the retrained model.
        (replace(FORGOTTEN, attacked=rate(30)), "recovered", "changing the input alone"),
        (replace(FORGOTTEN, attacked=rate(100), steered=rate(80)), "recovered", "class) is at 80.0 %"),
        (replace(REFERENCED, attacked=rate(30)), "recovered", "(the retrained model)"),
        (replace(FORGOTTEN, attacked=rate(30), converged=False), "recovered", "30.0 %"),
        # ... but not where the intervals overlap, nor below the margin however many samples there are.
        (replace(REFERENCED, attacked=rate(9)), "no residual found at this budget", "9.0 %"),
        (
            replace(REFERENCED, attacked=rate(4_000, 100_000), retrained=rate(3_000, 100_000)),
            "no residual found at this budget",
            "4.0 %",
        ),
        (
            replace(REFERENCED, attacked=rate(8_100, 100_000), retrained=rate(3_000, 100_000)),
            "recovered",
            "8.1 %",
        ),
        # ... and the steered share does not matter where there is a retrained model.
        (replace(REFERENCED, attacked=rate(90), steered=rate(95)), "recovered", "the retrained model"),
        # 3: the search pushes anything into the class.
        (replace(FORGOTTEN, attacked=rate(95), steered=rate(95)), "cannot tell", "a retrained model (--retrained)"),
        (replace(REFERENCED, attacked=rate(95), retrained=rate(95)), "no residual found at this budget", "95.0 %"),
        # 4: hidden, by either metric.
        (
            replace(FORGOTTEN, bias_free={"logit_auc": (0.99, 0.98, None)}),
            "hidden",
            "logit_auc is 0.980, the original's is 0.990",
        ),
        (
            replace(REFERENCED, bias_free={"logit_auc": (0.9, 0.5, 0.5), "probe_accuracy": (0.9, 0.71, 0.5)}),
            "hidden",
            "probe_accuracy is 0.710, the original's is 0.900 (retrained: 0.500)",
        ),
        (replace(FORGOTTEN, converged=False, bias_free={"logit_auc": (0.9, 0.9, None)}), "hidden", "in the weights"),
        # ... but not by a metric on which original and retrained models agree, nor closer to the retrained one.
        (
            replace(REFERENCED, bias_free={"logit_auc": (0.99, 0.99, 0.96)}),
            "no residual found at this budget",
            "reference",
        ),
        (
            replace(REFERENCED, bias_free={"probe_accuracy": (0.9, 0.69, 0.5)}),
            "no residual found at this budget",
            "reference",
        ),
        (replace(FORGOTTEN, bias_free={}), "no residual found at this budget", "reference"),
        # 5: a search that was still improving.
        (replace(FORGOTTEN, converged=False), "cannot tell", "still improving"),
        (replace(REFERENCED, converged=False), "cannot tell", "still improving"),
    ],
)
def test_the_rules_of_the_verdict(figures, name, says):
    verdict = conclude(figures, "16/255")
    assert verdict.name == name
    assert says in " ".join(verdict.why)
    assert all("\n" not in sentence for sentence in verdict.why)


def test_the_margin_is_five_points():
    assert MARGIN == 0.05


def test_a_report_is_told_in_lines():
    report = Report(conclude(REFERENCED, "16/255"), REFERENCED, tuple(told(REFERENCED, "16/255")), "16/255", (), ())
    said = list(lines(report))
    assert "UA of the original model on clean forget images   99.0 % (94.6 to 99.8)" in said
    assert any(line.startswith("UA of the retrained model, UMA at 16/255") for line in said)
    assert "logit_auc       original 0.990, unlearned 0.550, retrained 0.500" in said
    assert "[b]Verdict: no residual found at this budget[/b]" in said
    failed = Report(Verdict("cannot tell", ("broke: [red]x",)), None, (), "16/255", (), ("broke",))
    assert list(lines(failed)) == ["[b]Verdict: cannot tell[/b]", r"  - broke: \[red]x"]


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
            "protocol": "rub-paper-1",
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
    assert report.figures.clean == report.figures.original
    assert min(report.figures.attacked.value, report.figures.clean.value) > 0.9
    assert report.figures.retrained is None


def test_a_sham_is_not_called_forgotten(ask, trained, tmp_path):
    report = ask("sham.pt", retrained=trained / "retrained.safetensors", out=tmp_path / "out")
    figures = report.figures
    assert figures.clean.value == 0
    assert report.verdict.name == "hidden", report.verdict
    assert figures.bias_free["logit_auc"][1] == pytest.approx(figures.bias_free["logit_auc"][0], abs=1e-12)
    assert figures.bias_free["logit_auc"][2] < figures.bias_free["logit_auc"][0] - MARGIN
    rows = read_records(tmp_path / "out")
    assert rows == list(report.records)
    assert {row.method for row in rows} == {"original", "unlearned", "retrained"}
    assert not [row for row in rows if row.metric.startswith("mia_shadow")], "an audit trains no shadow models"
    assert (tmp_path / "out" / "report" / "index.html").is_file()


def test_without_a_retrained_model_a_sham_is_still_not_called_forgotten(ask):
    assert ask("sham.pt").verdict.name == "hidden"


def test_the_retrained_model_against_itself_is_not_recovered(ask, trained):
    report = ask("retrained.safetensors", retrained=trained / "retrained.safetensors")
    assert report.verdict.name in ("no residual found at this budget", "cannot tell")
    assert report.figures.clean.value == 0
    assert report.figures.attacked == report.figures.retrained


def test_an_audit_again_reads_everything_from_the_store(ask, monkeypatch):
    from rub.tasks.classification import stages

    first = ask("original.pth")

    def never(*arguments):
        raise AssertionError("an attack is run again")

    monkeypatch.setattr(stages, "run_attack", never)
    assert ask("original.pth") == first


def test_weights_that_are_not_finite_end_in_cannot_tell(ask, trained, tmp_path):
    state = torch.load(trained / "sham.pt", weights_only=True)
    state["fc.bias"][3] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    report = ask(tmp_path / "nan.pt")
    assert report.verdict.name == "cannot tell"
    assert report.failures
    assert report.figures is None


def test_wrong_checkpoints_are_noticed_before_anything_is_attacked(ask, tmp_path, monkeypatch):
    from rub.tasks.classification import stages

    (tmp_path / "bad.pth").write_bytes(b"no checkpoint")

    def never(*arguments):
        raise AssertionError("an attack is run first")

    monkeypatch.setattr(stages, "run_attack", never)
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
        "--arch", "resnet10", "--width", 4, "--data", "digits", "--forget-classes", "0", "--samples", 10, "--device",
        "cpu",
    )  # fmt: skip
    assert (said.code, said.err) == (0, "")
    assert "Verdict: recovered" in said.out
    assert "retain images steered into the class (control)" in said.out


def test_a_residual_at_a_small_budget_decides():
    """At 16/255 everything is recovered and steered alike; at 8/255 the forget images come back and others do not."""

    def row(method, value, attack="none", budget="none", metric="ua", split="forget"):
        low, high = wilson(round(value * 200), 200)
        return Record(
            task="classification", suite="s", experiment="", protocol="p", dataset="d", model="m", method=method,
            attack=attack, budget=budget, metric=metric, split=split, value=value, n=200, unlearn_seed=0, mia_seed=None,
            direction="down", ci_low=low, ci_high=high, key="0" * 64, converged=True,
        )  # fmt: skip

    records = [row("original", 1.0), row("unlearned", 0.0)]
    for budget, recovered, steered in (("8/255", 0.7, 0.4), ("16/255", 0.95, 0.95)):
        records.append(row("unlearned", recovered, "uma", budget))
        records.append(row("unlearned", steered, "uma", budget, split="retain"))
    report = conclude_at(tuple(records), "uma", ["8/255", "16/255"], AUDIT)
    assert (report.verdict.name, report.budget) == ("recovered", "8/255")
    none = tuple(row if row.budget != "8/255" else row.model_copy(update={"value": 0.0}) for row in records)
    small = tuple(
        item.model_copy(update=dict(zip(("ci_low", "ci_high"), wilson(0, 200), strict=True)))
        if item.budget == "8/255"
        else item
        for item in none
    )
    assert conclude_at(small, "uma", ["8/255", "16/255"], AUDIT).verdict.name == "cannot tell"


def test_a_protocol_of_ones_own_says_which_attack_decides(ask, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "{name: mine, attacks: {noise: {runs: [noise], budgets: [1]}, fast: {runs: [{name: uma, steps: 5}], "
        "budgets: [16], splits: [forget, retain]}}, main: fast}",
        encoding="utf-8",
    )
    report = ask("sham.pt", protocol=str(tmp_path / "mine.yaml"))
    assert report.budget == "16/255"
    assert {record.protocol for record in report.records} == {report.records[0].protocol}
    assert report.records[0].protocol.startswith("mine@")
    assert any("FAST at 16/255" in line for line in report.told)
