"""The tables of a comparison."""

import csv
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reports.comparison import Cell, Comparison, short, usual
from reports.statistics import (
    bootstrap_interval,
    interquartile_difference,
    interquartile_mean,
    mean_difference,
    mean_over_tasks,
    score_of_the_chosen,
    student_half_width,
)

DIFFERENCES = {"mean": mean_difference, "IQM": interquartile_difference}


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval, shown as its two ends or as ± half its width."""

    value: float
    interval: tuple[float, float] | None
    form: str = ",.1f"
    half_width: bool = False

    def __str__(self) -> str:
        """Returns ``60.0 ± 24.8`` or ``57.7 (55.7 to 59.5)``."""
        text = format(self.value, self.form)
        if self.interval is None:
            return text
        low, high = self.interval
        if self.half_width:
            return f"{text} ± {format((high - low) / 2, self.form)}"
        return f"{text} ({format(low, self.form)} to {format(high, self.form)})"


@dataclass(frozen=True)
class Table:
    """A table whose figures are rounded only where they are shown.

    Attributes:
        name: Stem of its CSV.
        title: Its heading.
        rows: Heading to cell: text, a number, an estimate, or None where there is nothing.
        caption: What the figures are.
    """

    name: str
    title: str
    rows: list[dict[str, Any]]
    caption: str

    @property
    def columns(self) -> list[str]:
        """Headings of the columns in which some row has a cell."""
        return [name for name in self.rows[0] if any(row[name] is not None for row in self.rows)]

    def shown(self) -> list[list[str]]:
        """Returns the cells as text, rounded."""
        return [[_shown(row[name]) for name in self.columns] for row in self.rows]

    @property
    def records(self) -> list[dict[str, Any]]:
        """The rows of its CSV: an estimate has three columns."""
        records: list[dict[str, Any]] = [{} for _ in self.rows]
        for record, row in zip(records, self.rows, strict=True):
            for name, cell in row.items():
                if isinstance(cell, Estimate):
                    low, high = cell.interval or (None, None)
                    record |= {name: cell.value, f"{name} low": low, f"{name} high": high}
                else:
                    record[name] = cell
        return records


def _shown(cell: Any) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, int | float):
        return f"{cell:,}" if isinstance(cell, int) else f"{cell:,.1f}"
    return printable(str(cell))


def printable(text: str) -> str:
    """Returns a text without control characters: names and paths can hold anything."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def over_seeds(runs: Sequence[float] | np.ndarray) -> Estimate:
    """Returns the mean of scores (runs,) of one row and task, with Student's interval."""
    values = np.asarray(runs)
    mean, half = float(values.mean()), student_half_width(values)
    interval = None if half is None else (mean - half, mean + half)
    return Estimate(mean, interval, half_width=True)


def average(comparison: Comparison, row: str) -> Estimate:
    """Returns the interquartile mean of a row that was run on every task, with its interval."""
    scores = comparison.scores(row, comparison.averaged)
    interval = bootstrap_interval(interquartile_mean, scores)
    return Estimate(float(interquartile_mean(scores)), interval)


def _in_order(comparison: Comparison) -> list[tuple[str, str, Cell]]:
    keys = [(task, row) for task in comparison.tasks for row in comparison.rows]
    return [(*key, comparison.cells[key]) for key in keys if key in comparison.cells]


def score_table(comparison: Comparison) -> Table:
    """Makes the table of scores, with a line for each task and row."""
    lines: list[dict[str, Any]] = []
    for task, row, cell in _in_order(comparison):
        hidden, episodes = (cell.runs[0].facts[f] for f in ("hidden observations", "episodes"))
        in_training = sorted({run.config["evaluation.episodes_in_training"] for run in cell.runs})
        episodes += f" / {' or '.join(map(str, in_training))}"
        notes = _listed(comparison.marks.get((task, row), []))
        where = {"task": short(task), "row": row, "hidden": None if hidden == "none" else hidden}
        scores = {"last": over_seeds(cell.last), "best in training": cell.best}
        lines.append(
            where | scores | {"seeds": len(cell.runs), "episodes": episodes, "note": notes}
        )
    return Table(
        "scores",
        "Scores",
        lines,
        "Normalised scores, 0 to 100, unless the task says return. Last: the last checkpoint, mean "
        "over seeds ± half of Student's 95 % interval of it (none for a single seed). Best in "
        "training: the best evaluation in training, which has fewer episodes and is chosen because "
        "it is high: not a score to report. Episodes: of last / best."
        + " Hidden: observations that the policy does not see."
        * any(x["hidden"] for x in lines),
    )


