"""Data larger than memory: mapped files, of which little stays resident."""

import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

from envs.data import mapped
from envs.data.batches import BATCHES, ProtocolConfig, make_batches
from envs.data.cache import cache_root
from envs.data.combine import concatenate, hold_out
from envs.data.sources.d4rl import load_d4rl

ARRAYS = ("observations", "actions", "rewards", "terminations", "truncations", "lengths")


def write(path, steps=2000):
    generator = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["observations"] = generator.standard_normal((steps, 11), np.float32)
        file["actions"] = generator.uniform(-1, 1, (steps, 3)).astype(np.float32)
        file["rewards"] = generator.standard_normal(steps, np.float32)
        file["terminals"] = np.arange(steps) % 100 == 99
    return path


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    return write(tmp_path / "hopper-medium-v2.hdf5")


@pytest.fixture
def released(monkeypatch):
    """Everything counts as large; lists what batches release."""
    calls = []
    release = mapped.release
    monkeypatch.setattr(mapped, "RESIDENT_BYTES", 100_000)
    monkeypatch.setattr("envs.data.cache.RESIDENT_BYTES", 1000)
    monkeypatch.setattr(
        "envs.data.batches.release", lambda *arrays: calls.extend(arrays) or release(*arrays)
    )
    return calls


def batches(episodes, name):
    config = ProtocolConfig(name, batch_steps=60, context_length=6)
    return make_batches(episodes, config, seed=0, device=torch.device("cpu"))


@pytest.mark.parametrize("name", sorted(BATCHES))
def test_batches_of_released_arrays_are_those_of_arrays_in_memory(path, released, name):
    episodes = load_d4rl(path)
    copy = {name: getattr(episodes, name).copy() for name in ARRAYS}
    large = batches(episodes, name)
    released.clear()
    ours = [large.next() for _ in range(50)]
    assert len(released) == 3 * 50  # observations, actions and returns-to-go
    for name_of_array, array in copy.items():
        object.__setattr__(episodes, name_of_array, array)
    plain = batches(episodes, name)
    assert not plain.too_large
    released.clear()
    for batch in ours:
        for key, value in plain.next().items():
            assert torch.equal(value, batch[key]), key
    assert not released


def test_arrays_that_fit_in_memory_are_not_released(path):
    assert not batches(load_d4rl(path), "windowed").too_large


def test_parts_share_the_mapped_arrays_and_mixes_lie_in_files_without_a_name(
    path, released, monkeypatch
):
    episodes = load_d4rl(path)
    before = list(cache_root().rglob("*.npy"))
    for part in hold_out(episodes, 0.3, seed=0):
        assert part.observations is episodes.observations
        part.validate()
    large = concatenate([episodes, hold_out(episodes, 0.3, seed=0)[1]])
    assert isinstance(large.observations.base, np.memmap)
    large.validate()
    assert list(cache_root().rglob("*.npy")) == before  # and of the mix nothing is left
    monkeypatch.setattr("envs.data.cache.RESIDENT_BYTES", 1 << 30)
    small = concatenate([episodes, hold_out(episodes, 0.3, seed=0)[1]])
    assert not isinstance(small.observations.base, np.memmap)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(large, name), getattr(small, name))


def test_mixes_that_cannot_be_laid_out_are_kept_in_memory(path, released, monkeypatch, caplog):
    episodes = load_d4rl(path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(path))  # a file, below which nothing can be
    mixed = concatenate([episodes, episodes])
    assert mixed.n_steps == 4000 and "is kept in memory, because it cannot" in caplog.text
    mixed.validate()


TRAIN = """
import sys, torch
from pathlib import Path
from envs.data import cache, mapped
from envs.data.combine import hold_out
from envs.data.sources.d4rl import load_d4rl
from envs.data.batches import BATCHES, ProtocolConfig, make_batches

cache.RESIDENT_BYTES = mapped.RESIDENT_BYTES = 4_000_000

def train(file):
    episodes = load_d4rl(Path(file))
    episodes.observation_std
    part, _ = hold_out(episodes, 0.1, seed=0)
    for name in BATCHES:
        batches = make_batches(part, ProtocolConfig(name), seed=0, device=torch.device("cpu"))
        for _ in range(100):
            batches.next()
    (line,) = (l for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l)
    return 1024 * int(line.split()[1])

print(-train(sys.argv[1]) + train(sys.argv[2]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux says what is resident")
def test_the_resident_memory_does_not_grow_with_the_data(path, tmp_path):
    """A set of 186 MB and its part of 168 MB: 372 MB where nothing is released, and here 128."""
    large = write(tmp_path / "hopper-large-v2.hdf5", steps=3_000_000)
    line = [sys.executable, "-c", TRAIN, str(path), str(large)]
    grown = int(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
    assert grown < 220_000_000, f"{grown:,} bytes"
