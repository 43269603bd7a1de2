"""Arrays in files, mapped into memory, of which little stays there.

What was touched of a mapping counts as memory of the process until somebody else needs it: one pass
over a data set of 10 GB ends with 10 GB resident. `release` hands the pages back. They stay in the
system's cache of files while there is room, so that to look at them again costs microseconds.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

# Arrays that are larger together do not stay in memory.
RESIDENT_BYTES = 512 << 20

# Of a pass over whole arrays: so much is looked at before it is released.
PIECE_BYTES = 4 << 20


def open_array(path: Path) -> np.ndarray:
    """Maps the array of an .npy file into memory, read-only.

    Raises:
        OSError: There is no such file.
        ValueError: It is damaged, or holds objects.
    """
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def release(*arrays: np.ndarray) -> None:
    """Hands back the pages of those of the arrays that are mapped; their content stays as it is."""
    if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        for mapping in filter(None, map(_mapping, arrays)):
            mapping.madvise(mmap.MADV_DONTNEED)


def pieces(*arrays: np.ndarray) -> Iterator[slice]:
    """Yields slices that cover arrays of equally many rows, and releases what was looked at."""
    row_bytes = sum(array[:1].nbytes for array in arrays)
    count = max(1, PIECE_BYTES // max(1, row_bytes))
    for begin in range(0, len(arrays[0]), count):
        yield slice(begin, begin + count)
        release(*arrays)


def too_large(*arrays: np.ndarray) -> list[np.ndarray]:
    """Returns those that are mapped, if they do not fit in RESIDENT_BYTES together; else none.

    Who reads them here and there releases them after each reading: how much the kernel maps around
    what is touched is its own affair, from 64 kB to 2 MB.
    """
    mapped = [array for array in arrays if _mapping(array) is not None]
    return mapped if sum(array.nbytes for array in mapped) > RESIDENT_BYTES else []


def _mapping(array: np.ndarray) -> mmap.mmap | None:
    base = array.base
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None
