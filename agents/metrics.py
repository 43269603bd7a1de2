"""The records of a run: metrics.jsonl, and the same for TensorBoard and for a tracker."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from agents.checkpoint import MEND
from agents.trackers import Tracker
from common.errors import UserError
from common.files import write_file


class Metrics:
    """Writes records of scalars, each to the disk before training continues.

    Args:
        folder: The run folder.
        resume_step: Updates of the last save; later records are removed, because the resumed run
            writes them again.
        tracker: Gets the records too.

    Attributes:
        evaluated: The updates that have a record of an evaluation.

    Raises:
        UserError: A line of metrics.jsonl other than the last is damaged, or the disk is full.
    """

    def __init__(self, folder: Path, *, resume_step: int, tracker: Tracker | None = None) -> None:
        self.path = folder / "metrics.jsonl"
        self.tracker = tracker
        self.evaluated: set[int] = set()
        if self.path.exists():
            self._cut(resume_step)
        # Not torch's SummaryWriter: its thread writes later, and meets a full disk by itself.
        name = f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"
        with self._explained():
            self.file = open(folder / name, "xb")  # noqa: SIM115
            self._write_event(file_version="brain.Event:2")
            begin = SessionLog(status=SessionLog.START)  # hides what older files say of later steps
            self._write_event(session_log=begin, step=resume_step + 1)

    def _cut(self, resume_step: int) -> None:
        """Removes the records after a step, and a last line that is not whole."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept = []
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line) if line.endswith(b"\n") else {}
                if record["step"] <= resume_step:
                    kept.append(line)
                    if any(name.startswith("eval/") for name in record):
                        self.evaluated.add(record["step"])
            except (ValueError, LookupError, TypeError) as error:
                if number < len(lines):
                    raise UserError(
                        f"{self.path} is damaged in line {number}; remove the line, or start again "
                        "with overwrite=true."
                    ) from error
        if kept != lines:
            write_file(self.path, b"".join(kept), MEND)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path} or the TensorBoard events beside it cannot be written "
                f"({error.strerror}); the last save is intact: {MEND}."
            ) from error

    def record(self, step: int, values: dict[str, float]) -> None:
        """Writes one record of scalars, named `train/*`, `eval/*` or `time/*`.

        Raises:
            UserError: The disk is full.
        """
        with self._explained():
            with open(self.path, "a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
                file.flush()
                os.fsync(file.fileno())
            scalars = [Summary.Value(tag=n, simple_value=value) for n, value in values.items()]
            self._write_event(step=step, summary=Summary(value=scalars))
        if self.tracker is not None:
            self.tracker.log(step, values)

    def _write_event(self, **content: Any) -> None:
        event = Event(wall_time=time.time(), **content)
        RecordWriter(self.file).write(event.SerializeToString())
        self.file.flush()

    def close(self) -> None:
        """Closes TensorBoard's file; every record is in it already. Ends the tracked run."""
        with suppress(OSError):  # the full disk that `record` has reported
            self.file.close()
        if self.tracker is not None:
            self.tracker.finish()
