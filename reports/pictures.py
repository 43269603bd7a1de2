"""Pictures of a comparison, each with the figures that it shows."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import UserError
from reports.comparison import Comparison
from reports.page import Picture
from reports.panels import (
    ABOVE,
    NARROWEST,
    WIDEST,
    clean_panel,
    draw_guide,
    figure_width,
    guide_caption,
    make_figure,
    make_panels,
    row_height,
    same_scale,
    style_of,
    to_png,
    unit_of,
    wrapped,
)
from reports.runs import Run
from reports.statistics import (
    bootstrap_interval,
    interquartile_mean,
    performance_profile,
    student_half_width,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MOST_BANDS = 7  # rows; bands of more than these hide each other


def draw_pictures(comparison: Comparison) -> list[Picture]:
    """Draws all pictures that there are figures for.

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
    pictures = (draw_averages, draw_scores, draw_profiles, draw_curves, draw_target_returns)
    return [picture for draw in pictures if (picture := draw(comparison)) is not None]


def draw_scores(comparison: Comparison) -> Picture:
    """Draws the score of each row on each task, with its interval and each seed."""
    records: list[dict[str, Any]] = []
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
            ends = ("", "") if half is None else (mean - half, mean + half)
            record = {"task": task, "row": row, "mean": mean, "low": ends[0], "high": ends[1]}
            seeds = {f"seed_{run.seed}": run.last for run in cell.runs}
            records.append(record | seeds)
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
        records,
    )


def draw_averages(comparison: Comparison) -> Picture | None:
    """Draws the interquartile mean of each row that was run on every task, with its interval."""
    rows = comparison.complete
    if not rows:
        return None
    figure = make_figure(7, 1.0 + (0.1 + row_height(rows)) * len(rows))
    panel = figure.add_subplot()
    records: list[dict[str, Any]] = []
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
        ends = {"low": "", "high": ""} if interval is None else {"low": low, "high": high}
        records.append({"row": row, "interquartile_mean": float(value), **ends})
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
        records,
    )


def draw_profiles(comparison: Comparison) -> Picture | None:
    """Draws the performance profile of each row that was run on every task."""
    rows = comparison.complete
    if not rows:
        return None
    scores = {row: comparison.scores(row, comparison.averaged) for row in rows}
    runs = np.concatenate([run for tasks in scores.values() for run in tasks])
    margin = 0.04 * float(np.ptp(runs)) + 1
    thresholds = np.linspace(runs.min() - margin, runs.max() + margin, 201)
    figure = make_figure(8, max(4.2, 0.6 + row_height(rows) * len(rows)))
    panel = figure.add_subplot()
    records: list[dict[str, Any]] = []
    for row in rows:
        profile = performance_profile(scores[row], thresholds)
        band = bootstrap_interval(
            lambda resampled: performance_profile(resampled, thresholds),
            scores[row],
            repeats=1000,
        )
        style = style_of(comparison, row)
        panel.step(thresholds, profile, where="post", lw=2, label=wrapped(row), **style)
        if band is not None and len(rows) <= MOST_BANDS:
            panel.fill_between(
                thresholds, *band, step="post", color=style["color"], alpha=0.13, lw=0
            )
        for i, threshold in enumerate(thresholds):
            ends = ("", "") if band is None else (band[0][i], band[1][i])
            records.append(
                {"row": row, "threshold": threshold, "share": profile[i]}
                | {"low": ends[0], "high": ends[1]}
            )
    panel.set_xlabel("normalised score τ")
    panel.set_ylabel("share of runs above τ")
    panel.set_ylim(-0.02, 1.02)
    panel.grid(color="#ddd", lw=0.6)
    clean_panel(panel)
    panel.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
    count = len(comparison.averaged)
    return Picture(
        "performance_profile",
        "Performance profiles: further right and up is better",
        f"Share of the runs on {count} task{'s' * (count != 1)} that score above τ, averaged over "
        "tasks; band: the stratified bootstrap's 95 % interval at each τ (none where a task has a "
        f"single seed, or of more than {MOST_BANDS} rows).",
        to_png(figure),
        records,
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
        grey: dict[str, Any] = {
            "color": "#555",
            "fontsize": 8,
            "textcoords": "offset points",
            "ha": "right",
        }
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
    figure.legend(handles, rows, loc="outside upper left", ncols=columns, frameon=False, fontsize=9)
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
