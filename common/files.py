"""Files and directories that appear whole or not at all, and locks between processes."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout
from rich.console import Console

from common.errors import UserError

# Hidden: neither Minari nor the cache looks into such directories.
_HIDDEN = ".making-"
# Eight hexadecimal digits stand between: ".scores.1a2b3c4d.unfinished.json".
_UNFINISHED = ".unfinished"


@contextmanager
def only_process(lock: Path, doing: str) -> Iterator[None]:
    """Holds a lock, which the system releases even if the process is killed.

    `lock` is a file that is created and stays. `doing` says what a process that has to wait waits
    for: ``making a data set``.
    """
    file = FileLock(lock)
    try:
        file.acquire(timeout=0)
    except Timeout:
        Console(stderr=True, markup=False).print(f"Waiting for another process that is {doing}")
        file.acquire()
    try:
        yield
    finally:
        file.release()


@contextmanager
def hidden_directory(parent: Path) -> Iterator[Path]:
    """Yields an empty directory to write into, and removes it and its contents at the end.

    First removes the directories of killed processes: the caller holds the lock of `parent`.
    """
    for left_by_a_killed_process in parent.glob(f"{_HIDDEN}*"):
        shutil.rmtree(left_by_a_killed_process)
    with tempfile.TemporaryDirectory(prefix=_HIDDEN, dir=parent) as name:
        yield Path(name)


def put_in_place(made: Path, place: Path, hidden: Path) -> None:
    """Syncs the files of a directory below `hidden` and renames it to `place`, replacing that."""
    for path in made.rglob("*"):
        if path.is_file():
            _sync(path)
    if place.exists():
        place.rename(hidden / "replaced")
    made.rename(place)
    _sync_directory(place.parent)


def leftovers(path: Path) -> list[Path]:
    """Returns the temporary files of `unfinished_file` for a path, of killed or live writers."""
    name = rf"\.{re.escape(path.stem)}\.[0-9a-f]{{8}}{_UNFINISHED}{re.escape(path.suffix)}"
    return [other for other in path.parent.iterdir() if re.fullmatch(name, other.name)]


@contextmanager
def unfinished_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path with the same ending; syncs it and renames it to `path` at the end.

    Then removes the temporary files of killed writers of the same path, and so of live ones,
    which fail with FileNotFoundError. After an OSError the old file is still there.
    """
    unique = os.urandom(4).hex()
    unfinished = path.with_name(f".{path.stem}.{unique}{_UNFINISHED}{path.suffix}")
    try:
        yield unfinished
        _sync(unfinished)
        unfinished.replace(path)
        _sync_directory(path.parent)
        for other in leftovers(path):
            with suppress(OSError):
                other.unlink()
    finally:
        with suppress(OSError):
            unfinished.unlink()


def write_file(
    path: Path,
    content: bytes | Callable[[BinaryIO], None],
    mend: str = "free some space or choose another path",
) -> None:
    """Writes or replaces a file, whole or not at all.

    `content` is the bytes, or a function that writes them into an open file. An error becomes a
    UserError that ends with `mend`; what stood at the path before is still there.
    """
    try:
        while True:
            try:
                with unfinished_file(path) as unfinished, unfinished.open("wb") as file:
                    if callable(content):
                        content(file)
                    else:
                        file.write(content)
                return
            except FileNotFoundError:
                if not path.parent.is_dir():
                    raise
                # Another writer of the same path has finished meanwhile.
    # torch reports a failed write as a RuntimeError of its own.
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the write failed part way"
        raise UserError(
            f"{path} cannot be written ({reason}); what was saved there before is intact: {mend}."
        ) from error


def write_files(folder: Path, files: Mapping[str, bytes], mend: str) -> None:
    """Writes some files into a folder, which is created if it does not exist; see `write_file`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): {mend}.") from error
    for name, content in files.items():
        write_file(folder / name, content, mend)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:  # Windows syncs no file that is open for reading only
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    if os.name == "posix":  # nowhere else can a directory be opened
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
