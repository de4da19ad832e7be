"""From a result and its store to a zoo: a folder per model, with its numbers beside the controls, ready for the Hub."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rub.config.documents import write_yaml
from rub.errors import RubError
from rub.leaderboard.exports.eval_results import eval_results
from rub.leaderboard.exports.model_card import model_card
from rub.reports.folders import ResultFolder, experiment_in, outside, read_folder
from rub.reports.lineage import NAME as STAGES
from rub.reports.lineage import StageFacts, keys_of, read_stages
from rub.reports.text import placeless, printable, told
from rub.store.artifacts import Artifact, Store, file_sha256, share
from rub.store.records import Record
from rub.witness.claims import Witness, read_claim
from rub.zoo.entry import CONFIG, DTYPES, FACTS, ZooModel, shelf_of

MADE = ("train", "unlearn", "initialise", "import")  # kinds of stages that give a model
CARD, EVALS, WITNESSES = "README.md", ".eval_results/rub.yaml", "witnesses"


@dataclass(frozen=True)
class _Row:
    """A model of a result: a record about it, and the number of the stage that made it."""

    record: Record
    number: int


def publish(
    result: Path,
    store: Store,
    out: Path,
    *,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    dtype: str = "float32",
    licence: str = "",
) -> list[ZooModel]:
    """Write the models of a result to a folder ``DATASET/NETWORK/METHOD/SEED`` each, and return their facts.

    Each holds weights, config, a card with its numbers beside the controls', ``.eval_results`` and its witnesses.
    Models that are there already and equal stay; other files in `out` are left alone.

    Args:
        result: folder written by ``rub run --out``; it needs ``stages.json``.
        store: of the run.
        out: of the zoo.
        methods: only these rows; None: all.
        seeds: only these unlearning seeds; None: all.
        dtype: of the weights. Numbers were measured with float32.
        licence: SPDX name for the cards, such as ``mit``; "" says none.

    Raises:
        RubError: a folder or store that lacks something, an unknown row or dtype, or another model of the same name.
    """
    if dtype not in DTYPES:
        raise RubError(f"--dtype {dtype}: should be one of {', '.join(DTYPES)}")
    outside(out, [result])
    found = read_folder(result)
    stages = read_stages(result)
    if not stages:
        why = "of an older RUB, or with a setting that is a path of that machine, which is not published"
        raise RubError(f"{result}: has no {STAGES}, which says what made its models ({why}); run it again without")
    keys = keys_of(stages)
    rows = list(_rows(found.records, stages, keys))
    known = {row.record.method for row in rows}
    if lost := sorted(set(methods or ()) - known):
        raise RubError(f"--methods {lost[0]}: no model of this row in {result}; there are {', '.join(sorted(known))}")
    wanted = [
        row for row in rows
        if (methods is None or row.record.method in methods) and (seeds is None or row.record.unlearn_seed in seeds)
    ]  # fmt: skip
    if not wanted:
        raise RubError(f"{result}: no model of these methods and seeds")
    claims = {place: read_claim(place) for place in sorted((result / WITNESSES).glob("*.json"))}
    return [_publish(row, found, stages, keys, store, out, dtype, licence, claims) for row in wanted]


def _rows(records: Sequence[Record], stages: Sequence[StageFacts], keys: Sequence[str]) -> Iterator[_Row]:
    """Each model once: a row and seed may have many records."""
    numbers = {key: number for number, key in enumerate(keys)}
    seen: set[tuple[Any, ...]] = set()
    for record in records:
        row = (record.task, record.experiment, record.method, record.unlearn_seed, record.original)
        number = numbers.get(record.key)
        if record.status != "ok" or record.unlearn_seed is None or number is None or row in seen:
            continue
        made = stages[number].inputs.get("unlearned")
        if made is not None and stages[made].kind in MADE:
            seen.add(row)
            yield _Row(record, made)


def _publish(
    row: _Row,
    found: ResultFolder,
    stages: Sequence[StageFacts],
    keys: Sequence[str],
    store: Store,
    out: Path,
    dtype: str,
    licence: str,
    claims: Mapping[Path, Witness],
) -> ZooModel:
    stage, record = stages[row.number], row.record
    artifact = _artifact(store, stage.kind, keys[row.number])
    if record.weights_sha256 not in artifact.manifest["files"].values():
        name = f"{printable(record.method)}, seed {record.unlearn_seed}"
        raise RubError(f"store {store.root}: {name}: other weights than were measured; run the suite again")
    inputs = {role: _artifact(store, stages[need].kind, keys[need]) for role, need in stage.inputs.items()}
    with TemporaryDirectory(prefix=".publish-", dir=_made(out)) as place:
        folder = Path(place) / "made"
        folder.mkdir()
        network = shelf_of(record.task).write(artifact, inputs, folder, dtype)
        files = {file.relative_to(folder).as_posix(): file_sha256(file) for file in _files(folder)}
        config = folder / CONFIG
        theirs = json.loads(config.read_text(encoding="utf-8")) if files.pop(CONFIG, "") else {}
        model = _facts(row, found, stage, keys[row.number], artifact, network, dtype, files)
        text = json.dumps({**theirs, FACTS: model.model_dump(mode="json")}, indent=1, sort_keys=True)
        config.write_text(f"{text}\n", encoding="utf-8")
        (folder / CARD).write_text(card(model, found, licence), encoding="utf-8")
        (folder / EVALS).parent.mkdir()
        (folder / EVALS).write_text(eval_results(_of(model, found), method=model.method), encoding="utf-8")
        own = [place for place, claim in claims.items() if _about(claim, model)]
        for claim in own:
            (folder / WITNESSES).mkdir(exist_ok=True)
            for file in (claim, claim.with_suffix(".safetensors")):
                shutil.copyfile(file, folder / WITNESSES / file.name)
        for file in _files(folder):
            share(file, out)
        target = out / model.place
        if (target / CONFIG).is_file() and (target / CONFIG).read_bytes() == config.read_bytes():
            return model
        if target.exists():
            raise RubError(f"{target}: another model of this name is there; give another --out, or delete it")
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.replace(target)
    return model


def _facts(
    row: _Row,
    found: ResultFolder,
    stage: StageFacts,
    key: str,
    artifact: Artifact,
    network: Mapping[str, Any],
    dtype: str,
    files: Mapping[str, str],
) -> ZooModel:
    record = row.record
    asked = experiment_in(found.suite, record.task, record.experiment)
    method = stage.spec.get("method")
    return ZooModel(
        task=record.task, dataset=record.dataset, model=record.model, method=record.method, seed=record.unlearn_seed,
        original=record.original, network=placeless(dict(network)), data=placeless(asked.get("dataset") or {}),
        forget=placeless(asked.get("forget") or asked.get("concept") or {}),
        hyperparameters=placeless(method.get("parameters", {})) if isinstance(method, dict) else {},
        training=placeless(asked.get("training") or {}), suite=record.suite, experiment=record.experiment,
        protocol=record.protocol, key=key, measured=record.weights_sha256, dtype=dtype,
        code_version=str(artifact.manifest.get("code_version", "")), files=dict(files),
    )  # fmt: skip


def card(model: ZooModel, found: ResultFolder, licence: str = "") -> str:
    """Model card: what it is and is for, and its measured numbers beside the controls'."""
    head = {"library_name": "rub-bench", "tags": ["machine-unlearning", "rub"], "license": licence or "unknown"}
    what = {
        "original": "was trained on all data, the forget set among it; it forgot nothing",
        "retrain": "was trained from scratch without the forget set",
    }.get(model.method, f"is the row `{printable(model.method)}` of the benchmark")
    if model.hyperparameters:
        what = f"was unlearned by `{printable(model.method)}` with {told(model.hyperparameters)}"
    rounded = "" if model.dtype == "float32" else f" Weights are rounded to {model.dtype}; the numbers are of float32."
    lines = [
        f"# {printable(model.name)}\n",
        f"A {printable(model.model)} on {printable(model.dataset)} that {what}, seed {model.seed}. Forgotten:"
        f" {told(model.forget) or 'as the suite says'}.{rounded}\n",
        "It exists to be attacked and compared: methods, attacks and audits of machine unlearning are measured against"
        " it. It is no classifier, or picture maker, to be used for its own sake.\n",
        f'```python\nimport rub\n\nmodel = rub.load_model("{printable(model.name)}")  # or this folder\'s path\n```\n',
        f"Data: {printable(model.dataset)}, under the terms of who made it; no picture of it is here."
        f" Suite `{printable(model.suite)}`, protocol `{printable(model.protocol)}`, stage `{model.key[:12]}`,"
        f" code `{printable(model.code_version)}`.\n",
        model_card(_of(model, found), method=model.method, suite=found.suite),
    ]
    return f"---\n{write_yaml(head)}---\n\n" + "\n".join(lines)


