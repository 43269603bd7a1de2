"""Pictures of a comparison: a panel for each task, in one style.

Colours: Okabe and Ito, "Color Universal Design" (2008), which people with any form of colour
vision can tell apart.
"""

import io
import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import UserError
from reports.comparison import Comparison, short
from reports.page import Picture
from reports.runs import Run
from reports.statistics import bootstrap_interval, interquartile_mean, student_half_width
from reports.tables import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")
ABOVE: dict[str, Any] = {
    **{"textcoords": "offset points", "ha": "center", "fontsize": 8},
    "bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
}
# Half widths, in points of the score: panels show no more of an interval than the first, and never
# less than the second, so that a difference of a tenth does not look like one.
WIDEST, NARROWEST = 12.0, 6.0
MOST_BANDS = 7  # rows; bands of more than these hide each other


def draw_pictures(comparison: Comparison, *, averages_only: bool) -> list[Picture]:
    """Draws the pictures that there are figures for.

    Args:
        comparison: What is compared.
        averages_only: Draws the averages over tasks and nothing else.

    Raises:
        UserError: Matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UserError(
            "there are no pictures, because matplotlib is not installed; the tables are whole: "
            'for pictures run pip install -e ".[plots]" and compare again.'
        ) from error
    if averages_only:
        pictures = [draw_averages(comparison)]
    else:
        every = (draw_averages, draw_scores, draw_curves, draw_target_returns)
        pictures = [draw(comparison) for draw in every]
    return [picture for picture in pictures if picture is not None]


def draw_scores(comparison: Comparison) -> Picture:
    """Draws the score of each row on each task, with its interval and each seed."""
    rows = comparison.rows
    figure, panels = make_panels(
        comparison.tasks,
        0.9 + row_height(rows) * len(rows),
        beside=min(2.5, 0.09 * max(map(len, rows))),
    )
    seen: dict[str, list[float]] = {}
    for task, panel in panels:
        for place, row in enumerate(rows):
            if (task, row) not in comparison.cells:
                continue
            cell, colour = comparison.cells[task, row], style_of(comparison, row)["color"]
            mean, half = float(cell.last.mean()), student_half_width(cell.last)
            if len(cell.last) > 1:
                places = np.full(len(cell.last), place)
                panel.plot(cell.last, places, "|", color=colour, alpha=0.6, ms=9, zorder=2)
            panel.errorbar(mean, place, xerr=half, fmt="o", color=colour, ms=6, lw=2, zorder=3)
            panel.annotate(f"{mean:,.1f}", (mean, place), (0, 6), **ABOVE)
            reach = min(half or 0.0, WIDEST)
            seen.setdefault(task, []).extend([mean - reach, mean + reach, *cell.last])
        for row in comparison.baselines[:1]:
            if (task, row) in comparison.cells:
                draw_guide(comparison, panel, row, float(comparison.cells[task, row].last.mean()))
        panel.set_yticks(range(len(rows)), [wrapped(row) for row in rows])
        panel.set_ylim(len(rows) - 0.4, -0.7)
        panel.grid(axis="x", color="#ddd", lw=0.6)
        panel.set_xlabel(unit_of(comparison, task))
    same_scale(comparison, dict(panels), seen)
    return Picture(
        "score_per_task",
        "Score on each task",
        "Dot: mean over seeds of the last checkpoint's score; line: Student's 95 % interval of it "
        "(none for a single seed); ticks: the single seeds. Where a line leaves its panel, it goes "
        "on. All scales are of the same width, but begin at different scores."
        + guide_caption(comparison),
        to_png(figure),
    )


def draw_averages(comparison: Comparison) -> Picture | None:
    """Draws the interquartile mean of each row that was run on every task, with its interval."""
    rows = comparison.complete
    if not rows:
        return None
    figure = make_figure(7, 1.0 + (0.1 + row_height(rows)) * len(rows))
    panel = figure.add_subplot()
    for place, row in enumerate(rows):
        scores = comparison.scores(row, comparison.averaged)
        value, interval = interquartile_mean(scores), bootstrap_interval(interquartile_mean, scores)
        low, high = (value, value) if interval is None else interval
        colour = style_of(comparison, row)["color"]
        panel.plot([low, high], [place, place], "-", color=colour, lw=7, alpha=0.35)
        panel.plot(value, place, "o", color=colour, ms=8)
        panel.annotate(f"{value:,.1f}", (float(value), place), (0, 8), **ABOVE)
        if row in comparison.baselines[:1]:
            draw_guide(comparison, panel, row, float(value))
    panel.set_yticks(range(len(rows)), [wrapped(row) for row in rows])
    panel.set_ylim(len(rows) - 0.5, -0.8)
    panel.set_xlabel("interquartile mean of the normalised score")
    left, right = panel.get_xlim()
    panel.set_xlim(
        min(left, (left + right) / 2 - NARROWEST), max(right, (left + right) / 2 + NARROWEST)
    )
    panel.grid(axis="x", color="#ddd", lw=0.6)
    clean_panel(panel)
    count = len(comparison.averaged)
    return Picture(
        "interquartile_mean",
        f"Interquartile mean over {count} task{'s' * (count != 1)}: further right is better",
        "Dot: mean of the middle half of all runs; bar: the stratified bootstrap's 95 % interval "
        "(none where a task has a single seed)." + guide_caption(comparison),
        to_png(figure),
    )


def draw_curves(comparison: Comparison) -> Picture | None:
    """Draws the evaluations in training."""
    curves = {key: _curve(cell.runs) for key, cell in comparison.cells.items()}
    if not any(curves.values()):
        return None
    figure, panels, records = _bands(comparison, curves, "update", height=2.9)
    for task, panel in panels:
        panel.set_xlabel("updates")
        panel.set_ylabel(unit_of(comparison, task))
    return Picture(
        "learning_curve",
        "Learning curves",
        "Evaluations in training, of fewer episodes than the last: mean over seeds; band: from the "
        f"lowest to the highest seed (none of more than {MOST_BANDS} rows). Only updates at which "
        "every seed was evaluated.",
        to_png(figure),
        records,
    )


def draw_target_returns(comparison: Comparison) -> Picture | None:
    """Draws the return that was asked for against the one that was achieved."""
    achieved = {key: _achieved(cell.runs) for key, cell in comparison.cells.items()}
    if not any(achieved.values()):
        return None
    figure, panels, records = _bands(comparison, achieved, "target_return", height=3.4)
    for task, panel in panels:
        targets = [target for (t, _), values in achieved.items() if t == task for target in values]
        best = max(
            run.data_best
            for (t, _), cell in comparison.cells.items()
            if t == task
            for run in cell.runs
        )
        ends = (min(targets), max(targets))
        grey: dict[str, Any] = {**ABOVE, "color": "#555", "ha": "right", "bbox": None}
        panel.plot(ends, ends, color="#777", lw=1, ls=(0, (2, 2)), zorder=1)
        panel.annotate("as asked", (ends[1], ends[1]), (-4, -3), **grey)
        panel.axvline(best, color="#777", lw=1, zorder=1)
        top = (best, panel.get_ylim()[1])
        panel.annotate("best of the data", top, (-2, -4), rotation=90, va="top", **grey)
        panel.set_xlabel("target return")
        panel.set_ylabel("achieved return")
    return Picture(
        "target_return",
        "Asked for and achieved",
        "Return that the policy was asked for against the mean return of its episodes: mean over "
        "seeds; band: from the lowest to the highest seed. On the dotted line a policy does as it "
        "is told; right of the upright line it is asked for more than any episode of its data.",
        to_png(figure),
        records,
    )


def _bands(
    comparison: Comparison,
    series: dict[tuple[str, str], dict[Any, list[float]]],
    x_name: str,
    height: float,
) -> tuple["Figure", list[tuple[str, "Axes"]], list[dict[str, Any]]]:
    """Draws each row's mean over seeds, and the range of the seeds, in a panel for each task."""
    tasks = [t for t in comparison.tasks if any(series.get((t, r)) for r in comparison.rows)]
    rows = [r for r in comparison.rows if any(series.get((t, r)) for t in tasks)]
    columns = max(1, int(figure_width(tasks) / (0.6 + 0.075 * max(map(len, rows)))))
    figure, panels = make_panels(tasks, height, above=0.23 * math.ceil(len(rows) / columns))
    lines: dict[str, Any] = {}
    records: list[dict[str, Any]] = []
    for task, panel in panels:
        for row in comparison.rows:
            values = series.get((task, row))
            if not values:
                continue
            means, lows, highs = (
                [float(of(v)) for v in values.values()] for of in (np.mean, np.min, np.max)
            )
            style = style_of(comparison, row)
            (lines[row],) = panel.plot(list(values), means, lw=2, marker="o", ms=3, **style)
            if len(rows) <= MOST_BANDS:
                shade = {"color": style["color"], "alpha": 0.15, "lw": 0}
                panel.fill_between(list(values), lows, highs, **shade)
            for x, mean, low, high in zip(values, means, lows, highs, strict=True):
                record = {"task": task, "row": row, x_name: x, "mean": mean}
                records.append(record | {"low": low, "high": high, "seeds": len(values[x])})
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter(lambda x, _: f"{x:,.10g}")
        panel.grid(color="#ddd", lw=0.6)
    handles = [lines[row] for row in rows]
    labels = [wrapped(row) for row in rows]
    figure.legend(
        handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=9
    )
    return figure, panels, records


