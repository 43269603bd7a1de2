"""What runs left behind: read from run folders, or from tables that hold many of them.

A table folder has three CSV files, from which compare.py shows the same as from the run folders:

- runs.csv, a row for each run: every key of its configuration (``protocol.name``), its data set
  (``data.sha256``) and its score (``score.normalized_score_mean``);
- evaluations.csv, a row for each further evaluation; an empty cell means: as in runs.csv;
- curves.csv, a row for each update at which a run was evaluated.

Cells are JSON, strings without their quotes. The return and the length of each episode are packed:
``numpy.frombuffer(zlib.decompress(base64.b64decode(cell)), "<f4")``.
"""

import base64
import csv
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]

from common.errors import UserError
from common.files import write_file
from envs.tasks import from_plain
from reports.scores import Score, read_scores

RUNS, EVALUATIONS, CURVES = "runs.csv", "evaluations.csv", "curves.csv"
EPISODES = ("episode_returns", "episode_lengths")  # packed, and kept of a run's own score only
LOGGED = (
    *("train/loss", "eval/loss"),
    *("eval/normalized_score_mean", "eval/return_mean", "eval/length_mean"),
)


@dataclass(frozen=True, eq=False)
class Record:
    """What one run left behind.

    Attributes:
        name: Its folder, below the one that was searched: ``hopper-medium/min_gru-seed0``.
        folder: Its folder; for a row of a table, where the folder would be.
        config: config.yaml, its keys joined: ``protocol.name`` to ``windowed``.
        data: What config.json says of the data set.
        scores: scores.json.
        evaluations: Further files of scores: stem to scores.
        curve: Of metrics.jsonl the updates with an evaluation, and the last: ``step`` and `LOGGED`.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    data: dict[str, Any]
    scores: list[Score]
    evaluations: dict[str, list[Score]]
    curve: list[dict[str, Any]]


class UnfinishedRun(UserError):
    """A run folder that has no scores yet."""


def find_records(folders: Iterable[Path]) -> tuple[dict[Path, str], list[Path]]:
    """Finds the run folders, finished or not, and the table folders at and below some folders.

    Returns:
        The run folders with their names, see `Record.name`, and the table folders; each once.

    Raises:
        UserError: One is not a folder, or there is nothing in it.
    """
    runs: dict[Path, tuple[Path, str]] = {}
    tables: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            reason = "is not a folder" if folder.exists() else "does not exist"
            raise UserError(f"{folder} {reason}; give run folders, or folders of them: runs/")
        inside = {
            path.parent
            for name in ("config.yaml", "scores.json")
            for path in folder.rglob(name)
            if not path.parent.name.startswith(".")
        }
        found = [path.parent for path in sorted(folder.rglob(RUNS))]
        if not inside and not found:
            raise UserError(
                f"{folder} holds no runs: there is no config.yaml and no {RUNS} in it or below; "
                "give the folder that train.py wrote to."
            )
        for path in sorted(inside):
            name = path.resolve().name if path == folder else path.relative_to(folder).as_posix()
            runs[path.resolve()] = path, name
        tables |= {path.resolve(): path for path in found}
    return dict(runs.values()), list(tables.values())


def read_records(folders: Iterable[Path]) -> tuple[list[Record], list[UserError]]:
    """Reads all runs at and below some folders.

    Returns:
        The runs, and an error for each that cannot be read: `UnfinishedRun` or another one.

    Raises:
        UserError: A folder holds no runs at all.
    """
    runs, tables = find_records(folders)
    records: list[Record] = []
    problems: list[UserError] = []
    for folder, name in runs.items():
        try:
            records.append(read_record(folder, name))
        except UserError as error:
            problems.append(error)
    for folder in tables:
        found, unreadable = read_tables(folder)
        records += found
        problems += unreadable
    return records, problems


def read_record(folder: Path, name: str = "") -> Record:
    """Reads one run folder; by default the run is named after it.

    Raises:
        UserError: It is unfinished or damaged.
    """
    if not (folder / "scores.json").is_file():
        raise UnfinishedRun(
            f"{folder} is unfinished, it has no scores.json: resume it with the same command and "
            f"resume=true, or score the last checkpoint with python eval.py run={folder}."
        )
    with naming_damage(str(folder)):
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        others = sorted(folder.glob("scores-*.json"))
        return Record(
            name=name or folder.resolve().name,
            folder=folder,
            config=dict(flatten(config)),
            data=described["dataset"],
            scores=read_scores(folder / "scores.json"),
            evaluations={path.stem: read_scores(path) for path in others},
            curve=_read_curve(folder / "metrics.jsonl"),
        )


@contextmanager
def naming_damage(what: str) -> Iterator[None]:
    """Turns any error into a sentence about the run whose damaged files may have caused it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = str(error)
        if isinstance(error, FileNotFoundError):
            reason = f"{Path(error.filename).name} is missing"
        elif isinstance(error, KeyError):
            reason = f"the key {error} is missing"
        first_line = (reason or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{what} is damaged or of another version of this project ({first_line}): copy it "
            "again from its source, or train again."
        ) from error


