import csv
import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from common.errors import UserError
from envs.behaviors import DIRECTORY, SNAPSHOTS, snapshot_path
from envs.behaviors.collect import run_episodes
from envs.behaviors.measure import main as measure_main
from envs.behaviors.measure import measure
from envs.behaviors.policy import load_behavior
from envs.behaviors.train import (
    TrainBehaviorConfig,
    behavior_of,
    load_state,
    make_model,
    save_state,
    saved_state,
    train,
)
from envs.simulation.simulators import Simulators
from envs.tasks import TASKS

EARLY = min(SNAPSHOTS["hopper"].replay)


def read_returns(directory):
    with (directory / "returns.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_table_that_ships_has_every_policy_and_is_true():
    rows = {(row["task"], int(row["training_steps"])): row for row in read_returns(DIRECTORY)}
    assert set(rows) == {(name, step) for name in TASKS for step in SNAPSHOTS[name].steps()}
    step = min(SNAPSHOTS["hopper"].replay)
    row = rows["hopper", step]
    behavior = load_behavior(snapshot_path("hopper", step))
    with Simulators("Hopper-v5", 10) as simulators:
        measured = measure(TASKS["hopper"], simulators, behavior, step, seed=99)
    # Ten episodes with other seeds: within a few standard errors.
    margin = 4 * float(row["sampled_std"]) / np.sqrt(10)
    assert measured.sampled_return == pytest.approx(float(row["sampled_return"]), abs=margin)
    margin = 4 * float(row["mean_action_std"]) / np.sqrt(10)
    assert measured.mean_action_return == pytest.approx(
        float(row["mean_action_return"]), abs=margin
    )


def test_medium_is_a_third_to_a_bit_over_half_of_the_way_to_an_expert():
    rows = {(row["task"], int(row["training_steps"])): row for row in read_returns(DIRECTORY)}
    for name in TASKS:
        medium = float(rows[name, SNAPSHOTS[name].medium]["normalized_score"])
        best = float(rows[name, SNAPSHOTS[name].expert]["normalized_score"])
        assert 33 < medium < 60 < best


def test_the_measure_command_writes_what_it_measured(tmp_path, capsys):
    source = snapshot_path("hopper", EARLY)
    target = snapshot_path("hopper", EARLY, tmp_path)
    load_behavior(source).save(target)
    measure_main([f"directory={tmp_path}", "episodes=3", "seed=5"])
    assert "hopper" in capsys.readouterr().out
    (row,) = read_returns(tmp_path)
    with Simulators("Hopper-v5", 2) as simulators:
        episodes = run_episodes(simulators, load_behavior(source), seed=(5,), episodes=3)
    returns = [episode.rewards.sum() for episode in episodes]
    assert float(row["sampled_return"]) == pytest.approx(np.mean(returns), abs=0.1)
    assert float(row["sampled_std"]) == pytest.approx(np.std(returns), abs=0.1)
    whole = np.mean([not episode.terminated for episode in episodes])
    assert float(row["sampled_whole"]) == pytest.approx(whole, abs=0.001)
    assert float(row["normalized_score"]) == pytest.approx(
        100 * (np.mean(returns) + 20.272305) / (3234.3 + 20.272305), abs=0.1
    )


def test_nothing_to_measure_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=re.escape("there is no TASK/step_NNNNNNN")):
        measure_main([f"directory={tmp_path}"])
    (tmp_path / "hopper").mkdir()
    (tmp_path / "hopper" / "step_0000001.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        measure_main([f"directory={tmp_path}"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"env": "ant"}, "env 'ant' does not exist; there are: hopper, halfcheetah, walker2d"),
        ({"env": "hopper", "steps": 0}, "steps is 0; it must be at least 1"),
        (
            {"env": "hopper", "algorithm": "ppo"},
            "algorithm 'ppo' does not exist; there are",
        ),
        ({"env": "hopper", "updates_per_step": 0.0}, "updates_per_step is 0.0; it must be above 0"),
        ({"env": "hopper", "every": -1}, "every is -1; it must be at least 1"),
    ],
)
def test_bad_arguments_are_one_sentence(config, message):
    with pytest.raises(UserError, match=message):
        TrainBehaviorConfig(**config)


def test_without_sbx_it_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sbx", None)  # Python's own "not installed"
    with pytest.raises(UserError, match=r'pip install -e "\.\[behavior\]"'):
        train(TrainBehaviorConfig("hopper", directory=str(tmp_path / "runs")))
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def config(tmp_path):
    return TrainBehaviorConfig("hopper", steps=500, directory=str(tmp_path), resume=True)


def write_save(config, steps=100, **settings):
    """A save as the trainer leaves it, with arbitrary bytes for what needs sbx to be read."""
    state = config.folder / f"state_{steps:07d}"
    state.mkdir(parents=True)
    contents = {"state.msgpack": b"networks", "replay.npz": b"transitions" * 100}
    for name, content in contents.items():
        (state / name).write_bytes(content)
    saved = {
        "config": {**vars(config), **settings},
        "num_timesteps": steps,
        "sha256": {name: sha256(content).hexdigest() for name, content in contents.items()},
    }
    (state / "training.json").write_text(json.dumps(saved))
    return state