def _curve(runs: Sequence[Run]) -> dict[int, list[float]]:
    """Returns updates and the seeds' scores there, of updates that all seeds were evaluated at."""
    return _shared([dict(run.curve) for run in runs])


def _achieved(runs: Sequence[Run]) -> dict[float, list[float]]:
    """Returns targets and the seeds' returns, where all seeds were asked for several."""
    shared = _shared([{s.target_return: s.return_mean for s in run.sweep} for run in runs])
    return shared if len(shared) > 1 else {}


def _shared(series: list[dict[Any, float]]) -> dict[Any, list[float]]:
    return {x: [s[x] for s in series] for x in series[0] if all(x in s for s in series)}


def same_scale(
    comparison: Comparison, panels: dict[str, "Axes"], seen: dict[str, list[float]]
) -> None:
    """Gives all panels with normalised scores scales of the same width."""
    middles = {task: (min(seen[task]) + max(seen[task])) / 2 for task in comparison.averaged}
    reaches = [(max(seen[task]) - min(seen[task])) / 2 for task in comparison.averaged]
    reach = 1.15 * max([NARROWEST, *reaches])
    for task, middle in middles.items():
        panels[task].set_xlim(middle - reach, middle + reach)


def unit_of(comparison: Comparison, task: str) -> str:
    """Returns what an axis of a task's scores is called."""
    return "normalised score" if task in comparison.averaged else "return"


