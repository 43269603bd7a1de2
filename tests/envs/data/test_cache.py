"""The cached flat arrays: made once, whole or not at all, and never stale."""

import json
import os
import subprocess
import sys
import time
from dataclasses import fields

import h5py
import minari
import numpy as np
import pytest
from minari.storage import get_dataset_path

import envs.data.cache
from common.errors import UserError
from envs.data.cache import Reading, cache_root, load_cached
from envs.data.episodes import Episodes
from envs.data.sources.d4rl import load_d4rl
from envs.data.sources.minari import load_minari
from envs.data.store import store_episodes

ARRAYS = ("observations", "actions", "rewards", "terminations", "truncations", "lengths")


def write(path, steps=2000, seed=0):
    generator = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file["observations"] = generator.standard_normal((steps, 11), np.float32)
        file["actions"] = generator.uniform(-1, 1, (steps, 3)).astype(np.float32)
        file["rewards"] = generator.standard_normal(steps).astype(np.float32)
        file["terminals"] = np.arange(steps) % 100 == 99
        file["timeouts"] = np.zeros(steps, bool)
    return path


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "hopper-medium-v2.hdf5")


def entries():
    return [directory for directory in cache_root().glob("*/*") if directory.is_dir()]


def assert_same(ours, theirs):
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def count_reads(monkeypatch):
    reads = []
    read = envs.data.sources.d4rl._read
    monkeypatch.setattr(
        "envs.data.sources.d4rl._read", lambda path: reads.append(path) or read(path)
    )
    return reads


def test_the_second_run_maps_what_the_first_one_read(path, monkeypatch):
    reads = count_reads(monkeypatch)
    first, second = load_d4rl(path), load_d4rl(path)
    assert len(reads) == 1 and len(entries()) == 1
    assert_same(first, second)
    for name in ARRAYS:
        assert isinstance(getattr(second, name).base, np.memmap), name  # not copied
    with h5py.File(path) as file:
        np.testing.assert_array_equal(second.observations, file["observations"][()])


def test_the_mapped_arrays_cannot_be_written_to(path):
    episodes = load_d4rl(path)
    for name in ARRAYS:
        with pytest.raises(ValueError, match="read-only"):
            getattr(episodes, name)[0] = 1


def test_a_changed_source_is_read_anew_and_its_old_copy_removed(path, monkeypatch):
    reads = count_reads(monkeypatch)
    old = load_d4rl(path)
    before = old.rewards.copy()
    status = path.stat()
    with h5py.File(path, "a") as file:  # one byte of content, with size and time as before
        file["rewards"][0] = 123.0
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert load_d4rl(path).rewards[0] == 123.0
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    load_d4rl(path)
    assert len(reads) == 3 and len(entries()) == 1
    np.testing.assert_array_equal(old.rewards, before)  # whoever has it open keeps it


def test_an_older_format_is_ignored_and_removed(path, monkeypatch):
    reads = count_reads(monkeypatch)
    load_d4rl(path)
    old = entries()
    monkeypatch.setattr("envs.data.cache.FORMAT", envs.data.cache.FORMAT + 1)
    load_d4rl(path)
    assert len(reads) == 2 and len(entries()) == 1 and entries() != old


SMALL = ("returns", "terminated", "observation_mean", "observation_std", "sha256")
DERIVED = ("returns_to_go", *SMALL)


def test_what_takes_a_pass_over_all_steps_is_kept_too(path, monkeypatch):
    first = load_d4rl(path)
    assert isinstance(first.returns_to_go.base, np.memmap)
    plain = Episodes(**{f.name: getattr(first, f.name) for f in fields(first)})
    assert not DERIVED & vars(plain).keys()
    chosen = np.array([1, 7])
    for ours, anew in [(first, plain), (first.select(chosen), plain.select(chosen))]:
        rows = np.concatenate([np.arange(*border) for border in anew.borders])
        np.testing.assert_array_equal(ours.returns_to_go[rows], anew.returns_to_go[rows])
        for name in SMALL:
            np.testing.assert_array_equal(getattr(ours, name), getattr(anew, name))
    assert first.select(chosen).sha256 != first.sha256 and type(first.sha256) is str
    # A later run makes no such pass.
    monkeypatch.delattr(Episodes, "pieces")
    monkeypatch.delattr(Episodes, "each_returns_to_go")
    later = load_d4rl(path)
    for name in DERIVED:
        np.testing.assert_array_equal(getattr(later, name), getattr(first, name))


@pytest.mark.parametrize("name", ["observations", "returns_to_go", "sha256"])
@pytest.mark.parametrize("damage", ["cut", "removed", "pickle"])
def test_a_damaged_copy_is_made_anew(path, damage, name):
    names = (*ARRAYS, *DERIVED)
    expected = load_d4rl(path)
    expected = {name: np.array(getattr(expected, name)) for name in names}
    file = entries()[0] / f"{name}.npy"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "removed":
        file.unlink()
    else:
        np.save(file, np.array([object()]), allow_pickle=True)
    for _ in range(2):
        episodes = load_d4rl(path)
        for name in names:
            np.testing.assert_array_equal(getattr(episodes, name), expected[name])
    assert isinstance(episodes.observations.base, np.memmap)


