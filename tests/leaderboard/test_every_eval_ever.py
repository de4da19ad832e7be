"""What we write for Every Eval Ever against the raw records and its schema, written anew here from its text."""

import json
import math
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from rub import read_records
from rub.errors import RubError
from rub.leaderboard.exports.eval_results import eval_results
from rub.leaderboard.exports.every_eval_ever import every_eval_ever
from rub.leaderboard.exports.scores import scores_of

RESULTS = Path(__file__).parents[2] / "results"
UA16 = "ua/forget/uma/16-255/rub-paper-1/cifar10"


class Known(BaseModel):
    """No field beside those of the schema: where it lets others through, nobody reads them."""

    model_config = ConfigDict(extra="forbid", strict=True)


Details = dict[str, str]
Bound = FiniteFloat | int | Literal["Infinity", "-Infinity"]


class SourceMetadata(Known):
    source_name: str = ""
    source_type: Literal["documentation", "evaluation_run"]
    source_organization_name: str
    source_organization_url: str = ""
    evaluator_relationship: Literal["first_party", "third_party", "collaborative", "other"]
    additional_details: Details = {}


class Versioned(Known):
    name: str
    version: str


class ModelDetails(BaseModel):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: Details
    deployment_type: Literal["self_deployed", "externally_managed", "unknown"]
    model_availability: Literal["open_weights", "closed_weights", "unknown"]


class ModelInfo(Known):
    name: str
    id: str = Field(pattern=r'^[^/<>:"\\|?*]+/[^/<>:"\\|?*]+$')  # a developer's folder and a model's
    developer: str = ""
    inference_platform: str = ""
    inference_engine: Versioned
    additional_details: ModelDetails


class OfHub(Known):
    dataset_name: str
    source_type: Literal["hf_dataset"]
    hf_repo: str = Field(pattern="^[^/]+/[^/]+$")
    hf_split: str = ""
    samples_number: int = 0
    additional_details: Details = {}


class OfOthers(Known):
    dataset_name: str
    source_type: Literal["other"]
    additional_details: Details = {}


class MetricConfig(Known):
    evaluation_description: str
    metric_id: str
    metric_name: str
    metric_kind: str = ""
    metric_unit: str = ""
    metric_parameters: dict[str, str | FiniteFloat | bool | None] = {}
    lower_is_better: bool
    score_type: Literal["continuous"]  # the schema has levels and binary as well
    min_score: Bound
    max_score: Bound
    additional_details: Details = {}


class ConfidenceInterval(Known):
    lower: FiniteFloat
    upper: FiniteFloat
    confidence_level: float = Field(ge=0, le=1)
    method: str = ""

    @model_validator(mode="after")
    def ordered(self):
        assert self.lower <= self.upper
        return self


class Uncertainty(Known):
    confidence_interval: ConfidenceInterval | None = None
    num_samples: int | None = Field(None, ge=1)


class ScoreDetails(Known):
    score: FiniteFloat
    details: Details = {}
    uncertainty: Uncertainty = Uncertainty()


class GenerationArgs(Known):
    execution_command: str = ""


class GenerationConfig(Known):
    generation_args: GenerationArgs = GenerationArgs()
    additional_details: Details = {}


class EvaluationResult(Known):
    evaluation_result_id: str
    evaluation_name: str = Field(pattern=r"^rub(\.[a-z0-9-]+)+$")
    source_data: Annotated[OfHub | OfOthers, Field(discriminator="source_type")]
    evaluation_timestamp: str = ""
    metric_config: MetricConfig
    score_details: ScoreDetails
    generation_config: GenerationConfig

    @model_validator(mode="after")
    def inside(self):
        """The datastore's gate: a score outside its range is refused."""
        low, high = float(self.metric_config.min_score), float(self.metric_config.max_score)
        assert low <= self.score_details.score <= high
        return self


class EvaluationLog(Known):
    schema_version: Literal["0.2.2"]
    evaluation_id: str
    evaluation_timestamp: str = ""
    retrieved_timestamp: str = Field(pattern=r"^\d+(\.\d+)?$")
    source_metadata: SourceMetadata
    eval_library: Versioned
    model_info: ModelInfo
    evaluation_results: list[EvaluationResult] = Field(min_length=1)


def no_number(token):
    raise AssertionError(f"{token} is no JSON")


def read(text):
    found = EvaluationLog.model_validate(json.loads(text, parse_constant=no_number))
    by_id = {result.evaluation_result_id: result for result in found.evaluation_results}
    assert len(by_id) == len(found.evaluation_results)
    return found, by_id


