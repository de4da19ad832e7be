"""The site in a real browser: it sorts, filters, leads from a number to its records, and keeps to itself."""

import json
import shutil

import numpy as np
import pytest

from rub.reports.writing import write_report, write_reports
from rub.store.manifest import seal_folder
from rub.store.records import write_records

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here; .ci/run installs it"),
    pytest.mark.xdist_group("browser"),
]
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def site(records, curves, tiny_out, tmp_path_factory):
    """Three result folders as one site: synthetic records with hostile names and a gallery, a run, a changed one."""
    folder = tmp_path_factory.mktemp("site")
    one = folder / "one"
    group = {
        name: getattr(records[0], name) for name in ("task", "suite", "experiment", "dataset", "model", "protocol")
    }
    tiles = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 1), dtype=np.uint8)
    one.mkdir()
    np.savez(folder / "gallery.npz", tiles=tiles, columns=["a", "b", "c"], ids=[1, 2])
    gallery = {**group, "method": "ft", "unlearn_seed": 0, "split": "forget", "path": folder / "gallery.npz"}
    captioned = pytest.MonkeyPatch()
    from rub.tasks.classification.report import REPORTING

    captioned.setitem(REPORTING.captions, "gallery", "Made up.")
    write_records(records, {}, one)
    (one / "curves.json").write_text(json.dumps(curves))
    write_report(records, curves, one, {"command": "rub run demo"}, galleries=[gallery])
    captioned.undo()
    seal_folder(one, {"command": "rub run demo", "code_version": ""})
    changed = shutil.copytree(tiny_out, folder / "changed")
    (changed / "suite.yaml").write_text("name: <img src=x onerror=alert(1)>")
    write_reports([one, tiny_out, changed], folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tools:
        made = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def visit(browser, site):
    """Open a page of the site; at the end, nothing may have been said on the console or asked for elsewhere."""
    contexts, said, asked = [], [], []

    def go(place="index.html", listen=True, **settings):
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        if listen:
            page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / place).as_uri() if "#" not in place else f"{site.as_uri()}/{place}")
        return page

    yield go
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith((site.as_uri(), "data:,"))] == []


def column(page, name):
    """Return the texts of a column of the first board, each with its method."""
    heads = page.locator("#board-1 thead tr:last-child th").all_text_contents()
    rows = page.locator("#board-1 tbody tr").all()
    cells = [row.locator("th, td").nth(heads.index(name)).text_content() for row in rows]
    methods = page.locator("#board-1 tbody th").all_text_contents()
    return [(cell.split(" ")[0].rstrip("*!"), method) for cell, method in zip(cells, methods, strict=True)]


def numbers(page):
    return [float(value) for value, _ in column(page, "TA ↑") if value[0].isdigit()]


def test_sorting_by_mouse_and_keyboard_and_the_address_keeps_it(visit):
    page = visit()
    before = column(page, "TA ↑")
    head = page.locator("#board-1 thead tr:last-child th", has_text="TA ↑")
    head.locator("button").click()
    values = numbers(page)
    assert values == sorted(values)
    assert len(set(values)) > 2
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").focus()
    page.keyboard.press("Enter")
    values = numbers(page)
    assert values == sorted(values, reverse=True)
    assert column(page, "TA ↑")[-1][0] == "failed", "what is no number stands last in both orders"
    again = visit("index.html#" + page.url.partition("#")[2])
    assert column(again, "TA ↑") == column(page, "TA ↑")
    page.keyboard.press("Enter")
    assert column(page, "TA ↑") == before


# Waiting is left to `expect`: a function that the page itself evaluates again and again, its own policy forbids.


def test_filters_and_a_link_to_the_view(visit):
    from playwright.sync_api import expect

    page = visit()

    def shown():
        return page.locator("table.board tbody tr:visible th").all_text_contents()

    everything = shown()
    page.get_by_label("Search").fill("salun")
    assert set(shown()) == {"[original]", "[retrain]", "[sham]", "salun"}
    page.get_by_label("controls").uncheck()
    assert shown() == ["salun"]
    assert page.locator("output").text_content() == "1 row"
    again = visit("index.html#" + page.url.partition("#")[2])
    assert again.locator("table.board tbody tr:visible th").all_text_contents() == ["salun"]
    assert not again.get_by_label("controls").is_checked()
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("output")).not_to_have_text("1 row")
    assert shown() == everything
    page.get_by_label("Data").select_option("digits")
    assert page.locator("section.boards:visible").count() == 1
    assert set(shown()) == {"[original]", "[retrain]", "[sham]", "[zero-row]", "ft"}


def test_a_number_leads_to_its_records(visit):
    page = visit()
    row = page.locator("#board-1 tbody tr").filter(has=page.get_by_role("link", name="ft", exact=True))
    row.get_by_role("link", name="92.0").click()
    cell = page.locator("details.cell[open]")
    cell.wait_for()
    assert cell.count() == 1
    assert cell.is_visible()
    assert "ft, ta, on test: 0.92" in cell.locator("summary").text_content()
    assert cell.locator("tbody tr").count() == 3
    assert "0.1.0+abc" in cell.text_content()


def test_pictures_render_and_cells_stay_on_the_page(visit, site):
    from playwright.sync_api import expect

    [page] = [visit(f"experiments/{path.name}") for path in (site / "experiments").glob("demo-*")]
    pictures = page.locator("img")
    assert pictures.count() == 6
    for index in range(6):
        pictures.nth(index).scroll_into_view_if_needed()
        expect(pictures.nth(index)).to_have_js_property("complete", True)
        assert pictures.nth(index).evaluate("image => image.naturalWidth") > 50
    page.locator("table.sortable td a").first.click()
    page.locator("details.cell[open]").wait_for()
    assert page.locator("details.cell[open]").count() == 1


def pages(site):
    """Return one page of each kind."""
    yield from ("index.html", "words.html", "methods/classification-salun.html")
    yield f"experiments/{next((site / 'experiments').glob('demo-*')).name}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(visit, site, scheme):
    from axe_playwright_python.sync_playwright import Axe

    for place in pages(site):
        page = visit(place, listen=False, color_scheme=scheme)  # axe itself asks for the style sheet, in vain
        page.evaluate("document.querySelectorAll('details').forEach((one, k) => { one.open = k < 6 })")
        found = Axe().run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in SERIOUS] == [], place


def test_phone_width_does_not_scroll_sideways(visit, site):
    for place in pages(site):
        page = visit(place, viewport={"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, place


def test_by_keyboard_the_first_stop_skips_to_the_content(visit):
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    page.wait_for_url("**#main")


def test_without_scripts_everything_is_there(visit):
    page = visit(java_script_enabled=False)
    assert page.locator("table.board tbody tr:visible").count() > 10
    assert page.locator("#refused").is_visible()
    assert "<img src=x" not in page.content()
