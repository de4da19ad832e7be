"""The report of the image-to-image task from hand-made records: cells, judges, notes, figures, galleries, the page."""

import io
import math

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from rub.errors import RubError
from rub.metrics.statistics import wilson
from rub.reports import figures
from rub.reports.galleries import draw_galleries, read_tiles
from rub.reports.render import to_csv, to_latex, to_markdown, to_rich
from rub.reports.tables import paper_numbers
from rub.reports.writing import write_report
from rub.store.records import Record
from rub.tasks.inpainting.metrics import cell
from rub.tasks.inpainting.report import REPORTING
from rub.tasks.inpainting.tables import headline, inpainting_tables

T2 = 4.302652729911275  # 97.5 % quantile of Student's t with 2 degrees of freedom, from tables
HOSTILE = "<script>alert(1)</script>|_%$x$"
JUDGE, OTHER = "digits-resnet10@3f2a00000000", "inception-v3-compat@672600000000"
COMMON = {
    "task": "inpainting", "suite": "demo", "experiment": "", "protocol": "rub-paper-1", "dataset": "digits",
    "model": "mae-mini", "n": 200, "key": "k", "code_version": "0.1.0+abc", "mia_seed": None,
}  # fmt: skip
ATTACKED = {"original": 1.0, "retrain": 0.2, "random_init": 0.0, "i2i": 0.8, "salun": 0.5, HOSTILE: 0.1}
STEERED = {"original": 0.3, "retrain": 0.1, "random_init": 0.0, "i2i": 0.1, "salun": 0.48, HOSTILE: 0.0}
SKILL = {"original": 0.9, "retrain": 0.88, "random_init": -0.5, "i2i": 0.87, "salun": 0.6, HOSTILE: 0.9}  # on R
CONTRAST = {"original": 0.0, "retrain": 0.1, "random_init": 0.0, "i2i": 0.3, "salun": 0.2, HOSTILE: -0.1}
TILES = ("image", "masked", "original", "unlearned", "uma 8/255", "delta x 16", "uma unbounded", "delta")


def row(method, metric, split, value, *, seed=0, attack="none", budget="none", **more):
    fields = cell(method, seed, metric, split, attack=attack, budget=budget)
    made = {**COMMON, **fields, "value": value, **more}
    if metric == "recovered" and value is not None:
        made |= dict(zip(("ci_low", "ci_high"), wilson(value * made["n"], made["n"]), strict=True))
    return Record.model_validate(made)


def rows_of(method, seed=0, judge=JUDGE):
    """Return the rows of one model: clean, and after uma at two budgets; each seed moves FID on R by 2."""
    few = {"extractor": judge, "setting": "to the same 200 real images; 200 images for 256 features: FID is biased up"}
    for budget, gone in (("none", 300.0), ("8/255", 110.0), ("unbounded", 105.5)):
        at = {"seed": seed, "attack": "none" if budget == "none" else "uma", "budget": budget}
        at |= {} if budget == "none" else {"converged": method != "salun"}
        share = 0.0 if budget == "none" else ATTACKED[method]
        for split, fid in (("retain", 100.0 + 2 * seed), ("forget", gone)):
            yield row(method, "is", split, 6.25, **at, extractor=judge, setting="10 splits, shuffled, seed 2020")
            yield row(method, "fid", split, fid, **at, **few)
            yield row(method, "kid", split, 0.0123, **at, extractor=judge, setting="unbiased")
            yield row(method, "mse_original", split, 0.0321, **at)
            yield row(method, "psnr", split, 100.0 if method == "original" else 15.0 + seed, **at)
            yield row(method, "ssim", split, 0.75, **at)
            yield row(method, "skill", split, SKILL[method] if split == "retain" else 0.4, **at)
            yield row(method, "recovered", split, share if split == "forget" else 0.9, **at, setting="mse <= 0.01")
            if budget != "none":
                yield row(method, "back", split, share if split == "forget" else 0.85, **at | {"n": 150})
        lost = {"ci_low": CONTRAST[method] - 0.05, "ci_high": CONTRAST[method] + 0.05, "n": 400}
        yield row(method, "skill_contrast", "forget", CONTRAST[method] + 0.01 * seed, **at, **lost)
        yield row(method, "fid_contrast", "forget", 7.5, **at, extractor=judge)
        if budget != "none":
            yield row(method, "recovered", "steered", STEERED[method], **at | {"n": 100})
            yield row(method, "selectivity", "forget", 2.5, **at | {"n": 100})
            yield row(method, "residual_knowledge", "forget", share - 0.2, **at)
            yield row(method, "recovered", "forget", 0.05, **at | {"attack": "noise"})
            yield row(method, "back", "forget", 0.04, **at | {"attack": "noise"})
            yield row(method, "back", "retain", 0.03, **at | {"attack": "noise"})


