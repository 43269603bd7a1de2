"""A comparison of runs: which runs share a row of its tables, and which differences are noted."""

import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np

from reports.runs import UNKNOWN, Run
from reports.statistics import interquartile_mean

BASELINES = ("min_gru", "attention")  # backbones that the others are measured against

Value = TypeVar("Value", bound=Hashable)


@dataclass(frozen=True)
class Note:
    """A difference between runs of one table.

    `row` and `task` may name several, or ``all``. `fact` is what differs: ``updates``, or a key of
    the configuration.
    """

    row: str
    task: str
    fact: str
    value: str
    usual: str


@dataclass(frozen=True)
class Cell:
    """The runs of one row on one task, which differ in their seed only, in the order of seeds."""

    runs: list[Run]

    @cached_property
    def last(self) -> np.ndarray:
        """(runs,) scores of the last checkpoints."""
        return np.array([run.score.value for run in self.runs])

    @property
    def best(self) -> float | None:
        """The mean over runs of the best score in training; None if a run has none."""
        best = [run.best for run in self.runs if run.best is not None]
        return float(np.mean(best)) if len(best) == len(self.runs) else None

    @property
    def minutes(self) -> float | None:
        """The mean time of a run's updates; None if it is not known of each run."""
        seconds = [run.config.get("training_seconds") for run in self.runs]
        known = [float(value) for value in seconds if value is not None]
        return float(np.mean(known)) / 60 if len(known) == len(self.runs) else None


@dataclass(frozen=True)
class Comparison:
    """All runs, by task and row.

    Attributes:
        cells: Task and row to the runs.
        central: Backbone to the row that its others depart from.
        notes: What differs between runs that stand in one table.
        marks: Task and row to the numbers of their notes, from 1.
    """

    cells: dict[tuple[str, str], Cell]
    central: dict[str, str]
    notes: list[Note]
    marks: dict[tuple[str, str], list[int]]

    @cached_property
    def tasks(self) -> list[str]:
        """Data sets, as ``builtin/hopper/medium-v1``."""
        return sorted({task for task, _ in self.cells}, key=short)

    @cached_property
    def averaged(self) -> list[str]:
        """Tasks that averages are taken over: those with normalised scores."""
        raw = {task for (task, _), cell in self.cells.items() if not cell.runs[0].normalized}
        return [task for task in self.tasks if task not in raw]

    @cached_property
    def rows(self) -> list[str]:
        """Names of what is compared.

        The best interquartile mean comes first; rows that were not run on every task come last.
        """

        def rank(row: str) -> tuple[int, float, str]:
            scores = self.scores(row, self.ran(row))
            return -len(scores), -float(interquartile_mean(scores)) if scores else 0.0, row

        return sorted({row for _, row in self.cells}, key=rank)

    @property
    def baselines(self) -> list[str]:
        """Central rows that all others are measured against."""
        return [self.central[backbone] for backbone in BASELINES if backbone in self.central]

    @property
    def complete(self) -> list[str]:
        """Rows that were run on every task that averages are taken over."""
        return [row for row in self.rows if self.averaged and self.ran(row) == self.averaged]

    def ran(self, row: str) -> list[str]:
        """Returns the tasks of the averages that a row was run on."""
        return [task for task in self.averaged if (task, row) in self.cells]

    def scores(self, row: str, tasks: Sequence[str]) -> list[np.ndarray]:
        """Returns the scores (runs,) of the last checkpoints on each of the tasks."""
        return [self.cells[task, row].last for task in tasks]

    def parts(self) -> list["Comparison"]:
        """Returns comparisons small enough for a picture, in each of which averages can be taken.

        A set of tasks, not all of them, that three or more rows were run on, and on no others, is
        a part of its own (an ablation on three of nine data sets), together with the central
        rows. All other rows are the first part, which has all tasks.
        """
        sets: dict[tuple[str, ...], list[str]] = {}
        for row in self.rows:
            if 1 < len(ran := self.ran(row)) < len(self.averaged):
                sets.setdefault(tuple(ran), []).append(row)
        sets = {tasks: rows for tasks, rows in sets.items() if len(rows) >= 3}
        rest = [row for row in self.rows if not any(row in rows for rows in sets.values())]
        parts = [self._part(self.tasks, rest)] if rest else []
        for tasks, rows in sets.items():
            beside = [r for r in self.central.values() if all((t, r) in self.cells for t in tasks)]
            parts.append(self._part(tasks, [*beside, *rows]))
        return parts

    def _part(self, tasks: Collection[str], rows: Collection[str]) -> "Comparison":
        cells = {(t, r): cell for (t, r), cell in self.cells.items() if t in tasks and r in rows}
        central = {backbone: row for backbone, row in self.central.items() if row in rows}
        return replace(self, cells=cells, central=central)


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """Sorts runs into the cells of a table; only runs that differ in their seed share one."""
    notes: list[Note] = []
    kept: dict[tuple[str, str], dict[int, Run]] = {}
    for run, row in zip(runs, name_rows(runs), strict=True):
        seed = run.config["seed"]
        known = kept.setdefault((run.task, row), {}).setdefault(seed, run)
        if known is not run:
            value = f"{run.folder} is left out: the same run"
            notes.append(Note(row, short(run.task), f"seed {seed}", value, str(known.folder)))
    cells = {key: Cell([seeds[seed] for seed in sorted(seeds)]) for key, seeds in kept.items()}
    comparison = Comparison(cells, {}, notes, {})
    comparison.central.update(_central_rows(comparison))
    for find in (_unaveraged, _unlike_others, _unlike_itself, _unlike_seeds, _incomplete):
        for note, concerned in find(comparison):
            notes.append(note)
            for key in concerned:
                comparison.marks.setdefault(key, []).append(len(notes))
    return comparison


