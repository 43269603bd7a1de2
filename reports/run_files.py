"""Runs in files: run folders, and tables that hold many runs.

A table folder has three CSV files, from which compare.py shows the same as from the run folders:

- runs.csv, a row for each run: every key of its configuration (``protocol.name``), the time of its
  updates (``training_seconds``), its data set (``data.sha256``) and its score
  (``score.normalized_score_mean``);
- evaluations.csv, a row for each further evaluation; an empty cell means: as in runs.csv;
- curves.csv, a row for each update at which a run was evaluated.

Cells are JSON, strings without their quotes. The return and the length of each episode are packed:
``numpy.frombuffer(zlib.decompress(base64.b64decode(cell)), "<f4")``.
"""

import base64
import csv
import io
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]

from common.errors import UserError
from common.files import write_files
from envs.tasks import DatasetInfo, from_plain
from reports.held_out import HELD_OUT
from reports.runs import Run
from reports.scores import Score, read_scores

RUNS, EVALUATIONS, CURVES = "runs.csv", "evaluations.csv", "curves.csv"
EPISODES = ("episode_returns", "episode_lengths")  # packed; lengths of a run's own score only
LOGGED = (
    *("train/loss", "eval/loss"),
    *("eval/normalized_score_mean", "eval/return_mean", "eval/length_mean"),
    SPEED := "time/updates_per_second",
)
REQUIRED = {  # settings that a comparison reads by name
    **{"backbone.name": str, "seed": int, "steps": int},
    **{"policy.return_to_go": bool, "evaluation.episodes_in_training": int},
}
# What a damaged file raises where it is read, parsed and checked.
DAMAGE = (OSError, ValueError, KeyError, RecursionError, yaml.YAMLError, csv.Error, zlib.error)


class UnfinishedRun(UserError):
    """A run folder that has no scores yet."""


def find_runs(folders: Iterable[Path]) -> tuple[dict[Path, str], list[Path]]:
    """Finds the run folders, finished or not, and the table folders at and below some folders.

    Returns:
        The run folders with their names, see `Run.name`, and the table folders; each once.

    Raises:
        UserError: One is not a folder, or there is nothing in it.
    """
    runs: dict[Path, tuple[Path, str]] = {}
    tables: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            reason = "is not a folder" if folder.exists() else "does not exist"
            raise UserError(f"{folder} {reason}; give run folders, or folders of them: runs/")
        empty = True
        for parent, below, files in os.walk(folder):  # rglob fails if a folder vanishes
            below[:] = sorted(name for name in below if not name.startswith("."))
            path, known = Path(parent), {"config.yaml", "scores.json", RUNS}.intersection(files)
            empty = empty and not known
            if RUNS in known:
                tables[path.resolve()] = path
            if known - {RUNS}:
                own = path.resolve()
                name = own.name if path == folder else path.relative_to(folder).as_posix()
                runs[own] = path, name
        if empty:
            raise UserError(
                f"{folder} holds no runs: there is no config.yaml and no {RUNS} in it or below; "
                "give the folder that train.py wrote to."
            )
    return dict(runs.values()), list(tables.values())


def read_runs(folders: Iterable[Path]) -> tuple[list[Run], list[UserError]]:
    """Reads all runs at and below some folders.

    Returns:
        The runs, and an error for each run or table that cannot be read: `UnfinishedRun` or
        another one.

    Raises:
        UserError: A folder holds no runs at all.
    """
    runs: list[Run] = []
    problems: list[UserError] = []
    found, tables = find_runs(folders)
    for folder, name in found.items():
        with _collected(problems):
            runs.append(read_run(folder, name))
    for folder in tables:
        with _collected(problems):
            own, others, curves = (_read_rows(folder / n) for n in (RUNS, EVALUATIONS, CURVES))
            for name, rows in own.items():
                with _collected(problems), _damage(f"the row {name} of {folder / RUNS}"):
                    files = rows, others.get(name, []), curves.get(name, [])
                    runs.append(_make_run(folder / name, *files))
    return runs, problems