@pytest.fixture(scope="module")
def records():
    """Three seeds of two methods and a hostile one, single controls; max-loss failed, salun's last seed in part."""
    made = [one for method in ("original", "retrain", "random_init") for one in rows_of(method)]
    made += [one for method in ("i2i", "salun", HOSTILE) for seed in range(3) for one in rows_of(method, seed)]
    lost = {"value": None, "status": "failed", "n": 0, "extractor": "", "setting": ""}
    made = [
        one.model_copy(update={**lost, "reason": "measure salun, seed 2: out of memory"})
        if (one.method, one.unlearn_seed, one.attack) == ("salun", 2, "none")
        else one
        for one in made
    ]
    failed = [
        one.model_copy(update={**lost, "method": "max-loss", "reason": "unlearn max-loss, seed 0: diverged"})
        for one in rows_of("i2i")
    ]
    return made + failed


@pytest.fixture(scope="module")
def curves():
    found = []
    for method, share in ATTACKED.items():
        for budget in ("8/255", "unbounded"):
            names = ("task", "suite", "experiment", "protocol", "dataset", "model")
            where = {name: COMMON[name] for name in names} | {"method": method, "unlearn_seed": 0, "attack": "uma"}
            loss = [0.0 if method == "original" else 0.05 / (k + 1) for k in range(11)]
            found.append(
                where
                | {"budget": budget, "split": "forget", "success_curve": [share * k / 10 for k in range(11)]}
                | {"loss_curve": loss, "converged": method != "salun", "evaluations": 2000}
            )
    return found


def tiles(channels=1, side=32, count=3, seed=0):
    drawn = np.random.default_rng(seed).integers(0, 256, (count, len(TILES), side, side, channels), dtype=np.uint8)
    return {"tiles": drawn, "columns": np.array(TILES), "ids": np.arange(7, 7 + count)}


def gallery(folder, name, method="i2i", split="forget", **made):
    np.savez(folder / f"{name}.npz", **made)
    where = {name: COMMON[name] for name in ("task", "suite", "experiment", "protocol", "dataset", "model")}
    return {**where, "method": method, "unlearn_seed": 0, "split": split, "path": folder / f"{name}.npz"}


def by_name(records, paper=None):
    return {table.name: table for table in inpainting_tables(records, paper)}


def found(table, method, group, name):
    index = [(column.group, column.name) for column in table.columns].index((group, name))
    return next(one for one in table.rows if one.label == method).cells[index]


def terminal(table):
    console = Console(width=80, force_terminal=False, file=io.StringIO(), legacy_windows=False)
    console.print(to_rich(table))
    return console.file.getvalue()


def told(table):
    return " | ".join(table.notes)


# Tables.


def test_table2_has_the_papers_shape_and_names_its_judge(records):
    tables = by_name(records)
    assert list(tables)[:2] == ["table2-is-digits", "table2-fid-digits"]
    table = tables["table2-fid-digits"]
    assert table.title == "Table 2: FID[digits-resnet10] (demo, digits, mae-mini, rub-paper-1)"
    assert [(column.group, column.title) for column in table.columns] == [
        ("none", "R ↓"), ("none", "F ≈"), ("8/255", "R ↓"), ("8/255", "F ≈"),
        ("unbounded", "R ↓"), ("unbounded", "F ≈"),
    ]  # fmt: skip
    assert [column.title for column in tables["table2-is-digits"].columns][:2] == ["R ↑", "F ≈"]
    assert [one.title for one in table.rows] == [
        "[original]", "[retrain]", "[random_init]", "i2i", "salun", "max-loss", HOSTILE,
    ]  # fmt: skip


