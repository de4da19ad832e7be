"""From a result folder to one that can be added to a leaderboard: the rules it has to keep, and a small copy of it."""

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from scipy.stats import binom

from rub.config.suite import protocols_of
from rub.errors import Diverged, RubError, first_line
from rub.leaderboard import attack_rules, external_rules
from rub.leaderboard.rules import (
    LEAST,
    RECOVERABLE,
    SAMPLED,
    Candidate,
    Kind,
    Reattack,
    Rule,
    RuleCheck,
    sign_test,
)
from rub.metrics.base import metrics_of
from rub.registry import CONTROLS, Entry, load_target, task_of
from rub.reports.consistency import HASH
from rub.reports.folders import EXTERNAL, ResultFolder, mains_of, outside, protocols_in, read_folder
from rub.reports.grouping import (
    Group,
    budgets_of,
    estimate,
    extracted,
    grouped,
    is_control,
    level,
    main_attack,
    place_of,
)
from rub.reports.lineage import NAME as STAGES
from rub.reports.lineage import read_stages
from rub.reports.samples import CELL, cells_of, tables_in
from rub.reports.tables import label
from rub.reports.task_report import TaskReport, reports_of
from rub.reports.text import is_web_address, printable, without_places
from rub.store.manifest import read_manifest, seal_folder
from rub.store.records import Record
from rub.tasks.classification.spec import DEFAULT_SEARCH
from rub.witness.claims import Sources, checks, witness_files

LARGEST = 5 << 20  # bytes of witnesses that are kept
REATTACKED = 64  # samples of each method that are attacked again
SIGNIFICANT = 0.01
_NEEDED = ("records.parquet", "samples.parquet", "curves.json", "suite.yaml", "stages.json")
_KEPT = (*_NEEDED, "values.parquet", "hyperparameters.json", "verdict.json")
_OTHERS: Sequence[Kind] = ("run", EXTERNAL)
_RUN: Sequence[Kind] = ("run",)
_EXTERNAL: Sequence[Kind] = (EXTERNAL,)
_ATTACK: Sequence[Kind] = ("attack",)

RULES = (
    Rule("consistent", "every number is what its parts give: rates and their samples, curves, differences, the verdict",
         lambda one: (*_parts(one), *one.contradictions)),
    Rule("protocol", "one of RUB's protocols unchanged, or one's own in full, so that numbers compare",
         lambda one: _protocols(one.found), _OTHERS),
    Rule("measured", f"methods with numbers after the main attack, of {LEAST} samples or more",
         lambda one: _measured(one.found), _OTHERS),
    Rule("published", "original and unlearned model are read from files, and verdict.json says what the records give",
         external_rules.published, _EXTERNAL),
    Rule("compared", f"{DEFAULT_SEARCH} beside the attacks, at the same budgets on the images that rub attack draws",
         attack_rules.compared, _ATTACK),
    Rule("controls", "the original and a reference stand beside the methods",
         lambda one: (*_original(one.found), *_reference(one.found)), _RUN),
    Rule("controls", "the original stands beside the unlearned model",
         lambda one: _original(one.found), _EXTERNAL),
    Rule("sane", "the search finds what is there, the sham is caught",
         lambda one: _sane(one.found, whole=True), _RUN),
    Rule("sane", "the search finds what is there",
         lambda one: _sane(one.found, whole=False), _EXTERNAL),
    Rule("witnesses", f"what was recovered left witnesses, and those of {SAMPLED} files, or of all, hold",
         lambda one: (*_shown(one.found), *_held(one, SAMPLED)), _OTHERS),
    Rule("witnesses", "every image that is counted as recovered has its witness, and all of these hold",
         lambda one: (*attack_rules.shown(one), *_held(one, None)), _ATTACK),
)  # fmt: skip
"""What entries have to keep, each rule for some kinds of them."""


def check(folder: Path, sources: Sources) -> list[RuleCheck]:
    """Rules of the leaderboard, each with what breaks it; after a folder that cannot be read there is only the first.

    The folder may be of anyone; the sources say where models and data are, to score its witnesses again.
    """
    asks = "sealed, unchanged, records of this schema"
    try:
        candidate = Candidate.read(folder, sources)
    except RubError as error:
        return [RuleCheck("whole", asks, (str(error),))]
    rules = [rule for rule in RULES if candidate.kind in rule.kinds]
    return [RuleCheck("whole", asks), *(rule.check(candidate) for rule in rules)]


