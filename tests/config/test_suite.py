"""Suites: what is accepted, what is refused and how it is said, and what overrides change."""

import json
import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

import rub
from rub import load_suite
from rub.config.suite import Component, main_among, protocols_of, suite_names
from rub.data.class_names import IMAGENET_LABELS
from rub.errors import RubError
from rub.registry import METHODS, load_plugin
from rub.tasks.classification.spec import ClassificationProtocol

TABLE1 = {
    "ft", "rl", "iu", "l1-sparse", "salun", "ga", "neggrad-plus", "scrub", "bad-teacher", "ssd", "boundary-shrink",
    "delete", "msg", "ct",
}  # fmt: skip


def only(suite):
    [experiment] = suite.experiments
    return experiment


@pytest.fixture
def path(tmp_path, write_suite):
    return str(write_suite(tmp_path))


METHODS_OF = {
    "classification": TABLE1,
    "inpainting": {"i2i", "salun", "max-loss", "retain-label", "noisy-label", "random-encoder"},
    "text-to-image": {
        "esd-x", "esd-u", "fmn", "spm", "salun", "erasediff", "scissorhands", "advunlearn", "uce", "rece",
        "concept-ablation", "sld", "negative-prompt",
    },
}  # fmt: skip
ONE_ESD = {"church": "esd-u", "garbage-truck": "esd-u", "nudity": "esd-x", "parachute": "esd-u", "tench": "esd-u"}


@pytest.mark.parametrize("name", sorted(suite_names()))
def test_shipped_suites_load_and_hold_every_method(name):
    suite = load_suite(name)
    assert suite.name == name
    assert suite.summary
    assert "\n" not in suite.summary
    for experiment in suite.experiments:
        wanted = METHODS_OF[experiment.task]
        if experiment.paper == "table3":  # the paper has one ESD: the published checkpoint of its concept
            wanted = wanted - {"esd-x", "esd-u"} | {ONE_ESD[experiment.name]}
        if published := getattr(experiment, "checkpoints", {}):
            wanted = set()
            assert list(published) == ["advunlearn", "erasediff", "esd", "fmn", "salun", "scissorhands", "spm"]
        assert set(experiment.methods) == wanted


@pytest.mark.parametrize("name", ["table3-stable-diffusion", "table3-stable-diffusion-full"])
def test_table3_has_the_papers_concepts_tokens_and_people(name):
    suite = load_suite(name)
    assert [item.name for item in suite.experiments] == list(ONE_ESD)
    assert [item.concept.tokens for item in suite.experiments] == [None, None, 5, None, None]
    for item in suite.experiments:
        kept = set(item.retain)
        assert kept == set(IMAGENET_LABELS) if item.name != "nudity" else all("wearing clothes" in one for one in kept)
    nudity = suite.experiments[2]
    assert nudity.concept.anchor == "a photo of a person wearing clothes"
    published = [one.weights for item in suite.experiments for one in item.checkpoints.values()]
    assert len(published) == len(set(published)) == (35 if name == "table3-stable-diffusion" else 0)
    attacks = list(suite.experiments[0].protocol.attacks)
    assert attacks == ["uma", "random-prefix"] if published else len(attacks) >= 7


def test_methods_choose_rows_of_checkpoints_too():
    suite = load_suite("table3-stable-diffusion", methods=["esd", "fmn", "uce"])
    assert [list(item.checkpoints) for item in suite.experiments] == [["esd", "fmn"]] * 5
    assert [list(item.methods) for item in suite.experiments] == [["uce"]] * 5
    given = load_suite("table3-stable-diffusion", methods=["fmn"], overrides=["checkpoints.fmn.weights=mine.pt"])
    assert {(item.checkpoints["fmn"].weights, item.checkpoints["fmn"].method) for item in given.experiments} == {
        ("mine.pt", "fmn")
    }
    with pytest.raises(RubError, match="unknown method 'esdd': did you mean 'esd'"):
        load_suite("table3-stable-diffusion", methods=["esdd"])


