"""The tables of a comparison: text for people, and the same figures unrounded for programs."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from reports.comparison import Comparison, short
from reports.runs import usual
from reports.scores import read_published
from reports.statistics import (
    Interval,
    bootstrap_interval,
    interquartile_mean,
    mean_difference,
    mean_over_tasks,
    probability_of_improvement,
    student_half_width,
)

NOTHING = "-"


@dataclass(frozen=True)
class Table:
    """A table for people, and the same figures unrounded for programs.

    Attributes:
        name: Stem of its CSV.
        title: Its heading.
        columns: Their headings.
        rows: The cells as they are shown.
        caption: What the figures are.
        records: The CSV's rows; none for a table of words.
    """

    name: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    caption: str = ""
    records: list[dict[str, Any]] = field(default_factory=list)


def printable(text: str) -> str:
    """Returns a text without control characters: names and paths can hold anything."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def d4rl_name(task: str) -> str | None:
    """Returns the D4RL data set that a task corresponds to: ``hopper-medium``; None for others."""
    found = re.fullmatch(
        r"(?:builtin/|mujoco/|d4rl/)?(\w+)[/-](medium|medium-replay|medium-expert)-v\d+", task
    )
    return f"{found[1]}-{found[2]}" if found else None


def _number(value: float | np.ndarray) -> str:
    return f"{float(value):,.1f}"


def score_table(comparison: Comparison) -> Table:
    """Makes the table with a line for each task and row."""
    lines, records = [], []
    for task in comparison.tasks:
        for row in comparison.rows:
            if (task, row) not in comparison.cells:
                continue
            cell = comparison.cells[task, row]
            run, mean, half = cell.runs[0], cell.last.mean(), student_half_width(cell.last)
            marks = comparison.marks.get((task, row), [])
            in_training = " or ".join(map(str, sorted({run.curve_episodes for run in cell.runs})))
            lines.append(
                [
                    short(task),
                    row,
                    _number(mean) + ("" if half is None else f" ± {half:,.1f}"),
                    NOTHING if cell.best is None else _number(cell.best.mean()),
                    str(len(cell.runs)),
                    f"{run.score.episodes} / {in_training}",
                    ", ".join(map(str, marks)),
                ]
            )
            records.append(
                {
                    "task": task,
                    "row": row,
                    "unit": "normalized_score" if task in comparison.averaged else "return",
                    "last": mean,
                    "last_low": "" if half is None else mean - half,
                    "last_high": "" if half is None else mean + half,
                    "best_in_training": "" if cell.best is None else cell.best.mean(),
                    "seeds": len(cell.runs),
                    "episodes_last": run.score.episodes,
                    "episodes_best": in_training,
                    **{key.replace(" ", "_"): value for key, value in run.facts.items()},
                    "notes": " ".join(map(str, marks)),
                }
            )
    return Table(
        "scores",
        "Scores",
        ["task", "row", "last", "best in training", "seeds", "episodes", "note"],
        lines,
        "Normalised scores, 0 to 100, unless the task says return. Last: the last checkpoint, mean "
        "over seeds ± half of Student's 95 % interval of it (none for a single seed). Best in "
        "training: the best of the evaluations in training, of fewer episodes and chosen for being "
        "high: no score to report. Episodes: of last / best.",
        records,
    )