def submit(folder: Path, out: Path, sources: Sources, link: str = "") -> list[RuleCheck]:
    """Check a result folder and, where every rule is kept, write a small sealed copy to add to a leaderboard.

    The copy holds records, per-sample outcomes, curves, the suite, a share of the witnesses and ``submission.json``;
    no pictures, which may show images that others own. The rules are returned.

    Args:
        folder: of a run, of an audit, or of ``rub attack --out``.
        out: is made.
        sources: where models and data are.
        link: web address at which the models of an audit are published, or "".

    Raises:
        RubError: `out` is there already, or cannot be written; a link that is none, or of a folder that has no use
            for one.
    """
    if out.exists():
        raise RubError(f"--out {out}: is there already; give a folder that is not, such as results/my-method")
    outside(out, [folder])
    if link and not is_web_address(link):
        raise RubError(f"--link {printable(link)}: should be a web address such as https://example.org/models")
    rules = check(folder, sources)
    if any(rule.problems for rule in rules):  # attacking again takes long, and this folder is refused anyway
        return rules
    candidate = Candidate.read(folder, sources)
    if link and candidate.kind != EXTERNAL:
        raise RubError(f"--link {link}: {folder} is of no published models; give it with the folder of rub audit --out")
    if candidate.kind == "attack":
        again = list(attack_rules.searched_again(candidate))
        asks = f"{DEFAULT_SEARCH} brings back no more than was claimed (p < 1 %)"
    else:
        again = list(attacked_again(folder, sources))
        asks = f"of at most {REATTACKED} samples the search brings back no more than was claimed (p < 1 %); {_power()}"
    rules.append(RuleCheck("attacked again", asks, tuple(_lowered(again))))
    if any(rule.problems for rule in rules):
        return rules
    manifest = read_manifest(folder)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".submit-", dir=out.parent) as place:
            made = Path(place) / "made"
            (made / "witnesses").mkdir(parents=True)
            for name in _KEPT:
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, made / name)
            for path in _chosen(folder / "witnesses"):
                shutil.copyfile(path, made / "witnesses" / path.name)
            facts: dict[str, Any] = {
                "kind": candidate.kind,
                "seal_of_the_run": manifest["seal"],
                "rules": {rule.name: rule.asks for rule in rules},
            }
            if candidate.kind == EXTERNAL:
                facts |= {"models": external_rules.models_of(candidate), "link": link}
            facts["reattacked"] = [asdict(one) for one in again]
            facts["date"] = datetime.now(UTC).date().isoformat()
            facts["by"] = "the board" if (folder / "submission.json").is_file() else "the submitter"
            (made / "submission.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
            own = ("command", "code_version", "data")
            seal_folder(made, {name: manifest[name] for name in own if name in manifest})
            made.replace(out)
    except OSError as error:
        raise RubError(f"--out {out}: cannot be written ({error.strerror}); give another folder") from None
    return rules


def power(share: float, images: int = REATTACKED) -> float:
    """Probability that attacking again finds a folder out that hides this share of the images that can be recovered.

    The search is taken to be as it was on all others.

    Example:
        >>> [round(power(share), 2) for share in (0.05, 0.1, 0.2, 0.3)]
        [0.04, 0.46, 0.98, 1.0]
    """
    fewest = math.ceil(-math.log2(SIGNIFICANT))  # so many and none the other way round are significant
    return float(binom.sf(fewest - 1, images, share))


def _power() -> str:
    return f"of folders that hide 20 % of {REATTACKED}, {100 * power(0.2):.0f} % are found"


def attacked_again(folder: Path, sources: Sources) -> Iterator[Reattack]:
    """What attacking every method again gives, on samples and with seeds that the folder's seal draws.

    It is one search of each method, at the largest budget that has a number, by which leaderboards rank; where none
    has, at the largest.
    """
    from rub.witness.reattack import ReattackRequest, drawn

    found, seal, stages = read_folder(folder), str(read_manifest(folder)["seal"]), read_stages(folder)
    told, _ = tables_in(folder)
    cells = {} if told is None or not {"clean", "probe"} <= set(told.column_names) else dict(cells_of(told))
    for _, group, records, wanted in _groups(found):
        target, budgets = task_of(group.task).reattack, budgets_of(records, wanted[-1])
        budgets = [budget for budget in budgets if math.isfinite(level(budget))] or budgets
        own = [row for row in records if (row.metric, row.split, row.attack) == wanted and row.budget in budgets[-1:]]
        for method in dict.fromkeys(
            row.method for row in own if not is_control(row.method, row.task) and row.value is not None
        ):
            rows = [row for row in own if row.method == method and row.value is not None]
            record = min(rows, key=lambda row: sha256(f"{seal}/{row.key}".encode()).digest())
            where = (group.task, group.experiment, printable(method), record.unlearn_seed or 0)
            place = cells.get(tuple(getattr(record, name) for name in CELL))
            protocol = protocols_in(found.suite).get((group.task, record.protocol))
            if not target or told is None or place is None or protocol is None:
                yield Reattack(*where, reason="no search to run again: without samples, or the protocol of its suite")
                continue
            samples = told.take(place)
            claimed, clean = (
                dict(zip(samples["sample_id"].to_pylist(), samples[name].to_pylist(), strict=True))
                for name in ("recovered", "clean")
            )
            ids = drawn(list(claimed), REATTACKED, seal)
            before = np.array([clean[identity] for identity in ids.tolist()])
            originals = {row.weights_sha256 for row in records if row.method == "original"}
            probe = str(samples["probe"][0].as_py())
            request = ReattackRequest(record, ids, before, probe, protocol, seal, originals, stages, sources)
            try:
                hit = load_target(target)(request)
            except (RubError, Diverged, RuntimeError, MemoryError) as error:  # its models may be of anyone
                yield Reattack(*where, reason=without_places(first_line(error))[:300])
                continue
            said = np.array([claimed[identity] for identity in ids.tolist()])
            yield sign_test(record, said, hit)


def _lowered(reattacks: Iterable[Reattack]) -> Iterator[str]:
    for one in reattacks:
        if one.p < SIGNIFICANT:
            yield (
                f"{one.method}, seed {one.seed}, at {one.budget}: of {one.images} samples {one.claimed} are claimed"
                " to be recovered;"
                f" the search recovers {one.found}, {one.more} of them claimed not to be (p = {one.p:.1g})"
            )


def _parts(candidate: Candidate) -> Iterator[str]:
    """What is missing, without which numbers could not be compared with their parts."""
    folder, found = candidate.folder, candidate.found
    yield from (f"{name} is missing" for name in _NEEDED if not (folder / name).is_file())
    if (folder / STAGES).is_file() and not read_stages(folder):
        yield f"{STAGES} says nothing"
    bare = [record for record in found.records if not HASH.fullmatch(record.key)]
    if bare:
        yield f"{len(bare)} records without the key of the stage that measured them"


def _protocols(found: ResultFolder) -> Iterator[str]:
    for task in dict.fromkeys(record.task for record in found.records):
        known = protocols_of(task)
        for name in dict.fromkeys(record.protocol for record in found.records if record.task == task):
            if name.startswith("rub-quick"):
                yield f"protocol '{printable(name)}' is a tour: its numbers are not for comparison"
            elif name not in known and not ("@" in name and (task, name) in protocols_in(found.suite)):
                changed = "has changed choices" if "*" in name else "is not one of RUB's"
                right = f"{', '.join(known)}, or one of your own under its name@hash, which the suite has to hold"
                yield f"protocol '{printable(name)}' {changed}: should be one of {right}"


def _groups(found: ResultFolder) -> Iterator[tuple[TaskReport, Group, list[Record], tuple[str, str, str]]]:
    """Groups with their report, and metric, split and main attack of their robustness."""
    mains = mains_of(found.suite)
    for task, reporting in reports_of(record.task for record in found.records).items():
        for group, records in grouped(found.records, task).items():
            wanted = (reporting.robustness.metric, reporting.robustness.split, main_attack(records, mains))
            yield reporting, group, extracted(records), wanted


def _measured(found: ResultFolder) -> Iterator[str]:
    for _, group, records, wanted in _groups(found):
        methods = dict.fromkeys(record.method for record in records if not is_control(record.method, record.task))
        if not methods:
            yield f"{label(group)}: no unlearning method"
        for method in methods:
            counts: dict[str, int] = {}  # budget -> samples: of completions, `back` counts only those that had gone
            for row in records:
                if row.method == method and (row.split, row.attack) == wanted[1:] and row.value is not None:
                    counts[row.budget] = max(counts.get(row.budget, 0), row.n)
            least = min(counts.values(), default=0)
            if not least:
                yield f"{label(group)}: {printable(method)} has no number after {printable(wanted[-1])}"
            elif least < LEAST:
                yield f"{label(group)}: {printable(method)} was attacked on {least} samples, not on {LEAST} or more"


def _original(found: ResultFolder) -> Iterator[str]:
    for _, group, records, _ in _groups(found):
        if not any(record.method == "original" and record.value is not None for record in records):
            yield f"{label(group)}: no original"


def _reference(found: ResultFolder) -> Iterator[str]:
    for _, group, records, _ in _groups(found):
        references = [entry.name for entry in CONTROLS.entries(group.task) if entry.reference]
        if not {record.method for record in records if record.value is not None} & set(references):
            yield f"{label(group)}: none of {', '.join(references)}"


def _sane(found: ResultFolder, *, whole: bool) -> Iterator[str]:
    """What the controls say against the search; a `whole` folder has those that every run measures."""
    for reporting, group, records, wanted in _groups(found):
        main = wanted[-1]
        budgets = reporting.headline(budgets_of(records, main))
        if not budgets:
            yield f"{label(group)}: {printable(main) or 'no attack'} was not run"
            continue
        original = _mean(records, "original", wanted, budgets)
        own = [row for row in records if row.method == "original" and place_of(row)[:3] == wanted]
        nothing_went = bool(own) and all(row.status == "ok" and row.n == 0 for row in own)  # of completions of images
        if not (nothing_went or original >= RECOVERABLE):
            yield (
                f"{label(group)}: the search brings back {100 * original:.0f} % of the original, which forgot nothing;"
                f" at least {100 * RECOVERABLE:.0f} % show that it works"
            )
        controls = list(CONTROLS.entries(group.task))
        for name in (entry.name for entry in controls if entry.untrained):
            if (blank := _mean(records, name, wanted, budgets)) >= RECOVERABLE:
                yield f"{label(group)}: the search brings back {100 * blank:.0f} % of a model that was never trained"
        rows = {record.method for record in records}
        shams = [entry for entry in controls if entry.exposed_by and ((whole and entry.always) or entry.name in rows)]
        yield from _hidden(group, records, shams, main, budgets)


def _hidden(
    group: Group, records: Sequence[Record], shams: Sequence[Entry[Any]], main: str, budgets: Sequence[str]
) -> Iterator[str]:
    """What is wrong with the controls that forgot nothing and hide it: each has a metric that tells."""
    known = {metric.name: metric for metric in metrics_of(group.task)}
    for entry in shams:
        if (metric := known.get(entry.exposed_by)) is None:
            yield f"{label(group)}: {entry.name} is exposed by '{entry.exposed_by}', which is no metric of {group.task}"
            continue
        clean = any(record.metric == metric.name and record.attack == "none" for record in records)
        told = (metric.name, metric.split, "none" if clean else main)
        whole, sham, never = (_mean(records, row, told, budgets) for row in ("original", entry.name, "retrain"))
        if math.isnan(sham + whole + never):
            yield f"{label(group)}: {metric.name} of original, {entry.name} and retrain are not all there"
        elif abs(sham - whole) >= abs(sham - never):
            yield (
                f"{label(group)}: {entry.name}, which forgot nothing, is nearer to retrain than to the original by"
                f" {metric.name} ({sham:.3f}; {never:.3f} and {whole:.3f})"
            )


def _mean(records: Sequence[Record], method: str, wanted: tuple[str, str, str], budgets: Sequence[str]) -> float:
    """A row's mean of metric, split and attack, at the largest budget if attacked; nan without a number."""
    place = (*wanted, "none" if wanted[-1] == "none" else budgets[-1])
    interval = estimate([row for row in records if row.method == method and place_of(row)[:4] == place])
    return math.nan if interval is None else interval.mean


def _shown(found: ResultFolder) -> Iterator[str]:
    for _, group, records, wanted in _groups(found):
        back = {row.method for row in records if row.value and (row.metric, row.split, row.attack) == wanted}
        shown = {claim.method for claim in found.claims if claim.task == group.task}
        for method in sorted(map(printable, back)):
            if method not in shown:
                yield f"{label(group)}: {method}'s inputs were recovered, and left no witnesses"


def _held(candidate: Candidate, sample: int | None) -> Iterator[str]:
    """Witnesses that do not hold, or cannot be checked: of so many files, or of all."""
    if not candidate.found.claims:
        return
    try:
        outcomes = list(checks(candidate.folder, candidate.sources, sample))
    except RubError as error:
        yield str(error)
        return
    for outcome in outcomes:
        if outcome.reason:
            yield f"{outcome.name}: cannot be checked: {outcome.reason}"
        if outcome.changed:
            yield f"not as it was sealed: {outcome.changed[0]}"
        if outcome.broken:
            yield f"{outcome.name}: {len(outcome.broken)} do not hold: {outcome.broken[0]}"


def _chosen(folder: Path) -> Iterator[Path]:
    room = LARGEST
    pairs = [(path, path.with_suffix(".safetensors")) for path in witness_files(folder)] if folder.is_dir() else []
    for pair in sorted(pairs, key=lambda pair: (sum(path.stat().st_size for path in pair), pair[0].name)):
        room -= sum(path.stat().st_size for path in pair)
        if room < 0:
            return
        yield from pair
