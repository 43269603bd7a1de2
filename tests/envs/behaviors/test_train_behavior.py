import csv
import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from common.errors import UserError
from envs.behaviors import DIRECTORY, SNAPSHOTS, snapshot_path
from envs.behaviors.choose import outside
from envs.behaviors.episodes import run_episodes
from envs.behaviors.measure import main as measure_main
from envs.behaviors.measure import measure
from envs.behaviors.policy import load_behavior
from envs.behaviors.train import (
    TrainBehaviorConfig,
    behavior_of,
    load_state,
    make_model,
    read_state,
    save_state,
    train,
)
from envs.tasks import TASKS

EARLY = min(SNAPSHOTS["hopper"].replay)


def read_returns(directory):
    with (directory / "returns.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_table_that_ships_has_every_policy_and_is_true():
    rows = {(row["task"], int(row["training_steps"])): row for row in read_returns(DIRECTORY)}
    assert set(rows) == {(name, step) for name in SNAPSHOTS for step in SNAPSHOTS[name].steps()}
    step = min(SNAPSHOTS["hopper"].replay)
    row = rows["hopper", step]
    measured = measure(TASKS["hopper"], snapshot_path("hopper", step), step, 10, seed=99)
    # Ten episodes with other seeds: within a few standard errors.
    margin = 4 * float(row["sampled_std"]) / np.sqrt(10)
    assert measured.sampled_return == pytest.approx(float(row["sampled_return"]), abs=margin)
    margin = 4 * float(row["mean_action_std"]) / np.sqrt(10)
    assert measured.mean_action_return == pytest.approx(
        float(row["mean_action_return"]), abs=margin
    )


def test_medium_is_the_shipped_snapshot_nearest_to_a_third_to_a_half_of_the_expert():
    rows = {(row["task"], int(row["training_steps"])): row for row in read_returns(DIRECTORY)}
    for name, chosen in SNAPSHOTS.items():
        returns = {step: float(rows[name, step]["sampled_return"]) for step in chosen.steps()}
        away = {step: outside(returns[step] / returns[chosen.expert]) for step in returns}
        assert away[chosen.medium] == min(away[step] for step in chosen.replay)
        assert returns[chosen.expert] == max(returns.values())


def test_the_measure_command_writes_what_it_measured(tmp_path, capsys):
    source = snapshot_path("hopper", EARLY)
    target = snapshot_path("hopper", EARLY, tmp_path)
    load_behavior(source).save(target)
    measure_main([f"directory={tmp_path}", "episodes=3", "seed=5"])
    assert "hopper" in capsys.readouterr().out
    (row,) = read_returns(tmp_path)
    episodes = run_episodes("Hopper-v5", load_behavior(source), seed=(5,), episodes=3)
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
    """A save as the trainer leaves it, without the arrays that need sbx to be read."""
    config.folder.mkdir(parents=True)
    training = {"config": {**vars(config), **settings}, "num_timesteps": steps}
    path = config.folder / "state.npz"
    np.savez(path, rewards=np.arange(500.0), training=np.array(json.dumps(training)))
    return path


def test_resumes_from_the_save(config):
    assert read_state(config) is None
    path = write_save(config, 200)
    path.with_name(".state.1a2b3c4d.unfinished.npz").write_bytes(b"of a killed process")
    state = read_state(replace(config, steps=900, every=7, episodes=3))
    assert state["num_timesteps"] == 200 and len(state["rewards"]) == 500


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"random_steps": 64}, "random_steps is 64, but the training in .* has random_steps=10000"),
        ({"steps": 50}, "steps is 50, but the training in .* has made 100 already"),
        ({"resume": False}, "holds a training already; add resume=true"),
    ],
)
def test_other_settings_are_refused(config, changes, message):
    write_save(config)
    with pytest.raises(UserError, match=message) as caught:
        read_state(replace(config, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut off", "flipped", "empty", "an array is missing"])
def test_a_damaged_save_is_one_sentence_and_stays(config, damage):
    path = write_save(config)
    content = bytearray(path.read_bytes())
    if damage == "flipped":  # a byte of the rewards
        content[2000] ^= 1
    elif damage == "cut off":
        del content[-500:]
    elif damage == "empty":
        content = b""
    path.write_bytes(content)
    if damage == "an array is missing":
        np.savez(path, rewards=np.zeros(3))
    with pytest.raises(UserError, match=r"cut off or damaged.*remove .* to begin anew") as caught:
        read_state(config)
    assert "\n" not in str(caught.value)
    assert path.exists()


def test_snapshots_without_a_save_are_not_overwritten(config):
    config.folder.mkdir()
    for step in (20, 40):
        load_behavior(snapshot_path("hopper", EARLY)).save(
            config.folder / f"step_{step:07d}.safetensors"
        )
    with pytest.raises(UserError, match=r"no state\.npz to resume from"):
        read_state(config)
    (config.folder / "step_0000040.safetensors").unlink()  # killed before the first save
    assert read_state(config) is None


@pytest.fixture
def sbx():
    return pytest.importorskip("sbx")


@pytest.mark.parametrize("algorithm", ["sac", "tqc"])
def test_the_actor_acts_like_sbxs(sbx, algorithm):
    model = make_model(TrainBehaviorConfig("hopper", algorithm=algorithm, steps=100))
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
    assert load_state(other, read_state(config)) == []
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
        process.kill()
    before = read_returns(folder)
    with np.load(folder / "state.npz") as file:
        done = json.loads(str(file["training"]))["num_timesteps"]
    result = subprocess.run(
        [*command, f"steps={done + 384}"], capture_output=True, text=True, check=True
    )
    assert len(result.stdout.splitlines()) == 2
    rows = read_returns(folder)
    assert [int(row["training_steps"]) for row in rows][-2:] == [done + 192, done + 384]
    assert rows[0] == before[0]
    assert not list(folder.glob(".state.*"))


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
    path = config.folder / "step_0003008.safetensors"
    again = measure(TASKS["hopper"], path, 3008, config.episodes, seed=0)
    assert again == measurements[-1]