def logged(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the records of metrics.jsonl, if there is one."""
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):  # a killed run leaves a line without an end
                yield json.loads(line)


def _read_curve(path: Path) -> list[dict[str, Any]]:
    steps: dict[int, dict[str, Any]] = {}
    for record in logged(path):
        known = {key: record[key] for key in LOGGED if key in record}
        steps.setdefault(record["step"], {"step": record["step"]}).update(known)
    last = max(steps, default=0)
    return [r for s, r in steps.items() if s == last or any(k.startswith("eval/") for k in r)]


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields nested keys and their values: ``protocol.name``, ``windowed``."""
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
                place = place.setdefault(group, {})
            place[leaf] = value
    return nested


def write_tables(folder: Path, records: Iterable[Record]) -> None:
    """Writes runs.csv, evaluations.csv and curves.csv.

    Raises:
        UserError: Two runs have one name.
        OSError: The folder cannot be written.
    """
    runs: dict[str, dict[str, Any]] = {}
    evaluations: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    folders: dict[str, Path] = {}
    for record in sorted(records, key=lambda record: record.name):
        if record.name in folders:
            raise UserError(
                f"{folders[record.name]} and {record.folder} would both be called {record.name} in "
                f"{RUNS}: give a folder that contains both, so that their names tell them apart."
            )
        folders[record.name] = record.folder
        first, *more = record.scores
        own = dict(flatten(asdict(first), "score."))
        config = {key: value for key, value in record.config.items() if key != "run_dir"}
        packed = {key: own.pop(key) for key in list(own) if key.endswith(EPISODES)}
        # The figures that people look for come first, the packed ones last.
        headline = {key: own[key] for key in own if key.endswith("_mean")}
        data = dict(flatten(record.data, "data."))
        runs[record.name] = {"run": record.name} | headline | own | data | config | packed
        for stem, scores in {"scores": more, **record.evaluations}.items():
            for score in scores:
                items = flatten(asdict(score), "score.")
                changed = {k: v for k, v in items if v != own.get(k) and not k.endswith(EPISODES)}
                evaluations.append({"run": record.name, "file": stem} | changed)
        curves += [{"run": record.name} | row for row in record.curve]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in ((RUNS, list(runs.values())), (EVALUATIONS, evaluations), (CURVES, curves)):
        cells = [{key: _to_cell(key, value) for key, value in row.items()} for row in rows]
        write_file(folder / name, to_csv(cells).encode())


def read_tables(folder: Path) -> tuple[list[Record], list[UserError]]:
    """Reads what `write_tables` wrote.

    Returns:
        The runs, and an error for each row that cannot be read.

    Raises:
        UserError: A file is damaged as a whole.
    """
    try:
        runs, evaluations, curves = (_read_rows(folder / n) for n in (RUNS, EVALUATIONS, CURVES))
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UserError(
            f"the tables in {folder} cannot be read ({error}); restore {RUNS}, {EVALUATIONS} and "
            f"{CURVES} from their source, or write them again with compare.py RUNS --table {folder}"
        ) from error
    records: list[Record] = []
    problems: list[UserError] = []
    for name, rows in runs.items():
        try:
            with naming_damage(f"the row {name} of {folder / RUNS}"):
                others = evaluations.get(name, [])
                records.append(_read_row(folder / name, rows, others, curves.get(name, [])))
        except UserError as error:
            problems.append(error)
    return records, problems


def _read_row(
    folder: Path,
    rows: list[dict[str, Any]],
    evaluations: list[dict[str, Any]],
    curve: list[dict[str, Any]],
) -> Record:
    if len(rows) > 1:
        raise ValueError("its name is there twice")
    row = rows[0]
    name = str(row.pop("run"))
    emptied: dict[str, Any] = {f"score.{key}": [] for key in EPISODES}
    packed = {key: _unpack(key, row[key]) for key in row if key.endswith(EPISODES)}
    scores = {"scores": [from_plain(Score, _nested(row | packed, "score."))]}
    for other in evaluations:
        score = from_plain(Score, _nested(row | emptied | other, "score."))
        scores.setdefault(other["file"], []).append(score)
    return Record(
        name=name,
        folder=folder,
        config={k: v for k, v in row.items() if not k.startswith(("score.", "data."))},
        data=_nested(row, "data."),
        scores=scores.pop("scores"),
        evaluations=scores,
        curve=[{key: value for key, value in point.items() if key != "run"} for point in curve],
    )


def _read_rows(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns the rows of a file by their run; empty cells are left out."""
    rows: dict[str, list[dict[str, Any]]] = {}
    with open(path, encoding="utf-8", newline="") as file:
        for cells in csv.DictReader(file):
            row = {key: _from_cell(cell) for key, cell in cells.items() if cell}
            rows.setdefault(str(row["run"]), []).append(row)
    return rows


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


def _from_cell(cell: str) -> Any:
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def _unpack(key: str, cell: str) -> list[float] | list[int]:
    numbers = np.frombuffer(zlib.decompress(base64.b64decode(cell)), "<f4")
    kind = int if key.endswith("lengths") else float
    return list(numbers.astype(kind).tolist())


def to_csv(records: Sequence[dict[str, Any]]) -> str:
    """Returns records as CSV; a key that a record does not have is an empty cell."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()
