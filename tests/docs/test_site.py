"""The pages of docs/ as a site, and the notebooks that its tutorials are made of."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    said = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    suites = (tmp_path / "site/reference/suites/index.html").read_text(encoding="utf-8")
    assert all(f"<code>{key}</code>" in suites for key in ("seeds.originals", "forget.fraction", "concept.name"))
    commands = (tmp_path / "site/reference/cli/index.html").read_text(encoding="utf-8")
    assert all(word in commands for word in ("rub audit classification", "--retrained", "rub zoo verify"))
    python = (tmp_path / "site/reference/python/index.html").read_text(encoding="utf-8")
    assert "rub.recover" in python
    tutorial = (tmp_path / "site/tutorials/audit/index.html").read_text(encoding="utf-8")
    assert "Verdict: hidden" in tutorial
    assert "colab.research.google.com" in tutorial


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_says_what_is_kept_in_it(path, tmp_path, monkeypatch):
    """Of words alone: numbers differ in their last digits between machines."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    kept = [bool(cell.get("outputs")) for cell in notebook.cells]
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert [bool(cell.get("outputs")) for cell in notebook.cells] == kept
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    wanted = {
        "method": ["dose left, by the input search", "0 do not"],
        "audit": ["Verdict: hidden", "no residual found", "0 do not"],
        "attack": ["retrain  corners (0.0, 0.0, 0.0)"],
    }
    assert all(words in said for words in wanted[path.stem])
