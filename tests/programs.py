"""Programs as tests start them, small enough to go the whole way; see conftest.py for `start`."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Small enough for a test, and still the whole way: data made, trained on, scored.
SMALL = [
    "dataset.steps=1500",
    "backbone.d_model=16",
    "backbone.n_layer=1",
    "backbone.dropout=0.1",
    "protocol.batch_steps=128",
    "protocol.context_length=16",
    "evaluation.episodes=3",
    "evaluation.episodes_in_training=2",
    "evaluation.every=40",
    "trainer.save_every=15",
    "trainer.log_every=10",
]
# What a program left behind: its status, its output, its errors.
Ended = subprocess.CompletedProcess[str]


def command(program: str, *arguments: object) -> list[str]:
    """Returns a command line; the program is a script of the project, or "-m module"."""
    words = program.split()
    if words[-1].endswith(".py"):
        words[-1] = str(ROOT / words[-1])
    return [sys.executable, *words, *map(str, arguments)]


def end(process: subprocess.Popen[str]) -> Ended:
    """Waits for the end of a process."""
    output, errors = process.communicate()
    return Ended(process.args, process.returncode, output, errors)


def wait_for(process: subprocess.Popen[str], there: Callable[[], object]) -> None:
    """Waits until something is there that a process makes; fails if that ends before."""
    while not there():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
