"""The image-to-image task from a suite to tables, pictures, witnesses and audits."""

import json
import math
import shutil
from collections import defaultdict

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import rub
from rub import load_suite, run
from rub.api import make_runtime, plan
from rub.config.suite import protocols_of
from rub.data.samples import to_unit
from rub.metrics.generative import frechet_distance, inception_score
from rub.models.mae.checkpoints import load_mae, to_original, to_transformers
from rub.models.mae.masks import gather, keyed_noise, make_mask
from rub.pipeline.graph import in_order
from rub.store.artifacts import Store, file_sha256
from rub.store.records import identity, read_records
from rub.tasks.inpainting.stages import target_of

pytestmark = pytest.mark.slow

BUDGETS = {("none", "none"), ("uma", "8/255"), ("uma", "unbounded"), ("uma", "free"), ("noise", "8/255")}


def values(ran):
    found = {}
    for row in ran.result.records:
        if row.unlearn_seed is None:  # of the dose scale
            continue
        found[row.method, row.attack, row.budget, row.metric, row.split] = row
    return found


def test_every_cell_is_there(tiny_i2i):
    rows = tiny_i2i.result.records
    assert not tiny_i2i.result.failures
    assert {row.method for row in rows} == {
        "original", "retrain", "dose-30", "random_init", "i2i", "salun", "doses"
    }  # fmt: skip
    scale = [row for row in rows if row.unlearn_seed is None]
    assert {"skill_contrast_dose", "selectivity_dose", "recovered_spearman"} <= {row.metric for row in scale}
    rows = [row for row in rows if row.unlearn_seed is not None]
    assert {(row.attack, row.budget) for row in rows} == BUDGETS
    assert all(row.status == "ok" for row in rows)
    empty = {(row.metric, row.n) for row in rows if row.value is None}
    assert empty == {("back", 0)}  # of the original, nothing had gone
    both = {"is", "fid", "kid", "mse_original", "mse_input", "psnr", "ssim", "skill", "recovered"}
    for attack, budget in BUDGETS:
        sides = {(row.metric, row.split) for row in rows if (row.attack, row.budget) == (attack, budget)}
        assert {(metric, split) for metric in both for split in ("forget", "retain")} <= sides
        assert {(f"{metric}_contrast", "forget") for metric in ("skill", "fid", "kid", "is")} <= sides
    assert {row.split for row in rows} == {"forget", "retain", "steered"}
    judged = {row.extractor for row in rows if row.metric in ("is", "fid", "fid_original", "kid")}
    assert len(judged) == 1
    assert judged.pop().startswith("digits-resnet10@")
    assert all(row.extractor == "" for row in rows if row.metric in ("psnr", "mse_input", "recovered"))
    assert {"2 splits" in row.setting for row in rows if row.metric == "is"} == {True}
    assert {"biased" in row.setting for row in rows if row.metric == "fid"} == {True}  # 12 images, 32 features


def test_the_original_is_its_own_reference(tiny_i2i):
    cells = values(tiny_i2i)
    for attack, budget in BUDGETS:
        row = cells["original", attack, budget, "mse_original", "forget"]
        assert row.value == 0
        assert cells["original", attack, budget, "recovered", "forget"].value == 1
    assert cells["original", "none", "none", "fid_original", "forget"].value == pytest.approx(0, abs=1e-6)


def test_searches_never_leave_a_sample_worse_than_it_was(tiny_i2i):
    clean = defaultdict(dict)
    for row in tiny_i2i.result.samples:
        if row["split"] != "steered":
            clean[row["method"], row["split"], row["sample_id"]][row["attack"], row["budget"]] = row["distance"]
    cells = values(tiny_i2i)
    for (method, split, _), found in clean.items():
        assert max(found.values()) <= max(1.0, 10 * cells[method, "none", "none", "mse_original", split].value)
    for method in ("i2i", "salun", "retrain"):
        for attack, budget in BUDGETS - {("none", "none")}:
            before = cells[method, "none", "none", "mse_original", "forget"].value
            assert cells[method, attack, budget, "mse_original", "forget"].value <= before * 1.0001