def style_of(comparison: Comparison, row: str) -> dict[str, Any]:
    """Returns a row's colour and line: those of the central rows are the same in every picture."""
    order = [*comparison.central, *(r for r in comparison.rows if r not in comparison.central)]
    number = order.index(row)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINES[number // len(COLOURS) % len(LINES)],
    }


def guide_caption(comparison: Comparison) -> str:
    """Returns what a caption says of the guide, if there is one."""
    return "".join(f" Dotted line: {row}." for row in comparison.baselines[:1])


def draw_guide(comparison: Comparison, panel: "Axes", row: str, value: float) -> None:
    """Draws the upright line that the other rows are seen to be left or right of."""
    panel.axvline(value, color=style_of(comparison, row)["color"], lw=1, ls=(0, (2, 2)), zorder=1)


def row_height(rows: Sequence[str]) -> float:
    """Returns the height of a row, in inches: of the lines of its name."""
    return 0.16 * (1 + max(wrapped(row).count("\n") + 1 for row in rows))


def wrapped(row: str) -> str:
    """Returns a row's name in lines of some 26 characters; dollars are no formula."""
    text = printable(row).replace("$", r"\$")
    return "\n".join(textwrap.wrap(text, 26, break_long_words=False, break_on_hyphens=False))


def make_figure(width: float, height: float) -> "Figure":
    """Makes an empty figure; sizes in inches."""
    # Without pyplot: no display is looked for, and no figure outlives its picture.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(h_pad=0.09, w_pad=0.06)
    return figure


def _across(tasks: Sequence[str]) -> int:
    return 2 if len(tasks) == 4 else min(3, len(tasks))


def figure_width(tasks: Sequence[str]) -> float:
    """Returns the width, in inches, of a figure with a panel for each task."""
    return 3.3 * _across(tasks) + 0.4


def make_panels(
    tasks: Sequence[str], height: float, *, above: float = 0.0, beside: float | None = None
) -> tuple["Figure", list[tuple[str, "Axes"]]]:
    """Makes a figure with a panel for each task, at most three in a line.

    Args:
        tasks: A panel for each.
        height: Of a panel, in inches.
        above: Room for a legend.
        beside: Room for labels that the panels of a line share; None for labels of their own.
    """
    down = math.ceil(len(tasks) / _across(tasks))
    figure = make_figure(figure_width(tasks) + (beside or 0), height * down + above + 0.4)
    share: Any = False if beside is None else "row"
    panels = figure.subplots(down, _across(tasks), squeeze=False, sharey=share)
    for panel in panels.flat[len(tasks) :]:
        panel.set_axis_off()
    for task, panel in zip(tasks, panels.flat, strict=False):
        panel.set_title(wrapped(short(task)), loc="left", fontsize=11, fontweight="bold")
        clean_panel(panel)
    return figure, list(zip(tasks, panels.flat, strict=False))


def clean_panel(panel: "Axes") -> None:
    """Takes away the frame above and to the right."""
    panel.spines[["top", "right"]].set_visible(False)


def to_png(figure: "Figure") -> bytes:
    """Draws a figure."""
    file = io.BytesIO()
    # Without the date and the version of matplotlib: the same figures make the same file.
    figure.savefig(file, dpi=150, format="png", metadata={"Software": None})
    return file.getvalue()
