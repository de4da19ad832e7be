"""Figures from records and attack curves, as PNG (150 dpi) and SVG, readable in print and for the colour-blind.

A method keeps its colour, marker and dash in every figure: seven colours (Okabe & Ito, with Tol's wine for yellow)
solid, then the same seven dashed; controls are black and grey.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rub.metrics.statistics import ORIGINALS, SEEDS
from rub.registry import METHODS
from rub.reports.figure_file import FigureFile, plain
from rub.reports.grouping import (
    Board,
    Group,
    Mains,
    Place,
    board_of,
    budgets_of,
    controls_of,
    estimate,
    grouped,
    is_control,
    kind_of,
    main_attack,
    records_at,
    row_order,
)
from rub.reports.tables import label
from rub.reports.task_report import Axis, TaskReport, reports_of
from rub.reports.text import free_name, slug
from rub.store.records import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rub.metrics.statistics import Interval

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255")
_DASHES: Sequence[Any] = ("-", (0, (4, 1.5)), (0, (4, 1.5, 1, 1.5)))
_BUDGET_COLOURS = ("#0072B2", "#D55E00")  # of the two headline budgets
_BESIDE: Sequence[Mapping[str, Any]] = (  # the forgotten images, then what stands beside them
    {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    {"color": "#D55E00", "linestyle": (0, (5, 2)), "marker": "s"},
    {"color": "#777777", "linestyle": (0, (1, 1.5)), "marker": "X"},
    {"color": "#009E73", "linestyle": (0, (4, 1.5, 1, 1.5)), "marker": "D"},
)
_PIXELS = "/255"  # the unit of most budgets
_MARKERS = "os^DvPX<>ph*d8"
_CONTROL_STYLES: Mapping[str, Mapping[str, Any]] = {
    "original": {"color": "#000000", "linestyle": "-", "marker": "D"},
    "retrain": {"color": "#000000", "linestyle": (0, (5, 2)), "marker": "s"},
    "retrained": {"color": "#000000", "linestyle": (0, (5, 2)), "marker": "s"},
    "sham": {"color": "#777777", "linestyle": (0, (1, 1.5)), "marker": "X"},
    "random_init": {"color": "#777777", "linestyle": (0, (5, 1.5, 1, 1.5)), "marker": "v"},
}
_METADATA: Mapping[str, Mapping[str, Any]] = {"svg": {"Date": None}, "png": {}}
_DECADES = 1e8  # from the highest to the lowest distance that is drawn
_POINTS = 200  # of a step curve that are drawn: more cannot be told apart at this size
_LEGEND_SIZE, _LEGEND_ROWS = 7.5, 25  # points, and the rows of that size that fit beside the axes
_TEXT = {"font.size": 8.0, "axes.titlesize": 8.0, "legend.fontsize": _LEGEND_SIZE, "svg.hashsalt": "rub"}


def draw_figures(
    records: Sequence[Record],
    curves: Iterable[Mapping[str, Any]],
    folder: Path,
    suffixes: Sequence[str] = ("svg", "png"),
    mains: Mains | None = None,
) -> list[FigureFile]:
    """Draw every figure of every group of records into a folder, in the order in which a page should show them.

    Where records are of several tasks, names have the task in them.

    Args:
        records: rows of any tasks.
        curves: the rows of ``curves.json``, one for each search.
        folder: is made when it is not there.
        suffixes: ``svg``, ``png``; each costs about as much.
        mains: main attacks, as suites say them.
    """
    from matplotlib import rc_context

    folder.mkdir(parents=True, exist_ok=True)
    rows = [curve for curve in curves if curve["split"] == "forget"]
    drawn: list[FigureFile] = []
    tasks = reports_of(record.task for record in records)
    with rc_context(_TEXT):
        for task, reporting in tasks.items():
            groups = grouped(records, task)
            for group, own in groups.items():
                mine = [row for row in rows if Group.of(row) == group]
                end = slug("-".join([*([task] if len(tasks) > 1 else []), group.experiment or group.dataset]))
                main = main_attack(own, mains)
                for kind, figure in _figures(own, mine, reporting, main).items():
                    name = free_name(f"{kind}-{end}", {one.name for one in drawn})
                    for suffix in suffixes:
                        figure.savefig(folder / f"{name}.{suffix}", dpi=150, metadata=_METADATA[suffix])
                    head = f"{label(group)}: " if len(groups) > 1 else ""
                    drawn.append(FigureFile(group, name, head + reporting.captions[kind].replace("{main}", main)))
    return drawn


def _figures(
    records: Sequence[Record], curves: Sequence[Mapping[str, Any]], reporting: TaskReport, main: str
) -> dict[str, "Figure"]:
    """Figures of one group by the first part of their names; none where the main attack did not run."""
    budgets = budgets_of(records, main)
    if not budgets:
        return {}
    shown = reporting.headline(budgets)
    figures = {"robustness": _robustness(records, budgets, reporting, main)}
    cells = {(row.metric, row.split) for row in records if row.attack == main and row.value is not None}
    own, *others = ((axis.metric, axis.split) for axis in (reporting.robustness, *reporting.beside.values()))
    if own in cells and not cells.isdisjoint(others):
        figures["controls"] = _controls(records, budgets, reporting, main)
    if any(record.metric == reporting.utility.metric for record in records):
        figures["utility"] = _utility(records, shown[-1], reporting, main)
    drawn = [curve for curve in curves if curve["attack"] == main and curve["budget"] in shown]
    if drawn:
        figures["success"] = _steps(drawn, "success_curve", shown, main, reporting.success)
    if "loss" in reporting.captions and any(curve["loss_curve"] for curve in drawn):
        figures["loss"] = _steps(drawn, "loss_curve", shown, main)
    return figures


def style(method: str, task: str) -> dict[str, Any]:
    """A row's colour, marker and dash, the same in every figure of its task.

    Example:
        >>> style("ft", "classification")["color"] != style("rl", "classification")["color"]
        True
    """
    if method in _CONTROL_STYLES:
        return dict(_CONTROL_STYLES[method])
    if method in (controls := list(controls_of(task))):
        return {"color": "#777777", "linestyle": "-", "marker": _MARKERS[-controls.index(method) % len(_MARKERS)]}
    known = [entry.name for entry in METHODS.entries(task)]
    index = known.index(method) if method in known else len(known) + sum(method.encode())
    turn, colour = divmod(index, len(_COLOURS))
    return {"color": _COLOURS[colour], "marker": _MARKERS[index % len(_MARKERS)], "linestyle": _DASHES[turn % 3]}


def _robustness(records: Sequence[Record], budgets: Sequence[str], reporting: TaskReport, main: str) -> "Figure":
    """Draw a share against the budget, a line per row with its band; the legend is ordered as the line ends."""
    board, steps, task, axis = board_of(records), ["none", *budgets], records[0].task, reporting.robustness
    figure, axes = _wide()
    methods = row_order((record.method for record in records), task)
    ends: dict[str, float] = {}
    for place, method in enumerate(methods):
        # Many rows lie on the same value, so each is moved a little sideways, the same at every budget.
        aside = 0.5 * (place - (len(methods) - 1) / 2) / len(methods)
        found = [_value(board, method, axis, budget, main) for budget in steps]
        for run in _comparable(steps):
            points = [(k + aside, interval) for k in run if (interval := found[k]) is not None]
            if points:
                named = {} if plain(method) in ends else {"label": plain(method)}
                _line_and_band(axes, points, **named, **_look(method, task))
                ends[plain(method)] = points[-1][1].mean
    axes.set_xticks(range(len(steps)), ["0", *map(plain, budgets)])
    axes.set(xlabel=reporting.search, ylabel=axis.label, ylim=(-4, 104))
    handles = sorted(axes.get_legend_handles_labels()[0], key=lambda line: -ends[str(line.get_label())])
    _legend_beside(axes, handles)
    return figure


def _utility(records: Sequence[Record], budget: str, reporting: TaskReport, main: str) -> "Figure":
    """Draw utility against robustness at a budget, one point per row with both intervals."""
    board, task, axis = board_of(records), records[0].task, reporting.utility
    figure, axes = _wide()
    heights: list[float] = []
    methods = row_order((record.method for record in records), task)
    for method in (method for method in methods if method not in reporting.unlike):
        utility = _value(board, method, axis, "none", main)
        attacked = _value(board, method, reporting.robustness, budget, main)
        if utility is None or attacked is None:
            continue
        at = (100 - attacked.mean, utility.mean)
        heights.append(utility.mean)
        axes.plot(*at, label=plain(method), **{**_look(method, task), "linestyle": "none", "markersize": 7})
        x, y = _halves(attacked)[::-1], _halves(utility)  # robustness is turned round
        colour = style(method, task)["color"]
        axes.errorbar(*at, xerr=x, yerr=y, ecolor=colour, fmt="none", elinewidth=0.7, capsize=2, zorder=1.8)
    if heights:  # an interval from two seeds can be wider than everything else: the points decide the view
        margin = max(2.0, 0.08 * (max(heights) - min(heights)))
        top = max(heights) + margin
        axes.set_ylim(min(heights) - margin, min(top, 102) if axis.percent else top)
    robust = f"robustness, 100 - {reporting.robustness.name} after {plain(main)} {plain(budget)} (%)"
    axes.set(xlabel=robust, ylabel=f"utility, {axis.label}", xlim=(-4, 104))
    _legend_beside(axes, axes.get_legend_handles_labels()[0])
    return figure


def _halves(interval: "Interval") -> list[list[float]]:
    """How far an interval reaches below and above its mean, a column; 0 where it is not known."""
    if math.isnan(interval.low):
        return [[0.0], [0.0]]
    return [[max(interval.mean - interval.low, 0.0)], [max(interval.high - interval.mean, 0.0)]]


def _steps(
    curves: Sequence[Mapping[str, Any]],
    field: str,
    budgets: Sequence[str],
    main: str,
    shown: str = "distance to the original's output",
) -> "Figure":
    """Draw a panel per row: the curve after each step at each budget, mean over seeds with the band of the seeds."""
    methods = row_order((str(curve["method"]) for curve in curves), str(curves[0]["task"]))
    figure, panels = _panels(len(methods), shown, "steps of the search")
    scale, limits = _heights([curve[field] for curve in curves], logarithmic=field == "loss_curve")
    span = max(max(len(curve[field]) for curve in curves) - 1, 1)
    for axes, method in zip(panels, methods, strict=True):
        # Fixed limits and titles: what matplotlib would work out for every panel anew takes most of the time.
        axes.set(yscale=scale, xlim=(-0.04 * span, 1.04 * span), ylim=limits)
        rows = [curve for curve in curves if curve["method"] == method]
        for budget, colour in zip(budgets, _BUDGET_COLOURS, strict=False):
            drawn = [row[field] for row in rows if row["budget"] == budget]
            _mean_and_range(axes, drawn, colour, f"{plain(main)} {plain(budget)}")
        _entitle(axes, method, str(rows[0]["task"]), converged=all(row["converged"] for row in rows))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="upper center", ncols=len(budgets), frameon=False)
    return figure


def _controls(records: Sequence[Record], budgets: Sequence[str], reporting: TaskReport, main: str) -> "Figure":
    """Draw a panel per row: what comes back at each budget beside what the same search does to other images."""
    board, steps, task = board_of(records), ["none", *budgets], records[0].task
    methods = row_order((record.method for record in records), task)
    own = reporting.robustness
    methods = [name for name in methods if any(_value(board, name, own, step, main) for step in budgets)]
    lines = {reporting.forgotten: own, **reporting.beside}
    measured = {(record.metric, record.split) for record in records if record.value is not None}
    looks = zip(lines.items(), _BESIDE[: len(lines)], strict=True)
    drawn = [(name, axis, look) for (name, axis), look in looks if (axis.metric, axis.split) in measured]
    pixels = ", in 255ths" if any(step.endswith(_PIXELS) for step in budgets) else ""
    figure, panels = _panels(len(methods), own.label, reporting.search + pixels)
    for axes, method in zip(panels, methods, strict=True):
        axes.set(xlim=(-0.2, len(steps) - 0.8), ylim=(-4, 104))
        axes.set_xticks(range(len(steps)), ["0", *(_short(step) for step in budgets)])
        for name, axis, look in drawn:
            found = [_value(board, method, axis, budget, main) for budget in steps]
            for run in _comparable(steps):
                points = [(float(k), interval) for k in run if (interval := found[k]) is not None]
                _line_and_band(axes, points, **({} if run.start else {"label": name}), markersize=3.5, **look)
        _entitle(axes, method, task)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="upper center", ncols=len(drawn), frameon=False)
    return figure


def _panels(count: int, shown: str, along: str) -> tuple["Figure", list["Axes"]]:
    across = min(4, count)
    down = math.ceil(count / across)
    width, height = 1.6 * across + 0.75, 1.2 * down + 0.85
    figure, grid = _canvas(width, height, down, across)
    figure.subplots_adjust(
        left=0.62 / width, right=1 - 0.08 / width, bottom=0.42 / height, top=1 - 0.5 / height, hspace=0.36, wspace=0.12
    )
    panels = list(grid.flat)
    for place, axes in enumerate(panels):  # labels below the lowest visible panel of each column
        axes.tick_params(labelbottom=count - across <= place < count, labelleft=axes in grid[:, 0])
        axes.set_visible(place < count)
    figure.text(0.08 / width, 0.5, shown, rotation="vertical", va="center")
    figure.text(0.5, 0.08 / height, along, ha="center")
    return figure, panels[:count]


def _entitle(axes: "Axes", method: str, task: str, *, converged: bool = True) -> None:
    name = f"[{plain(method)}]" if is_control(method, task) else plain(method)
    axes.set_title(name if converged else f"{name} !", pad=3, y=1.0)


def _heights(curves: Sequence[Sequence[float]], *, logarithmic: bool) -> tuple[str, tuple[float, float]]:
    """Scale and limits of the vertical axis: 0 to 1 for shares, else all curves if one is above 0."""
    above = [value for curve in curves for value in curve if value > 0]
    if not logarithmic or not above:
        return "linear", (-0.04, 1.04)
    # A curve that starts at its target is rounding noise for many decades: they would be all that is seen.
    return "log", (max(min(above) / 2, max(above) / _DECADES), max(above) * 2)


def _mean_and_range(axes: "Axes", curves: Sequence[Sequence[float]], colour: str, label: str) -> None:
    """Draw the mean of step curves and their range; a search that ended early keeps its last value."""
    import numpy as np

    length = max((len(curve) for curve in curves), default=0)
    drawn = np.unique(np.linspace(0, max(length - 1, 0), _POINTS).astype(int))
    if not length:
        axes.plot([], [], color=colour, label=label)
        return
    values = np.array([[curve[min(k, len(curve) - 1)] for k in drawn] for curve in curves], dtype=float)
    axes.plot(drawn, values.mean(axis=0), color=colour, label=label, linewidth=1.3)
    if len(values) > 1:
        axes.fill_between(drawn, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)


def _comparable(steps: Sequence[str]) -> list[range]:
    """Stretches of the axis with budgets of one kind, which a line may join; the first begins without an attack."""
    kinds = [kind_of(steps[max(k, 1)]) for k in range(len(steps))]
    starts = [k for k in range(len(steps)) if not k or kinds[k] != kinds[k - 1]]
    return [range(*ends) for ends in pairwise([*starts, len(steps)])]


def _line_and_band(axes: "Axes", points: Sequence[tuple[float, "Interval"]], **look: Any) -> None:
    x = [x for x, _ in points]
    axes.plot(x, [interval.mean for _, interval in points], **look)
    if points and all({SEEDS, ORIGINALS} & {*interval.over} for _, interval in points):
        # Single models have no band: a dozen that lie on each other would hide the lines.
        low, high = [max(i.low, 0) for _, i in points], [min(i.high, 100) for _, i in points]
        axes.fill_between(x, low, high, color=look["color"], alpha=0.12, linewidth=0)


def _short(budget: str) -> str:
    return "∞" if budget == "unbounded" else plain(budget).removesuffix(_PIXELS)


def _value(board: Board, method: str, axis: Axis, budget: str, main: str) -> "Interval | None":
    clean = budget == "none"
    metric = axis.clean if clean and axis.clean else axis.metric
    found = records_at(board, method, Place(metric, axis.split, "none" if clean else main, budget))
    return estimate(found, axis.scale)


def _look(method: str, task: str) -> dict[str, Any]:
    """Plot arguments of a row; hollow markers keep points readable where they cover each other."""
    control = is_control(method, task)
    edges = {"markerfacecolor": "none", "markeredgewidth": 1.2, "markersize": 6 if control else 5}
    return {**style(method, task), **edges, "linewidth": 1.6 if control else 1.1, "zorder": 2 if control else 3}


def _canvas(width: float, height: float, down: int = 1, across: int = 1) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat:
        axes.grid(visible=True, color="#dddddd", linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def _wide() -> tuple["Figure", Any]:
    figure, grid = _canvas(6.8, 4.2)
    figure.subplots_adjust(left=0.08, right=0.77, bottom=0.11, top=0.97)
    return figure, grid[0, 0]


def _legend_beside(axes: "Axes", handles: Sequence[Any]) -> None:
    size = _LEGEND_SIZE * min(1, _LEGEND_ROWS / max(len(handles), 1))
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1.01), frameon=False, labelspacing=0.35,
        handlelength=3.2, borderaxespad=0, fontsize=size,
    )  # fmt: skip
