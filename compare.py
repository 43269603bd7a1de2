"""Compares run folders: tables, statistics over seeds and tasks, pictures, one HTML report.

    python compare.py runs/
    python compare.py runs/hopper-medium runs/walker2d-medium --published --out comparison
    python compare.py benchmarks/results/locomotion --name-by folder --step-times
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
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.live import Live

from agents.acting import make_actor
from agents.backbones import MIXERS
from agents.checkpoint import (
    build_policy,
)
from common.errors import UserError
from configs.schema import TrainConfig
from envs.data.sources import DatasetConfig
from reports.comparison import Comparison, compare_runs, short
from reports.page import Picture, print_tables, write_report
from reports.pictures import (
    draw_pictures,
)
from reports.progress import progress_table, read_all
from reports.runs import (
    IGNORED,
    Run,
    find_run_folders,
    flatten,
    read_run,
)
from reports.step_times import draw_step_times, measure_step_times
from reports.tables import (
    Table,
    conditions_table,
    improvement_table,
    overall_table,
    protocol_table,
    published_table,
    row_table,
    score_table,
)

# A line of the output is a line of the terminal, whatever its width, and its words are no markup.
PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}


def main(
    folders: list[Path],
    *,
    out: Path,
    console: Console,
    published: bool = False,
    by_folder: bool = False,
    step_times: bool = False,
) -> None:
    """Reads the runs, prints the tables and writes the report.

    Args:
        folders: Run folders, or folders of them.
        out: Folder of the report.
        console: Where the tables are printed.
        published: Adds the published scores of the tasks that were run.
        by_folder: Names the rows after the run folders.
        step_times: Also measures the policies' steps on this machine.

    Raises:
        UserError: There is nothing to compare.
        OSError: The report cannot be written.
    """
    runs, left_out = read_runs(folders)
    for reason in left_out:
        console.print(f"left out: {reason}", style="yellow", **PLAIN)
    if not runs:
        raise UserError(
            f"none of the {len(left_out)} runs in {', '.join(map(str, folders))} can be compared, "
            "for the reasons above."
        )
    comparison = compare_runs(runs, by_folder=by_folder)
    notes = list(comparison.notes)
    apart = published_table(comparison) if published else None
    if apart is not None and not apart.rows:
        notes.append("There are no published scores of these tasks.")
        apart = None

    averages = []  # of each part the table of averages and the pictures
    reason = ""
    for number, part in enumerate(comparison.parts(), start=1):
        pictures: list[Picture] = []
        try:
            pictures = draw_pictures(part)
        except UserError as error:
            reason = f"note: {error}"
        for item in [overall_table(part), *pictures]:
            if part.tasks != comparison.tasks:
                where = f"{item.title} ({', '.join(map(short, part.tasks))})"
                item = replace(item, name=f"{item.name}_{number}", title=where)
            averages.append(item)
    scores, improvement = score_table(comparison), improvement_table(comparison)
    others = [conditions_table(comparison), row_table(comparison), protocol_table(comparison)]
    if step_times and not reason:
        averages.append(draw_step_times(comparison, step_times_of(comparison)))
    parts = [*averages, scores, improvement, *others]
    parts = [part for part in parts if isinstance(part, Picture) or part.rows]

    seen = [scores, *averages, improvement, others[0]]
    print_tables([part for part in seen if part in parts and isinstance(part, Table)], console)
    if apart is not None:
        print_tables([without_tasks(apart)], console)
    for number, note in enumerate(notes, start=1):
        console.print(f"{number}. {note}", **PLAIN)
    if reason:
        console.print(reason, style="yellow", **PLAIN)
    title = f"{len(runs)} runs on {len(comparison.tasks)} tasks"
    write_report(out, title, parts, [*notes, *left_out], apart)
    console.print(f"Report: {out / 'report.html'}", **PLAIN)


def step_times_of(comparison: Comparison) -> dict[str, dict[int, float]]:
    """Measures the step of each row; of rows with the same network and way of acting the first's.

    Weights make no difference and are not looked for: a folder of results may do without.

    Raises:
        UserError: A run's config.json describes no policy of this version.
    """
    actors, seen = {}, set()
    for row in [*comparison.central, *comparison.rows]:
        run = next(cell.runs[0] for (_, name), cell in comparison.cells.items() if name == row)
        keys = ("backbone.", "policy.", "rollout")
        if run.score.rollout != "carried":
            keys += ("protocol.context_length",)
        kind = frozenset((k, v) for k, v in run.config.items() if k.startswith(keys))
        if kind not in seen:
            seen.add(kind)
            policy, description = build_policy(run.folder)
            actor = make_actor(policy, run.score.rollout, description.context_length)
            actors[row] = actor, policy.observation_dim
    return measure_step_times(actors)


def without_tasks(published: Table) -> Table:
    """Returns the published table for a terminal, which is not wide enough for each task."""
    keep = ("method", "mean of these", "protocol", "evidence")
    places = [published.columns.index(name) for name in keep]
    rows = [[row[i] for i in places] for row in published.rows]
    caption = f"{published.caption} The score of each task is in the report."
    return Table(published.name, published.title, list(keep), rows, caption)


def read_runs(folders: list[Path]) -> tuple[list[Run], list[str]]:
    """Returns the runs that can be compared, and of each other one in a sentence why not."""
    runs, left_out = [], []
    for folder in find_run_folders(folders):
        try:
            runs.append(with_defaults(read_run(folder)))
        except UserError as error:
            left_out.append(str(error))
    return runs, left_out


def with_defaults(run: Run) -> Run:
    """Returns a run that knows the defaults; keys newer than it have them: so it was made."""
    config, _ = MIXERS.get(run.backbone, MIXERS["min_gru"])
    schema = OmegaConf.structured(TrainConfig(dataset=DatasetConfig(""), backbone=config()))
    defaults = dict(flatten(OmegaConf.to_container(schema)))
    known = {key: value for key, value in defaults.items() if key not in IGNORED}
    return replace(run, config=known | run.config, defaults=known)


def watch(folders: list[Path], console: Console, *, every: float = 2.0) -> None:
    """Shows how far the runs are, until Ctrl-C.

    Args:
        folders: Run folders, or folders of them.
        console: Where the table is shown.
        every: Seconds between two looks at them.

    Raises:
        UserError: There are no runs.
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
        "--step-times",
        action="store_true",
        help="also measure a step of each policy, here and now: seconds for each kind",
    )
    parser.add_argument(
        "--name-by",
        choices=("keys", "folder"),
        default="keys",
        help="call runs by what tells them apart (default), or by their folders, NAME-seedK",
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
        main(
            arguments.folders,
            out=out,
            console=Console(),
            published=arguments.published,
            by_folder=arguments.name_by == "folder",
            step_times=arguments.step_times,
        )
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(
            f"error: the report cannot be written to {out} ({error.strerror}); give another folder "
            "as --out."
        )


if __name__ == "__main__":
    run()