def overall_table(comparison: Comparison) -> Table:
    """Makes the table of averages over tasks, of the rows that were run on all of them."""
    lines: list[dict[str, Any]] = []
    count = len(comparison.averaged)
    for row in comparison.rows:
        if not (tasks := comparison.ran(row)):
            continue
        cells = [comparison.cells[task, row] for task in tasks]
        seeds = sorted({len(cell.runs) for cell in cells})
        line = {"row": row, "tasks": f"{len(tasks)} of {count}"}
        line["seeds"] = " to ".join(map(str, dict.fromkeys([seeds[0], seeds[-1]])))
        averages: dict[str, Any] = {"IQM": None, "mean": None, "mean of best": None}
        if len(tasks) == count:
            best = [cell.best for cell in cells if cell.best is not None]
            averages["IQM"] = average(comparison, row)
            averages["mean"] = float(mean_over_tasks(comparison.scores(row, tasks)))
            averages["mean of best"] = float(np.mean(best)) if len(best) == count else None
        minutes = [cell.minutes for cell in cells if cell.minutes is not None]
        averages["minutes"] = float(np.mean(minutes)) if len(minutes) == len(cells) else None
        marks = {mark for task in tasks for mark in comparison.marks.get((task, row), [])}
        lines.append(line | averages | {"note": _listed(sorted(marks))})
    return Table(
        "overall",
        f"Over {count} task{'s' * (count != 1)}",
        lines,
        "IQM: interquartile mean over all runs, each task of equal weight; mean: of the tasks' "
        "means; in brackets the 95 % interval of the stratified bootstrap, too narrow for few "
        "seeds (none if a task has one). Rows that were not run on every task have no average. "
        "Minutes: of a run's updates; those of two machines do not compare.",
    )


def improvement_table(comparison: Comparison) -> Table:
    """Makes the table of each row's difference from the rows of the baselines."""
    lines: list[dict[str, Any]] = []
    for baseline in comparison.baselines:
        for row in comparison.rows:
            both = [task for task in comparison.ran(row) if task in comparison.ran(baseline)]
            if row != baseline and both:
                scores = comparison.scores(row, both), comparison.scores(baseline, both)
                line: dict[str, Any] = {"row": row, "over": baseline}
                for name, difference in DIFFERENCES.items():
                    interval = bootstrap_interval(difference, *scores, repeats=2000)
                    line[name] = Estimate(float(difference(*scores)), interval, "+,.1f")
                lines.append(line | {"tasks": len(both)})
    return Table(
        "improvement",
        "Improvement",
        lines,
        "Differences of the means and IQMs, over the tasks that both rows were run on. In brackets "
        "the 95 % interval of the stratified bootstrap, too narrow for few seeds and tasks.",
    )


def conditions_table(comparison: Comparison) -> Table:
    """Makes the table of what eval.py found under other conditions than those of the scores."""
    lines: list[dict[str, Any]] = []
    for task, row, cell in _in_order(comparison):
        for condition in dict.fromkeys(name for run in cell.runs for name in run.others):
            runs = [run for run in cell.runs if condition in run.others]
            found = [run.others[condition] for run in runs]
            score = over_seeds([score.value for score in found])
            before = float(np.mean([run.score.value for run in runs]))
            length = round(np.mean([score.length_mean for score in found]))
            where = {"task": short(task), "row": row, "condition": condition}
            figures = {"score": score, "unchanged": before, "length": length, "seeds": len(runs)}
            lines.append(where | figures)
    return Table(
        "conditions",
        "Under other conditions",
        lines,
        "The same policies, evaluated again by eval.py: mean over seeds ± half of Student's 95 % "
        "interval (none for a single seed); unchanged: the score of the same seeds in the table of "
        "scores. Longer episodes earn more: compare scores of equal horizons only. Length: steps "
        "of an episode.",
    )


TRIALS = (1, 2, 5, 10, 20)  # episodes


