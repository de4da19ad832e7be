"""The files beside the code: forms and workflows that parse, links that lead somewhere."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FORMS = sorted([*ROOT.glob(".github/**/*.yml"), ROOT / "CITATION.cff"])
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/README.md")])


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_forms_workflows_and_the_citation_parse(path):
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    if path.parent.name == "ISSUE_TEMPLATE" and path.name != "config.yml":
        assert found["name"]
        assert {part["type"] for part in found["body"]} <= {"input", "textarea", "dropdown", "checkboxes"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?:|mailto:", target):
            file, _, anchor = target.partition("#")
            place = (path.parent / file) if file else path
            words = place.read_text(encoding="utf-8") if place.suffix == ".md" and place.is_file() else ""
            heads = re.findall(r"^#+ (.*)$", words, re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", head.lower()).strip().replace(" ", "-") for head in heads}
            if not place.exists() or (anchor and place.suffix == ".md" and anchor not in slugs):
                lost.append(target)
    assert lost == []


def test_the_licence_and_the_version_are_the_package_s():
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    package = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{about["version"]}"' in package
    assert f'license = "{about["license"]}"' in package
