"""Standard output that never ends a command, and a progress bar for steps of data."""

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class _UntilClosed(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


def keep_standard_output() -> None:
    """Drops output after a closed pipe; replaces letters that the encoding lacks by "?"."""
    try:
        raw = _UntilClosed(sys.stdout.fileno(), "w", closefd=False)
    except (OSError, AttributeError):  # replaced by a program, or closed from the beginning
        return
    sys.stdout.flush()
    buffer, encoding = io.BufferedWriter(raw), sys.stdout.encoding
    sys.stdout = io.TextIOWrapper(buffer, encoding, errors="replace", line_buffering=True)


@contextmanager
def steps_bar(what: str, total: int, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar, and yields the function that takes the number of steps done."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda done: progress.update(bar, completed=done)
