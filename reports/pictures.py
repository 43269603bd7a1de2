"""Pictures of a comparison in one style: dots with intervals, and lines with bands.

Colours: Okabe and Ito, "Color Universal Design" (2008), and a grey: distinguishable with any form
of colour vision.
"""

import io
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from common.checks import require_extra
from reports.comparison import Comparison, short
from reports.page import Picture
from reports.tables import Estimate, average, over_seeds, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
LINES = ("-", "--", ":", "-.")
DOTTED: dict[str, Any] = {"lw": 1, "ls": (0, (2, 2)), "zorder": 1}
ABOVE: dict[str, Any] = {
    **{"textcoords": "offset points", "ha": "center", "fontsize": 8},
    "bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
}
STYLE = {
    **{"axes.spines.top": False, "axes.spines.right": False},
    **{"axes.titlelocation": "left", "axes.titlesize": 11, "axes.titleweight": "bold"},
    **{"axes.grid": True, "grid.color": "#ddd", "grid.linewidth": 0.6, "savefig.dpi": 150},
    **{"legend.frameon": False, "legend.fontsize": 9},
    **{"figure.constrained_layout.h_pad": 0.09, "figure.constrained_layout.w_pad": 0.06},
}
# In points of the score on either side: a panel shows no more of an interval than WIDEST, and
# never less than NARROWEST, so that a difference of a tenth does not look large.
WIDEST, NARROWEST = 12.0, 6.0
MOST_BANDS = 7  # rows; more bands than these hide each other

Series = dict[tuple[str, str], dict[Any, list[float]]]  # task and row to x to a value for each seed


def draw_pictures(comparison: Comparison, *, averages_only: bool) -> list[Picture]:
    """Draws the averages over tasks and, unless they alone are wanted, the other pictures.

    Pictures without figures are left out.

    Raises:
        UserError: Matplotlib is not installed.
    """
    require_extra("matplotlib", "A picture", "plots")
    import matplotlib

    every: list[Callable[[Comparison], Picture | None]] = [draw_averages]
    if not averages_only:
        every += [draw_scores, draw_curves, draw_target_returns]
    with matplotlib.rc_context(STYLE):
        return [picture for draw in every if (picture := draw(comparison)) is not None]


def draw_averages(comparison: Comparison) -> Picture | None:
    """Draws the interquartile mean of each row that was run on every task, with its interval."""
    rows = comparison.complete
    if not rows:
        return None
    figure, (panel,) = _panels([""], 7, 1.0 + (0.1 + _row_height(rows)) * len(rows))
    _dots(comparison, panel, rows, {row: (average(comparison, row), []) for row in rows})
    _set_scale(panel, *panel.get_xlim(), least=NARROWEST)
    panel.set_xlabel("interquartile mean of the normalised score")
    count = len(comparison.averaged)
    return Picture(
        "interquartile_mean",
        f"Interquartile mean over {count} task{'s' * (count != 1)}",
        "Further right is better. Dot: mean of the middle half of all runs; line: the 95 % "
        "interval of the stratified bootstrap (none if a task has a single seed)."
        + _baseline_caption(comparison),
        _png(figure),
    )


def draw_scores(comparison: Comparison) -> Picture:
    """Draws the score of each row on each task, with its interval and each seed."""
    rows, tasks = comparison.rows, comparison.tasks
    width = _width(tasks) + min(2.5, 0.09 * max(map(len, rows)))
    figure, panels = _panels(tasks, width, 0.9 + _row_height(rows) * len(rows), sharey="row")
    limits: dict[str, tuple[float, float]] = {}
    for task, panel in zip(tasks, panels, strict=True):
        cells = {row: cell.last for (t, row), cell in comparison.cells.items() if t == task}
        points = {row: (over_seeds(seeds), list(seeds)) for row, seeds in cells.items()}
        limits[task] = _dots(comparison, panel, rows, points)
        panel.set_xlabel(_unit(comparison, task))
    # All panels with normalised scores have scales of the same width.
    spans = [limits[task][1] - limits[task][0] for task in comparison.averaged]
    for task, panel in zip(tasks, panels, strict=True):
        if task in comparison.averaged:
            _set_scale(panel, *limits[task], least=1.15 * max(NARROWEST, max(spans) / 2))
    return Picture(
        "score_per_task",
        "Score on each task",
        "Dot: mean over seeds of the last checkpoint's score; line: Student's 95 % interval of it "
        "(none for a single seed), which may extend beyond the panel; ticks: the single seeds. The "
        "scales have one width and different origins." + _baseline_caption(comparison),
        _png(figure),
    )


