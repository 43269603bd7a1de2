"""Figures with a panel for each task, in one style: colours, sizes, labels.

Colours: Okabe and Ito, "Color Universal Design" (2008), which people with any form of colour
vision can tell apart.
"""

import io
import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from reports.comparison import Comparison, short

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
    """Returns a row's name in lines of some 26 characters."""
    return "\n".join(textwrap.wrap(row, 26, break_long_words=False, break_on_hyphens=False))


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
        panel.set_title(short(task), loc="left", fontsize=11, fontweight="bold")
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