def test_means_intervals_and_the_papers_numbers(records):
    table = by_name(records, paper_numbers("table2"))["table2-fid-digits"]
    retained = found(table, "i2i", "none", "R")
    half = T2 * 2 / math.sqrt(3)  # 100, 102, 104: standard deviation 2
    assert (retained.value, retained.high - retained.value) == pytest.approx((102, half))
    assert retained.parts == ("102.00", "±4.97", "(100.15)")
    assert found(table, "i2i", "unbounded", "F").parts == ("105.50", "±0.00", "(110.29)")
    assert found(table, "original", "none", "F").parts == ("300.00", "(103.38)")
    assert found(table, "original", "8/255", "F").parts == ("110.00",)
    assert "in parentheses: the paper's own number" in told(table)
    assert "in parentheses" not in told(by_name(records)["table2-fid-digits"])


def test_the_notes_tell_counts_seeds_settings_and_how_to_read_it(records):
    tables = by_name(records)
    first, fid = told(tables["table2-is-digits"]), told(tables["table2-fid-digits"])
    assert "means over 3 unlearning seeds" in first
    assert "given one original, one choice of images and masks" in first
    assert "N: 200 for none R, none F, 8/255 R" in fid
    assert "lower FID on F after the attack means that the attack brought the class back" in fid
    assert "is: 10 splits, shuffled, seed 2020" in first
    assert f"judge: {JUDGE}" in fid


def test_too_few_images_for_the_judge_are_warned_of_where_they_matter(records):
    tables = by_name(records)
    warned = {name for name, table in tables.items() if "warning: too few images for FID" in told(table)}
    assert warned == {"table2-fid-digits"}
    enough = [one.model_copy(update={"setting": one.setting.partition(";")[0]}) for one in records]
    assert not any("warning" in told(table) for table in inpainting_tables(enough))


def test_two_judges_never_share_a_column(records):
    more = [one.model_copy(update={"value": 1.5}) for one in rows_of("i2i", judge=OTHER) if one.extractor]
    tables = by_name([*records, *more])
    assert found(tables["table2-fid-digits"], "i2i", "none", "R").value == pytest.approx(102)
    second = tables["table2-fid-2-digits"]
    assert "FID[inception-v3-compat]" in second.title
    assert found(second, "i2i", "none", "R").parts == ("1.50",)
    assert found(second, "original", "none", "R").text == "-"
    assert found(second, "max-loss", "none", "R").text == "failed"
    assert found(tables["back-8-digits"], "i2i", "back", "F").value == pytest.approx(80)


def test_judges_of_one_name_are_told_apart_by_their_hash(records):
    again = [one.model_copy(update={"extractor": "digits-resnet10@99"}) for one in rows_of("i2i") if one.extractor]
    titles = [table.title for table in inpainting_tables([*records, *again]) if table.name.startswith("table2-fid")]
    assert ["FID[digits-resnet10@3f2a00]" in titles[0], "FID[digits-resnet10@99]" in titles[1]] == [True, True]


def test_what_comes_back_has_its_controls_beside_it(records):
    parts = [table for name, table in by_name(records).items() if name.startswith("back-8-digits")]
    columns = [column for table in parts for column in table.columns]
    assert [(column.group, column.title) for column in columns] == [
        ("back", "F ≈"), ("back", "R ≈"), ("never gone", "F ≈"), ("never gone", "R ≈"), ("F and control", "all F ≈"),
        ("F and control", "steered"), ("F and control", "selectivity ≈"), ("F and control", "excess ↓"),
        ("noise", "F ≈"), ("noise", "R ≈"),
    ]  # fmt: skip
    shown = ["80.0", "85.0", "0.0", "90.0", "80.0", "10.0", "2.5", "60.0", "4.0", "3.0"]
    assert [one.parts[0] for table in parts for one in table.rows[3].cells] == shown
    assert "150 for back F, back R" in told(parts[0])
    near = by_name(records)["near-8-digits"]
    assert [(column.group, column.title) for column in near.columns] == [
        ("MSE", "F ≈"), ("MSE", "R ↓"), ("PSNR", "F ≈"), ("PSNR", "R ↑")
    ]  # fmt: skip
    assert [one.parts[0] for one in near.rows[3].cells] == ["0.0321", "0.0321", "16.0", "16.0"]
    clean = by_name(records)["back-none-digits"]
    assert [(column.group, column.name) for column in clean.columns][:4] == [
        ("never gone", "F"), ("never gone", "R"), ("skill", "F"), ("skill", "R")
    ]  # fmt: skip