def test_score_interval_n_direction_and_range_stand_in_the_schema_s_own_fields(records):
    _, found = read(every_eval_ever(records, method="salun"))
    result = found[UA16]
    score = result.score_details
    assert score.score == pytest.approx((0.25 + 0.27 + 0.29) / 3)
    interval = score.uncertainty.confidence_interval
    # .27 +- 4.3027 * .02 / sqrt(3), Student's t with 2 degrees of freedom
    assert (interval.lower, interval.upper) == pytest.approx((0.2203, 0.3197), abs=1e-4)
    assert (interval.confidence_level, interval.method) == (pytest.approx(0.95), "over unlearning seeds")
    assert score.uncertainty.num_samples == 100
    metric = result.metric_config
    assert (metric.metric_id, metric.metric_name, metric.metric_unit) == ("rub.classification.ua", "UA", "proportion")
    assert (metric.lower_is_better, metric.min_score, metric.max_score) == (True, 0, 1)
    assert metric.metric_parameters == {"split": "forget", "attack": "uma", "budget": "16/255"}
    assert result.evaluation_name == "rub.classification.forget.uma.16-255"
    assert {name: float(value) for name, value in score.details.items() if name.startswith("control")} == {
        "control original": 1.0, "control retrain": 0.0, "control sham": 0.0,
    }  # fmt: skip
    assert score.details["remarks"] == "the attack was still improving at its last step"
    assert score.details["models"] == "mean over 3 models"
    assert found["ta/test/none/none/rub-paper-1/cifar10"].metric_config.lower_is_better is False


def test_scores_are_those_of_eval_results(records):
    other = {entry["dataset"]["task_id"]: entry for entry in yaml.safe_load(eval_results(records, method="rl"))}
    found, by_id = read(every_eval_ever(records, method="rl"))
    assert {name: one.score_details.score for name, one in by_id.items()} == {
        name: entry["value"] for name, entry in other.items()
    }
    ta = by_id["ta/test/none/none/rub-paper-1/cifar10"]
    assert ta.score_details.details["remarks"] == "1 of 3 results failed and are left out"
    assert found.evaluation_timestamp == ta.evaluation_timestamp == "2026-01-01T00:00:00+00:00"


@pytest.mark.parametrize(
    ("metric", "lower", "says"),
    [
        ("log_odds_auc", True, "true as less is left where it is lower"),
        ("own_radius", False, "false as less is left where it is higher"),
        ("other_radius", False, "false for want of a third value"),
        ("ua_dose", True, "true as less is left where it is lower"),
    ],
)
def test_a_metric_that_is_best_near_the_retrained_model_says_what_its_direction_is_worth(make_row, metric, lower, says):
    row = make_row("ft", "ua", 0.5).model_copy(
        update={"metric": metric, "direction": "reference", "unlearn_seed": None if metric == "ua_dose" else 0}
    )
    _, found = read(every_eval_ever([row], method="ft"))
    [config] = [result.metric_config for result in found.values()]
    assert config.lower_is_better is lower
    assert config.additional_details["direction"].startswith("closest to the retrained model is best; lower_is_better")
    assert says in config.additional_details["direction"]


def test_bounds_that_are_none_are_said_as_the_schema_s_own_reader_reads_them(make_row):
    rows = [
        make_row("ft", "own_radius", -3.5),
        make_row("ft", "klom", 12.0),
        make_row("ft", "ua", 7.5).model_copy(update={"metric": "mine", "split": "elsewhere"}),
    ]
    _, found = read(every_eval_ever(rows, method="ft"))
    ends = [(one.metric_config.min_score, one.metric_config.max_score) for one in found.values()]
    assert ends == [("-Infinity", "Infinity"), (0, "Infinity"), ("-Infinity", "Infinity")]
    assert [one.metric_config.metric_unit for one in found.values()] == ["log2", "nats", ""]
    assert ["range" in one.metric_config.additional_details for one in found.values()] == [False, False, True]


def test_a_dose_equivalent_keeps_the_interval_of_its_record(make_row):
    update = {"metric": "ua_dose", "direction": "reference", "unlearn_seed": None, "setting": "<=", "n": 6}
    row = make_row("ft", "ua", 0.5, ci_low=0.0, ci_high=2.05).model_copy(update={**update, "value": 0.5})
    _, found = read(every_eval_ever([row], method="ft"))
    [result] = found.values()
    interval = result.score_details.uncertainty.confidence_interval
    assert (interval.lower, result.score_details.score, interval.upper) == (0.0, 0.5, 2.05)
    assert result.score_details.uncertainty.num_samples is None
    assert result.score_details.details["models"] == "6 models together"
    assert result.score_details.details["remarks"] == "a bound: the dose is <= this"
    assert (result.metric_config.metric_unit, result.metric_config.max_score) == ("percent", 100)


def test_runs_of_several_sizes_have_no_single_n(make_row):
    rows = [make_row("ft", "ua", 0.5, n=100), make_row("ft", "ua", 0.6, n=120, seed=1)]
    _, found = read(every_eval_ever(rows, method="ft"))
    [score] = [result.score_details for result in found.values()]
    assert score.uncertainty.num_samples is None
    assert score.details["N"] == "100/120"


def test_one_model_has_no_interval_where_nothing_is_known_of_it(make_row):
    _, found = read(every_eval_ever([make_row("ft", "klom", 0.5)], method="ft"))
    [score] = [result.score_details for result in found.values()]
    assert score.uncertainty.confidence_interval is None
    assert score.details["models"] == "one model"


