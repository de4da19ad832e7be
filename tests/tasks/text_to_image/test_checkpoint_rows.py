"""Rows of published checkpoints in a suite, the paper's prompts, the concept's own tokens: what is planned."""

from hashlib import md5

import pytest
import yaml

from rub import api, load_suite
from rub.errors import RubError
from rub.pipeline.graph import in_order
from rub.tasks.text_to_image import concepts
from rub.tasks.text_to_image.audit import TextToImageAudit
from rub.tasks.text_to_image.metrics import PAPERS_PROMPTS

EXPERIMENT = {
    "task": "text-to-image",
    "model": {"arch": "stable-diffusion", "weights": "sd"},
    "judge": {"name": "imagenet", "weights": "judge"},
    "concept": {"name": "church"},
    "retain": ["tench"],
    "retrains": 0,
    "protocol": "rub-paper-1",
}
CSV = "case_number,prompt,evaluation_seed,evaluation_guidance\n0,a church,5,7.5\n1,an old church,6,7\n"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data root with files in place of weights: a plan reads nothing but their bytes."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("sd/model.safetensors", "judge/config.json", "ours/esd.pt", "theirs/esd.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name.replace("theirs", "ours"))
    (tmp_path / "church.csv").write_text(CSV)
    return tmp_path


@pytest.fixture
def planned(root):
    """The graph of the experiment with other fields."""

    def plan(**fields):
        path = root / "suite.yaml"
        path.write_text(yaml.safe_dump({"name": "rows", "experiments": [{**EXPERIMENT, **fields}]}))
        [(_, graph)] = api.plan(load_suite(str(path)), api.make_runtime(data_root=root, device="cpu"))
        return graph

    return plan


def stages(graph, kind):
    return [stage for stage in in_order(graph.stages) if stage.kind == kind]


def test_a_checkpoint_is_a_row_with_all_that_a_row_has(planned):
    graph = planned(checkpoints={"theirs": "theirs/esd.pt"}, methods=["uce"])
    rows = {}
    for stage in graph.stages:
        for cell in stage.cells:
            rows.setdefault((cell["method"], cell["unlearn_seed"]), set()).add((cell["metric"], cell["attack"]))
    assert list(rows) == [("original", 0), ("sham", 0), ("random_init", 0), ("theirs", 0), ("uce", 0)]
    assert rows["theirs", 0] == rows["uce", 0]
    assert "pictures of theirs (church)" in [stage.label for stage in stages(graph, "gallery")]
    assert [stage.label for stage in stages(graph, "unlearn")] == ["unlearn uce, seed 0 (church)"]
    order = [stage.label for stage in in_order(graph.stages)]
    assert order.index("read theirs (church)") < order.index("measure original, seed 0 (church)"), "known before hours"


def test_the_key_is_that_of_the_files_content_and_an_audit_shares_it(planned, root):
    first = stages(planned(checkpoints={"a": "ours/esd.pt"}), "import")
    second = stages(planned(checkpoints={"b": "theirs/esd.pt"}), "import")
    assert [stage.key for stage in first] == [stage.key for stage in second]
    request = TextToImageAudit(
        original=str(root / "sd"), unlearned=root / "ours/esd.pt", concept="church", judge_weights=str(root / "judge")
    )
    from rub.tasks.text_to_image.task import TASK

    audited = TASK.graph(request.experiment(), root, request.models()).graph()
    assert {stage.key for stage in first} == {stage.key for stage in stages(audited, "import")}
    (root / "ours/esd.pt").write_text("other weights")
    assert stages(planned(checkpoints={"a": "ours/esd.pt"}), "import")[1].key != first[1].key


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"esd": "no/such.pt"}, "checkpoints.esd no/such.pt: no such file or folder"),
        ({"esd": "owner/name:church"}, "checkpoints.esd owner/name:church: not in the hub's cache"),
        ({"fmn": "ours/esd.pt"}, "checkpoints.fmn: is the name of a method, .* method: fmn"),
        ({"fmn": {"weights": "ours/esd.pt", "method": "salun"}}, "checkpoints.fmn: is the name of a method"),
        ({"mine": {"weights": "ours/esd.pt", "method": "salum"}}, "unknown text-to-image method 'salum'"),
        ({"uce": {"weights": "ours/esd.pt", "method": "uce"}}, "checkpoints.uce: the experiment trains uce too"),
        ({"sham": "ours/esd.pt"}, "checkpoints.sham: is the name of a control"),
        ({"dose-5": "ours/esd.pt"}, "checkpoints.dose-5: is the name of a control"),
        ({"a b": "ours/esd.pt"}, "checkpoints.a b: should be letters"),
        ({"esd": {"file": "ours/esd.pt"}}, "unknown field 'file'|weights: field required"),
        ({"esd": 3}, "checkpoints.esd = 3"),
        (["ours/esd.pt"], "checkpoints"),
    ],
)
def test_a_wrong_row_is_refused_by_the_plan_in_one_line(planned, rows, said):
    with pytest.raises(RubError, match=said) as error:
        planned(checkpoints=rows, methods=["uce"])
    assert "\n" not in str(error.value)


