"""Memory-mapped arrays of which little stays resident.

Every page of a mapping that was read counts as memory of the process until the system needs it for
something else. `release` hands the pages back; they stay in the system's file cache while there is
room, so reading them again costs microseconds.
"""

import mmap
import sys
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

# Mapped arrays that are larger together do not stay in memory.
RESIDENT_BYTES = 512 << 20

# A pass over whole arrays releases them after so many bytes.
PIECE_BYTES = 4 << 20


def release(*arrays: np.ndarray) -> None:
    """Hands back the pages of those arrays that are mapped; their content stays as it is."""
    if sys.platform != "win32":
        for mapping in filter(None, map(_mapping, arrays)):
            mapping.madvise(mmap.MADV_DONTNEED)


def pieces(arrays: Sequence[np.ndarray], spans: Iterable[tuple[int, int]]) -> Iterator[slice]:
    """Yields slices that cover ranges of rows, and releases the arrays after every PIECE_BYTES."""
    count = max(1, PIECE_BYTES // max(1, sum(array[:1].nbytes for array in arrays)))
    read = 0
    for begin, end in spans:
        for first in range(begin, end, count):
            last = min(first + count, end)
            yield slice(first, last)
            read += last - first
            if read >= count:
                release(*arrays)
                read = 0
    release(*arrays)


def too_large(arrays: Iterable[np.ndarray], rows: int) -> list[np.ndarray]:
    """Returns the mapped arrays if so many rows of them exceed RESIDENT_BYTES; else none.

    Whoever reads them at random releases them after each reading: the kernel maps 64 kB to 2 MB
    around every row.
    """
    mapped = [array for array in arrays if _mapping(array) is not None]
    return mapped if rows * sum(array[:1].nbytes for array in mapped) > RESIDENT_BYTES else []


def _mapping(array: np.ndarray) -> mmap.mmap | None:
    base = array.base
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None
