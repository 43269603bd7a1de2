"""How far the runs of a sweep are: one table that is made again and again while they run."""

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from omegaconf import OmegaConf
from rich.markup import escape
from rich.table import Table

from common.errors import UserError
from reports.runs import (
    find_run_folders,
    read_run,
)


@dataclass(frozen=True)
class Progress:
    """How far one run is.

    Attributes:
        folder: Where it lies.
        finished: It has its final scores.
        step: Updates made, as far as they are logged.
        steps: Updates to make; None if the folder does not say.
        score: The final score, or that of the last evaluation in training; None before the first.
        quiet: Seconds since its last sign.
    """

    folder: Path
    finished: bool
    step: int
    steps: int | None
    score: float | None
    quiet: float


def read_progress(folder: Path) -> Progress:
    """Reads how far one run is; what is not there yet is left open.

    Raises:
        FileNotFoundError: A file went away while it was read.
    """
    log, config, scores = (folder / n for n in ("metrics.jsonl", "config.yaml", "scores.json"))
    step, score, sign = 0, None, folder.stat().st_mtime
    if log.is_file():
        sign = max(sign, log.stat().st_mtime)
        for line in log.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):  # the last one may still be being written
                record = json.loads(line)
                step = record["step"]
                score = record.get("eval/return_mean", score)
                score = record.get("eval/normalized_score_mean", score)
    final = _final_score(folder, scores.stat().st_mtime_ns) if scores.is_file() else None
    return Progress(
        folder=folder,
        finished=final is not None,
        step=step,
        steps=_steps(config, config.stat().st_mtime_ns) if config.is_file() else None,
        score=score if final is None else final,
        quiet=max(0.0, time.time() - sign),
    )


# Read again only when the file has changed: there may be hundreds, every few seconds.
@cache
def _final_score(folder: Path, changed: int) -> float | None:
    try:
        run = read_run(folder)
    except UserError:
        return None
    # eval.py may have scored a run that is still training.
    return run.last if run.config["scored_at_update"] == "last" else None


@cache
def _steps(config: Path, changed: int) -> int | None:
    steps: int | None = OmegaConf.select(OmegaConf.load(config), "steps")
    return steps


def read_all(folders: Iterable[Path]) -> list[Progress]:
    """Reads how far all runs at and below some folders are.

    Raises:
        UserError: One is not a folder, or there is no run in it.
    """
    runs = []
    for folder in find_run_folders(folders):
        with suppress(FileNotFoundError):
            runs.append(read_progress(folder))
    return runs


def progress_table(runs: Iterable[Progress]) -> Table:
    """Makes the table: first what is not done, the last to give a sign on top; then what is."""
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
        table.add_row(escape(str(run.folder)), updates, score, state)
    return table


def time_span(seconds: float) -> str:
    """Returns a time in a unit that suits it: ``42 s``, ``7 min``, ``3 h``."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