def test_spoilt_data_are_not_cached(path):
    with h5py.File(path, "a") as file:
        file["rewards"][3] = np.nan
    for _ in range(2):
        with pytest.raises(UserError, match=r"rewards\[3\] = nan"):
            load_d4rl(path)
    assert not entries()


LOAD = "import sys; from pathlib import Path; from envs.data.sources.d4rl import load_d4rl;"


def run(path, code="print(load_d4rl(Path(sys.argv[1])).rewards.sum())", **options):
    return subprocess.Popen(
        [sys.executable, "-c", LOAD + code, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.posix
def test_a_full_disk_keeps_the_data_in_memory(path):
    """The system lets no file grow beyond 30 kB: where a write fails, it fails for real."""

    def limit():
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    out, error = run(path, preexec_fn=limit).communicate(timeout=60)
    assert "kept in memory, because it cannot be cached below" in error, error
    assert "File too large" in error and "Traceback" not in error
    assert float(out) == pytest.approx(float(load_d4rl(path).rewards.sum()))
    assert len(entries()) == 1


def test_a_cache_that_cannot_be_written_keeps_the_data_in_memory(path, store, caplog):
    store.write_text("a file where the store should be")
    episodes = load_d4rl(path)
    assert episodes.n_steps == 2000 and "kept in memory" in caplog.text


def test_a_killed_process_leaves_nothing_that_is_used(path):
    slow = (
        "import envs.data.cache, time;"
        "envs.data.cache.Episodes.sha256 = property(lambda episodes: time.sleep(60));"
        "load_d4rl(Path(sys.argv[1]))"
    )
    process = run(path, slow)
    while not list(cache_root().glob("*/.making-*/new/observation_std.npy")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert len(list(cache_root().glob("*/.making-*"))) == 1
    assert load_d4rl(path).n_steps == 2000
    assert isinstance(load_d4rl(path).rewards.base, np.memmap)
    assert not list(cache_root().glob("*/.making-*")) and len(entries()) == 1


def test_two_processes_read_it_once(path):
    write(path, steps=60_000)
    code = (
        "import envs.data.sources.d4rl as d4rl; read = d4rl._read;"
        "d4rl._read = lambda path: (print('read'), read(path))[1];"
        "print(load_d4rl(Path(sys.argv[1])).rewards.sum())"
    )
    outputs = [process.communicate(timeout=60) for process in [run(path, code) for _ in range(2)]]
    words = " ".join(out for out, _ in outputs).split()
    assert words.count("read") == 1, outputs
    assert len({word for word in words if word != "read"}) == 1


def test_where_it_lies(monkeypatch, tmp_path):
    assert cache_root() == tmp_path / "store" / ".decision-minrnn"
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert cache_root() == tmp_path / "caches" / "decision-minrnn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "decision-minrnn"


def test_a_minari_set_is_cached_beside_it_and_minari_does_not_see_it(store):
    arrays = {
        "observations": np.zeros((3, 11)),
        "actions": np.zeros((3, 3)),
        "rewards": np.arange(3.0),
        "terminations": [0, 0, 1],
        "truncations": [0, 0, 0],
    }
    store_episodes("mine/a-v0", arrays, environment_id="Hopper-v5")
    first = load_minari("mine/a-v0")
    assert len(entries()) == 1
    assert_same(first, load_minari("mine/a-v0"))
    assert list(minari.list_local_datasets()) == ["mine/a-v0"]
    # Only the metadata change: the copy is another one, the scores are the new ones.
    path = get_dataset_path("mine/a-v0") / "data" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ref_min_score": -5.0}))
    assert load_minari("mine/a-v0").reference.minimum == -5.0


def reading(rows, lengths=(2, 1)):
    return lambda: Reading(np.array(lengths), 2, 1, iter(rows))


def piece(steps, **changes):
    return {
        "observations": np.zeros((steps, 2)),
        "actions": np.zeros((steps, 1)),
        "rewards": np.ones(steps),
        "terminations": np.zeros(steps, bool),
        "truncations": np.zeros(steps, bool),
    } | changes


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([piece(2)], "2 steps were read, not 3; the source has changed"),
        ([piece(2), piece(1, observations=np.zeros((1, 3)))], r"from step 2 on .* \(1, 3\), not"),
        ([piece(3, rewards=np.array(["a"] * 3))], "rewards from step 0 on are <U1"),
    ],
)
def test_a_source_that_breaks_its_word_is_one_sentence(tmp_path, rows, message):
    (tmp_path / "file").write_text("content")
    attributes = {
        "action_low": [-1],
        "action_high": [1],
        "dataset_id": "test/a-v0",
        "environment_id": "Test-v0",
    }
    with pytest.raises(UserError, match="test/a-v0: .*" + message):
        load_cached([tmp_path / "file"], attributes, reading(rows))
    assert not entries()
