"""Compares run folders: tables, statistics over seeds and tasks, pictures, one HTML report.

    python compare.py runs/
    python compare.py runs/hopper-medium runs/walker2d-medium --published --out comparison
    python compare.py runs/ --watch

Reads every run folder at and below the folders given (config.yaml, config.json, metrics.jsonl,
scores.json) and changes none. Runs that differ in their seed only share a row; whatever else
differs makes another row, or is marked.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from envs.comparison import compare_runs
from envs.plots import PlotError, draw_pictures
from envs.progress import progress_table, read_all
from envs.report import Picture, print_tables, write_report
from envs.runs import Run, RunFolderError, find_run_folders, read_run
from envs.tables import (
    Table,
    improvement_table,
    overall_table,
    protocol_table,
    published_table,
    row_table,
    score_table,
)

# A line of the output is a line of the terminal, whatever its width, and its words are no markup.
PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}


def main(folders: list[Path], *, published: bool, out: Path, console: Console) -> None:
    """Reads the runs, prints the tables and writes the report.

    Args:
        folders: Run folders, or folders of them.
        published: Adds the published scores of the tasks that were run.
        out: Folder of the report.
        console: Where the tables are printed.

    Raises:
        RunFolderError: There is nothing to compare.
        OSError: The report cannot be written.
    """
    runs, left_out = read_runs(folders)
    for reason in left_out:
        console.print(f"left out: {reason}", style="yellow", **PLAIN)
    if not runs:
        raise RunFolderError(
            f"none of the {len(left_out)} runs in {', '.join(map(str, folders))} can be compared, "
            "for the reasons above."
        )
    comparison = compare_runs(runs)
    notes = list(comparison.notes)
    tables = {
        "overall": overall_table(comparison),
        "scores": score_table(comparison),
        "improvement": improvement_table(comparison),
        "rows": row_table(comparison),
        "protocol": protocol_table(comparison),
    }
    tables = {name: table for name, table in tables.items() if table.rows}
    apart = published_table(comparison) if published else None
    if apart is not None and not apart.rows:
        notes.append("There are no published scores of these tasks.")
        apart = None

    seen = [tables[name] for name in ("scores", "overall", "improvement") if name in tables]
    print_tables([*seen, *([without_tasks(apart)] if apart else [])], console)
    for number, note in enumerate(notes, start=1):
        console.print(f"{number}. {note}", **PLAIN)

    pictures: list[Picture] = []
    try:
        pictures = draw_pictures(comparison)
    except PlotError as error:
        console.print(f"note: {error}", style="yellow", **PLAIN)
    title = f"{len(runs)} runs on {len(comparison.tasks)} tasks"
    write_report(out, title, tables, pictures, [*notes, *left_out], apart)
    console.print(f"Report: {out / 'report.html'}", **PLAIN)


def without_tasks(published: Table) -> Table:
    """Returns the published table for a terminal, which is not wide enough for each task."""
    keep = ("method", "mean of these", "protocol", "evidence")
    places = [published.columns.index(name) for name in keep]
    rows = [[row[i] for i in places] for row in published.rows]
    caption = f"{published.caption} The score of each task is in the report."
    return Table(published.title, list(keep), rows, caption)


def read_runs(folders: list[Path]) -> tuple[list[Run], list[str]]:
    """Returns the runs that can be compared, and of each other one in a sentence why not."""
    runs, left_out = [], []
    for folder in find_run_folders(folders):
        try:
            runs.append(read_run(folder))
        except RunFolderError as error:
            left_out.append(str(error))
    return runs, left_out


def watch(folders: list[Path], console: Console, *, every: float = 2.0) -> None:
    """Shows how far the runs are, until Ctrl-C.

    Args:
        folders: Run folders, or folders of them.
        console: Where the table is shown.
        every: Seconds between two looks at them.

    Raises:
        RunFolderError: There are no runs.
    """
    table = progress_table(read_all(folders))
    with suppress(KeyboardInterrupt), Live(table, console=console, auto_refresh=False) as live:
        while True:
            live.update(progress_table(read_all(folders)), refresh=True)
            time.sleep(every)


def run() -> None:
    """Compares as the command line says; an error ends the program with one sentence."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, help="run folders, or folders of them: runs/"
    )
    parser.add_argument(
        "--published", action="store_true", help="also show what others published for these tasks"
    )
    parser.add_argument(
        "--out", type=Path, help="folder of the report (default: comparison, in the first folder)"
    )
    parser.add_argument(
        "--watch", action="store_true", help="only show how far the runs are, until Ctrl-C"
    )
    arguments = parser.parse_args()
    out = arguments.out or arguments.folders[0] / "comparison"
    try:
        if arguments.watch:
            return watch(arguments.folders, Console())
        main(arguments.folders, published=arguments.published, out=out, console=Console())
    except RunFolderError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(
            f"error: the report cannot be written to {out} ({error.strerror}); give another folder "
            "as --out."
        )


if __name__ == "__main__":
    run()
