"""The progress of runs: one table, which is updated while they train."""

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml  # type: ignore[import-untyped]
from rich.table import Table
from rich.text import Text

from common.errors import UserError
from reports.held_out import HELD_OUT, read_held_out
from reports.run_files import find_runs, read_log, read_run
from reports.scores import read_scores
from reports.tables import printable


@dataclass(frozen=True)
class Progress:
    """The progress of one run.

    `steps` is None if config.yaml cannot be read. `score` is the final score, or that of the last
    evaluation in training. `quiet`: seconds since a file of the run changed.
    """

    folder: Path
    finished: bool
    step: int
    steps: int | None
    score: float | None
    quiet: float


def read_progress(folder: Path) -> Progress:
    """Reads the progress of one run; values of missing or damaged files are left out.

    Raises:
        FileNotFoundError: A file disappeared while it was read.
    """
    log, config, scores = (folder / n for n in ("metrics.jsonl", "config.yaml", "scores.json"))
    step, changed = 0, folder.stat().st_mtime
    score: float | None = None
    final: float | None = None
    if log.is_file():
        changed = max(changed, log.stat().st_mtime)
        with suppress(ValueError, UserError):
            for record in read_log(log):
                step = record["step"]
                returned = record.get("eval/return_mean", score)
                score = record.get("eval/normalized_score_mean", returned)
    if scores.is_file():
        with suppress(UserError):  # not cached: the other files may follow
            final = _final_score(folder, scores.stat().st_mtime_ns)
    return Progress(
        folder=folder,
        finished=final is not None or (folder / HELD_OUT).is_file(),
        step=step,
        steps=_steps(config, config.stat().st_mtime_ns) if config.is_file() else None,
        score=score if final is None else final,
        quiet=max(0.0, time.time() - changed),
    )


# Cached until the file changes: there may be hundreds of runs, read every few seconds.
@cache
def _final_score(folder: Path, changed: int) -> float | None:
    run = read_run(folder)
    # eval.py may have scored a run that is still training.
    return run.score.value if run.settings["scored_at_update"] == "last" else None


@cache
def _steps(config: Path, changed: int) -> int | None:
    try:
        return int(yaml.safe_load(config.read_text(encoding="utf-8"))["steps"])
    except (ValueError, LookupError, TypeError, yaml.YAMLError):
        return None


def read_all(folders: Iterable[Path]) -> list[Progress]:
    """Reads the progress of all runs at and below some folders.

    Raises:
        UserError: One is not a folder, or there is no run in it.
    """
    runs = []
    for folder in find_runs(folders)[0]:
        with suppress(OSError):  # it was removed or renamed while it was read
            runs.append(read_progress(folder))
    return runs


def progress_table(runs: Iterable[Progress]) -> Table:
    """Makes the table: unfinished runs first, ordered by their last change; then finished runs."""
    ordered = sorted(runs, key=lambda run: (run.finished, run.quiet))
    done = sum(run.finished for run in ordered)
    table = Table(title=f"{done} of {len(ordered)} runs done", title_justify="left")
    table.add_column("run", overflow="fold")
    for name in ("updates", "score", "state"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in ordered:
        score = "" if run.score is None else f"{run.score:,.1f}"
        updates = f"{run.step:,} / " + ("?" if run.steps is None else f"{run.steps:,}")
        state = "done" if run.finished else f"last sign {time_span(run.quiet)} ago"
        table.add_row(Text(printable(str(run.folder))), updates, score, state)
    return table


def time_span(seconds: float) -> str:
    """Returns a time in a unit that suits it.

    >>> time_span(42), time_span(430), time_span(11_000)
    ('42 s', '7 min', '3 h')
    """
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def finished(folder: Path, steps: int) -> str | None:
    """Returns one line on a run that was scored after its last update; None if it was not."""
    try:
        if (folder / HELD_OUT).exists():
            held_out = read_held_out(folder)
            step, episodes = held_out.checkpoint_step, held_out.episodes
            found = f"held-out loss {held_out.loss:.4g}"
        else:
            score = read_scores(folder / "scores.json")[0]
            step, episodes = score.checkpoint_step, score.evaluation.episodes
            name, mean, std = "score", score.normalized_score_mean, score.normalized_score_std
            if mean is None:
                name, mean, std = "return", score.return_mean, score.return_std
            found = f"{name} {mean:,.1f} ± {std:,.1f}"
    except UserError:  # none, or damaged: scored again
        return None
    return f"{folder} is finished: {found}, {episodes} episodes" if step == steps else None
