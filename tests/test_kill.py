"""SIGKILL at random moments: nothing that was saved is lost, and the ends are equal to the bit.

pytest -m slow -k kill
KILLS=60 pytest -m slow -k kill
"""

import importlib
import json
import os
import random
import runpy
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import eval  # noqa: F401 so that a forked process has all code already
import train  # noqa: F401
from configs.launch import command
from configs.schema import register

ROOT = Path(__file__).parents[1]
KILLS = int(os.environ.get("KILLS", "200"))
# The audit events of the system calls that make, change or remove files.
CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"}
SMALL = [
    "dataset.steps=1500",
    "backbone.d_model=8",
    "backbone.n_layer=1",
    "protocol.batch_steps=64",
    "evaluation.episodes=1",
    "evaluation.episodes_in_training=1",
    "evaluation.every=4",
    "held_out=0.2",
    "trainer.log_every=3",
    "trainer.save_every=2",
    "steps=8",
    "device=cpu",
    "resume=true",
]
COLLECT = ["dataset=hopper-medium", "steps=1500", "overwrite=true"]


def count_changes(reached: Callable[[int], None]) -> None:
    """Calls a function with the number of each change to a file that this process makes."""
    seen, fsync = 0, os.fsync

    def change() -> None:
        nonlocal seen
        seen += 1
        reached(seen)

    def audit(event: str, arguments: tuple) -> None:
        writes = event != "open" or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        if event in CHANGES and writes:
            change()

    def synced(descriptor: int) -> None:
        change()
        fsync(descriptor)
        change()

    os.fsync = synced
    sys.addaudithook(audit)


def start(folder: Path, words: list[str], *, kill_at: int = 0, kill_after: float = 0) -> int:
    """Runs a command in a forked process; kills it at its n-th change to a file, or after seconds.

    Returns its exit status, -9 if it was killed; writes the number of changes it made to CHANGES.
    """
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        return os.waitstatus_to_exitcode(status)
    status = 1
    try:
        output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(folder)
        os.environ["MINARI_DATASETS_PATH"] = str(folder / "store")
        sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
        sys.argv = words
        total = [0]

        def reached(number: int) -> None:
            total[0] = number
            if number == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        count_changes(reached)
        if kill_after:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            signal.setitimer(signal.ITIMER_REAL, kill_after)
        try:
            if words[0].endswith(".py"):
                runpy.run_path(words[0], run_name="__main__")
            else:
                runpy.run_module(words[0], run_name="__main__", alter_sys=False)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        (folder / "changes").write_text(str(total[0]))
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def ends(folder: Path) -> dict[str, object]:
    """Returns what must be equal to the bit: weights, records but for times, scores, data."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name == "model.safetensors":
            found[name] = path.read_bytes()
        elif path.name == "metrics.jsonl":
            found[name] = [
                {k: v for k, v in json.loads(line).items() if not k.startswith("time/")}
                for line in path.read_text().splitlines()
            ]
        elif path.match("scores*.json"):
            found[name] = json.loads(path.read_text())
        # A directory .making-* in the store goes when the next data set is made.
        assert ".unfinished" not in path.name, path
    return found


TRAIN = [str(ROOT / "train.py"), *SMALL]
CAMPAIGNS = {
    # The commands of each, one after the other; a killed one is started again.
    "train": [[*TRAIN, "run_dir=run"]],
    "streamed": [[*TRAIN, "run_dir=run", "protocol.name=streamed"]],
    "sweep": [[*TRAIN[:1], "-m", *TRAIN[1:], "seed=0,1"]],
    "collect": [
        ["envs.behaviors.collect", *COLLECT],
        [*TRAIN, "run_dir=run", "dataset=minari", "dataset.id=builtin/hopper/medium-v1"],
    ],
    "evaluate": [
        [*TRAIN, "run_dir=run"],
        [str(ROOT / "eval.py"), "run=run", "episodes=2", "rollout=window"],
    ],
}


@pytest.mark.posix
@pytest.mark.slow
@pytest.mark.parametrize("name", CAMPAIGNS)
def test_a_kill_loses_nothing(name, tmp_path):
    # What every process would import first, and is not what this test is about: 1.5 of its 3 s.
    importlib.import_module("torch._dynamo")
    register()
    command.check(SMALL, "train")
    commands = CAMPAIGNS[name]
    unbroken = tmp_path / "unbroken"
    unbroken.mkdir()
    changes, seconds = [], []
    for words in commands:
        begin = time.perf_counter()
        assert start(unbroken, words) == 0, (unbroken / "output").read_text()
        seconds.append(time.perf_counter() - begin)
        changes.append(int((unbroken / "changes").read_text()))
    expected = ends(unbroken)
    assert expected

    chance, kills, rounds = random.Random(name), 0, 0
    while kills < KILLS / len(CAMPAIGNS):
        folder = tmp_path / f"killed{rounds}"
        folder.mkdir()
        rounds += 1
        for words, count, longest in zip(commands, changes, seconds, strict=True):
            for _ in range(chance.randint(1, 6)):
                when = {"kill_at": chance.randint(1, count)}
                if chance.random() < 0.25:
                    when = {"kill_after": chance.uniform(0.01, longest)}
                status = start(folder, words, **when)
                assert status in (0, -9), (when, (folder / "output").read_text())
                kills += status == -9
            assert start(folder, words) == 0, (folder / "output").read_text()
        assert ends(folder) == expected, folder
        shutil.rmtree(folder)
    print(f"{name}: {kills} kills in {rounds} runs, none lost")
