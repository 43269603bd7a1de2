"""Downloads of a file over HTTP: resumable, checked by size, whole or not at all."""

import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from common.errors import UserError
from common.files import only_process

_BLOCK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30
_ATTEMPTS = 5
_PAUSE_SECONDS = 1.0


def download(url: str, path: Path) -> None:
    """Downloads a file, with a progress bar; resumes an interrupted download.

    The file is written as ``NAME.part`` and renamed when it has the size that the server states.
    A broken connection is resumed a few times here, and by the next call.

    Raises:
        UserError: The file cannot be downloaded or stored.
    """
    part = path.with_name(path.name + ".part")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with only_process(path.parent / ".downloading.lock", f"downloading {path.name}"):
            if path.exists():
                return
            with Progress(*columns, TransferSpeedColumn(), console=Console(stderr=True)) as bar:
                task = bar.add_task(f"downloading {path.name}", total=None)
                _complete(url, part, partial(bar.update, task))
            os.replace(part, path)
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError, too
        raise UserError(
            f"{url} could not be downloaded to {path} ({error or type(error).__name__}); "
            f"{_size(part):,} bytes are kept, and the next attempt resumes there"
        ) from error


def _complete(url: str, part: Path, show: Callable[..., None]) -> None:
    """Connects until the file has the size that the server states, a few times at most."""
    for attempt in range(_ATTEMPTS):
        try:
            total = _append(url, part, show)
            if _size(part) == total:
                return
            failure: Exception = ConnectionError(
                f"the connection ended after {_size(part):,} of {total:,} bytes"
            )
        except urllib.error.HTTPError:
            raise
        except (OSError, http.client.HTTPException) as error:
            failure = error
        if attempt < _ATTEMPTS - 1:
            time.sleep(_PAUSE_SECONDS)
    raise failure


def _append(url: str, part: Path, show: Callable[..., None]) -> int:
    """Appends the missing bytes until the connection ends; returns the size of the whole file."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # the range begins at or after the end of the file
            raise
        total = _total(error.headers)
        if total != have:
            part.unlink()  # the start of another file
        return total
    with response, part.open("ab") as file:
        if response.status != 206:  # the whole file instead of the range
            file.truncate(0)
        total = _total(response.headers)
        while block := response.read(_BLOCK_BYTES):
            file.write(block)
            show(completed=file.tell(), total=total)
    return total


def _total(headers: Message) -> int:
    size = headers.get("Content-Range", headers.get("Content-Length", "")).rpartition("/")[2]
    if not size.isdecimal():
        raise ConnectionError("the server does not state its size")
    return int(size)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
