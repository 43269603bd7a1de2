"""How much memory there is, for what would need more of it."""

import os

from common.errors import UserError


def require_memory(size: float, what: str, how: str) -> None:
    """Refuses what does not fit into the memory of this machine, before it is allocated.

    Args:
        size: Bytes that are needed at least.
        what: What needs them: ``protocol.batch_steps=1000000000000``.
        how: What to do instead: ``lower it``.

    Raises:
        UserError: They are more than the machine has.
    """
    if not hasattr(os, "sysconf"):  # Windows
        return
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > total:
        raise UserError(
            f"{what} takes at least {size / 2**30:,.1f} GiB of memory, and this machine has "
            f"{total / 2**30:,.1f} GiB; {how}"
        )
