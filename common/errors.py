"""The one exception whose message is meant for the user, and the one place that prints it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something that the user can mend; the message is one sentence.

    It names the file, key or argument, what was found, what was expected and how to mend it.
    Commands print it after "error: " and exit with status 1; a traceback means a bug.
    """


@contextmanager
def exits(
    interrupted: str = "interrupted", speaks: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """Turns an error into one line on standard error and an exit status.

    A UserError exits with status 1, Ctrl-C with 130 and the line `interrupted`, a closed pipe
    (`| head`) with 1. `speaks` says whether this process prints, of several that fail together.
    """
    try:
        yield
        sys.stdout.flush()
    except UserError as error:
        line, status = f"error: {error}", 1
    except KeyboardInterrupt:
        line, status = interrupted, 130
    except BrokenPipeError:
        # Nobody reads standard output: Python's own flush at the end must not fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        line, status = "error: standard output was closed before the command had ended.", 1
    else:
        return
    if speaks():
        # Names and paths can hold control characters.
        print(
            "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line),
            file=sys.stderr,
        )
    sys.exit(status)