def test_resumes_from_the_last_whole_save(config):
    assert saved_state(config) is None
    write_save(config, 100)
    state = write_save(config, 200)
    (config.folder / ".making-killed").mkdir()
    found, saved = saved_state(replace(config, steps=900, every=7, episodes=3))
    assert found == state and saved["num_timesteps"] == 200


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 64}, "batch_size is 64, but the training in .* has batch_size=128; give"),
        ({"policy_delay": 1}, "policy_delay is 1, but the training in .* has policy_delay=2"),
        ({"steps": 50}, "steps is 50, but the training in .* has made 100 already"),
        ({"resume": False}, "holds a training already; add resume=true"),
    ],
)
def test_other_settings_are_refused(config, changes, message):
    write_save(config)
    with pytest.raises(UserError, match=message) as caught:
        saved_state(replace(config, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["replay.npz", "state.msgpack", "training.json"])
@pytest.mark.parametrize("damage", ["cut off", "flipped", "missing"])
def test_a_damaged_save_is_one_sentence_and_stays(config, name, damage):
    path = write_save(config) / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-5] if damage == "cut off" else b"\xff" + content[1:])
    message = "cannot be read" if "missing" in damage or "json" in name else "cut off or damaged"
    with pytest.raises(UserError, match=f"{message}.*remove .* to begin anew") as caught:
        saved_state(config)
    assert "\n" not in str(caught.value)
    assert path.parent.exists()


def test_snapshots_without_a_save_are_not_overwritten(config):
    config.folder.mkdir()
    for step in (20, 40):
        load_behavior(snapshot_path("hopper", EARLY)).save(
            config.folder / f"step_{step:07d}.safetensors"
        )
    with pytest.raises(UserError, match="no state_NNNNNNN to resume from"):
        saved_state(config)
    (config.folder / "step_0000040.safetensors").unlink()  # killed before the first save
    assert saved_state(config) is None


@pytest.fixture
def sbx():
    return pytest.importorskip("sbx")


@pytest.mark.parametrize("algorithm", ["sac", "tqc"])
def test_the_actor_acts_like_sbxs(sbx, algorithm):
    model = make_model(TrainBehaviorConfig("hopper", algorithm=algorithm, steps=100, n_envs=1))
    behavior = behavior_of(model, TrainBehaviorConfig("hopper", algorithm=algorithm))
    observations = np.random.default_rng(0).standard_normal((20, 11)).astype(np.float32) * 3
    expected, _ = model.predict(observations, deterministic=True)
    np.testing.assert_allclose(behavior.act(observations), expected, atol=1e-5)
    # And its noise has the same spread: 3,000 samples for one observation.
    one = np.repeat(observations[:1], 3000, axis=0)
    sampled, _ = model.predict(one)
    ours = behavior.act(one, np.random.default_rng(1).standard_normal((3000, 3)))
    np.testing.assert_allclose(ours.std(0), sampled.std(0), rtol=0.1)


@pytest.mark.parametrize("algorithm", ["sac", "tqc"])
def test_a_save_restores_networks_optimisers_and_replay_buffer(sbx, tmp_path, algorithm):
    config = TrainBehaviorConfig(
        "hopper", algorithm, steps=192, random_steps=64, directory=str(tmp_path), resume=True
    )
    config.folder.mkdir()
    model = make_model(config)
    model.learn(192)
    save_state(model, config, [])
    other = make_model(config, steps_done=192)
    assert load_state(other, *saved_state(config)) == []
    assert (other.num_timesteps, other._n_updates) == (192, model._n_updates)
    import jax

    from envs.behaviors.train import BUFFER_ARRAYS, _learned

    for ours, theirs in zip(
        jax.tree.leaves(_learned(other)), jax.tree.leaves(_learned(model)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(other.key, model.key)
    assert other.replay_buffer.pos == model.replay_buffer.pos == 24
    for name in BUFFER_ARRAYS:
        np.testing.assert_array_equal(
            getattr(other.replay_buffer, name)[:24], getattr(model.replay_buffer, name)[:24]
        )


def test_a_killed_training_resumes(sbx, tmp_path):
    command = [sys.executable, "-m", "envs.behaviors.train", "env=hopper", "random_steps=64"]
    command += ["every=192", "episodes=2", f"directory={tmp_path}", "resume=true"]
    folder = tmp_path / "hopper-tqc-seed0"
    with subprocess.Popen([*command, "steps=100000"], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    before = read_returns(folder)
    done = int(re.search(r"state_(\d+)", str(sorted(folder.glob("state_*"))[-1]))[1])
    result = subprocess.run(
        [*command, f"steps={done + 384}"], capture_output=True, text=True, check=True
    )
    assert len(result.stdout.splitlines()) == 2
    rows = read_returns(folder)
    assert [int(row["training_steps"]) for row in rows][-2:] == [done + 192, done + 384]
    assert rows[0] == before[0]
    assert [path.name for path in folder.glob("state_*")] == [f"state_{done + 384:07d}"]
    assert not [path for path in folder.glob(".making-*") if path.is_dir()]


@pytest.mark.slow
def test_training_learns_and_saves_what_it_measured(sbx, tmp_path):
    config = TrainBehaviorConfig(
        "hopper", steps=3000, every=1000, random_steps=500, episodes=5, directory=str(tmp_path)
    )
    measurements = train(config)
    steps = [m.training_steps for m in measurements]
    assert steps == [1024, 2048, 3008]
    assert measurements[-1].sampled_return > measurements[0].sampled_return + 20
    rows = read_returns(config.folder)
    assert [float(row["sampled_return"]) for row in rows] == [
        m.sampled_return for m in measurements
    ]
    behavior = load_behavior(config.folder / "step_0003008.safetensors")
    assert behavior.metadata["training_steps"] == "3008"
    with Simulators("Hopper-v5", 5) as simulators:
        again = measure(TASKS["hopper"], simulators, behavior, 3008, seed=0)
    assert again == measurements[-1]