def test_every_number_of_f_has_that_of_r_beside_it(records):
    for table in inpainting_tables(records):
        places = {column.place for column in table.columns}
        for place in places:
            if place.split == "forget" and place.metric in ("back", "skill", "psnr", "fid", "is", "kid", "ssim"):
                assert place._replace(split="retain") in places, (table.name, place)


def test_damage_is_no_forgetting(records):
    table = by_name(records)["contrast-digits"]
    assert [(column.group, column.title) for column in table.columns] == [
        (f"{name}, F - R", f"{budget} ≈") for name in ("skill", "FID") for budget in ("none", "8/255", "unbounded")
    ]
    assert found(table, "i2i", "skill, F - R", "none").value == pytest.approx(31)
    notes = told(table)
    assert f"F lost no more than R (95 % interval) with {table.rows[-1].label}: what changed" in notes
    assert "less than 95 % of the original's skill is left on R with salun" in notes
    assert "F was forgotten and R kept by i2i" in notes
    few = [one for one in records if one.method not in ("i2i", HOSTILE)]
    assert "none of 1 methods forgot F and kept R" in told(by_name(few)["contrast-digits"])
    single = [one for one in records if one.method in ("original", "i2i") and one.unlearn_seed == 0]
    assert "F was forgotten and R kept by i2i" in told(by_name(single)["contrast-digits"])  # over images, .25 to .35


def test_recovery_that_steering_explains_is_called_no_evidence(records):
    note = next(note for note in by_name(records)["back-8-digits"].notes if "no evidence" in note)
    assert note.startswith("steered is about as high as recovered on F for salun:")  # .48 of .5; i2i: .1 of .8


@pytest.mark.parametrize(
    ("recovered", "steered", "flagged"),
    [
        (0.30, 0.26, True),  # within 5 points
        (0.30, 0.40, True),  # above
        (0.30, 0.05, False),
        (0.00, 0.00, False),  # nothing came back
        (0.30, 0.20, True),  # Wilson: .241 to .367 of 200 and .133 to .289 of 100
        (0.30, 0.13, False),  # .241 to .367 and .078 to .210
    ],
)
def test_the_steering_rule(recovered, steered, flagged):
    at = {"attack": "uma", "budget": "8/255"}
    rows = [
        row("i2i", "recovered", "forget", recovered, **at),
        row("i2i", "recovered", "steered", steered, n=100, **at),
    ]
    assert any("no evidence" in note for table in inpainting_tables(rows) for note in table.notes) is flagged


def test_unfinished_searches_and_failures_are_marked(records):
    tables = by_name(records)
    back = tables["back-8-digits"]
    assert found(back, "salun", "back", "F").parts[0] == "50.0!"
    assert "! the attack was still improving at its last step: more might be recovered" in back.notes
    fid = tables["table2-fid-digits"]
    assert {one.text for one in fid.rows[5].cells} == {"failed"}
    assert found(fid, "salun", "none", "R").parts[0] == "101.00*"
    first = told(tables["table2-is-digits"])
    assert "failed cells of max-loss: unlearn max-loss, seed 0: diverged" in first
    assert "failed cells of salun: measure salun, seed 2: out of memory" in first


def test_what_needs_no_attack_is_said_and_whether_retrain_is_among_it():
    shares = {"original": 1.0, "retrain": 0.95, "i2i": 0.6, "salun": 0.4}
    rows = [row(method, "recovered", "forget", share) for method, share in shares.items()]
    [table] = inpainting_tables(rows)
    assert table.title.startswith("What is there: without an attack")
    assert "even the [retrain] model makes 95 % of F as the original does" in told(table)
    assert "most of F was never gone for i2i: there it was hardly unlearned" in told(table)
    quiet = [one.model_copy(update={"value": 0.1}) for one in rows]
    assert "most of F" not in told(inpainting_tables(quiet)[0])


def test_records_that_no_table_shows_give_none():
    assert inpainting_tables([row("i2i", "psnr", "steered", 0.5)]) == []