def draw_curves(comparison: Comparison) -> Picture | None:
    """Draws the evaluations in training, at the updates at which every seed was evaluated."""
    curves: Series = {
        key: _shared([run.curve for run in cell.runs]) for key, cell in comparison.cells.items()
    }
    if not any(curves.values()):
        return None
    figure, panels = _bands(comparison, curves, height=2.9)
    for task, panel in panels.items():
        panel.set_xlabel("updates")
        panel.set_ylabel(_unit(comparison, task))
    return Picture(
        "learning_curve",
        "Learning curves",
        "Evaluations in training, with fewer episodes than the last: mean over seeds; band: from "
        f"the lowest to the highest seed (only for up to {MOST_BANDS} rows). Updates at which only "
        "some of the seeds were evaluated are left out.",
        _png(figure),
    )


def draw_target_returns(comparison: Comparison) -> Picture | None:
    """Draws the achieved return against the target return, if there are several targets."""
    achieved: Series = {}
    for key, cell in comparison.cells.items():
        sweeps = [[s for s in run.sweep if not s.evaluation.way] for run in cell.runs]
        shared = _shared([{s.target_return: s.return_mean for s in sweep} for sweep in sweeps])
        achieved[key] = shared if len(shared) > 1 else {}
    if not any(achieved.values()):
        return None
    figure, panels = _bands(comparison, achieved, height=3.4)
    grey: dict[str, Any] = {**ABOVE, "color": "#555", "ha": "right", "bbox": None}
    for task, panel in panels.items():
        targets = [target for (t, _), values in achieved.items() if t == task for target in values]
        cells = [cell for (t, _), cell in comparison.cells.items() if t == task]
        best = max(run.data.return_max for cell in cells for run in cell.runs)
        ends = (min(targets), max(targets))
        panel.plot(ends, ends, color="#777", **DOTTED)
        panel.annotate("as asked", (ends[1], ends[1]), (-4, -3), **grey)
        panel.axvline(best, color="#777", lw=1, zorder=1)
        top = (best, panel.get_ylim()[1])
        panel.annotate("best of the data", top, (-2, -4), rotation=90, va="top", **grey)
        panel.set_xlabel("target return")
        panel.set_ylabel("achieved return")
    return Picture(
        "target_return",
        "Target return and achieved return",
        "Mean return of the episodes against the target return: mean over seeds; band: from the "
        "lowest to the highest seed. On the dotted line the policy achieves its target; right of "
        "the vertical line the target exceeds every return in the data.",
        _png(figure),
    )


def _dots(
    comparison: Comparison,
    panel: "Axes",
    rows: Sequence[str],
    points: dict[str, tuple[Estimate, list[float]]],
) -> tuple[float, float]:
    """Draws for each row its figure, the interval and the seeds; returns what is to be seen."""
    seen: list[float] = []
    for place, row in enumerate(rows):
        if row not in points:
            continue
        (estimate, seeds), colour = points[row], _style(comparison, row)["color"]
        value, (low, high) = estimate.value, estimate.interval or (estimate.value, estimate.value)
        seen += [max(low, value - WIDEST), min(high, value + WIDEST), *seeds]
        if len(seeds) > 1:
            panel.plot(seeds, [place] * len(seeds), "|", color=colour, alpha=0.6, ms=9, zorder=2)
        panel.plot((low, high), (place, place), "-", color=colour, lw=2, zorder=3)
        panel.plot(value, place, "o", color=colour, ms=6, zorder=3)
        panel.annotate(f"{value:,.1f}", (value, place), (0, 6), **ABOVE)
        if row in comparison.baselines[:1]:
            panel.axvline(value, color=colour, **DOTTED)
    panel.set_yticks(range(len(rows)), [_wrapped(row) for row in rows])
    panel.set_ylim(len(rows) - 0.4, -0.7)
    panel.grid(visible=False, axis="y")
    return min(seen), max(seen)


