"""One thread for torch, Ctrl-C as in a terminal however the tests are started, shared fixtures."""

import os
import signal
from pathlib import Path

# The tests' tensors are small, and they must not fight over the cores.
os.environ["OMP_NUM_THREADS"] = "1"  # for this process, and for those that the tests start

import pytest
import torch

torch.set_num_threads(1)

# Started in the background, a process ignores Ctrl-C, and so would those that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def store(tmp_path, monkeypatch) -> Path:
    """A Minari store of the test's own, empty; the cache of data lies beside it."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory) -> Path:
    """One store for the programs that tests start, so that the built-in data are made once."""
    return tmp_path_factory.mktemp("minari")