@contextmanager
def _collected(problems: list[UserError]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        problems.append(error)


@contextmanager
def _damage(what: object) -> Iterator[None]:
    """Says in a sentence what is damaged."""
    try:
        yield
    except (UserError, *DAMAGE) as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, OSError):
            reason = str(error.strerror)
        elif isinstance(error, KeyError):
            reason = f"the key {error} is missing"
        reason = reason.splitlines()[0].rstrip(".")
        raise UserError(
            f"{what} is damaged or of another version of this project ({reason}): copy it again "
            "from its source, or train again."
        ) from error


def read_run(folder: Path, name: str = "") -> Run:
    """Reads one run folder; by default the run is named after it.

    Raises:
        UserError: It is unfinished or damaged.
    """
    if not (folder / "scores.json").is_file():
        if (folder / HELD_OUT).is_file():
            raise UnfinishedRun(
                f"{folder} has no score, because its data name no environment; its error on "
                f"held-out episodes is in {HELD_OUT}."
            )
        raise UnfinishedRun(
            f"{folder} is unfinished, it has no scores.json: resume it with the same command and "
            f"resume=true, or score the last checkpoint with python eval.py run={folder}."
        )
    with _damage(path := folder / "config.yaml"):
        config = dict(flatten(yaml.safe_load(path.read_text(encoding="utf-8"))))
        _check(config)
    with _damage(path := folder / "config.json"):
        described = json.loads(path.read_text(encoding="utf-8"))
        data = from_plain(DatasetInfo, isinstance(described, dict) and described["dataset"])
    steps: dict[int, dict[str, Any]] = {}
    with _damage(path := folder / "metrics.jsonl"):
        for record in read_log(path):
            steps.setdefault(record["step"], {}).update(record)
    last = max(steps, default=0)
    # The median forgives a pause; a critic's own training is not in it.
    speeds = [speed for record in steps.values() if (speed := record.pop(SPEED, 0)) > 0]
    if speeds and not config.get("critic.updates"):
        config["training_seconds"] = config["steps"] / float(np.median(speeds))
    return Run(
        name=name or folder.resolve().name,
        folder=folder,
        config=config,
        data=data,
        scores=read_scores(folder / "scores.json"),
        evaluations={p.stem: read_scores(p) for p in sorted(folder.glob("scores-*.json"))},
        log=[r for s, r in steps.items() if s == last or any(k.startswith("eval/") for k in r)],
    )


