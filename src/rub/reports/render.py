"""A `Table` as rich text for the terminal, Markdown, LaTeX (booktabs), and CSV with the raw numbers."""

import csv
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rub.reports.table import Table, column_groups

if TYPE_CHECKING:
    from rich.console import Group as RichGroup
    from rich.text import Text

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "≈": r"$\approx$", "[": "{[}",
    "*": "{*}",
}  # fmt: skip
_LATIN_END = "\u0180"
_MARKDOWN = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\n": " "} | {c: "\\" + c for c in "\\|`*_[]#"}


def to_rich(table: Table) -> "RichGroup":
    """Title, table and notes for a terminal: parts of a cell below each other, controls in brackets on top.

    Example:
        >>> from rub.reports.table import Table
        >>> to_rich(Table("empty", "Empty", (), (), ("a note",))).renderables[0].plain
        'Empty'
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(box=box.HORIZONTALS, show_edge=False, padding=0)
    made.add_column(table.head, min_width=table.label_width, max_width=table.label_width, overflow="fold")
    for column, width in zip(table.columns, table.widths, strict=True):
        made.add_column(Text(column.title), min_width=width, no_wrap=True, justify="right")
    last_control = sum(row.control for row in table.rows) - 1
    for index, row in enumerate(table.rows):
        label = Text(row.title, style="italic" if row.control else "")
        cells = [Text("\n").join(_styled(cell.parts)) for cell in row.cells]
        made.add_row(label, *cells, end_section=index == last_control)
    upper = Text(_upper(table), style="bold", no_wrap=True, overflow="crop")
    notes = Text("\n".join(table.notes) + "\n", style="dim")
    return Group(Text(table.title, style="bold"), *([upper] if upper.plain else []), made, notes)


def _upper(table: Table) -> str:
    line = " " * table.label_width
    for name, first, length in column_groups(table.columns):
        line += " " + name.center(sum(table.widths[first : first + length]) + length - 1)
    return line.rstrip()


def to_markdown(table: Table) -> str:
    r"""A GitHub table with its title and notes; every text is escaped.

    Example:
        >>> from rub.reports.table import Table
        >>> to_markdown(Table("t", "a|b", (), (), ()))
        '### a\\|b\n\n| method |\n|:---|\n'
    """
    heads = [table.head, *(" ".join(part for part in (c.group, c.title) if part) for c in table.columns)]
    lines = [f"### {_markdown(table.title)}", ""]
    lines += [_line(heads), "|:---|" + "---:|" * len(table.columns)]
    lines += [_line([row.title, *(cell.text for cell in row.cells)]) for row in table.rows]
    if table.notes:
        lines += ["", *(f"- {_markdown(note)}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def to_latex(table: Table) -> str:
    r"""A ``table`` environment for booktabs, title as caption, notes below; every text is escaped.

    Example:
        >>> from rub.reports.table import Table
        >>> r"\caption{50\% \& more}" in to_latex(Table("t", "50% & more", (), (), ()))
        True
    """
    spans = list(column_groups(table.columns))
    upper = " & ".join(["", *(rf"\multicolumn{{{n}}}{{c}}{{{_latex(name)}}}" for name, _, n in spans)])
    rules = "".join(rf"\cmidrule(lr){{{first + 2}-{first + n + 1}}}" for name, first, n in spans if name)
    lower = " & ".join([table.head, *(_latex(column.title) for column in table.columns)])
    lines = [
        r"\begin{table}", r"\centering", r"\footnotesize", r"\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{_latex(table.title)}}}", rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}", r"\toprule", rf"{upper} \\", rules, rf"{lower} \\",
        r"\midrule",
    ]  # fmt: skip
    for row, following in zip(table.rows, (*table.rows, None)[1:], strict=False):
        lines.append(" & ".join([_latex(row.title), *(_latex(cell.text) for cell in row.cells)]) + r" \\")
        if row.control and following is not None and not following.control:
            lines.append(r"\midrule")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par {{\footnotesize {_latex(note)}}}" for note in table.notes]
    return "\n".join([line for line in lines if line] + [r"\end{table}", ""])


def to_csv(table: Table) -> str:
    r"""One line per cell with its raw numbers, in the column's unit: value, low, high, paper.

    Example:
        >>> from rub.reports.table import Table
        >>> to_csv(Table("t", "empty", (), (), ()))
        'method,control,group,column,unit,value,low,high,paper,text,note\n'
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((table.head, "control", "group", "column", "unit", "value", "low", "high", "paper", "text", "note"))
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            unit = "text" if column.place is None else "percent" if column.percent else column.unit
            found = (cell.value, cell.low, cell.high, cell.paper)
            numbers = ("" if number is None else repr(number) for number in found)
            label, *texts, note = map(_no_formula, (row.label, column.group, column.name, unit, cell.note))
            writer.writerow((label, int(row.control), *texts, *numbers, cell.text, note))
    return out.getvalue()


def _styled(parts: tuple[str, ...]) -> Iterator["Text"]:
    from rich.text import Text

    for index, part in enumerate(parts):
        yield Text(part, style="bold red" if part.startswith("failed") else "dim" if index else "")


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(_markdown(cell) for cell in cells) + " |"


def _markdown(text: str) -> str:
    return "".join(_MARKDOWN.get(char, char) for char in text)


def _latex(text: str) -> str:
    """Escaped text; letters outside Latin, which plain pdflatex does not know, become question marks."""
    return "".join(_LATEX.get(char, char if char < _LATIN_END else "?") for char in text)


def _no_formula(text: str) -> str:
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20") else text
