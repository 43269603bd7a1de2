"""Files and directories that appear whole or not at all, directories by one process at a time."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

# Hidden: neither Minari nor the cache looks into such directories.
_HIDDEN = ".making-"


@contextlib.contextmanager
def only_process(lock: Path, doing: str) -> Iterator[None]:
    """Holds a lock that the system takes back even from a killed process.

    Args:
        lock: The file that is locked; made if need be, and left there.
        doing: What this process waits for, if another holds the lock: ``making a data set``.
    """
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            Console(stderr=True).print(f"Waiting for another process that is {doing}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def hidden_directory(parent: Path) -> Iterator[Path]:
    """Yields an empty directory to write into, and removes what is left of it.

    Removes those of killed processes first: the caller holds the lock of `parent`.
    """
    for left_by_a_killed_process in parent.glob(f"{_HIDDEN}*"):
        shutil.rmtree(left_by_a_killed_process)
    with tempfile.TemporaryDirectory(prefix=_HIDDEN, dir=parent) as name:
        yield Path(name)


def put_in_place(made: Path, place: Path, hidden: Path) -> None:
    """Renames a directory to its place, once its files are on the disk.

    Args:
        made: The directory, somewhere below `hidden`.
        place: What it becomes; a directory that is there is replaced.
        hidden: From `hidden_directory`, on the same file system.
    """
    for path in made.rglob("*"):
        if path.is_file():
            _sync(path)
    if place.exists():
        place.rename(hidden / "replaced")
    made.rename(place)
    _sync(place.parent)


def write_file(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name, syncs it and renames it into place.

    Raises:
        OSError: It cannot be written; what stood at the path before is still there.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        _sync(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