def test_the_imagenet_suite_is_the_papers():
    suite = only(load_suite("table2-imagenet"))
    assert suite.forget.classes == tuple(range(100))
    assert (suite.dataset.classes, suite.dataset.per_class, suite.dataset.test_per_class) == ("i2i", 120, 50)
    assert suite.evaluation.samples == 100 * 50
    assert suite.paper == "table2"


def test_methods_choose_the_experiments_whose_task_has_them():
    tasks = {
        "ft": ["classification"],
        "max-loss": ["inpainting"],
        "uce": ["text-to-image"],
        "salun": ["classification", "inpainting", "text-to-image"],
    }
    for name, wanted in tasks.items():
        suite = load_suite("quick", methods=[name])
        assert [item.task for item in suite.experiments] == wanted
        assert all(list(item.methods) == [name] for item in suite.experiments)


def test_the_paper_suites_are_the_papers():
    ten = only(load_suite("table1-cifar10"))
    assert (ten.model.arch, ten.seeds.unlearn, ten.seeds.mia, ten.forget.classes) == ("resnet50", 10, 5, (0,))
    assert only(load_suite("table1-cifar100")).forget.classes == (1, 2, 24, 27, 41, 50, 52, 73, 78, 91)
    assert only(load_suite("table1-tiny-imagenet")).forget.classes == (
        3, 11, 17, 34, 49, 59, 97, 107, 109, 129, 133, 137, 154, 156, 173, 177, 179, 183, 194, 197,
    )  # fmt: skip
    for name in ("table1-cifar10", "table1-cifar100", "table1-tiny-imagenet"):
        experiment = only(load_suite(name))
        assert experiment.protocol.name == "rub-paper-2" and experiment.doses
        assert experiment.protocol.attacks["uma"].budgets == (8, 16)
        assert set(experiment.methods) == TABLE1
        assert experiment.dataset.validation > 0, "settings are chosen on images that are held out"
        mixed = None if name == "table1-cifar10" else "mixed"  # as Unlearn-Saliency, by data set
        assert [experiment.methods[method].get("mixing") for method in ("rl", "salun")] == [mixed, mixed]


def test_an_override_changes_one_field(path):
    before, after = only(load_suite(path)), only(load_suite(path, overrides=["training.epochs=3"]))
    assert (before.training.epochs, after.training.epochs) == (1, 3)
    assert after.model_copy(update={"training": before.training}) == before


def test_an_override_may_name_the_task(path):
    assert only(load_suite(path, overrides=["classification.training.epochs=3"])).training.epochs == 3


def test_an_override_inside_a_list_of_methods_keeps_the_others(tmp_path, write_suite):
    suite = load_suite(str(write_suite(tmp_path, methods=["ft", "ga"])), overrides=["methods.ga.lr=0.5"])
    assert only(suite).methods == {"ft": {}, "ga": {"lr": 0.5}}


def test_chosen_methods_keep_the_suites_hyperparameters(path):
    assert only(load_suite(path, methods=["ft", "ga"])).methods == {"ft": {"epochs": 1}, "ga": {}}


def test_seeds_keep_the_other_seeds(tmp_path, write_suite):
    path = str(write_suite(tmp_path, seeds={"mia": 3, "train": 7}))
    seeds = only(load_suite(path, seeds=4)).seeds
    assert (seeds.unlearn, seeds.mia, seeds.train) == (4, 3, 7)


def test_a_changed_protocol_is_marked(tmp_path, write_suite):
    named = {"name": "rub-quick-1"}
    same = only(load_suite(str(write_suite(tmp_path, protocol=named)), overrides=["protocol=rub-quick-1"])).protocol
    assert same == protocols_of("classification")["rub-quick-1"]
    names = []
    for value in ("50", "60", "60"):
        changed = load_suite(
            "quick",
            task="classification",
            overrides=[f"protocol={{name: rub-quick-1, attacks: {{uma: {{budgets: [{value}]}}}}}}"],
        )
        names.append(only(changed).protocol.name)
        assert (
            only(changed).protocol.attacks["square"] == protocols_of("classification")["rub-quick-1"].attacks["square"]
        )
    assert all(name.startswith("rub-quick-1*") for name in names)
    assert names[0] != names[1] == names[2]


