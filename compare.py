"""Compares runs: tables, statistics over seeds and tasks, pictures, one HTML report.

    python compare.py runs/
    python compare.py runs/hopper-medium runs/walker2d-medium --published --out comparison
    python compare.py runs/ --tasks hopper-medium walker2d-medium
    python compare.py runs/ --watch
    python compare.py runs/ --table results/     # runs.csv, evaluations.csv, curves.csv
    python compare.py results/ runs/more         # tables are read as run folders are

Reads every run folder and every table at and below the folders given, and changes none. A row is
named after its run folders, without -seedN: runs whose folders differ in their seed only share a
row. Unfinished runs are left out; so is a damaged one, and the exit status is then 1.
"""

from __future__ import annotations

import common.interrupt  # isort: skip  # noqa: F401
import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from common.checks import check_choice
from common.errors import UserError, exits
from reports.comparison import Comparison, compare_runs, short
from reports.page import Picture, print_tables, write_report
from reports.pictures import draw_pictures
from reports.progress import progress_table, read_all
from reports.run_files import UnfinishedRun, read_runs, write_tables
from reports.scores import file_stem
from reports.tables import (
    Table,
    choice_table,
    conditions_table,
    facts_table,
    improvement_table,
    notes_table,
    overall_table,
    printable,
    published_table,
    row_table,
    score_table,
)

# A line of output is a line of the terminal, whatever its width, and its words are no markup.
PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}


def main(
    folders: list[Path],
    *,
    out: Path,
    console: Console,
    published: bool = False,
    table: Path | None = None,
    tasks: Sequence[str] = (),
) -> int:
    """Reads the runs, prints the tables and writes the report to the folder `out`.

    Returns:
        The exit status: 1 if a run is damaged, else 0.

    Raises:
        UserError: There is nothing to compare, no run is of one of the `tasks`, or a folder cannot
            be written.
    """
    # Read the runs; name those that cannot be compared.
    runs, problems = read_runs(folders)
    left_out = list(map(str, problems))
    for reason in left_out:
        console.print(f"left out: {printable(reason)}", style="yellow", **PLAIN)
    if not runs:
        raise UserError(
            f"none of the {len(left_out)} runs in {', '.join(map(str, folders))} can be compared, "
            "for the reasons above."
        )
    if table is not None:
        write_tables(table, runs)
    for task in tasks:
        check_choice("--tasks", task, sorted({short(run.task) for run in runs}))
    runs = [run for run in runs if not tasks or short(run.task) in tasks]

    # Make the tables and pictures, in the order of the report.
    comparison = compare_runs(runs)
    averages = _averages_and_pictures(comparison, console)
    tables = [score_table(comparison), improvement_table(comparison)]
    tables += [choice_table(comparison), conditions_table(comparison)]
    about, notes = [row_table(comparison), facts_table(comparison)], notes_table(comparison)
    others = published_table(comparison) if published else None
    parts = [*averages, *tables, *about, notes, *([others] if others else [])]
    parts = [part for part in parts if isinstance(part, Picture) or part.rows]

    # Print what fits a terminal: the scores first, of the published ones the averages only.
    shown = [tables[0], *averages, *tables[1:], notes]
    print_tables([part for part in shown if isinstance(part, Table) and part.rows], console)
    if others is not None and others.rows:
        columns = ("method", "mean of these", "protocol", "evidence")
        rows = [{name: row[name] for name in columns} for row in others.rows]
        caption = f"{others.caption} The score of each task is in the report."
        print_tables([replace(others, rows=rows, caption=caption)], console)
    elif published:
        console.print("There are no published scores of these tasks.", **PLAIN)
    write_report(out, f"{len(runs)} runs on {len(comparison.tasks)} tasks", parts, left_out)
    console.print(f"Report: {printable(str(out / 'report.html'))}", **PLAIN)
    return int(any(not isinstance(problem, UnfinishedRun) for problem in problems))


def _averages_and_pictures(comparison: Comparison, console: Console) -> list[Table | Picture]:
    """Returns the averages over tasks and the pictures.

    Rows that were run on some of the tasks only, see `Comparison.parts`, have averages of their
    own; their table and picture are named after these tasks.
    """
    found: list[Table | Picture] = []
    reasons = set()
    for part in comparison.parts():
        some = part.tasks != comparison.tasks
        made: list[Table | Picture] = [overall_table(part)]
        try:
            made += draw_pictures(part, averages_only=some)
        except UserError as error:
            reasons.add(f"note: there are no pictures. {error}")
        if some:
            tasks = ", ".join(map(short, part.tasks))
            name = file_stem(tasks.replace(", ", "_"))
            made = [
                replace(item, name=f"{item.name}_on_{name}", title=f"{item.title} ({tasks})")
                for item in made
            ]
        found += made
    for reason in reasons:
        console.print(reason, style="yellow", **PLAIN)
    return found


def watch(folders: list[Path], console: Console) -> None:
    """Shows how far the runs in some folders are, until Ctrl-C; reads them again every 2 seconds.

    Raises:
        UserError: There are no runs.
    """
    table = progress_table(read_all(folders))
    with suppress(KeyboardInterrupt), Live(table, console=console, auto_refresh=False) as live:
        while True:
            live.update(progress_table(read_all(folders)), refresh=True)
            time.sleep(2.0)


def run() -> None:
    """Compares as the command line says; an error ends the program with one sentence."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folders", nargs="+", type=Path, help="run folders, tables, or folders of them: runs/")
    report = "folder of the report (default: comparison, in the first folder given)"
    add("--out", type=Path, metavar="FOLDER", help=report)
    add("--table", type=Path, metavar="FOLDER", help="also write the runs as tables to this folder")
    add("--published", action="store_true", help="also show the published scores of these tasks")
    add("--tasks", nargs="+", default=[], metavar="NAME", help="only these, named as in the tables")
    add("--watch", action="store_true", help="only show how far the runs are, until Ctrl-C")
    given = parser.parse_args()
    out = given.out or given.folders[0] / "comparison"
    with exits():
        if given.watch:
            return watch(given.folders, Console())
        more = {"published": given.published, "table": given.table, "tasks": given.tasks}
        sys.exit(main(given.folders, out=out, console=Console(), **more))


if __name__ == "__main__":
    run()