SUITE = {
    "experiments": [
        {
            "task": "classification",
            "name": "",
            "dataset": {"name": "cifar10", "path": None},
            "forget": {"classes": [0], "fraction": None},
            "methods": {"ft": {"lr": 0.1, "mask": "/home/me/mask.pt"}},
        }
    ]
}


def test_suite_says_data_set_hyperparameters_and_what_was_forgotten(make_row):
    row = make_row("ft", "ua", 0.5, library_versions={"torch": "2.13.0"}, weights_sha256="ab")
    text = every_eval_ever([row], method="ft", suite=SUITE, command="rub run x", source="https://example.org/r", at=5.0)
    found, by_id = read(text)
    [result] = by_id.values()
    assert (result.source_data.source_type, result.source_data.hf_repo) == ("hf_dataset", "uoft-cs/cifar10")
    assert result.generation_config.generation_args.execution_command == "rub run x"
    assert found.source_metadata.additional_details["records"] == "https://example.org/r"
    assert found.retrieved_timestamp == "5.0"
    details = found.model_info.additional_details.__pydantic_extra__
    assert (details["hyperparameters"], details["forgotten"]) == ("lr 0.1, mask mask.pt", "classes [0]")
    assert details["weights_sha256"] == "ab"
    assert found.model_info.inference_engine.version == "2.13.0"
    assert found.eval_library.version == "0.1.0+abc"


def test_a_folder_that_is_named_like_a_known_data_set_is_not_taken_for_it(make_row):
    own = {"experiments": [{**SUITE["experiments"][0], "dataset": {"name": "folder", "path": "cifar10"}}]}
    for suite in (own, None, {"experiments": [{"task": "classification", "dataset": 3, "methods": []}]}):
        _, found = read(every_eval_ever([make_row("ft", "ua", 0.5)], method="ft", suite=suite))
        assert [one.source_data.source_type for one in found.values()] == ["other"]


def test_id_is_of_what_was_measured_and_not_of_when_the_file_was_made(make_row):
    row = make_row("ft", "ua", 0.5)
    one, again = (read(every_eval_ever([row], method="ft", at=at))[0] for at in (1.0, 2.0))
    other, _ = read(every_eval_ever([row.model_copy(update={"key": "k2"})], method="ft"))
    assert one.evaluation_id == again.evaluation_id != other.evaluation_id
    assert one.evaluation_id.startswith("rub/cifar10-resnet10-w8-ft/")


def test_a_file_is_of_one_model(make_row):
    rows = [make_row("ft", "ua", 0.5), make_row("ft", "ua", 0.7, experiment="other", model="resnet18")]
    with pytest.raises(RubError, match=r"'ft' is 2 models \(.*resnet10-w8.*; .*resnet18.*\).* --experiment") as caught:
        every_eval_ever(rows, method="ft")
    assert str(caught.value).isprintable()
    _, found = read(every_eval_ever(rows[1:], method="ft"))
    assert next(iter(found.values())).evaluation_name == "rub.classification.other.forget.none.none"


def test_row_without_a_value_and_a_source_that_is_no_address_are_refused(records):
    with pytest.raises(RubError, match="unknown method 'saluun': did you mean 'salun'"):
        every_eval_ever(records, method="saluun")
    with pytest.raises(RubError, match="every cell of method 'ga' failed"):
        every_eval_ever(records, method="ga")
    with pytest.raises(RubError, match="should be a web address"):
        every_eval_ever(records, method="ft", source="javascript:alert(1)")


@pytest.mark.parametrize("name", ['"},{"a":"\x1b[2J\n', "../x", "", "null", "\u202eevil", "\ud800"])
def test_hostile_names_stay_text(make_row, name):
    fields = {"split": "test", "suite": name, "experiment": name, "dataset": name, "model": name, "protocol": name}
    fields |= {"setting": name, "created": name, "code_version": name, "extractor": name}
    suite = {"experiments": [{"task": "classification", "name": name, "forget": {name: name}, "methods": {name: {}}}]}
    row = make_row(name, "ta", 0.5, **fields, attack=name, budget=name)
    text = every_eval_ever([row], method=name, suite=suite, command=name)
    found, by_id = read(text)
    assert text.replace("\n", "").isprintable()
    assert [one.score_details.score for one in by_id.values()] == [0.5]
    assert ".." not in found.model_info.id


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "method", "experiment"),
    [
        ("table1-cifar10-resnet10", "salun", ""),
        ("audit-resnet20", "unlearned", ""),
        ("inpainting-digits", "i2i", ""),
        ("text-to-image-imagenette", "esd-x", "church"),
    ],
)
def test_real_results(folder, method, experiment):
    records = [record for record in read_records(RESULTS / folder) if record.experiment == experiment]
    suite = yaml.safe_load((RESULTS / folder / "suite.yaml").read_text())
    _, found = read(every_eval_ever(records, method=method, suite=suite))
    scores = list(scores_of(records, method))
    assert len(found) == len(scores) >= 20
    for score in scores:
        values = [record.value for record in score.measured]
        assert math.isclose(found[score.task_id].score_details.score, sum(values) / len(values), abs_tol=1e-6)