def name_rows(runs: Sequence[Run]) -> list[str]:
    """Names the row of each run after its folder: ``bc`` of ``hopper-medium/bc-seed0``.

    Where the folders of one task and name hold several configurations, the name of all but the
    first says in which settings it differs: ``bc steps=3000``. A setting that one of two runs does
    not know is one of another version, and no difference.
    """
    first: dict[tuple[str, str], Run] = {}
    rows = []
    for run in runs:
        name = re.sub(r"-seed\d+", "", run.name.rpartition("/")[2])
        known = first.setdefault((run.task, name), run).settings
        changed = [f"{k}={v}" for k, v in run.settings.items() if v != known.get(k, v)]
        rows.append(" ".join([name, *changed]))
    return rows


def _central_rows(comparison: Comparison) -> dict[str, str]:
    """Returns for each backbone the row that its others depart from, the best first.

    That is the row with the backbone's name; else the shortest of those that begin with it, such
    as ``min_gru-streamed``; else the shortest.
    """
    rows: dict[str, set[str]] = {}
    for (_, row), cell in comparison.cells.items():
        rows.setdefault(cell.runs[0].config["backbone.name"], set()).add(row)
    central = {
        backbone: min(own, key=lambda row: (not row.startswith(backbone), len(row), row))
        for backbone, own in rows.items()
    }
    return dict(sorted(central.items(), key=lambda item: comparison.rows.index(item[1])))


Found = Iterator[tuple[Note, list[tuple[str, str]]]]  # notes, and their cells


def _unaveraged(comparison: Comparison) -> Found:
    """Tasks without normalised scores."""
    for task in comparison.tasks:
        if task not in comparison.averaged:
            keys = [key for key in comparison.cells if key[0] == task]
            note = Note("all", short(task), "reference returns", "none", "known, for an average")
            yield note, keys


def _unlike_others(comparison: Comparison) -> Found:
    """Rows that are not trained or scored as most rows of the task are."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for task in comparison.tasks:
        keys = [key for key in comparison.cells if key[0] == task]
        facts = [comparison.cells[key].runs[0].facts for key in keys]
        for (_, row), own, departures in zip(keys, facts, unusual(facts), strict=True):
            for fact, common in departures.items():
                # Of a part of the data, figures and hash differ as a matter of course.
                if not fact.startswith("data") or "part of the data" not in departures:
                    found.setdefault((row, fact, own[fact], common), []).append(task)
    order = {row: place for place, row in enumerate(comparison.rows)}
    for (row, fact, value, common), tasks in sorted(found.items(), key=lambda f: order[f[0][0]]):
        note = Note(row, _named(tasks, comparison), fact, value, common)
        yield note, [(task, row) for task in tasks]


def _unlike_itself(comparison: Comparison) -> Found:
    """Rows whose configuration changes from task to task: they are not one method."""
    for row in comparison.rows:
        configs = {
            task: comparison.cells[task, row].runs[0].settings
            for task in comparison.tasks
            if (task, row) in comparison.cells
        }
        for key in next(iter(configs.values())):
            values: dict[str, list[str]] = {}
            for task, config in configs.items():
                if key in config:
                    values.setdefault(str(config[key]), []).append(task)
            if len(values) > 1 and not key.startswith("dataset."):
                for value, tasks in values.items():
                    note = Note(row, ", ".join(map(short, tasks)), key, value, "one for all tasks")
                    yield note, [(task, row) for task in tasks]


def _unlike_seeds(comparison: Comparison) -> Found:
    """Seeds that are not trained or scored as the others of their row, as on another machine."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for (task, row), cell in comparison.cells.items():
        departures = unusual([run.facts for run in cell.runs])
        for run, departing in zip(cell.runs, departures, strict=True):
            for fact, common in departing.items():
                words = f"{fact} of seed {run.config['seed']}"
                found.setdefault((task, words, run.facts[fact], common), []).append(row)
    for (task, fact, value, common), rows in found.items():
        note = Note(", ".join(rows), short(task), fact, value, common)
        yield note, [(task, row) for row in rows]


def _incomplete(comparison: Comparison) -> Found:
    """Rows without an average; those of a part of their own have one there."""
    alone: dict[str, list[str]] = {}
    for part in comparison.parts():
        for row in part.rows if part.tasks == comparison.tasks else []:
            if missing := [task for task in comparison.averaged if (task, row) not in part.cells]:
                alone.setdefault(_named(missing, comparison), []).append(row)
    for tasks, rows in alone.items():
        note = Note(", ".join(rows), tasks, "runs", "none", "on every task, for an average")
        yield note, [key for key in comparison.cells if key[1] in rows]


def _named(tasks: Sequence[str], comparison: Comparison) -> str:
    """Returns the tasks' short names, or ``all`` where these are all of several."""
    every = len(tasks) == len(comparison.tasks) > 1
    return "all" if every else ", ".join(map(short, tasks))


def usual(values: Sequence[Value]) -> Value:
    """Returns the most frequent value; of several, the one that comes first."""
    return Counter(values).most_common(1)[0][0]


def unusual(facts: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Returns for each run the facts in which it departs from the usual, to what is usual."""
    common = {}
    for fact in facts[0]:
        known = [run[fact] for run in facts if run[fact] != UNKNOWN]
        common[fact] = usual(known) if known else UNKNOWN
    return [
        {fact: common[fact] for fact in common if run[fact] not in (common[fact], UNKNOWN)}
        for run in facts
    ]


def short(task: str) -> str:
    """Returns a task's short name: ``hopper-medium`` of ``builtin/hopper/medium-v1``."""
    if not task.startswith("builtin/"):
        return task
    return re.sub(r"-v\d+(?= \(|$)", "", task.removeprefix("builtin/")).replace("/", "-")
