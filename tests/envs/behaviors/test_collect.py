import os
import signal
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import minari
import numpy as np
import pytest
from programs import end, wait_for

from common.errors import UserError
from envs.behaviors import find_recipe
from envs.behaviors.collect import collect, main, make_dataset
from envs.behaviors.episodes import run_episodes
from envs.data.sources import DatasetConfig, load_episodes

HOPPER = find_recipe("hopper-medium")
REPLAY = find_recipe("hopper-medium-replay")
HOPPER_PATH = Path(HOPPER.dataset_id)
COLLECT = ["-m envs.behaviors.collect", "dataset=hopper-medium"]


def own(store):
    """The variables of a program that works in the test's own store."""
    return {"MINARI_DATASETS_PATH": str(store)}


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        for name in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert (a.seed, a.terminated) == (b.seed, b.terminated)


def test_the_seed_decides_everything():
    first, again, other = (collect(HOPPER, 300, seed) for seed in (1, 1, 2))
    assert_same(first, again)
    assert not np.array_equal(first[0].observations[0], other[0].observations[0])


def test_each_policy_gets_its_share():
    recipe = replace(REPLAY, snapshots=REPLAY.snapshots[:2], shares=(1, 3))
    episodes = collect(recipe, 1600, seed=0)
    expected = []
    for part, (behavior, steps) in enumerate(zip(recipe.behaviors(), (400, 1200), strict=True)):
        expected += run_episodes("Hopper-v5", behavior, seed=(0, part), steps=steps)
    assert_same(episodes, expected)


def test_makes_a_real_minari_data_set(store, recwarn, capfd):
    make_dataset(HOPPER, 600, seed=3)
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]
    assert "WARNING" not in capfd.readouterr().err
    dataset = minari.load_dataset("builtin/hopper/medium-v1")
    assert dataset.total_steps >= 600
    assert list(minari.list_local_datasets()) == ["builtin/hopper/medium-v1"]
    scores = minari.get_normalized_score(dataset, np.array([-20.272305, 3234.3]))
    np.testing.assert_allclose(scores, [0, 1], atol=1e-12)
    assert dataset.recover_environment().spec.id == "Hopper-v5"
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]
    for stored, episode in zip(dataset, collect(HOPPER, 600, seed=3), strict=True):
        np.testing.assert_array_equal(stored.observations, episode.observations)
        np.testing.assert_array_equal(stored.actions, episode.actions)
        np.testing.assert_array_equal(stored.rewards, episode.rewards)
        assert dataset.observation_space.contains(stored.observations[0])
        assert dataset.action_space.contains(stored.actions[0])
        assert stored.terminations[-1] == episode.terminated
        assert not stored.terminations[:-1].any() and not stored.truncations[:-1].any()
    assert not list(store.glob(".making-*"))


def test_the_command_makes_keeps_and_replaces(store, capsys):
    main(["dataset=hopper-medium", "steps=300"])
    assert "builtin/hopper/medium-v1: " in capsys.readouterr().out
    before = minari.load_dataset(HOPPER.dataset_id).total_steps
    with pytest.raises(UserError, match=r"exists already in .*add overwrite=true"):
        main(["dataset=hopper-medium", "steps=2000"])
    assert minari.load_dataset(HOPPER.dataset_id).total_steps == before
    main(["dataset=builtin/hopper/medium-v1", "steps=2000", "overwrite=true"])
    assert minari.load_dataset(HOPPER.dataset_id).total_steps >= 2000
    assert not list(store.glob(".making-*"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["dataset=ant-medium"], UserError, "no built-in data set 'ant-medium'; there are: bui"),
        (["dataset=hopper-medium", "steps=0"], UserError, "steps is 0; it must be at least 1"),
        (
            ["dataset=hopper-medium", "step=5"],
            UserError,
            "no key 'step'; the keys are: dataset",
        ),
        (["dataset=hopper-medium", "steps=many"], UserError, "steps: Value 'many'.*Integer"),
        (["hopper-medium"], UserError, "'hopper-medium' is not of the form key=value"),
        (["steps=5"], UserError, r"dataset=\.\.\. must be given; the keys are: dataset, steps"),
    ],
)
def test_bad_arguments_are_one_sentence(store, arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.posix
def test_a_full_disk_leaves_no_half_data_set(store, start):
    """The system lets no file grow beyond 30 kB: where a write fails, it fails for real."""

    def limit():
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    store.mkdir()
    result = start(*COLLECT, "steps=2000", variables=own(store), preexec_fn=limit)
    assert result.returncode == 1, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: builtin/hopper/medium-v1 cannot be stored below")
    assert "File too large" in last and "make room" in last
    assert "Traceback" not in result.stderr
    assert not (store / HOPPER_PATH).exists() and not list(store.glob(".making-*"))
    assert load_episodes(DatasetConfig("builtin", "hopper-medium", 300)).n_steps >= 300


@pytest.mark.posix
@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_an_interrupted_run_leaves_no_half_data_set(store, start, name):
    kind = getattr(signal, name)
    process = start(*COLLECT, "steps=1000000", variables=own(store), wait=False)
    wait_for(process, lambda: list(store.glob(".making-*/")))
    time.sleep(0.3)
    process.send_signal(kind)
    ended = end(process)
    assert "Traceback" not in ended.stderr
    assert ended.returncode != 0 and not (store / HOPPER_PATH).exists()
    assert bool([d for d in store.glob(".making-*") if d.is_dir()]) == (kind == signal.SIGKILL)
    assert load_episodes(DatasetConfig("builtin", "hopper-medium", 300)).n_steps < 10_000
    assert not [d for d in store.glob(".making-*") if d.is_dir()]


def test_two_processes_that_want_the_same_make_it_once(store, start):
    code = (
        "from envs.data.sources import *;"
        "print(load_episodes(DatasetConfig('builtin', 'hopper-medium', 3000)).returns.sum())"
    )
    processes = [start("-c", code, variables=own(store), wait=False) for _ in range(2)]
    first, second = map(end, processes)
    assert first.stdout == second.stdout and float(first.stdout) > 0
    assert first.returncode == second.returncode == 0


@pytest.mark.posix
def test_no_write_permission_is_one_sentence(monkeypatch):
    with tempfile.TemporaryDirectory() as name:
        monkeypatch.setenv("MINARI_DATASETS_PATH", name)
        root = os.geteuid() == 0
        os.chmod(name, 0o555)
        if root:  # whom permissions do not stop
            os.seteuid(65534)
        try:
            with pytest.raises(UserError, match=r"cannot be stored below .*Permission denied"):
                make_dataset(HOPPER, 300, seed=0)
        finally:
            if root:
                os.seteuid(0)
            os.chmod(name, 0o755)


def test_a_store_below_a_file_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "file" / "store"))
    with pytest.raises(UserError, match=r"cannot be made .Not a directory"):
        make_dataset(HOPPER, 300, seed=0)
