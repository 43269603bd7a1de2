"""Untrusted files of arrays: any damage ends in one sentence."""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

from common.errors import UserError

# What h5py, Minari, zipfile and numpy raise where a file does not hold what its header says.
DAMAGE = (
    *(OSError, ValueError, TypeError, LookupError, RuntimeError, OverflowError, EOFError),
    *(AttributeError, zipfile.BadZipFile, zlib.error),
)
# gzip compresses to a thousandth at best; a small array may have no data at all.
_MOST_COMPRESSION = 1100
_SMALL_BYTES = 64 << 20


def whole(array: Any) -> np.ndarray:
    """Returns an array whole; raises ValueError if the file cannot hold what it claims."""
    require_stored(array)
    return np.asarray(array[()])


def require_stored(array: Any) -> None:
    """Raises ValueError if an array claims far more than is stored: it would fill the memory."""
    if not isinstance(array, h5py.Dataset):  # Minari's other storage
        return
    claimed, stored = array.size * array.dtype.itemsize, array.id.get_storage_size()
    if claimed > _SMALL_BYTES + _MOST_COMPRESSION * stored:
        raise ValueError(
            f"{array.name.strip('/')} claims {claimed:,} bytes and {stored:,} are stored of it"
        )


@contextlib.contextmanager
def damage_explained(what: str, advice: str) -> Iterator[None]:
    """Turns what a damaged file raises into a UserError."""
    try:
        yield
    except DAMAGE as error:
        raise UserError(f"{what} ({first_line(error)}); {advice}") from error


def first_line(error: Exception) -> str:
    """Returns the type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