def _bands(
    comparison: Comparison, series: Series, height: float
) -> tuple["Figure", dict[str, "Axes"]]:
    """Draws each row's mean over seeds, and the range of the seeds, in a panel for each task."""
    tasks = [t for t in comparison.tasks if any(series.get((t, r)) for r in comparison.rows)]
    rows = [r for r in comparison.rows if any(series.get((t, r)) for t in tasks)]
    columns = max(1, int(_width(tasks) / (0.6 + 0.075 * max(map(len, rows)))))
    above = 0.23 * math.ceil(len(rows) / columns)
    figure, panels = _panels(tasks, _width(tasks), height, above=above)
    lines: dict[str, Any] = {}
    for task, panel in zip(tasks, panels, strict=True):
        for row in rows:
            if values := series.get((task, row)):
                style, seeds = _style(comparison, row), list(values.values())
                means = [float(np.mean(value)) for value in seeds]
                (lines[row],) = panel.plot(list(values), means, lw=2, marker="o", ms=3, **style)
                if len(rows) <= MOST_BANDS:
                    shade = {"color": style["color"], "alpha": 0.15, "lw": 0}
                    ends = [min(value) for value in seeds], [max(value) for value in seeds]
                    panel.fill_between(list(values), *ends, **shade)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter(lambda x, _: f"{x:,.10g}")
    handles, labels = [lines[row] for row in rows], [_wrapped(row) for row in rows]
    figure.legend(handles, labels, ncols=columns, loc="outside upper left")
    return figure, dict(zip(tasks, panels, strict=True))


def _shared(series: list[dict[Any, float]]) -> dict[Any, list[float]]:
    return {x: [s[x] for s in series] for x in series[0] if all(x in s for s in series)}


def _panels(
    tasks: Sequence[str], width: float, height: float, *, above: float = 0.0, sharey: Any = False
) -> tuple["Figure", list["Axes"]]:
    """Makes a figure, a panel for each task; its width, a panel's height, a legend's in inches."""
    # Without pyplot: no display is looked for, and no figure outlives its picture.
    from matplotlib.figure import Figure

    across = _across(tasks)
    down = math.ceil(len(tasks) / across)
    figure = Figure(figsize=(width, height * down + above + 0.4), layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False, sharey=sharey).flat)
    for panel in panels[len(tasks) :]:
        panel.set_axis_off()
    for task, panel in zip(tasks, panels, strict=False):
        panel.set_title(_wrapped(short(task)))
    return figure, panels[: len(tasks)]


def _across(tasks: Sequence[str]) -> int:
    return 2 if len(tasks) == 4 else min(3, len(tasks))


def _width(tasks: Sequence[str]) -> float:
    return 3.3 * _across(tasks) + 0.4


def _set_scale(panel: "Axes", low: float, high: float, *, least: float) -> None:
    """Shows what is between two scores, and at least so much on either side of their middle."""
    middle, reach = (low + high) / 2, max((high - low) / 2, least)
    panel.set_xlim(middle - reach, middle + reach)


def _unit(comparison: Comparison, task: str) -> str:
    return "normalised score" if task in comparison.averaged else "return"


def _style(comparison: Comparison, row: str) -> dict[str, Any]:
    """Returns a row's colour and line: those of the central rows are the same in every picture."""
    order = [*comparison.baselines, *comparison.central.values(), *comparison.rows]
    number = list(dict.fromkeys(order)).index(row)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINES[number // len(COLOURS) % len(LINES)],
    }


def _baseline_caption(comparison: Comparison) -> str:
    return "".join(f" Dotted line: {row}." for row in comparison.baselines[:1])


def _row_height(rows: Iterable[str]) -> float:
    """Returns the height of a row, in inches: of the lines of the longest name."""
    return 0.16 * (1 + max(_wrapped(row).count("\n") + 1 for row in rows))


def _wrapped(row: str) -> str:
    """Returns a row's name in lines of some 26 characters; dollars are no formula."""
    text = printable(row).replace("$", r"\$")
    return "\n".join(textwrap.wrap(text, 26, break_long_words=False, break_on_hyphens=False))


def _png(figure: "Figure") -> bytes:
    file = io.BytesIO()
    # Without the date and the version of matplotlib: the same figures make the same file.
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
