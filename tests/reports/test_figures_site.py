"""Figures show the records' numbers and keep their legends clear; the page is static, escaped and self-contained."""

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest

from rub.reports import figures, galleries
from rub.reports.writing import write_report
from rub.store.records import read_records, write_records
from rub.tasks.classification.report import REPORTING

FACTS = {
    "command": "rub run demo --out '<out>'",
    "suite": {
        "name": "demo",
        "summary": "a demonstration <b>",
        "experiments": [
            {
                "task": "classification", "name": "", "paper": "table1/cifar10",
                "protocol": {"name": "rub-paper-1", "summary": "as close as can be", "shadows_per_seed": 2},
            }
        ],
    },
}  # fmt: skip


class Page(HTMLParser):
    """Collects tags, resources and text, and checks that tags are balanced."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.resources, self.links, self.ids, self.scripts, self.open, self.text = [], [], [], 0, [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.resources += [given[name] for name in ("src", "srcset", "poster", "data") if given.get(name)]
        self.resources += [given["href"]] if tag == "link" else []
        self.links += [given["href"]] if tag == "a" else []
        self.ids += [given["id"]] if "id" in given else []
        self.scripts += tag == "script"
        assert not any(name.startswith("on") for name in given)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def out(records, curves, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    write_records(records, {}, folder)
    (folder / "suite.yaml").write_text("name: demo\n")
    assert write_report(read_records(folder), curves, folder, FACTS) == folder / "report" / "index.html"
    return folder


@pytest.mark.slow
def test_report_folder_is_whole(out):
    tables = {path.name for path in (out / "tables").iterdir()}
    assert {f"table1-cifar10.{suffix}" for suffix in ("md", "tex", "csv")} <= tables
    assert len(tables) == 3 * 5
    assert "(91.82)" in (out / "tables" / "table1-cifar10.md").read_text()
    drawn = sorted(path.name for path in (out / "figures").iterdir())
    kinds = ("controls", "loss", "robustness", "success", "utility")
    assert drawn == [f"{kind}-cifar10.{suffix}" for kind in kinds for suffix in ("png", "svg")]
    for path in (out / "figures").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    for path in (out / "figures").glob("*.svg"):
        ElementTree.fromstring(path.read_bytes())


def pages(out):
    """Return every page of the site with its path."""
    return [(path, Page(path.read_text())) for path in sorted((out / "report").rglob("*.html"))]


def test_pages_load_nothing_from_elsewhere_and_their_links_lead_somewhere(out):
    found = pages(out)
    folders = [path.parent.name for path, _ in found]
    assert (folders.count("report"), folders.count("experiments"), folders.count("methods")) == (2, 1, 9)
    known = {path.resolve(): page.ids for path, page in found}
    for path, page in found:
        text = path.read_text()
        assert not any(word in text for word in ("http:", "https:", "url(", "@import", "<iframe", "javascript:"))
        assert len(page.ids) == len(set(page.ids))
        for target in (*page.resources, *page.links):
            if target == "data:,":  # no icon
                continue
            name, _, anchor = target.partition("#")
            place = (path.parent / unquote(name)).resolve() if name else path.resolve()
            assert place.is_file(), target
            assert not anchor or anchor in known[place], target
    assert "url(" not in (out / "report" / "site.css").read_text()


def test_hostile_names_are_text_on_every_page(out, hostile):
    seen = ""
    for path, page in pages(out):
        assert page.scripts == 1
        assert hostile not in path.read_text()
        seen += page.text
    assert hostile in seen
    assert "rub run demo --out '<out>'" in seen


def test_the_experiment_says_what_was_run_and_what_failed(out):
    [page] = (out / "report" / "experiments").iterdir()
    text = Page(page.read_text()).text
    for expected in (
        "rub-paper-1: as close as can be", "shadows_per_seed: 2", "cpu test", "0.1.0+abc", "numpy",
        "3 for unlearning, 2 for membership inference", "unlearn rl, seed 2: out of memory",
        "Control: the original with the forgotten outputs switched off",
    ):  # fmt: skip
        assert expected in text
    words = Page((out / "report" / "words.html").read_text()).text
    assert "how well offline RMIA" in words


def test_a_cell_of_the_leaderboard_leads_to_the_records_behind_it(out, records):
    index = (out / "report" / "index.html").read_text()
    row = next(line for line in index.splitlines() if "classification-ft.html" in line)
    [anchor] = re.findall(r'<a href="[^"]*#(c-[0-9a-f]+)">92.0</a>', row)
    [page] = (out / "report" / "experiments").iterdir()
    details = page.read_text().split(f'id="{anchor}"')[1].split("</details>")[0]
    behind = [r for r in records if (r.method, r.metric, r.status) == ("ft", "ta", "ok")]
    assert len(behind) == 3
    for record in behind:
        assert f"<td>{record.value:.6g}</td>" in details
        assert record.code_version in details


def test_the_most_robust_methods_stand_first_below_the_controls(out):
    text = (out / "report" / "index.html").read_text()
    order = re.findall(r'<th scope="row"><a href="methods/[^"]*">([^<]*)</a>', text)
    assert order[:3] == ["[original]", "[retrain]", "[sham]"]
    assert order[3:6] == ["neggrad-plus", "rl", "salun"]


def test_a_method_page_names_its_paper_and_stands_beside_the_controls(out):
    text = Page((out / "report" / "methods" / "classification-salun.html").read_text()).text
    for expected in ("arXiv 2310.12508", "OPTML-Group/Unlearn-Saliency", "[retrain]", "weights outside the mask"):
        assert expected in text


def test_robustness_figure_draws_the_means_and_the_legend_is_beside_the_axes(records):
    figure = figures._robustness(records, ["8/255", "16/255"], REPORTING, "uma")
    [axes] = figure.axes
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert lines["ft"] == pytest.approx([50, 50, 100])
    assert lines["rl"] == pytest.approx([50, 11, 22])
    assert "ga" not in lines
    assert len(lines) == 8
    figure.draw_without_rendering()
    legend, panel, page = axes.get_legend().get_window_extent(), axes.get_window_extent(), figure.bbox
    assert legend.x0 >= panel.x1
    assert page.y0 <= legend.y0 <= legend.y1 <= page.y1
    order = [text.get_text() for text in axes.get_legend().get_texts()]
    assert order.index("ft") < order.index("salun") < order.index("rl") < order.index("neggrad-plus")


def test_all_rows_keep_distinct_looks_and_a_legend_inside_the_figure(make_row):
    from rub.registry import METHODS

    methods = ["original", "retrain", "sham", *(entry.name for entry in METHODS.entries("classification"))]
    looks = [figures.style(method, "classification") for method in methods]
    assert len({(look["color"], look["marker"], str(look["linestyle"])) for look in looks}) == len(methods) > 25
    at = {"attack": "uma", "budget": "8/255"}
    rows = [make_row(method, "ua", 0.5, **(at if k else {})) for method in methods for k in range(2)]
    figure = figures._robustness(rows, ["8/255"], REPORTING, "uma")
    figure.draw_without_rendering()
    legend = figure.axes[0].get_legend().get_window_extent()
    assert legend.y0 >= 0
    assert legend.x0 >= figure.axes[0].get_window_extent().x1


def test_step_panels_average_seeds_and_mark_unfinished_searches(curves):
    own = [curve for curve in curves if (curve["attack"], curve["split"]) == ("uma", "forget")]
    figure = figures._steps(own, "success_curve", ["8/255", "16/255"], "uma")
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_visible()}
    assert {"[original]", "[retrain]", "[sham]", "ft", "rl", "salun !", "neggrad-plus"} <= set(panels)
    assert panels["rl"].lines[1].get_ydata()[-1] == pytest.approx(0.22)
    assert panels["rl"].lines[0].get_ydata()[-1] == pytest.approx(0.11)
    assert len(panels["rl"].lines[0].get_ydata()) == 11


def test_controls_figure_draws_other_images_beside_the_forgotten_ones(records):
    figure = figures._figures(records, [], REPORTING, "uma")["controls"]
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_visible()}
    assert "[retrain]" in panels
    assert "ga" not in panels  # nothing of it was measured
    lines = {line.get_label(): line.get_ydata() for line in panels["rl"].lines}
    assert {name: list(shares) for name, shares in lines.items()} == {
        "forget images": pytest.approx([50, 11, 22]),
        "unseen images of the class": pytest.approx([50, 11, 22]),
        "kept images, steered": pytest.approx([10, 10]),
    }
    assert list(panels["rl"].lines[2].get_xdata()) == [1, 2]  # without an attack nothing is steered
    assert [text.get_text() for text in panels["rl"].get_xticklabels()] == ["0", "8", "16"]
    assert len(panels["rl"].collections) == 3  # bands over its three seeds
    assert not panels["[original]"].collections  # one model


def test_no_controls_no_figure_of_them(records):
    own = [record for record in records if record.split == "forget"]
    assert "controls" not in figures._figures(own, [], REPORTING, "uma")
    lost = [
        row.model_copy(update={"value": None, "status": "failed"}) if row.attack == "uma" else row for row in records
    ]
    assert "controls" not in figures._figures(lost, [], REPORTING, "uma")


@pytest.mark.slow
def test_controls_of_a_search_that_failed_at_the_largest_budget(records):
    rows = [
        row.model_copy(update={"value": None, "status": "failed"})
        if (row.attack, row.budget, row.split) == ("uma", "16/255", "forget")
        else row
        for row in records
    ]
    panels = [
        axes for axes in figures._figures(rows, [], REPORTING, "uma")["controls"].axes if axes.get_title() == "rl"
    ]
    assert list(panels[0].lines[0].get_ydata()) == pytest.approx([50, 11])


def test_utility_figure_puts_each_row_at_its_ta_and_robustness(records):
    [axes] = figures._utility(records, "16/255", REPORTING, "uma").axes
    points = {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines}
    assert points["ft"] == pytest.approx((0, 92))
    assert points["rl"] == pytest.approx((78, 90))


def test_no_records_give_a_page_that_says_so(tmp_path):
    page = write_report([], [], tmp_path, {})
    assert "There are no records" in page.read_text()


@pytest.mark.slow
def test_two_groups_with_one_data_set_do_not_overwrite_each_other(records, curves, tmp_path):
    other = [record.model_copy(update={"protocol": "rub-strict-1"}) for record in records]
    write_report([*records, *other], curves, tmp_path, {})
    assert (tmp_path / "tables" / "table1-cifar10-v2.md").is_file()
    assert (tmp_path / "figures" / "robustness-cifar10-2.svg").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("tiny", [5e-324, 1e-200, 1e-30])
def test_distances_of_many_decades_are_cut_off_before_the_axis_gets_endless(curves, tiny):
    wide = [{**curve, "loss_curve": [1.0, tiny]} for curve in curves]
    figure = figures._steps(wide, "loss_curve", ["8/255", "16/255"], "uma")
    low, high = figure.axes[0].get_ylim()
    assert (low, high) == pytest.approx((1e-8, 2.0))
    figure.draw_without_rendering()


def test_heads_and_titles_of_a_gallery_are_wrapped():
    tiles = galleries.Tiles(np.zeros((1, 2, 8, 8, 3), np.uint8), ("random-prefix", "uma"), (7,))
    shown = [text.get_text() for text in galleries.gallery_figure(tiles, "ft, seed 0: forget images, with $x$").texts]
    assert shown == ["ft, seed 0: forget images,\nwith \\$x\\$", "random-\nprefix", "uma", "#7"]