def opened(ran, label):
    """Inputs of a clean measuring stage: images of F, the original, the other model, ids, and all artifacts."""
    store = Store(ran.store)
    [(_, graph)] = plan(load_suite(str(ran.path)), make_runtime(device="cpu"))
    stage = next(stage for stage in graph.stages if stage.label == label)
    inputs = {role: store.find(need.kind, need.key) for role, need in stage.inputs.items()}
    original, unlearned = (
        load_mae(inputs[role].file("weights.safetensors")).eval() for role in ("original", "unlearned")
    )
    ids = torch.from_numpy(np.load(inputs["chosen"].file("forget_ids.npy")))
    images = torch.from_numpy(np.load(inputs["data"].file("test_images.npy")))
    known = np.load(inputs["data"].file("test_ids.npy")).tolist()
    return images[[known.index(i) for i in ids.tolist()]], original, unlearned, ids, inputs


def test_numbers_by_hand(tiny_i2i):
    """MSE, PSNR and FID of one clean row, computed again from the stored weights and images."""
    images, original, unlearned, ids, inputs = opened(tiny_i2i, "measure salun, seed 0")
    x, mask = to_unit(images), make_mask(keyed_noise(ids, 16, 0), 0.5)
    with torch.no_grad():
        made, wanted = (gather(m.denormalise(m(x, mask)), mask.hidden) for m in (unlearned, original))
    error = (made - wanted).square().mean((1, 2))
    cells = values(tiny_i2i)
    assert cells["salun", "none", "none", "mse_original", "forget"].value == pytest.approx(
        float(error.mean()), rel=1e-4
    )
    truth = gather(unlearned.patchify(x), mask.hidden)
    by_hand = float((made - truth).square().mean())
    assert cells["salun", "none", "none", "mse_input", "forget"].value == pytest.approx(by_hand, rel=1e-4)
    decibel = float((10 * (1 / error).log10()).mean())
    assert cells["salun", "none", "none", "psnr", "forget"].value == pytest.approx(decibel, rel=1e-4)
    real, before = (np.load(inputs["reference"].file(f"forget_{name}.npy")) for name in ("real", "original"))
    row = cells["original", "none", "none", "fid", "forget"]
    assert row.value == pytest.approx(frechet_distance(before, real), rel=1e-6)


def test_what_had_gone_and_is_back_by_hand(tiny_i2i):
    """Counted again from the single images: an image that was never gone cannot come back."""
    cells, seen = values(tiny_i2i), defaultdict(list)
    for row in tiny_i2i.result.samples:
        seen[row["method"], row["attack"], row["budget"], row["split"]].append((row["clean"], row["recovered"]))
    counted = {key: rows for key, rows in seen.items() if key[3] != "steered"}
    assert len(counted) == 6 * (len(BUDGETS) - 1) * 2 - 2  # the dose model under the main attack alone
    in_part = 0
    for (method, attack, budget, split), rows in counted.items():
        back = cells[method, attack, budget, "back", split]
        gone = [recovered for clean, recovered in rows if not clean]
        assert back.n == len(gone) and (back.value is None) == (not gone)
        if gone:
            assert back.value == pytest.approx(sum(gone) / len(gone))
            assert back.ci_low <= back.value <= back.ci_high
            in_part += len(gone) < len(rows) and back.value > 0
        still = cells[method, "none", "none", "recovered", split]
        assert still.value == pytest.approx(sum(clean for clean, _ in rows) / len(rows))
        everything = cells[method, attack, budget, "recovered", split].value
        assert everything == pytest.approx((sum(gone) + len(rows) - len(gone)) / len(rows))
    assert in_part > 3  # some had gone, some not, and some of those that had gone are back


def test_contrasts_are_changes_of_f_minus_changes_of_r(tiny_i2i):
    cells = values(tiny_i2i)
    signs = {"skill": -1, "is": -1, "fid": 1, "kid": 1}  # what gets worse counts as more
    rows = [(method, *at) for method in ("original", "retrain", "random_init", "i2i", "salun") for at in BUDGETS]
    for method, attack, budget in [*rows, ("dose-30", "uma", "8/255"), ("dose-30", "none", "none")]:
        for metric, sign in signs.items():
            now, before = (
                {split: cells[name, at, size, metric, split].value for split in ("forget", "retain")}
                for name, at, size in ((method, attack, budget), ("original", "none", "none"))
            )
            wanted = sign * ((now["forget"] - before["forget"]) - (now["retain"] - before["retain"]))
            found = cells[method, attack, budget, f"{metric}_contrast", "forget"]
            assert found.value == pytest.approx(wanted, abs=1e-5) and found.n == 24
            if metric == "skill":
                assert found.ci_low <= found.value <= found.ci_high


