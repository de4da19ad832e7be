"""The pages of docs/extend: their examples run as they are printed.

The first code block of a page (python or yaml) is written to the file that its commands name, ``plugin.py`` or
``plugin.yaml``, and one that says a name of its own (```yaml suite.yaml) to that; the commands of its console blocks
(lines that begin with ``$ rub``) are then run in that folder.
"""

import re
import shlex
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PAGES = sorted((Path(__file__).parents[2] / "docs" / "extend").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LONGEST = 60  # lines of code in a file of a page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_example_of_a_page_runs(page, tmp_path, monkeypatch, rub):
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    language, _, code = next(block for block in blocks if block[0] in ("python", "yaml"))
    named = {name: text for _, name, text in blocks if name}
    commands = [
        line.removeprefix("$ ")
        for kind, _, text in blocks
        if kind == "console"
        for line in text.replace("\\\n", " ").splitlines()
        if line.startswith("$ rub ")
    ]
    assert all(len(text.splitlines()) <= LONGEST for text in (code, *named.values()))
    assert commands, "a page shows how its example is used"
    for name, text in {"plugin.py" if language == "python" else "plugin.yaml": code, **named}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUB_STORE", str(tmp_path / "store"))
    for command in commands:
        said = rub(*shlex.split(command)[1:])
        assert said.code == 0, f"{command}\n{said.out}\n{said.err}"