def choice_table(comparison: Comparison) -> Table:
    """Makes the table of what it costs, and brings, to choose the target in the environment."""
    lines: list[dict[str, Any]] = []
    for row in comparison.rows:
        cells = {task: comparison.cells[task, row] for task in comparison.ran(row)}
        runs = [run for cell in cells.values() for run in cell.runs if len(run.sweep) > 1]
        if not runs:
            continue
        targets = [
            [score.episode_values[: run.fewest_in_sweep] for score in run.sweep] for run in runs
        ]
        line = {
            "row": row,
            "tasks": len({run.task for run in runs}),
            "runs": len(runs),
            "targets": len(min(targets, key=len)),
            "asked in advance": float(np.mean([run.score.value for run in runs])),
        }
        for trial in TRIALS:
            if trial < min(run.fewest_in_sweep for run in runs):
                found = [score_of_the_chosen(scores, trial) for scores in targets]
                line[f"tried {trial}"] = float(np.mean(found))
        lines.append(line)
    return Table(
        "choice",
        "If the target were chosen by trying",
        [{key: line.get(key) for key in max(lines, key=len)} for line in lines],
        "Asked in advance: the score of the table of scores, whose target follows from the data. "
        "Tried n: the score expected after n episodes of each target, of which the best mean is "
        "chosen; it is scored by its other episodes. Mean over tasks and seeds.",
    )


def published_table(comparison: Comparison) -> Table:
    """Makes the table of published scores, of those tasks only that were run here."""
    published = read_published()
    names = [name for name in map(d4rl_name, comparison.tasks) if name in published[0]]
    lines: list[dict[str, Any]] = []
    for method in published if names else []:
        scores = {name: float(method[name]) for name in names}
        mean = {"mean of these": float(np.mean(list(scores.values())))}
        words = {name: method[name] for name in ("evidence", "protocol", "source")}
        lines.append({"method": method["method"]} | scores | mean | words)
    return Table(
        "published",
        "Published scores",
        lines,
        "As others report them, on D4RL's v2 data sets and environments: not measured here, and "
        "not comparable with the other tables unless the data are D4RL's. Tasks that were not run "
        "here are left out.",
    )


def read_published() -> list[dict[str, str]]:
    """Reads the published scores that ship with the project, a row for each method.

    Its keys are `method`, `source`, `protocol` (seeds, and whether the last or the best checkpoint
    is scored), `evidence` (how far the figures were checked), the data sets (``hopper-medium``)
    and `average`, their mean.
    """
    path = Path(__file__).with_name("published.csv")
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def d4rl_name(task: str) -> str:
    """Returns the D4RL data set that a task corresponds to; empty if there is none.

    >>> d4rl_name("builtin/hopper/medium-v1")
    'hopper-medium'
    """
    found = re.fullmatch(
        r"(?:builtin/|mujoco/|d4rl/)?(\w+)[/-](medium|medium-replay|medium-expert)-v\d+", task
    )
    return f"{found[1]}-{found[2]}" if found else ""


def row_table(comparison: Comparison) -> Table:
    """Makes the legend: in what the configuration of each row departs from the usual."""
    values: dict[str, dict[str, list[Any]]] = {}  # key of the configuration, row
    for (_, row), cell in comparison.cells.items():
        for key, value in cell.runs[0].settings.items():
            values.setdefault(key, {}).setdefault(row, []).append(value)
    del values["backbone.name"]
    departures: dict[str, list[str]] = {row: [] for row in comparison.rows}
    for key, rows in values.items():
        common = usual([value for own in rows.values() for value in own])
        for row, own in rows.items():
            if any(value != common for value in own):
                departures[row].append(f"{key}={' or '.join(map(str, dict.fromkeys(own)))}")
    words = {row: ", ".join(own) or "the usual configuration" for row, own in departures.items()}
    heading = "departs from the most frequent configuration in"
    return Table(
        "rows",
        "Rows",
        [{"row": row, heading: own} for row, own in words.items()],
        "A row is named after its run folders, without -seedN.",
    )


def facts_table(comparison: Comparison) -> Table:
    """Makes the table of how each task was scored, where no note says otherwise."""
    lines: list[dict[str, Any]] = []
    for task in comparison.tasks:
        facts = [cell.runs[0].facts for (t, _), cell in comparison.cells.items() if t == task]
        common = {fact: usual([run[fact] for run in facts]) for fact in facts[0]}
        shown = {fact: None if value == "none" else value for fact, value in common.items()}
        lines.append({"task": short(task)} | shown)
    return Table(
        "protocol",
        "Protocol",
        lines,
        "How the rows of each task were trained and scored, where no note says otherwise.",
    )


def notes_table(comparison: Comparison) -> Table:
    """Makes the table of notes; the other tables refer to their numbers."""
    return Table(
        "notes",
        "Notes",
        [{"note": i, **asdict(note)} for i, note in enumerate(comparison.notes, start=1)],
        "Where runs are not trained or scored like those that they stand beside.",
    )


def _listed(marks: Sequence[int]) -> str:
    return ", ".join(map(str, marks))
