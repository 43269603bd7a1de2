"""One thread for torch, signals as in a terminal however the tests are started, shared fixtures."""

import io
import os
import runpy
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path

# The tests' tensors are small, and they must not fight over the cores.
os.environ["OMP_NUM_THREADS"] = "1"  # for this process, and for those that the tests start

import pytest
import torch
from programs import ROOT, Ended, command, end

torch.set_num_threads(1)

STOPS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]

# Started in the background or by nohup, a process ignores some of these, and so would those that
# the tests start.
for stop in STOPS:
    signal.signal(stop, signal.default_int_handler if stop == signal.SIGINT else signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Lets a mixer from outside the project be tested as its own are; see test_backbones.py."""
    parser.addoption("--backbone-module", help="a module that registers a backbone, to be tested")


def pytest_configure(config: pytest.Config) -> None:
    """Imports the module before the tests are collected."""
    if module := config.getoption("--backbone-module"):
        import_module(module)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what needs signals, limits or forks where there are none."""
    if item.get_closest_marker("posix") and sys.platform == "win32":
        pytest.skip("needs a POSIX system")


@pytest.fixture
def store(tmp_path, monkeypatch) -> Path:
    """A Minari store of the test's own, empty; the cache of data lies beside it."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory) -> Path:
    """One store for the programs that tests start, so that the built-in data are made once."""
    return tmp_path_factory.mktemp("minari")


@pytest.fixture
def start(shared_store, tmp_path):
    """Starts a program in the test's folder, as a user does; returns it once it has ended.

    With `wait=False`, the running process, which does not outlive the test. `variables` are those
    of its environment; the other options are Popen's.
    """
    processes = []

    def run(program: str, *arguments: object, wait=True, variables=None, **options):
        environment = {"MINARI_DATASETS_PATH": str(shared_store), "COLUMNS": "200"}
        environment |= {"PYTHONPATH": str(ROOT)} | (variables or {})
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
        process = subprocess.Popen(
            command(program, *arguments),
            cwd=tmp_path,
            env=os.environ | environment,
            **(pipes | options),
        )
        processes.append(process)
        return end(process) if wait else process

    yield run
    for process in processes:
        process.kill()


@pytest.fixture
def call(shared_store, tmp_path, monkeypatch) -> Callable[..., Ended]:
    """Runs a program as `start` does, but in this process, which has imported all code already."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(shared_store))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def run(program: str, *arguments: object) -> Ended:
        words = command(program, *arguments)[1:]
        module = words[0] == "-m"
        monkeypatch.setattr(sys, "argv", words[module:])
        handlers = {signum: signal.getsignal(signum) for signum in STOPS}
        output, errors, status = io.StringIO(), io.StringIO(), 0
        try:
            with redirect_stdout(output), redirect_stderr(errors), warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
                (runpy.run_module if module else runpy.run_path)(sys.argv[0], run_name="__main__")
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        finally:
            for signum, handler in handlers.items():
                signal.signal(signum, handler)
        return Ended(words, status, output.getvalue(), errors.getvalue())

    return run