def test_a_marked_protocol_needs_the_fields_of_its_mark(path):
    protocol = only(load_suite(path)).protocol
    fields = protocol.model_dump(mode="json")
    assert only(load_suite(path, overrides=[f"protocol={json.dumps(fields)}"])).protocol == protocol
    for wrong in (protocol.name, json.dumps({"name": protocol.name, "shadows_per_seed": 8})):
        with pytest.raises(RubError, match=r"its fields make it 'rub-paper-1.*write name: rub-paper-1"):
            load_suite(path, overrides=[f"protocol={wrong}"])


MINE = {
    "task": "classification",
    "name": "mine",
    "summary": "a random search alone",
    "attacks": {"noise": {"runs": ["noise"], "budgets": [8]}},
}


@pytest.fixture
def mine(tmp_path):
    """A protocol of one's own in a file."""
    path = tmp_path / "my-protocol.yaml"
    path.write_text(yaml.safe_dump(MINE), encoding="utf-8")
    return path


def test_a_protocol_of_ones_own_shows_under_its_name_and_hash(path, mine):
    inline = json.dumps({key: value for key, value in MINE.items() if key != "task"})
    by_path = only(load_suite(path, overrides=[f"protocol={mine}"])).protocol
    assert re.fullmatch("mine@[0-9a-f]{6}", by_path.name)
    assert list(by_path.attacks) == ["noise"]
    assert only(load_suite(path, overrides=[f"protocol={inline}"])).protocol == by_path
    assert [entry.name for entry in load_plugin(mine)] == ["mine"]
    for name in ("mine", by_path.name):
        assert only(load_suite(path, overrides=[f"protocol={name}"])).protocol == by_path
    assert list(protocols_of("classification"))[-1] == by_path.name
    again = only(load_suite(path, overrides=[f"protocol={by_path.model_dump_json()}"])).protocol
    assert again == by_path
    changed = only(load_suite(path, overrides=["protocol=mine", "protocol.probe_per_class=20"])).protocol
    assert changed.name.startswith("mine@")
    assert changed.name != by_path.name


def test_a_protocol_file_may_lie_beside_the_suite(mine, write_suite, monkeypatch):
    suite = write_suite(mine.parent, protocol="unset")
    suite.write_text(suite.read_text().replace("protocol: unset", f"protocol: {mine.name}"))
    monkeypatch.chdir("/")
    assert only(load_suite(str(suite))).protocol.name.startswith("mine@")


def test_a_protocol_of_python_works_under_its_name(path):
    rub.protocol("drawn", task="classification", attacks=MINE["attacks"], main="noise")
    protocol = only(load_suite(path, overrides=["protocol=drawn"])).protocol
    assert protocol.name.startswith("drawn@")
    assert protocol.main_attack == "noise"


def test_attacks_can_be_replaced(path):
    only_noise = "protocol={name: rub-quick-1, attacks: {only: {noise: {runs: [noise], budgets: [8]}}}}"
    protocol = only(load_suite(path, overrides=[only_noise])).protocol
    assert list(protocol.attacks) == ["noise"]
    assert protocol.name.startswith("rub-quick-1*")
    assert only(load_suite(path, overrides=[f"protocol={protocol.model_dump_json()}"])).protocol == protocol


def test_the_main_attack_is_named_or_uma_or_the_first(path):
    assert "main" not in protocols_of("classification")["rub-quick-1"].model_dump()
    named = only(load_suite(path, overrides=["protocol={name: rub-quick-1, main: square}"])).protocol
    assert named.main_attack == named.model_dump()["main"] == "square"
    assert protocols_of("classification")["rub-quick-1"].main_attack == "uma"
    assert main_among(["noise", "square"]) == "noise"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("{name: new}", "one of your own needs attacks"),
        ("{name: new, attacks: {a: {runs: [noise], budgets: [8]}}, main: b}", "should be one of its attacks: a"),
        ("{name: new one, attacks: {}}", "should be letters"),
        ("{name: rub-quick-1, main: ums}", "main = 'ums'"),
        ("absent.yaml", "protocol absent.yaml: cannot be read"),
    ],
)
def test_a_wrong_protocol_is_refused(path, value, says):
    with pytest.raises(RubError) as error:
        load_suite(path, overrides=[f"protocol={value}"])
    assert says in str(error.value)


