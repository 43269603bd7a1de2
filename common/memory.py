"""What needs more memory than is free is refused before it is allocated."""

import os
import re
from pathlib import Path

from common.errors import UserError


def require_memory(size: float, what: str, how: str, free: float | None = None) -> None:
    """Refuses what does not fit into memory.

    Args:
        size: Bytes that are needed at least.
        what: What needs them: ``protocol.batch_steps=1000000000000``.
        how: What to do instead: ``lower it``.
        free: Bytes that are free, on a GPU for example; None asks for those of this machine.
    """
    if free is None:
        free = _free_memory()
    if size > free:
        raise UserError(
            f"{what} takes at least {size / 2**30:,.1f} GiB of memory, but {free / 2**30:,.1f} GiB "
            f"are free; {how}"
        )


def _free_memory() -> float:
    """Returns the bytes that are free (Linux), or all there are (macOS), or infinity."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists() and (found := re.search(r"MemAvailable:\s+(\d+)", meminfo.read_text())):
        return 1024 * int(found[1])
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return float("inf")