def test_nothing_but_failures_still_gives_a_table(records):
    tables = inpainting_tables([one for one in records if one.method == "max-loss"])
    assert tables[0].title.startswith("Table 2: IS (")
    assert "failed cells of max-loss" in told(tables[0])


def test_many_budgets_give_a_curve_and_the_headline_stays():
    levels = ["1/255", "2/255", "8/255", "16/255", "unbounded", "free"]
    rows = [
        row("i2i", metric, "forget", 0.1 * (k + 1), attack="uma", budget=budget)
        for k, budget in enumerate(levels) for metric in ("recovered", "back", "mse_original", "fid")
    ]  # fmt: skip
    tables = by_name(rows)
    assert [column.group for column in tables["table2-fid-digits"].columns] == ["8/255", "unbounded"]
    curve = tables["back-curve-digits"]
    assert [column.name for column in curve.columns] == levels
    assert found(curve, "i2i", "F back at", "free").value == pytest.approx(60)
    assert [name for name in tables if name.startswith("back-")] == [
        "back-8-digits", "back-unbounded-digits", "back-free-digits", "back-curve-digits",
    ]  # fmt: skip
    assert headline([]) == []
    assert headline(["free"]) == ["free"]


def test_every_cell_is_whole_in_a_terminal_of_80_columns(records):
    tables = inpainting_tables(records, paper_numbers("table2"))
    for table in tables:
        printed = terminal(table)
        assert max(map(len, printed.splitlines())) <= 80
        assert "…" not in printed
        words = printed.split()
        assert all(part in words for one in table.rows for found in one.cells for part in found.parts if part)
    assert len({table.name for table in tables}) == len(tables)


def test_hostile_names_stay_text_in_every_format(records):
    for table in inpainting_tables(records):
        assert "<script" not in to_markdown(table)
        assert r"\textless{}script" in to_latex(table)
    units = {line.split(",")[4] for line in to_csv(by_name(records)["near-8-digits"]).splitlines()[1:]}
    assert units == {"mse", "dB"}


def test_groups_and_tasks_are_never_mixed(records):
    other = [one.model_copy(update={"dataset": "cifar10", "value": 0.0}) for one in records if one.value]
    foreign = [one.model_copy(update={"task": "classification"}) for one in records]
    tables = by_name([*records, *other, *foreign])
    assert found(tables["table2-fid-digits"], "i2i", "none", "R").value == pytest.approx(102)
    assert found(tables["table2-fid-cifar10"], "i2i", "none", "R").value == 0


# Figures and galleries.


def test_robustness_is_what_stays_away_and_utility_the_skill_on_kept_images(records):
    [axes] = figures._robustness(records, ["8/255", "unbounded"], REPORTING, "uma").axes
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert lines["i2i"] == pytest.approx([80, 80])
    assert axes.get_ylabel() == "forgotten images back (%)"
    [axes] = figures._utility(records, "unbounded", REPORTING, "uma").axes
    points = {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines}
    assert points["i2i"] == pytest.approx((20, 87))
    assert axes.get_ylabel() == "utility, skill on kept images (%)"


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "side", "scale"), [(1, 32, 4), (3, 32, 4), (3, 224, 1), (1, 8, 14)])
def test_a_gallery_is_a_picture_of_whole_pixels(tmp_path, channels, side, scale):
    made = tiles(channels, side, count=2)
    [drawn] = draw_galleries([gallery(tmp_path, "g", **made)], tmp_path / "figures")
    assert drawn.name == "gallery-i2i-forget-digits"
    picture = matplotlib.image.imread(tmp_path / "figures" / f"{drawn.name}.png")[..., :3]
    picture = (picture * 255).round().astype(np.uint8)
    size, shown = side * scale, {}
    for index, column in ((0, 0), (1, 0), (1, -1)):
        tile = made["tiles"][index, column].repeat(scale, axis=0).repeat(scale, axis=1)
        shown[index, column] = np.broadcast_to(tile, (size, size, 3))
    step = size + 6
    top, left = picture.shape[0] - 2 * step, picture.shape[1] - len(TILES) * step
    assert np.array_equal(picture[top : top + size, left : left + size], shown[0, 0])
    assert np.array_equal(picture[top + step : -6, left : left + size], shown[1, 0])
    assert np.array_equal(picture[top + step : -6, -step:-6], shown[1, -1])
    assert (picture[:top] < 128).any()  # titles