def test_a_file_of_another_task_is_refused(path, mine):
    mine.write_text(yaml.safe_dump({**MINE, "task": "inpainting"}), encoding="utf-8")
    with pytest.raises(RubError, match="a protocol of task 'inpainting'"):
        load_suite(path, overrides=[f"protocol={mine}"])


def test_budgets_are_sorted_and_single(path):
    attacks = only(load_suite(path, overrides=["protocol.attacks.uma.budgets=[16, 4, 16]"])).protocol.attacks
    assert attacks["uma"].budgets == (4, 16)


def test_a_component_may_be_a_bare_name(path):
    assert Component.model_validate("uma") == Component(name="uma")
    runs = only(load_suite(path, overrides=["protocol.attacks.uma.runs=[uma]"])).protocol.attacks["uma"].runs
    assert runs == (Component(name="uma"),)


def test_specs_are_frozen(path):
    with pytest.raises(ValidationError):
        only(load_suite(path)).training.epochs = 5


def test_protocols_are_named_after_themselves():
    for name, protocol in protocols_of("classification").items():
        assert isinstance(protocol, ClassificationProtocol)
        assert protocol.name == name
        assert protocol.summary


REFUSED = {
    "training.epochs=abc": ("training.epochs = 'abc'", "integer"),
    "training.epochs=0": ("training.epochs = 0", "greater than or equal to 1"),
    "training.lr=-1": ("training.lr = -1", "greater than 0"),
    "training.lr=.nan": ("training.lr = nan", "finite"),
    "training.lr=.inf": ("training.lr = inf", "finite"),
    "training=3": ("training = 3",),
    "training.epocs=3": ("unknown field 'epocs'", "did you mean 'epochs'?"),
    "trainin.epochs=3": ("unknown field 'trainin'", "did you mean 'training'?"),
    "training.schedule=cosin": ("training.schedule = 'cosin'", "'cosine'"),
    "training.batch_size=1": ("training.batch_size = 1",),
    "model.width=0": ("model.width = 0",),
    "protocol=rub-papr-1": ("unknown protocol 'rub-papr-1'", "did you mean 'rub-paper-1'?"),
    "protocol=3": ("a protocol name",),
    "protocol.attacks.uma.budgets=[-8]": ("eps = -8/255", "between 0 and 255"),
    "protocol.attacks.uma.budgets=[256]": ("eps = 256/255",),
    "protocol.attacks.uma.budgets=[]": ("budgets = []",),
    "protocol.attacks.uma.budgets=[2.5]": ("budgets.0", "2.5", "integer"),
    "protocol.attacks.uma.runs=[]": ("runs = []",),
    "protocol.attacks.uma.splits=[forgot]": ("'forgot'", "'forget'"),
    "protocol.shadows_per_seed=3": ("shadows_per_seed = 3", "multiple of 2"),
    "forget.classes=[]": ("the forget set is empty",),
    "forget.ids=[1]": ("exactly one of classes, fraction, ids and files", "classes and ids"),
    "forget={fraction: 1.0}": ("fraction = 1.0", "less than 1"),
    "forget={}": ("got none",),
    "seeds=3": ("seeds = 3",),
    "seeds.unlearn=0": ("seeds.unlearn = 0",),
    "methods=ft": ("methods = 'ft'",),
    "methods=[1]": ("methods = [1]",),
    "methods={ft: 3}": ("methods.ft = 3",),
    "evaluation.attack_samples=0": ("attack_samples = 0",),
    "task=clasification": ("unknown task 'clasification'", "did you mean 'classification'?"),
    "task=null": ("'task' is missing", "classification"),
    "training.epochs": ("should be path=value",),
    "=3": ("should be path=value",),
    "classification=3": ("a path inside the experiment is missing",),
    "task.name=3": ("'task' holds a single value",),
    "training.epochs=: :": ("not valid YAML",),
}