def _of(model: ZooModel, found: ResultFolder) -> list[Record]:
    return [record for record in found.records if (record.task, record.experiment) == (model.task, model.experiment)]


def _about(claim: Witness, model: ZooModel) -> bool:
    weights = claim.models.get("unlearned")
    return (
        (claim.task, claim.method, claim.unlearn_seed) == (model.task, model.method, model.seed)
        and weights is not None
        and model.measured in (weights.sha256, *weights.sources)
    )


def upload(zoo: Path, models: Sequence[ZooModel], repository: str) -> str:
    """Upload these models of a zoo to a model repository on the Hugging Face Hub, made where it is not; its address.

    Raises:
        RubError: no login, no right to write there, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, repo_type="model", exist_ok=True)
        own = [f"{model.place}/**" for model in models]
        api.upload_folder(repo_id=repository, folder_path=str(zoo), repo_type="model", allow_patterns=own)
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'refused'}"
        raise RubError(f"--push {repository}: {said}; log in with `hf auth login`") from None
    return f"https://huggingface.co/{repository}"


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _made(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RubError(f"--out {out}: cannot be written ({error.strerror}); give another folder") from None
    return out


def _artifact(store: Store, kind: str, key: str) -> Artifact:
    found = store.find(kind, key)
    if found is None:
        raise RubError(f"store {store.root}: {kind}/{key[:12]} is not in it; give the store of the run with --store")
    return found