def test_skill_and_selectivity_image_by_image(tiny_i2i):
    """From the stored weights and images; the baseline paints the mean of the visible pixels."""
    images, _, model, ids, _ = opened(tiny_i2i, "measure salun, seed 0")
    x, mask = to_unit(images), make_mask(keyed_noise(ids, 16, 0), 0.5)
    hidden = torch.zeros(len(x), 16, dtype=torch.bool).scatter(1, mask.hidden, value=True)
    painted = hidden.reshape(-1, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    means = [x[row][~painted[row]].mean() for row in range(len(x))]
    flat = torch.stack([(x[row][painted[row]] - means[row]).square().mean() for row in range(len(x))])
    with torch.no_grad():
        made = model.unpatchify(model.denormalise(model(x, mask)))
    error = torch.stack([(x[row] - made[row])[painted[row]].square().mean() for row in range(len(x))])
    rows = [row for row in tiny_i2i.result.values if row["method"] == "salun"]
    clean = {
        row["sample_id"]: row["value"]
        for row in rows
        if (row["metric"], row["split"], row["attack"]) == ("skill", "forget", "none")
    }
    assert clean == pytest.approx(dict(zip(ids.tolist(), (1 - error / flat.mean()).tolist(), strict=True)), abs=2e-4)
    own, other, chosen = {}, {}, {}
    for row in tiny_i2i.result.samples:
        if (row["method"], row["attack"], row["budget"]) == ("salun", "uma", "8/255"):
            {"forget": own, "steered": other}.get(row["split"], {})[row["sample_id"]] = row["distance"]
    for row in rows:
        if (row["metric"], row["attack"], row["budget"]) == ("selectivity", "uma", "8/255"):
            chosen[row["sample_id"]] = row["value"]
    assert set(chosen) == set(other) < set(own) and len(chosen) == 6
    for sample, value in chosen.items():
        assert value == pytest.approx(math.log2(other[sample] / own[sample]), abs=1e-2)
    record = values(tiny_i2i)["salun", "uma", "8/255", "selectivity", "forget"]
    assert record.value == pytest.approx(sum(chosen.values()) / 6, abs=1e-4)  # of values with four decimals
    assert record.ci_low < record.value < record.ci_high


def test_the_paired_null_has_the_same_images_and_masks_and_another_target(tiny_i2i):
    store, runtime = Store(tiny_i2i.store), make_runtime(device="cpu")
    [(_, graph)] = plan(load_suite(str(tiny_i2i.path)), runtime)
    stages = {stage.label: stage for stage in in_order(graph.stages)}
    own, other = (stages[f"attack i2i, seed 0: uma 8/255 on {split}"] for split in ("forget", "steered"))
    assert {k: v for k, v in own.spec.items() if k != "split"} == {k: v for k, v in other.spec.items() if k != "split"}
    assert {role: need.key for role, need in own.inputs.items()} == {r: need.key for r, need in other.inputs.items()}
    inputs = {role: store.find(need.kind, need.key) for role, need in own.inputs.items()}
    (side, target), (steered, elsewhere) = (target_of(split, inputs, runtime) for split in ("forget", "steered"))
    count = len(steered.samples)
    assert torch.equal(side.samples.ids[:count], steered.samples.ids)
    assert torch.equal(side.samples.take(slice(count)), steered.samples.take(slice(count)))
    assert torch.equal(target.mask.keep[:count], elsewhere.mask.keep)
    assert target.model is elsewhere.model
    assert not torch.isclose(target.reference[:count], elsewhere.reference).all((1, 2)).any()


def test_masks_are_stored_and_belong_to_the_image(tiny_i2i):
    store = Store(tiny_i2i.store)
    [(_, graph)] = plan(load_suite(str(tiny_i2i.path)), make_runtime(device="cpu"))
    chosen = store.find("choose", graph.stages[0].key)
    ids = torch.from_numpy(np.load(chosen.file("retain_ids.npy")))
    noise = np.load(chosen.file("retain_noise.npy"))
    alone = keyed_noise(ids[5:6], 16, 0)
    assert np.array_equal(noise[5, :16], alone[0].numpy())


def test_the_command_prints_table_2_and_resumes(tiny_i2i, rub, tmp_path):
    again = ("--store", tiny_i2i.store, "--out", tmp_path / "again", "--device", "cpu", "--tables", "all")
    said = rub("run", tiny_i2i.path, *again)
    assert said.code == 0, said
    assert "0 stages run" in said.out
    for words in ("Table 2", "IS[digits-resnet10]", "FID[digits-resnet10]", "unbounded", "What comes back"):
        assert words in said.out, words
    assert max(len(line) for line in said.out.splitlines() if "again" not in line) <= 80
    first, second = (read_records(folder) for folder in (tiny_i2i.out, tmp_path / "again"))
    assert [identity(row) for row in first] == [identity(row) for row in second]


def test_galleries_are_pictures(tiny_i2i):
    found = sorted((tiny_i2i.out / "figures").glob("gallery-*.png"))
    assert {path.name.split("-digits")[0] for path in found} >= {"gallery-i2i-forget", "gallery-salun-retain"}
    picture = np.asarray(Image.open(found[0]).convert("L"))
    assert min(picture.shape) > 150
    assert picture.std() > 10
    [page] = (tiny_i2i.out / "report" / "experiments").iterdir()
    assert "gallery-i2i-forget" in page.read_text()


def test_witnesses_hold(tiny_i2i, rub):
    said = rub("verify", tiny_i2i.out, "--store", tiny_i2i.store, "--device", "cpu")
    assert said.code == 0, said
    held = int(said.out.strip().splitlines()[-1].split()[0])
    recovered = [row for row in tiny_i2i.result.samples if row["split"] == "forget" and row["recovered"]]
    assert held == len(recovered) > 0


def test_witnesses_hold_for_given_weights_and_embedded_data(tiny_i2i, rub, tmp_path):
    """Without the store: only the two weight files and the data set's name are needed."""
    path = next((tiny_i2i.out / "witnesses").glob("*i2i-0-uma-8-255*.json"))
    claim = json.loads(path.read_text())
    for item in (path, path.with_suffix(".safetensors")):
        shutil.copy(item, tmp_path / item.name)
    files = [
        tiny_i2i.store / claim["models"][role]["kind"] / claim["models"][role]["key"] / "weights.safetensors"
        for role in ("original", "unlearned")
    ]
    given = ("--original", files[0], "--unlearned", files[1], "--store", tmp_path / "no-store")
    assert rub("verify", tmp_path, *given).code == 0
    swapped = ("--original", files[1], "--unlearned", files[0])
    assert rub("verify", tmp_path, *swapped, "--store", tmp_path / "none").code == 0  # the claim's SHA-256 decides
    twice = rub("verify", tmp_path, "--original", files[0], "--unlearned", files[0], "--store", tmp_path / "none")
    assert twice.code == 3
    assert "another SHA-256" in twice.out
    assert rub("verify", tmp_path, "--store", tmp_path / "none").code == 3


def test_the_rules_of_the_leaderboard_are_kept(tiny_i2i, rub, tmp_path):
    """But for the protocol, whose choices are changed to make the suite tiny."""
    said = rub("submit", tiny_i2i.out, "--store", tiny_i2i.store, "--out", tmp_path / "entry", "--device", "cpu")
    broken = [line.split()[1] for line in said.out.splitlines() if line.startswith("broken")]
    assert broken == ["protocol:"], said.out


def damaged(tiny_i2i, folder, change):
    """Copy one claim, change its probes, and make their hash fit again: a forged witness."""
    path = next((tiny_i2i.out / "witnesses").glob("*salun-0-uma-8-255*.json"))
    claim = json.loads(path.read_text())
    tensors = load_file(path.with_suffix(".safetensors"))
    change(claim, tensors)
    save_file(tensors, folder / "w.safetensors")
    claim["tensors_sha256"] = file_sha256(folder / "w.safetensors")
    (folder / "w.json").write_text(json.dumps(claim))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda claim, tensors: tensors["delta"].fill_(100), "outside the budget"),
        (lambda claim, tensors: claim.update(at_most=1e-9), "claimed at most"),
        (lambda claim, tensors: claim.update(budget="unbounded", at_most=1e-12), "claimed at most"),
    ],
    ids=["budget", "claim", "other-budget"],
)
def test_forged_witnesses_do_not_hold(tiny_i2i, rub, tmp_path, change, says):
    damaged(tiny_i2i, tmp_path, change)
    said = rub("verify", tmp_path, "--store", tiny_i2i.store)
    assert said.code == 1, said
    assert says in said.out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda claim, tensors: tensors.update(delta=torch.zeros(1, 2, 3, dtype=torch.int8)),
            "not the visible patches",
        ),
        (lambda claim, tensors: claim["samples"][0].update(sha256="0" * 64), "is not the one of the claim"),
        (lambda claim, tensors: claim["samples"][0].update(id=10**9), "has no test image"),
        (lambda claim, tensors: claim.update(task="none"), "unknown"),
        (lambda claim, tensors: claim.update(schema_version=2), "schema_version"),
        (lambda claim, tensors: claim["models"]["original"].update(kind="../x"), "models.original.kind"),
        (lambda claim, tensors: claim["settings"].update(mask_ratio="x"), "mask ratio"),
        (lambda claim, tensors: claim["data"].update(key="0" * 64, spec={"name": 3}), "the claim's data set"),
        (lambda claim, tensors: claim["data"].update(key="../.."), "not a stage kind and a key"),
        (lambda claim, tensors: claim["models"].pop("original"), "names no original model"),
    ],
    ids=["shape", "image", "id", "task", "schema", "path", "setting", "data", "escape", "model"],
)
def test_claims_that_cannot_be_checked_say_why(tiny_i2i, rub, tmp_path, change, says):
    damaged(tiny_i2i, tmp_path, change)
    said = rub("verify", tmp_path, "--store", tiny_i2i.store)
    assert said.code == 3, said
    assert says in said.out, said.out