def test_a_row_may_say_that_it_is_a_methods(planned):
    graph = planned(checkpoints={"fmn": {"weights": "ours/esd.pt", "method": "fmn"}})
    assert {"fmn"} == {cell["method"] for stage in graph.stages for cell in stage.cells} - {
        "original", "sham", "random_init"
    }  # fmt: skip


def test_the_papers_prompts_are_known_by_their_content(planned, root, monkeypatch):
    def source(**fields):
        concept = {"name": "church", "prompts": "church.csv", **fields.pop("concept", {})}
        [stage] = stages(planned(concept=concept, **fields), "prompts")
        return stage.spec.get("source")

    assert source() is None, "two prompts of one's own"
    monkeypatch.setitem(concepts.PAPERS_FILES, "church", md5(CSV.encode()).hexdigest()[:8])
    assert source() == PAPERS_PROMPTS
    assert source(concept={"prompts": None}) is None, "those that ship with RUB"
    assert source(concept={"prompts": ["a church", "an old church"]}) is None
    assert source(concept={"name": "tench"}) is None
    assert source(evaluation={"prompts": 1}) is None, "the paper has all of them"
    assert source(protocol={"name": "rub-paper-1", "guidance": 3}) is None
    (root / "church.csv").write_bytes(CSV.replace("\n", "\r\n").encode())
    assert source() == PAPERS_PROMPTS
    (root / "church.csv").write_text(CSV.replace("5,7.5", "7,7.5"))
    assert source() is None, "another seed"


def test_a_concept_has_its_own_number_of_inserted_tokens(planned):
    def tokens(**concept):
        found = stages(planned(concept={"name": "church", **concept}, protocol="rub-strict-1"), "attack")
        return {stage.spec["run"]["name"]: stage.spec["run"]["parameters"].get("tokens") for stage in found}

    inserted = {"uma", "unlearndiffatk", "random-prefix"}
    assert {name for name, count in tokens().items() if count == 3} == inserted
    assert {name for name, count in tokens(tokens=5).items() if count == 5} == inserted
    assert {k: v for k, v in tokens(tokens=5).items() if k not in inserted} == {
        k: v for k, v in tokens().items() if k not in inserted
    }  # p4d and ring-a-bell replace the prompt, concept-inversion's tokens are soft: numbers of their own


def test_fields_that_are_left_out_change_no_key(planned):
    before = {stage.key for stage in planned(methods=["uce"]).stages}
    fields = {"concept": {"name": "church", "pictured": None, "tokens": None}, "checkpoints": {}}
    assert {stage.key for stage in planned(methods=["uce"], **fields).stages} == before
    shown = stages(planned(methods=["uce"], concept={"name": "church", "pictured": "an old church"}), "pictures")
    assert shown[0].key != stages(planned(methods=["uce"]), "pictures")[0].key
