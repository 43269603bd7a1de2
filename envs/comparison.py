"""Runs beside each other: which may be averaged, and what must be marked where they may not."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from envs.names import name_runs
from envs.runs import Run, unusual
from envs.statistics import interquartile_mean

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
        baselines: Rows that the others are measured against.
        notes: What differs between rows that stand in one table.
        marks: Task and row to the numbers, from 1, of the notes that concern them.
    """

    tasks: list[str]
    rows: list[str]
    cells: dict[tuple[str, str], Cell]
    averaged: list[str]
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

    def missing(self, row: str) -> list[str]:
        """Returns the tasks of the averages that a row was not run on."""
        return [task for task in self.averaged if (task, row) not in self.cells]


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """Sorts runs into the cells of a table; only runs that differ in their seed share one."""
    named = list(zip(runs, name_runs(runs), strict=True))
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
    rows = sorted({row for _, row in cells})
    averaged = [task for task in tasks if all(run.normalized for run in runs if run.task == task)]

    def rank(row: str) -> tuple[int, float, str]:
        ran = [cells[task, row].last for task in averaged if (task, row) in cells]
        return len(averaged) - len(ran), -float(interquartile_mean(ran)) if ran else 0.0, row

    rows.sort(key=rank)
    central = {name.backbone: name.text for _, name in named if name.central}
    baselines = [central[backbone] for backbone in BASELINES if backbone in central]
    comparison = Comparison(tasks, rows, cells, averaged, baselines, notes, {})
    _mark(comparison)
    return comparison


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
            where = []
            for key in departing:
                facts = [f"{f} {protocols[key][f]} instead of {c}" for f, c in unequal[key].items()]
                where.append(f"{short(key[0])}: {', '.join(facts)}")
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
        if missing := comparison.missing(row):
            names = ", ".join(map(short, missing))
            mark(f"{row} was not run on {names}; it has no average over tasks.", own)


def short(task: str) -> str:
    """Returns a task's short name: ``hopper-medium`` of ``builtin/hopper/medium-v0``."""
    if not task.startswith("builtin/"):
        return task
    return re.sub(r"-v\d+$", "", task.removeprefix("builtin/")).replace("/", "-")
