"""Trackers get the records that metrics.jsonl gets: offline, with the real packages."""

import io
import json
import os
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from programs import SMALL
from rich.console import Console

from agents.trackers import TRACKERS, Tracker
from common.checks import require_extra
from common.errors import UserError

RECORDS = {10: {"train/loss": 0.5, "time/updates_per_second": 3.0}, 20: {"train/loss": 0.25}}


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory) -> Iterator[Path]:
    """No network and no key; Trackio's folder, which it reads once, when it is imported."""
    folder = tmp_path_factory.mktemp("trackio")
    with pytest.MonkeyPatch.context() as variables:
        variables.setenv("WANDB_MODE", "offline")
        variables.setenv("TRACKIO_DIR", str(folder))
        variables.setenv("HF_HUB_OFFLINE", "1")
        yield folder


@pytest.fixture(params=TRACKERS)
def name(request) -> str:
    return installed(request.param)


def installed(name: str) -> str:
    if find_spec(name) is None:
        pytest.skip(f'{name} is not installed: pip install -e ".[{name}]"')
    return name


def tracked(name: str, run: Path, offline: Path) -> list[tuple[str, dict, dict[int, dict]]]:
    """The name, the configuration and the records of each session that a tracker has written."""
    if name == "wandb":
        files = sorted(run.glob(".wandb/offline-run-*/*.wandb"), key=os.path.getmtime)
        return [session(path) for path in files]
    with sqlite3.connect(offline / f"decision-minrnn-{run.parent.name}.db") as store:
        runs = store.execute("SELECT run_id, run_name, config FROM configs ORDER BY created_at")
        found = []
        for identity, label, config in runs.fetchall():
            query = "SELECT step, metrics FROM metrics WHERE run_id = ? ORDER BY id"
            rows = store.execute(query, [identity]).fetchall()
            found.append(
                (label, json.loads(config), merged((s, json.loads(row)) for s, row in rows))
            )
    return found


def merged(rows: Iterable[tuple[int, dict]]) -> dict[int, dict]:
    """Puts the rows of each step together: those of training and of an evaluation."""
    records: dict[int, dict] = {}
    for step, row in rows:
        records.setdefault(step, {}).update(row)
    return records


def session(path: Path) -> tuple[str, dict, dict[int, dict]]:
    """Reads what `wandb sync` would send: protocol buffers in LevelDB's format of logs."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, part, label, config, rows, ended = path.read_bytes(), 7, b"", "", {}, [], False
    while at + 7 <= len(content):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        size, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        part, at = part + content[at + 7 : at + 7 + size], at + 7 + size
        if kind not in (1, 4):  # goes on in the next block
            continue
        record, part = Record.FromString(part), b""
        if record.HasField("run"):
            label = record.run.display_name
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif record.HasField("history"):
            items = record.history.item
            row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            values = {key: value for key, value in row.items() if not key.startswith("_")}
            rows.append((values.pop("step"), values))
        ended = ended or record.HasField("exit")
    if not ended:  # wandb's other process is still writing
        time.sleep(0.1)
        return session(path)
    return label, config, merged(rows)


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / tmp_path.name / "min_gru-streamed-seed0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("steps: 20\nbackbone:\n  name: min_gru\n")
    return folder


def follow(name: str, run: Path, *steps: int) -> str:
    """Tracks some records; returns what was printed."""
    shown = io.StringIO()
    tracker = Tracker(name, run, Console(file=shown))
    for step in steps:
        tracker.log(step, RECORDS[step])
    tracker.finish()
    return shown.getvalue()


def test_a_resumed_run_goes_on_in_the_same_tracked_run(name, run, offline, capfd):
    shown = follow(name, run, 10)
    assert shown.startswith(f"tracked by {name}: ") and shown.count("\n") == 1
    first = (run / "tracker.json").read_text()
    follow(name, run, 10, 20)  # killed after the save before 10
    assert (run / "tracker.json").read_text() == first
    *_, (label, config, records) = tracked(name, run, offline)
    assert label == run.name and records == RECORDS
    assert config["steps"] == 20 and config["backbone"] == {"name": "min_gru"}

    # A run that is made anew is another one.
    (run / "tracker.json").unlink()
    before = len(tracked(name, run, offline))
    follow(name, run, 20)
    assert len(tracked(name, run, offline)) == before + 1
    assert tracked(name, run, offline)[-1][2] == {20: RECORDS[20]}
    assert capfd.readouterr().out == ""


def test_training_is_tracked_as_it_is_recorded(name, call, tmp_path, offline):
    folder = tmp_path / tmp_path.name / "run"
    asked = [*SMALL, "steps=40", f"run_dir={folder}", f"tracker={name}"]
    ended = call("train.py", *asked)
    assert ended.returncode == 0, ended.stderr
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    ((label, config, records),) = tracked(name, folder, offline)
    assert records == merged((line.pop("step"), line) for line in lines)
    assert label == "run" and config["trainer"]["log_every"] == 10
    assert "eval/return_mean" in records[40]

    # Resuming does not ask for the tracker again, and the folder's name does not tell of it.
    ended = call("train.py", *asked[:-1], "resume=true")
    assert ended.returncode == 0 and "finished" in ended.stdout, ended.stderr
    assert "tracker" not in (folder / "config.yaml").read_text()


def test_a_tracker_that_fails_is_one_warning(run):
    wandb = pytest.importorskip(installed("wandb"))
    shown = io.StringIO()
    tracker = Tracker("wandb", run, Console(file=shown, width=200))
    wandb.run.finish()  # wandb refuses all that follows
    for step in RECORDS:
        tracker.log(step, RECORDS[step])
    tracker.finish()
    assert shown.getvalue().count("warning: wandb has failed (") == 1
    assert "metrics.jsonl has every record" in shown.getvalue()


KILLED = """
import os, signal, subprocess, sys, time
from pathlib import Path
from rich.console import Console
from agents.trackers import Tracker