def _check(config: dict[str, Any]) -> None:
    for key, kind in REQUIRED.items():
        if not isinstance(config[key], kind):
            raise UserError(f"{key} is {config[key]!r:.40}, which is no {kind.__name__}")


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the step and the `LOGGED` figures of each record of metrics.jsonl, if there is one.

    Raises:
        OSError: The file cannot be read.
        ValueError: A line is not JSON.
        UserError: A line is no record, or a figure is not a finite number.
    """
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):  # a killed run leaves an incomplete last line
                yield _make_record(json.loads(line))


def _make_record(values: Any) -> dict[str, Any]:
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
        raise UserError(f"the record {values!r:.40} has no step")
    record = {key: values[key] for key in ("step", *LOGGED) if key in values}
    for key, value in record.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{key} is {value!r:.40}, which is not a finite number")
    return record


def flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields nested keys and their values: ``protocol.name``, ``windowed``.

    Raises:
        UserError: There are no keys.
    """
    if not isinstance(values, dict):
        raise UserError(f"there is {values!r:.40} where keys should be")
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _nested(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Returns what `flatten` was given, of the keys that begin with the prefix."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        if key.startswith(prefix):
            *groups, leaf = key.removeprefix(prefix).split(".")
            place = nested
            for group in groups:
                if not isinstance(place.get(group), dict):
                    place[group] = {}
                place = place[group]
            place[leaf] = value
    return nested


def write_tables(folder: Path, runs: Iterable[Run]) -> None:
    """Writes runs.csv, evaluations.csv and curves.csv.

    Raises:
        UserError: Two runs have one name, or the folder cannot be written.
    """
    named: dict[str, Run] = {}
    for run in runs:
        if (other := named.setdefault(run.name, run)) is not run:
            raise UserError(
                f"{other.folder} and {run.folder} would both be called {run.name} in {RUNS}: give "
                "a folder that contains both, so that their names differ."
            )
    tables: dict[str, list[dict[str, Any]]] = {RUNS: [], EVALUATIONS: [], CURVES: []}
    for name, run in sorted(named.items()):
        first, *more = run.scores
        own = dict(flatten(asdict(first), "score."))
        data = dict(flatten(asdict(run.data), "data."))
        config = {key: value for key, value in run.config.items() if key != "run_dir"}
        packed = {key: own.pop(key) for key in list(own) if key.endswith(EPISODES)}
        # Mean scores come first, packed columns last.
        headline = {key: own[key] for key in own if key.endswith("_mean")}
        tables[RUNS].append({"run": name} | headline | own | data | config | packed)
        for stem, scores in {"scores": more, **run.evaluations}.items():
            for score in scores:
                items = flatten(asdict(score), "score.")
                changed = {k: v for k, v in items if k not in packed and v != own.get(k)}
                if score.episode_returns:  # tables of an earlier version have none
                    changed["score.episode_returns"] = score.episode_returns
                tables[EVALUATIONS].append({"run": name, "file": stem} | changed)
        tables[CURVES] += [{"run": name} | record for record in run.log]
    cells = {
        file: [{key: _to_cell(key, value) for key, value in row.items()} for row in rows]
        for file, rows in tables.items()
    }
    files = {file: to_csv(rows) for file, rows in cells.items()}
    write_files(folder, files, "give another folder as --table")


def _read_rows(path: Path) -> dict[str, list[dict[str, str]]]:
    """Returns the rows of a file by their run; empty cells are left out."""
    rows: dict[str, list[dict[str, str]]] = {}
    with _damage(path), open(path, encoding="utf-8", newline="") as file:
        for cells in csv.DictReader(file):
            row = {key: cell for key, cell in cells.items() if cell}
            rows.setdefault(row["run"], []).append(row)
    return rows


def _make_run(
    folder: Path,
    rows: list[dict[str, str]],
    evaluations: list[dict[str, str]],
    curve: list[dict[str, str]],
) -> Run:
    if len(rows) > 1:
        raise UserError("its name is there twice")
    own = _from_cells(rows[0])
    config = {key: v for key, v in own.items() if not key.startswith(("score.", "data."))}
    name = str(config.pop("run"))
    _check(config)
    scores = {"scores": [from_plain(Score, _nested(own, "score."))]}
    own |= {f"score.{key}": [] for key in EPISODES}
    for cells in evaluations:
        other = _from_cells(cells)
        score = from_plain(Score, _nested(own | other, "score."))
        scores.setdefault(other["file"], []).append(score)
    return Run(
        name=name,
        folder=folder,
        config=config,
        data=from_plain(DatasetInfo, _nested(own, "data.")),
        scores=scores.pop("scores"),
        evaluations=scores,
        log=[_make_record(_from_cells(cells)) for cells in curve],
    )


def _from_cells(cells: dict[str, str]) -> dict[str, Any]:
    if None in cells:
        raise UserError("it has more cells than there are columns")
    return {key: _from_cell(key, cell) for key, cell in cells.items()}


def _from_cell(key: str, cell: str) -> Any:
    if key.endswith(EPISODES):
        numbers = np.frombuffer(zlib.decompress(base64.b64decode(cell)), "<f4")
        return numbers.astype(int if key.endswith("lengths") else float).tolist()
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def _to_cell(key: str, value: Any) -> str:
    if key.endswith(EPISODES):
        packed = zlib.compress(np.asarray(value, "<f4").tobytes(), 9)
        return base64.b64encode(packed).decode()
    if isinstance(value, str):
        try:  # a string that reads as a number keeps its quotes
            json.loads(value)
        except ValueError:
            return value or '""'
    return json.dumps(value)


def to_csv(records: Sequence[dict[str, Any]]) -> bytes:
    """Returns records as CSV; a key that a record does not have is an empty cell."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode(errors="replace")  # of a folder's name that is not UTF-8
