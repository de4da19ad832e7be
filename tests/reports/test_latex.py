"""The LaTeX of every table compiles, hostile names included."""

import shutil
import subprocess

import pytest

from rub.reports.render import to_latex
from rub.reports.tables import paper_numbers
from rub.tasks.classification.tables import classification_tables

LATEX = shutil.which("pdflatex")
HEAD = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs}\begin{document}"


def compiled(tables, folder):
    """Return LaTeX's exit code and its log; the tables of a page each, as a paper would hold them."""
    body = "\n\\clearpage\n".join(to_latex(table) for table in tables)
    (folder / "all.tex").write_text(f"{HEAD}\n{body}\n\\end{{document}}\n", encoding="utf-8")
    command = [LATEX, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "all.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    return done.returncode, done.stdout


@pytest.mark.skipif(not LATEX, reason="no pdflatex here; .ci/run installs it")
def test_tables_compile(records, make_row, tmp_path):
    names = [
        r"\input{/etc/passwd}",
        r"a_b^c~d",
        "100 % & $x$ #1",
        "{",
        "}",
        "\\",
        "<>|\"'`",
        "x\x1b[2J\n\ny",
        "Ünïcödé ±↑↓≈",
        "名前 😀 מה",
    ]
    places = (("none", "none"), ("uma", "8/255"), ("uma", "16/255"))
    hostile = [
        make_row(name, "ua", 0.5, attack=attack, budget=budget, model=names[0], dataset=names[2])
        for name in names
        for attack, budget in places
    ]
    tables = [*classification_tables(records, paper_numbers("table1/cifar10")), *classification_tables(hostile)]
    assert len(tables) >= 5
    code, log = compiled(tables, tmp_path)
    assert code == 0, log[-2000:]
    assert (tmp_path / "all.pdf").stat().st_size > 10_000