os.environ.pop("WANDB_SERVICE", None)  # that of the tests' own process
tracker = Tracker("wandb", Path(sys.argv[1]), Console(width=200))
[server] = subprocess.check_output(["pgrep", "-P", str(os.getpid()), "-f", "wandb-core"]).split()
os.kill(int(server), signal.SIGKILL)
for step in range(10, 100):
    tracker.log(step, {"train/loss": 1.0})
    time.sleep(0.02)
tracker.finish()
print("trained to the end")
"""


@pytest.mark.slow
@pytest.mark.posix
def test_a_tracker_that_dies_is_one_warning(start, run, tmp_path):
    installed("wandb")
    (tmp_path / "killed.py").write_text(KILLED)
    ended = start(f"{tmp_path}/killed.py", run)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("warning: wandb has failed (") == 1
    assert ended.stdout.endswith("trained to the end\n")


@pytest.mark.slow
def test_a_tracker_without_a_key_is_one_sentence(start, tmp_path):
    installed("wandb")
    asked = [*SMALL, "steps=10", "run_dir=run", "tracker=wandb"]
    nobody = {"WANDB_MODE": "online", "WANDB_API_KEY": "", "HOME": str(tmp_path), "NETRC": "none"}
    ended = start("train.py", *asked, variables=nobody, stdin=subprocess.DEVNULL)
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1, ended.stderr
    assert "error: tracker=wandb cannot be started (" in ended.stderr
    assert "log in there, or set WANDB_MODE=offline" in ended.stderr
    assert not (tmp_path / "run/tracker.json").exists()


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_damaged_id_is_one_sentence(content, run):
    installed("wandb")
    (run / "tracker.json").write_text(content)
    with pytest.raises(UserError, match="tracker=wandb cannot be started"):
        Tracker("wandb", run, Console(quiet=True))


def test_an_unknown_tracker_and_one_not_installed_are_refused_before_the_data(
    call, tmp_path, monkeypatch
):
    ended = call("train.py", "tracker=wandbb", "run_dir=run")
    assert ended.returncode == 1 and "did you mean 'wandb'?" in ended.stderr
    # A folder of the name, as wandb leaves them, is not the package.
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UserError, match=r"tracker=wandb needs an extra .*\[wandb\]"):
        require_extra("wandb", "tracker=wandb", "wandb")
