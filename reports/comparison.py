"""Runs beside each other: which may be averaged, and what must be marked where they may not."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reports.names import name_runs
from reports.runs import Run, unusual
from reports.statistics import interquartile_mean

BASELINES = ("min_gru", "attention")  # backbones that the others are measured against


@dataclass(frozen=True)
class Cell:
    """The runs of one row on one task: they differ in their seed only.

    Attributes:
        runs: In the order of their seeds.
        last: (runs,) scores of the last checkpoints.
        best: (runs,) best scores in training, or None if a run has none.
    """

    runs: list[Run]
    last: np.ndarray
    best: np.ndarray | None


@dataclass(frozen=True)
class Comparison:
    """All runs, by task and row.

    Attributes:
        tasks: Data sets, as ``builtin/hopper/medium-v0``.
        rows: Names of what is compared; the best interquartile mean first, then those that were
            not run on every task.
        cells: Task and row to the runs.
        averaged: Tasks that averages are taken over: those with normalised scores.
        central: Of each backbone the row that its others depart from.
        baselines: Those of them that all others are measured against.
        notes: What differs between rows that stand in one table.
        marks: Task and row to the numbers, from 1, of the notes that concern them.
    """

    tasks: list[str]
    rows: list[str]
    cells: dict[tuple[str, str], Cell]
    averaged: list[str]
    central: list[str]
    baselines: list[str]
    notes: list[str]
    marks: dict[tuple[str, str], list[int]]

    def scores(self, row: str, tasks: Sequence[str]) -> list[np.ndarray]:
        """Returns the scores (runs,) of the last checkpoints on each of the tasks."""
        return [self.cells[task, row].last for task in tasks]

    @property
    def complete(self) -> list[str]:
        """Rows that were run on every task that averages are taken over."""
        return [row for row in self.rows if self.averaged and not self.missing(row)]

    def parts(self) -> list["Comparison"]:
        """Returns comparisons small enough for a picture, in each of which averages can be taken.

        A set of tasks, not all of them, that three or more rows were run on, and on no others, is
        a part of its own (an ablation on three of nine data sets), with the central rows beside
        them. All other rows are the first part, which has all tasks.
        """
        sets: dict[tuple[str, ...], list[str]] = {}
        for row in self.rows:
            tasks = tuple(task for task in self.averaged if (task, row) in self.cells)
            if 1 < len(tasks) < len(self.averaged):
                sets.setdefault(tasks, []).append(row)
        sets = {tasks: rows for tasks, rows in sets.items() if len(rows) >= 3}
        rest = [row for row in self.rows if not any(row in rows for rows in sets.values())]
        parts = [self._part(self.tasks, rest)] if rest else []
        for tasks, rows in sets.items():
            beside = [row for row in self.central if all((t, row) in self.cells for t in tasks)]
            parts.append(self._part(tasks, dict.fromkeys([*beside, *rows])))
        return parts

    def _part(self, tasks: Collection[str], rows: Collection[str]) -> "Comparison":
        cells = {
            key: cell for key, cell in self.cells.items() if key[0] in tasks and key[1] in rows
        }
        averaged = [task for task in self.averaged if task in tasks]
        return replace(
            self,
            tasks=[task for task in self.tasks if task in tasks],
            rows=_ranked(rows, cells, averaged),
            cells=cells,
            averaged=averaged,
            central=[row for row in self.central if row in rows],
            baselines=[row for row in self.baselines if row in rows],
        )

    def missing(self, row: str) -> list[str]:
        """Returns the tasks of the averages that a row was not run on."""
        return [task for task in self.averaged if (task, row) not in self.cells]


def compare_runs(runs: Sequence[Run], *, by_folder: bool = False) -> Comparison:
    """Sorts runs into the cells of a table; only runs that differ in their seed share one.

    Args:
        runs: All of them.
        by_folder: Names rows after the folders; see `reports.names.name_runs`.

    Raises:
        UserError: Folders of the same name hold runs of different configurations.
    """
    named = list(zip(runs, name_runs(runs, by_folder=by_folder), strict=True))
    notes: list[str] = []
    kept: dict[tuple[str, str], dict[int, Run]] = {}
    for run, name in named:
        seeds = kept.setdefault((run.task, name.text), {})
        if run.seed in seeds:
            notes.append(
                f"{run.folder} is left out: it is the same run as {seeds[run.seed].folder}, "
                f"seed {run.seed} of {name.text}."
            )
        else:
            seeds[run.seed] = run
    cells = {key: _cell([seeds[seed] for seed in sorted(seeds)]) for key, seeds in kept.items()}
    tasks = sorted({task for task, _ in cells}, key=short)
    averaged = [task for task in tasks if all(run.normalized for run in runs if run.task == task)]
    rows = _ranked(sorted({row for _, row in cells}), cells, averaged)
    central = {name.backbone: name.text for _, name in named if name.central}
    baselines = [central[backbone] for backbone in BASELINES if backbone in central]
    others = [row for row in rows if row in central.values() and row not in baselines]
    comparison = Comparison(
        tasks, rows, cells, averaged, [*baselines, *others], baselines, notes, {}
    )
    _mark(comparison)
    return comparison


def _ranked(
    rows: Iterable[str], cells: Mapping[tuple[str, str], Cell], averaged: Sequence[str]
) -> list[str]:
    """Returns rows, the best first, before those that were not run on every task."""

    def rank(row: str) -> tuple[int, float, str]:
        ran = [cells[task, row].last for task in averaged if (task, row) in cells]
        return len(averaged) - len(ran), -float(interquartile_mean(ran)) if ran else 0.0, row

    return sorted(rows, key=rank)


def _cell(runs: list[Run]) -> Cell:
    best = [run.best for run in runs if run.best is not None]
    return Cell(
        runs,
        np.array([run.last for run in runs]),
        np.array(best) if len(best) == len(runs) else None,
    )


def _mark(comparison: Comparison) -> None:
    """Writes a note wherever rows are not scored or trained alike, and marks them with it."""

    def mark(text: str, concerned: Iterable[tuple[str, str]]) -> None:
        comparison.notes.append(text)
        for key in concerned:
            comparison.marks.setdefault(key, []).append(len(comparison.notes))

    for task in comparison.tasks:
        if task not in comparison.averaged:
            own = [key for key in comparison.cells if key[0] == task]
            mark(f"{task}: no reference returns are known; it is not part of any average.", own)
    protocols = {key: cell.runs[0].protocol for key, cell in comparison.cells.items()}
    unequal: dict[tuple[str, str], dict[str, str]] = {}
    for task in comparison.tasks:
        keys = [key for key in protocols if key[0] == task]
        unequal |= zip(keys, unusual([protocols[key] for key in keys]), strict=True)
    for row in comparison.rows:
        own = [(task, row) for task in comparison.tasks if (task, row) in comparison.cells]
        departing = [key for key in own if unequal[key]]
        if departing:
            alike: dict[tuple[str, ...], list[tuple[str, str]]] = {}
            for key in departing:
                alike.setdefault(tuple(unequal[key]), []).append(key)
            where = []
            for facts, (first, *more) in alike.items():
                said = [f"{f} {protocols[first][f]} instead of {unequal[first][f]}" for f in facts]
                too = f" (and so on {', '.join(short(key[0]) for key in more)})" if more else ""
                where.append(f"{short(first[0])}: {', '.join(said)}{too}")
            mark(f"{row} is not trained or scored as the others of {'; '.join(where)}.", departing)
        # One row over several tasks is one method only if its configuration is the same on all.
        varying = []
        for setting in comparison.cells[own[0]].runs[0].config:
            values = {key: comparison.cells[key].runs[0].config.get(setting) for key in own}
            if len(set(values.values())) > 1 and not setting.startswith("dataset."):
                each = (f"{value} on {short(task)}" for (task, _), value in values.items())
                varying.append(f"{setting} is {', '.join(each)}")
        if varying:
            mark(f"{row} is not configured alike on every task: {'; '.join(varying)}.", own)
    # The seeds of one row, made on two machines.
    within: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for key, cell in comparison.cells.items():
        apart = unusual([run.protocol for run in cell.runs])
        for run, departures in zip(cell.runs, apart, strict=True):
            said = [f"{f} {run.protocol[f]} instead of {now}" for f, now in departures.items()]
            if said:
                what = f"seed {run.seed} has {', '.join(said)}"
                within.setdefault((key[0], what), []).append(key)
    for (task, what), keys in within.items():
        mark(f"{short(task)}: {what} in {', '.join(row for _, row in keys)}.", keys)
    # Rows of a part of their own have an average there.
    alone: dict[str, list[str]] = {}
    parts = [part for part in comparison.parts() if part.tasks == comparison.tasks]
    for row in [row for part in parts for row in part.rows]:
        if missing := comparison.missing(row):
            alone.setdefault(", ".join(map(short, missing)), []).append(row)
    for tasks, rows in alone.items():
        has = "has" if len(rows) == 1 else "have"
        mark(
            f"{', '.join(rows)} {'was' if len(rows) == 1 else 'were'} not run on {tasks}; "
            f"{'it' if len(rows) == 1 else 'they'} {has} no average over tasks.",
            [key for key in comparison.cells if key[1] in rows],
        )


def short(task: str) -> str:
    """Returns a task's short name: ``hopper-medium`` of ``builtin/hopper/medium-v0``."""
    if not task.startswith("builtin/"):
        return task
    return re.sub(r"-v\d+$", "", task.removeprefix("builtin/")).replace("/", "-")