def overall_table(comparison: Comparison) -> Table:
    """Makes the table of averages over tasks, of the rows that were run on all of them."""
    lines, records = [], []
    count = len(comparison.averaged)
    for row in comparison.rows:
        present = [task for task in comparison.averaged if (task, row) in comparison.cells]
        if not present:
            continue
        seeds = sorted({len(comparison.cells[task, row].runs) for task in present})
        marks = sorted({i for task in present for i in comparison.marks.get((task, row), [])})
        record: dict[str, Any] = {"row": row, "tasks": len(present), "of_tasks": count}
        record["seeds"] = "-".join(map(str, seeds))
        cells = [NOTHING] * 3
        if len(present) == count:
            scores = comparison.scores(row, present)
            for i, (name, statistic) in enumerate(
                (("iqm", interquartile_mean), ("mean", mean_over_tasks))
            ):
                value, interval = statistic(scores), bootstrap_interval(statistic, scores)
                cells[i] = _number(value) + (_between(interval) if name == "iqm" else "")
                record |= {name: float(value), **_ends(name, interval)}
            best = [comparison.cells[task, row].best for task in present]
            if all(values is not None for values in best):
                mean = float(np.mean([values.mean() for values in best if values is not None]))
                cells[2] = _number(mean)
                record["mean_best_in_training"] = mean
        seen = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        lines.append([row, f"{len(present)} of {count}", seen, *cells, ", ".join(map(str, marks))])
        records.append(record)
    return Table(
        "overall",
        f"Over {count} task{'s' * (count != 1)}",
        ["row", "tasks", "seeds", "IQM", "mean", "mean of best", "note"],
        lines,
        "IQM: interquartile mean over all runs of all tasks, each run counting the same; mean: of "
        "the tasks' means; in brackets the stratified bootstrap's 95 % interval, which is too "
        "narrow for few seeds (none where a task has a single seed). Rows that were not run on "
        "every task have no average.",
        records,
    )


def improvement_table(comparison: Comparison) -> Table:
    """Makes the table of how far, and how likely, each row improves on the baselines' rows."""
    lines, records = [], []
    for baseline in comparison.baselines:
        for row in comparison.rows:
            both = [
                task
                for task in comparison.averaged
                if (task, row) in comparison.cells and (task, baseline) in comparison.cells
            ]
            if row == baseline or not both:
                continue
            scores = comparison.scores(row, both), comparison.scores(baseline, both)
            difference = float(mean_difference(*scores))
            between = bootstrap_interval(mean_difference, *scores, repeats=2000)
            likely = float(probability_of_improvement(*scores))
            interval = bootstrap_interval(probability_of_improvement, *scores, repeats=2000)
            lines.append(
                [
                    row,
                    baseline,
                    f"{difference:+,.1f}{_between(between, '+,.1f')}",
                    f"{likely:.2f}{_between(interval, '.2f')}",
                    str(len(both)),
                ]
            )
            records.append(
                {"row": row, "over": baseline, "difference": difference}
                | _ends("difference", between)
                | {"probability": likely}
                | _ends("probability", interval)
                | {"tasks": len(both)}
            )
    return Table(
        "improvement",
        "Improvement",
        ["row", "over", "difference", "probability", "tasks"],
        lines,
        "Difference: of the means, averaged over the tasks that both rows were run on. Probability "
        "of improvement: how likely a run of the row beats a run of the other on the same task "
        "(0.50: as likely as not), averaged likewise. In brackets the stratified bootstrap's 95 % "
        "interval, which is too narrow for few seeds and tasks.",
        records,
    )


def conditions_table(comparison: Comparison) -> Table:
    """Makes the table of what eval.py found under other conditions than those of the scores."""
    lines, records = [], []
    for task in comparison.tasks:
        for row in comparison.rows:
            cell = comparison.cells.get((task, row))
            runs = cell.runs if cell is not None else []
            for condition in dict.fromkeys(name for run in runs for name in run.others):
                own = [run for run in runs if condition in run.others]
                found = np.array([run.others[condition].value for run in own])
                mean, half = found.mean(), student_half_width(found)
                before = float(np.mean([run.last for run in own]))
                length = float(np.mean([run.others[condition].length_mean for run in own]))
                lines.append(
                    [
                        short(task),
                        row,
                        condition,
                        _number(mean) + ("" if half is None else f" ± {half:,.1f}"),
                        _number(before),
                        f"{length:,.0f}",
                        str(len(own)),
                    ]
                )
                record = {"task": task, "row": row, "condition": condition, "score": mean}
                ends = ("", "") if half is None else (mean - half, mean + half)
                record |= {"score_low": ends[0], "score_high": ends[1], "unchanged": before}
                records.append(record | {"length": length, "seeds": len(own)})
    return Table(
        "conditions",
        "Under other conditions",
        ["task", "row", "condition", "score", "unchanged", "length", "seeds"],
        lines,
        "The same policies as eval.py scored them again, mean over the seeds ± half of Student's "
        "95 % interval (none for a single seed); unchanged: the score of the same seeds above. "
        "Longer episodes earn more: compare a horizon with that of other rows only. Length: steps "
        "of an episode.",
        records,
    )


