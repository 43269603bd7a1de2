"""The bar that is shown while steps of data are made or read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def steps_bar(what: str, total: int, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Shows a bar, and yields the function that tells it how many steps are done.

    Args:
        what: Stands before the bar.
        total: Steps in all.
        shown: Whether there is a bar at all.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda done: progress.update(bar, completed=done)