def test_galleries_differ_where_tiles_differ_and_do_not_overwrite_each_other(tmp_path):
    rows = [gallery(tmp_path, f"g{seed}", **tiles(seed=seed)) for seed in range(2)]
    rows += [gallery(tmp_path, "r", "original", "retain", **tiles()), gallery(tmp_path, "h", HOSTILE, **tiles())]
    drawn = draw_galleries(rows, tmp_path / "figures")
    assert [one.name for one in drawn] == [
        "gallery-i2i-forget-digits", "gallery-i2i-forget-digits-2", "gallery-original-retain-digits",
        "gallery-script-alert-1---script-----x-forget-digits",
    ]  # fmt: skip
    pictures = [(tmp_path / "figures" / f"{one.name}.png").read_bytes() for one in drawn]
    assert len(set(pictures)) == 4
    assert drawn[2].caption.startswith("[original], seed 0: kept images (digits, mae-mini). Columns: image, masked,")


@pytest.mark.parametrize(
    "changed",
    [
        {"columns": np.array(["image"])}, {"ids": np.arange(9)}, {"tiles": np.zeros((3, 8, 4, 4, 2), np.uint8)},
        {"tiles": np.zeros((3, 8, 4, 4, 1))}, {"columns": np.array([None] * 8)},
    ],
)  # fmt: skip
def test_what_is_no_gallery_is_refused_in_one_line(tmp_path, changed):
    path = gallery(tmp_path, "g", **(tiles() | changed))["path"]
    with pytest.raises(RubError, match="should") as refused:
        read_tiles(path)
    assert "\n" not in str(refused.value)
    path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(RubError, match="cannot be read"):
        read_tiles(path)


# The page.


@pytest.mark.slow
def test_the_page_shows_tables_figures_and_galleries_and_escapes_names(records, curves, tmp_path):
    galleries = [gallery(tmp_path, "g", **tiles()), gallery(tmp_path, "h", HOSTILE, "retain", **tiles())]
    facts = {"suite": {"name": "demo", "experiments": [{"task": "inpainting", "name": "", "paper": "table2"}]}}
    index = write_report(records, curves, tmp_path, facts, galleries=galleries)
    [page] = (index.parent / "experiments").iterdir()
    text = page.read_text()
    assert text.count("<script") == 1  # the page's own, which sorts tables
    assert HOSTILE not in text
    for name in (
        "robustness-digits.svg", "controls-digits.svg", "utility-digits.svg", "success-digits.svg", "loss-digits.svg",
        "gallery-i2i-forget-digits.png",
    ):  # fmt: skip
        assert f'src="../../figures/{name}"' in text
        assert (tmp_path / "figures" / name).is_file()
    for expected in ("Table 2", "(100.15)", "no evidence of residual knowledge", "Control: a model that was never"):
        assert expected in text
    assert "(110.29)" in (tmp_path / "tables" / "table2-fid-digits.md").read_text()


@pytest.mark.slow
def test_two_tasks_in_one_result_keep_apart(records, curves, tmp_path):
    from rub.tasks.classification.metrics import cell as classified

    other = [
        Record.model_validate(
            {
                **COMMON,
                "task": "classification",
                "value": 0.5,
                **classified("ft", 0, "ua", attack=attack, budget=budget),
            }
        )
        for attack, budget in (("none", "none"), ("uma", "8/255"), ("uma", "16/255"), ("uma", "32/255"))
    ]
    index = write_report([*records, *other], curves, tmp_path, {})
    names = sorted(path.name for path in (tmp_path / "figures").glob("*.svg"))
    assert {"robustness-classification-digits.svg", "robustness-inpainting-digits.svg"} <= set(names)
    written = {path.name for path in (tmp_path / "tables").glob("*.csv")}
    assert {"table1-digits.csv", "curve-digits.csv", "table2-fid-digits.csv", "back-8-digits.csv"} <= written
    text = index.read_text()
    assert text.index("Image classification: digits") < text.index("Image-to-image: digits")
    assert len(list((index.parent / "experiments").iterdir())) == 2