def _between(interval: Interval | None, form: str = ",.1f") -> str:
    if interval is None:
        return ""
    return f" ({interval[0]:{form}} to {interval[1]:{form}})"


def _ends(name: str, interval: Interval | None) -> dict[str, Any]:
    low, high = ("", "") if interval is None else map(float, interval)
    return {f"{name}_low": low, f"{name}_high": high}


def published_table(comparison: Comparison) -> Table:
    """Makes the table of published scores, of those tasks only that were run here."""
    names = list(dict.fromkeys(filter(None, map(d4rl_name, comparison.tasks))))
    lines, records = [], []
    published = read_published()
    names = [name for name in names if name in published[0].normalized_scores]
    for method in published if names else []:
        scores = {name: method.normalized_scores[name] for name in names}
        average = float(np.mean(list(scores.values())))
        words = {"evidence": method.evidence, "protocol": method.protocol, "source": method.paper}
        cells = [f"{score:.1f}" for score in [*scores.values(), average]]
        lines.append([method.method, *cells, *words.values()])
        records.append({"method": method.method, **scores, "mean_of_these": average, **words})
    return Table(
        "published",
        "Published scores",
        ["method", *names, "mean of these", "evidence", "protocol", "source"],
        lines,
        "As others report them, on D4RL's v2 data sets and environments: not measured here, and "
        "not comparable with the other tables unless the data are D4RL's. Tasks that were not run "
        "here are left out.",
        records,
    )


def row_table(comparison: Comparison) -> Table:
    """Makes the legend: in what the configuration of each row departs from the usual."""
    configs: dict[str, dict[str, list[Any]]] = {}
    for (_, row), cell in comparison.cells.items():
        for key, value in cell.runs[0].config.items():
            if key != "backbone.name":
                configs.setdefault(row, {}).setdefault(key, []).append(value)
    common: dict[str, Any] = {}
    for key in dict.fromkeys(key for config in configs.values() for key in config):
        common[key] = usual([v for config in configs.values() for v in config.get(key, [])])
    lines = []
    for row in comparison.rows:
        departures = [
            f"{key}={' or '.join(map(str, dict.fromkeys(values)))}"
            for key, values in configs[row].items()
            if any(value != common[key] for value in values)
        ]
        lines.append([row, ", ".join(departures) or "the usual configuration"])
    return Table(
        "rows",
        "Rows",
        ["row", "departs from the most frequent configuration in"],
        lines,
        "A row is named after its run folders, without -seedN.",
    )


def facts_table(comparison: Comparison) -> Table:
    """Makes the table of how each task was scored, where no note says otherwise."""
    lines = []
    for task in comparison.tasks:
        facts = [c.runs[0].facts for (t, _), c in comparison.cells.items() if t == task]
        lines.append([short(task), *(usual([run[fact] for run in facts]) for fact in facts[0])])
    return Table(
        "protocol",
        "Protocol",
        ["task", *next(iter(comparison.cells.values())).runs[0].facts],
        lines,
        "How the rows of each task were trained and scored, where no note says otherwise.",
    )


def notes_table(comparison: Comparison) -> Table:
    """Makes the table of notes, whose numbers stand beside the scores that they concern."""
    lines = [
        [str(number), note.row, note.task, note.fact, note.value, note.usual]
        for number, note in enumerate(comparison.notes, start=1)
    ]
    return Table(
        "notes",
        "Notes",
        ["note", "row", "task", "fact", "value", "usual"],
        lines,
        "Where runs are not trained or scored like those that they stand beside.",
    )


def with_columns(table: Table, columns: Sequence[str]) -> Table:
    """Returns a table with some of its columns only."""
    places = [table.columns.index(name) for name in columns]
    rows = [[row[place] for place in places] for row in table.rows]
    return replace(table, columns=list(columns), rows=rows)
