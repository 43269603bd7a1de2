"""Downloads of a file over HTTP: resumed where they broke off, checked, whole or not at all."""

import http.client
import os
import time
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TransferSpeedColumn,
)

from common.errors import UserError
from common.files import only_process

_BLOCK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30
_ATTEMPTS = 5
_PAUSE_SECONDS = 1.0


def download(url: str, path: Path) -> None:
    """Downloads a file, with a progress bar; what there is already of it is not asked for again.

    The file grows as ``NAME.part`` and gets its name when it has the size that the server says. A
    broken connection is taken up again a few times, and by the next call.

    Args:
        url: Of the file; the server is asked for a range of it if a part is there.
        path: Where it goes; its directory is made.

    Raises:
        UserError: The file cannot be had, has another size than the server says, or cannot be
            stored.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with only_process(path.parent / ".downloading.lock", f"downloading {path.name}"):
            if not path.exists():
                _complete(url, part)
                os.replace(part, path)
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError, too
        raise UserError(
            f"{url} could not be downloaded to {path} ({error or type(error).__name__}); "
            f"{_size(part):,} bytes are kept, and the next attempt goes on from there"
        ) from error


def _complete(url: str, part: Path) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(f"downloading {part.stem}", total=None)
        for attempt in range(_ATTEMPTS):
            before = _size(part)
            try:
                total = _append(url, part, progress, bar)
                if _size(part) == total:
                    return
                reason = f"the connection ended after {_size(part):,} of {total:,} bytes"
            except urllib.error.HTTPError:
                raise
            except (OSError, http.client.HTTPException) as error:
                reason = str(error) or type(error).__name__
            if _size(part) <= before and attempt:  # no headway, and not for the first time
                break
            time.sleep(_PAUSE_SECONDS)
    raise ConnectionError(reason)


def _append(url: str, part: Path, progress: Progress, bar: TaskID) -> int:
    """Appends what is missing until the connection ends; returns the size that it should have."""
    have = _size(part)
    headers = {"Range": f"bytes={have}-"} if have else {}
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_SECONDS
        )
    except urllib.error.HTTPError as error:
        if error.code != 416:  # which says that nothing comes after this part
            raise
        total = _total(error.headers)
        if total != have:
            part.unlink()  # it belongs to another file
        return total
    with response, part.open("ab") as file:
        if response.status != 206:  # the server sends all of it
            file.truncate(0)
        total = _total(response.headers)
        while block := response.read(_BLOCK_BYTES):
            file.write(block)
            progress.update(bar, completed=file.tell(), total=total)
    return total


def _total(headers: Message) -> int:
    size = headers.get("Content-Range", headers.get("Content-Length", "")).rpartition("/")[2]
    if not size.isdecimal():
        raise ConnectionError("the server does not say how large it is")
    return int(size)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