@pytest.mark.parametrize("override", REFUSED)
def test_a_wrong_override_is_refused_in_one_line(path, override):
    with pytest.raises(RubError) as error:
        load_suite(path, overrides=[override])
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 500
    for words in REFUSED[override]:
        assert words in message


@pytest.mark.parametrize("override", ["seeds=3", "seeds=[1]", "methods=ft", "methods=[1]"])
def test_options_on_top_of_a_wrong_field_are_refused_as_well(path, override):
    for options in ({"seeds": 2}, {"added": [METHODS.get("ga", "classification")]}):
        with pytest.raises(RubError, match=override.split("=", maxsplit=1)[0]):
            load_suite(path, overrides=[override], **options)


def suite_file(folder, text):
    path = folder / "suite.yaml"
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1\nb: 2", "not valid YAML"),
        ("- a\n- b\n", "should be a mapping with name and experiments, got list"),
        ("", "got NoneType"),
        ({"name": "x"}, "'experiments' should be a list of mappings, got NoneType"),
        ({"name": "x", "experiments": [3]}, "'experiments' should be a list of mappings"),
        ({"name": "x", "experiments": []}, "experiments"),
        ({"experiments": []}, "name: field required"),
        ({"name": "x", "experiments": [{"task": "classification", "model": "resnet10"}]}, "dataset: field required"),
        ({"name": "x", "experiments": [{"task": ["classification"]}]}, "'task' is missing"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, says):
    with pytest.raises(RubError) as error:
        load_suite(suite_file(tmp_path, text))
    assert says in str(error.value)


def test_the_message_about_a_missing_field_does_not_repeat_the_file(tmp_path):
    item = {"task": "classification", "model": "resnet10", "methods": {"ft": {"epochs": 1234567}}}
    with pytest.raises(RubError) as error:
        load_suite(suite_file(tmp_path, {"name": "x", "experiments": [item]}))
    assert "1234567" not in str(error.value)


def test_unknown_fields_and_keys_of_a_suite_are_refused(path, tmp_path):
    raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    for extra, says in (({"sumary": "x"}, "did you mean 'summary'?"), ({3: "x"}, "3")):
        with pytest.raises(RubError) as error:
            load_suite(suite_file(tmp_path, {**raw, **extra}))
        assert says in str(error.value)


def test_experiments_must_be_told_apart(path, tmp_path):
    raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    [item] = raw["experiments"]
    with pytest.raises(RubError, match="2 experiments of task 'classification' are named ''"):
        load_suite(suite_file(tmp_path, {**raw, "experiments": [item, item]}))
    named = [{**item, "name": name} for name in ("one", "two")]
    assert len(load_suite(suite_file(tmp_path, {**raw, "experiments": named})).experiments) == 2


def test_unknown_suites(tmp_path):
    with pytest.raises(RubError, match=r"unknown suite 'quik': did you mean 'quick'\?"):
        load_suite("quik")
    with pytest.raises(RubError, match="cannot be read"):
        load_suite(str(tmp_path / "nowhere.yaml"))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(RubError, match="cannot be read"):
        load_suite(str(binary))
    with pytest.raises(RubError, match="no experiment of task 'inpainting'"):
        load_suite("table1-cifar10", task="inpainting")


def test_a_sampler_of_ones_own_is_another_protocol():
    """Numbers drawn with other steps share no column with those of the protocol."""
    suite = load_suite("text-to-image-digits", overrides=["protocol.sampler_steps=50"])
    [changed] = {experiment.protocol.name for experiment in suite.experiments}
    [plain] = {experiment.protocol.name for experiment in load_suite("text-to-image-digits").experiments}
    assert changed.startswith(f"{plain}*")
