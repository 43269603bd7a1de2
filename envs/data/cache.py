"""Flat arrays of a data set on disk: read once, memory-mapped in every later run.

A cache entry is a directory of .npy files below `cache_root`: one for each array of `Episodes`, and
for what takes a pass over all of their steps. Its name is a fingerprint of the source, so that a
changed source is read again. It may be deleted at any time.
"""

import hashlib
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.errors import UserError
from common.files import hidden_directory, only_process, put_in_place
from common.memory import require_memory
from common.terminal import steps_bar
from envs.data.episodes import TYPES, Episodes
from envs.data.mapped import RESIDENT_BYTES

logger = logging.getLogger(__name__)

# Part of every fingerprint: raise it when the meaning of the files below changes.
FORMAT = 4

# A file is fingerprinted by its size, its modification time and this many blocks of its content:
# hashing all of it would take as long as reading the data.
_BLOCKS = 64
_BLOCK_BYTES = 65_536

# What takes a pass over all steps, besides the returns-to-go.
_SMALL = ("returns", "terminated", "observation_mean", "observation_std", "sha256")

# Smaller data sets are read too fast for a progress bar.
_STEPS_WITH_PROGRESS = 500_000


@dataclass(frozen=True)
class Reading:
    """The sizes of a source, known before its steps are read, and its steps.

    Attributes:
        lengths: (episodes,) int64, steps of each episode.
        observation_dim: Dimensions of an observation.
        action_dim: Dimensions of an action.
        rows: Consecutive pieces of the arrays of TYPES, of any size and type, together as long as
            all episodes. Iterating raises UserError if the source is damaged.
        note: A warning about the source, shown in every run; empty for none.
    """

    lengths: np.ndarray
    observation_dim: int
    action_dim: int
    rows: Iterator[dict[str, np.ndarray]]
    note: str = ""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each array."""
        steps = int(self.lengths.sum())
        dimensions = {"observations": (self.observation_dim,), "actions": (self.action_dim,)}
        return {key: (steps, *dimensions.get(key, ())) for key in TYPES}

    @property
    def size(self) -> int:
        """Bytes of all arrays."""
        return sum(math.prod(s) * np.dtype(TYPES[key]).itemsize for key, s in self.shapes.items())


def load_cached(
    files: Sequence[Path], attributes: dict[str, Any], read: Callable[[], Reading]
) -> Episodes:
    """Opens the cache entry of a data set, or reads the data set and makes the entry.

    If it cannot be made (a full disk, no permission) the data are kept in memory, with a warning.
    One process makes an entry; another that wants the same one waits for it.

    `attributes` are those of Episodes that are not arrays of steps; `read` opens the source.

    Raises:
        UserError: The source cannot be read, or does not hold valid episodes.
    """
    name = attributes["dataset_id"]
    try:
        entry = _entry(files, (attributes["action_low"], attributes["action_high"]))
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error}); mend its permissions") from error
    episodes = _open(entry, attributes)
    if episodes is not None:
        return episodes
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with only_process(entry.parent / ".lock", f"reading {name}"):
            if not entry.exists():
                with hidden_directory(entry.parent) as hidden:
                    # Validated before it is put in place, and never again.
                    _write(hidden / "new", attributes, read(), check=True)
                    put_in_place(hidden / "new", entry, hidden)
                # Stale entries are removed; open mappings of them stay valid.
                for other in entry.parent.iterdir():
                    if other.is_dir() and other != entry:
                        shutil.rmtree(other, ignore_errors=True)
            episodes = _open(entry, attributes)
    except OSError as error:
        _warn(name, error)
    if episodes is None:
        shutil.rmtree(entry, ignore_errors=True)
        return _in_memory(read(), attributes, check=True)
    return episodes


def lay_out(attributes: dict[str, Any], read: Callable[[], Reading]) -> Episodes:
    """Makes Episodes of valid parts of others, in memory or, if they are large, in mapped files.

    The files are deleted while they are mapped, so they vanish with the process. If they cannot be
    written the data are kept in memory, with a warning. The arguments are those of `load_cached`.
    """
    reading = read()
    if reading.size > RESIDENT_BYTES:
        name, root = attributes["dataset_id"], cache_root()
        try:
            root.mkdir(parents=True, exist_ok=True)
            lock = only_process(root / ".lock", f"laying out {name}")
            with lock, hidden_directory(root) as hidden:
                _write(hidden / "new", attributes, reading, check=False)
                return _map(hidden / "new", attributes)
        except OSError as error:
            _warn(name, error)
            reading = read()
    return _in_memory(reading, attributes, check=False)


def cache_root() -> Path:
    """Returns ``.decision-minrnn`` in $MINARI_DATASETS_PATH, else ``decision-minrnn`` in the cache.

    The cache is ``$XDG_CACHE_HOME``, or else ``~/.cache``.
    """
    store = os.environ.get("MINARI_DATASETS_PATH")
    if store:
        return Path(store) / ".decision-minrnn"
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "decision-minrnn"


def _entry(files: Sequence[Path], bounds: Sequence[np.ndarray]) -> Path:
    """Returns the entry of a source, in the directory of all entries of its first file."""
    path = files[0].resolve()
    readable = re.sub(r"[^\w.-]+", "-", "-".join(path.parts[-3:]))[-60:]
    directory = cache_root() / f"{readable}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    digest = hashlib.sha256(f"format {FORMAT}".encode())
    for bound in bounds:
        digest.update(np.asarray(bound, np.float32).tobytes())
    blocks = max(1, _BLOCKS // len(files))
    for path in files:
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
        with path.open("rb") as file:
            for position in np.linspace(0, max(0, status.st_size - _BLOCK_BYTES), blocks):
                file.seek(int(position))
                digest.update(file.read(_BLOCK_BYTES))
    return directory / digest.hexdigest()[:16]


def _open(entry: Path, attributes: dict[str, Any]) -> Episodes | None:
    try:
        episodes = _map(entry, attributes)
        note = (entry / "note.txt").read_text()
    except (OSError, ValueError, EOFError, UserError):
        return None  # missing or damaged
    if note:
        logger.warning("%s", note)
    return episodes


def _map(entry: Path, attributes: dict[str, Any]) -> Episodes:
    episodes = Episodes(**_mapped(entry, *TYPES, "lengths"), **attributes, check=False)
    # The values of cached properties.
    known = {name: np.load(entry / f"{name}.npy", allow_pickle=False) for name in _SMALL}
    known["sha256"] = str(known["sha256"])
    vars(episodes).update(known, **_mapped(entry, "returns_to_go"))
    return episodes


def _mapped(entry: Path, *names: str) -> dict[str, Any]:
    arrays = {n: np.load(entry / f"{n}.npy", mmap_mode="r", allow_pickle=False) for n in names}
    return {name: np.asarray(array) for name, array in arrays.items()}


def _write(directory: Path, attributes: dict[str, Any], reading: Reading, *, check: bool) -> None:
    directory.mkdir()
    np.save(directory / "lengths.npy", reading.lengths.astype(np.int64))
    (directory / "note.txt").write_text(reading.note)
    with ExitStack() as stack:
        files = {
            key: stack.enter_context(_begin(directory / f"{key}.npy", TYPES[key], shape))
            for key, shape in reading.shapes.items()
        }
        for rows in _converted(attributes["dataset_id"], reading):
            for key, values in rows.items():
                files[key].write(values.data)
    # What is known only now that all steps are there.
    arrays = _mapped(directory, *TYPES, "lengths")
    episodes = Episodes(**arrays, **attributes, check=check)
    with _begin(directory / "returns_to_go.npy", np.float32, episodes.rewards.shape) as file:
        for values in episodes.each_returns_to_go():
            file.write(values.data)
    for name in _SMALL:
        np.save(directory / f"{name}.npy", getattr(episodes, name))


def _begin(path: Path, dtype: type, shape: tuple[int, ...]) -> BinaryIO:
    """Opens a new .npy file, to which the values of an array are to be written."""
    file = path.open("wb")
    header = np.lib.format.header_data_from_array_1_0(np.empty(0, dtype))
    np.lib.format.write_array_header_1_0(file, header | {"shape": shape})
    return file


def _in_memory(reading: Reading, attributes: dict[str, Any], *, check: bool) -> Episodes:
    name = attributes["dataset_id"]
    require_memory(reading.size, name, "take less of it, or make room on the disk for its cache")
    arrays: dict[str, Any] = {k: np.empty(s, TYPES[k]) for k, s in reading.shapes.items()}
    filled = 0
    for rows in _converted(name, reading):
        begin, filled = filled, filled + len(rows["rewards"])
        for key, values in rows.items():
            arrays[key][begin:filled] = values
    if reading.note:
        logger.warning("%s", reading.note)
    return Episodes(**arrays, lengths=reading.lengths, **attributes, check=check)


def _warn(name: str, error: OSError) -> None:
    reason = error.strerror or error
    logger.warning(
        f"{name} is kept in memory, because it cannot be cached below {cache_root()} ({reason})"
    )


def _converted(name: str, reading: Reading) -> Iterator[dict[str, np.ndarray]]:
    """Yields the rows in the types of `Episodes`; checks their shapes and their number."""
    shapes = reading.shapes
    steps = shapes["rewards"][0]
    row = 0
    with steps_bar(f"reading {name}", steps, shown=steps >= _STEPS_WITH_PROGRESS) as show:
        for rows in reading.rows:
            count = len(rows["rewards"])
            converted: dict[str, np.ndarray] = {}
            for key, dtype in TYPES.items():
                values = rows[key]
                expected = (count, *shapes[key][1:])
                if values.shape != expected or values.dtype.kind not in "biuf":
                    raise UserError(
                        f"{name}: {key} from step {row} on are {values.dtype} of shape "
                        f"{values.shape}, not numbers of shape {expected}"
                    )
                with np.errstate(over="ignore"):  # becomes infinite, which is reported
                    converted[key] = np.ascontiguousarray(values, dtype)
            row += count
            if row > steps:
                break
            yield converted
            show(row)
    if row != steps:
        raise UserError(f"{name}: {row} steps were read, not {steps}; the source has changed")