def test_a_flipped_byte_in_the_probes_is_seen(tiny_i2i, rub, tmp_path):
    damaged(tiny_i2i, tmp_path, lambda claim, tensors: None)
    data = bytearray((tmp_path / "w.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "w.safetensors").write_bytes(bytes(data))
    said = rub("verify", tmp_path, "--store", tiny_i2i.store)
    assert said.code == 3
    assert "another SHA-256" in said.out


def test_nothing_to_verify(refused, tmp_path):
    refused("verify", tmp_path, says="no witnesses here")


def checkpoint(tiny_i2i, role):
    claim = json.loads(next((tiny_i2i.out / "witnesses").glob("*salun-0-uma-8-255*.json")).read_text())["models"][role]
    return tiny_i2i.store / claim["kind"] / claim["key"] / claim["file"]


AUDIT = ("--data", "digits", "--size", 16, "--forget-classes", "0,1,2", "--samples", 10, "--judge-epochs", 1)


def test_audit_of_transformers_and_original_layouts(tiny_i2i, rub, tmp_path):
    """The original as a .pth of facebookresearch/mae's keys, the other from transformers: the same audit."""
    original, unlearned = (load_mae(checkpoint(tiny_i2i, role)) for role in ("original", "unlearned"))
    torch.save({"model": original.state_dict()}, tmp_path / "before.pth")
    names = to_transformers(unlearned.state_dict())
    assert set(to_original(names)) == set(unlearned.state_dict())
    torch.save(names, tmp_path / "after.pth")
    mean, std = (",".join(map(repr, getattr(original.config, name))) for name in ("mean", "std"))
    said = rub(
        "audit", "inpainting", "--original", tmp_path / "before.pth", "--unlearned", tmp_path / "after.pth", *AUDIT,
        "--mean", mean, "--std", std, "--mask-ratio", 0.5, "--protocol", "rub-quick-1", "--out", tmp_path / "out",
        "--store", tmp_path / "store", "--device", "cpu",
    )  # fmt: skip
    assert said.code == 0, said
    assert "Verdict:" in said.out
    assert (tmp_path / "out" / "report" / "index.html").is_file()
    assert rub("verify", tmp_path / "out", "--store", tmp_path / "store").code == 0


def test_bad_audits(tiny_i2i, refused, tmp_path):
    weights = checkpoint(tiny_i2i, "original")
    encoder = {k: v for k, v in load_file(weights).items() if not k.startswith(("decoder", "mask_token"))}
    torch.save({"model": encoder}, tmp_path / "encoder.pth")

    def asked(says, **changes):
        given = {
            "original": weights,
            "unlearned": weights,
            "data": "digits",
            "size": 16,
            "forget-classes": "0",
            **changes,
        }
        arguments = [part for name, value in given.items() for part in (f"--{name}", value)]
        refused("audit", "inpainting", *arguments, "--store", tmp_path / "store", "--judge-epochs", 1, says=says)

    asked("no such file", original=tmp_path / "none.pth")
    asked("decoder is missing", unlearned=tmp_path / "encoder.pth")
    asked("takes images (1, 16, 16), but the data has (1, 32, 32)", size=32)
    asked("class 11 does not exist", **{"forget-classes": "11"})
    asked("mask_ratio", **{"mask-ratio": "1.5"})
    asked("unknown protocol", protocol="rub-paper-9")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": {"arch": "mae-mini", "mask_ratio": 1.0}}, "mask_ratio"),
        ({"model": {"arch": "mae-mini", "mask_ratio": 0}}, "mask_ratio"),
        ({"model": {"arch": "mae-tiny"}}, "did you mean"),
        ({"methods": ["original"]}, "is a control"),
        ({"forget": {"fraction": 0.1}}, "forgets whole classes"),
        ({"model": {"arch": "mae-mini", "weights": "none.pth"}}, "retrains"),
        ({"model": {"arch": "mae-mini", "weights": "none.pth"}, "retrains": 0}, "no such file"),
        ({"judge": {"name": "inception", "weights": "none.pth"}}, "Inception's weights are not at"),
        ({"methods": {"i2i": {"alfa": 1}}}, "did you mean 'alpha'?"),
        ({"protocol": {"name": "rub-paper-1", "attacks": {"uma": {"runs": ["uma"], "budgets": ["wide"]}}}}, "budgets"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_bad_suites(tiny_i2i, refused, tmp_path, change, says):
    suite = yaml.safe_load(tiny_i2i.path.read_text())
    suite["experiments"][0].update(change)
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(suite))
    refused("plan", tmp_path / "bad.yaml", says=says)


def test_protocols_have_their_own_names():
    assert set(protocols_of("inpainting")) == {
        "rub-paper-1", "rub-paper-2", "rub-strict-1", "rub-audit-1", "rub-quick-1"
    }  # fmt: skip


def test_a_reported_run_has_its_figures_and_galleries_again(tiny_i2i, tmp_path):
    from rub.reports.writing import write_reports

    _, refused = write_reports([tiny_i2i.out], tmp_path / "site")
    assert refused == {}
    [experiment] = (tmp_path / "site" / "experiments").iterdir()
    pictures = {path.name for path in (tmp_path / "site" / "figures").rglob("*.*")}
    for name in pictures:
        assert name in experiment.read_text()
    assert {path.name for path in (tiny_i2i.out / "figures").glob("gallery-*.png")} <= pictures
    assert any(name.startswith("robustness-") for name in pictures)


def test_a_metric_of_ones_own_sees_what_the_judge_sees(tiny_i2i, tmp_path):
    splits = load_suite(str(tiny_i2i.path)).experiments[0].protocol.is_splits

    @rub.metric("again", task="inpainting", unit="score", low=1, attacked=True, needs=["original"])
    def again(outputs):
        """IS, computed from the outputs."""
        assert outputs.images.dtype == np.uint8
        assert len(outputs.images) == len(outputs) == len(outputs["original"])
        return inception_score(outputs.logits, splits=splits)[0]

    store = shutil.copytree(tiny_i2i.store, tmp_path / "store")
    suite = load_suite(str(tiny_i2i.path), overrides=["metrics=[again]"])
    result = run(suite, store=store, runtime=make_runtime(device="cpu"))
    assert result.failures == ()
    found = {
        metric: {(r.method, r.unlearn_seed, r.attack, r.budget): r.value for r in result.records
                 if r.metric == metric and r.split == "forget"}
        for metric in ("is", "again")
    }  # fmt: skip
    assert found["again"] == pytest.approx(found["is"], rel=1e-6)
    placed = {"doses", "random_init", "i2i", "salun"}  # on the dose scale, by this metric too
    assert result.counts["done"] == len(found["again"]) + len(placed)
