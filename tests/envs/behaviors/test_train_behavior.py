import csv
import re
import sys

import numpy as np
import pytest

from common.errors import UserError
from envs.behaviors import BEST_STEPS, DIRECTORY, REPLAY_STEPS, snapshot_path
from envs.behaviors.collect import run_episodes
from envs.behaviors.measure import main as measure_main
from envs.behaviors.measure import measure
from envs.behaviors.policy import (
    load_behavior,
)
from envs.behaviors.train import TrainBehaviorConfig, behavior_of, train
from envs.simulation.simulators import Simulators
from envs.tasks import TASKS


def read_returns(directory):
    with (directory / "returns.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_table_that_ships_has_every_policy_and_is_true():
    rows = {(row["task"], int(row["training_steps"])): row for row in read_returns(DIRECTORY)}
    assert set(rows) == {
        (name, step) for name in TASKS for step in (*REPLAY_STEPS[name], BEST_STEPS[name])
    }
    row = rows["hopper", 20_000]
    behavior = load_behavior(snapshot_path("hopper", 20_000))
    with Simulators("Hopper-v5", 10) as simulators:
        measured = measure(TASKS["hopper"], simulators, behavior, 20_000, seed=99)
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
        medium = float(rows[name, REPLAY_STEPS[name][-1]]["normalized_score"])
        best = float(rows[name, BEST_STEPS[name]]["normalized_score"])
        assert 33 < medium < 60 < best


def test_the_measure_command_writes_what_it_measured(tmp_path, capsys):
    source = snapshot_path("hopper", 20_000)
    target = snapshot_path("hopper", 20_000, tmp_path)
    load_behavior(source).save(target)
    measure_main([f"directory={tmp_path}", "episodes=3", "seed=5"])
    assert "hopper" in capsys.readouterr().out
    (row,) = read_returns(tmp_path)
    with Simulators("Hopper-v5", 2) as simulators:
        episodes = run_episodes(simulators, load_behavior(source), seed=(5,), episodes=3)
    returns = [episode.rewards.sum() for episode in episodes]
    assert float(row["sampled_return"]) == pytest.approx(np.mean(returns), abs=0.1)
    assert float(row["sampled_std"]) == pytest.approx(np.std(returns), abs=0.1)
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
        ({"env": "hopper", "every": -1}, "every is -1; it must be at least 1"),
    ],
)
def test_bad_arguments_are_one_sentence(config, message):
    with pytest.raises(UserError, match=message):
        TrainBehaviorConfig(**config)


def test_without_stable_baselines3_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)  # Python's own "not installed"
    with pytest.raises(UserError, match=r'pip install -e "\.\[behavior\]"'):
        train(TrainBehaviorConfig("hopper"))


def test_the_actor_acts_like_stable_baselines3s(tmp_path):
    sac = pytest.importorskip("stable_baselines3")
    model = sac.SAC("MlpPolicy", "Hopper-v5", seed=0, device="cpu")
    behavior = behavior_of(model, "Hopper-v5")
    observations = np.random.default_rng(0).standard_normal((20, 11)).astype(np.float32) * 3
    expected, _ = model.predict(observations, deterministic=True)
    np.testing.assert_allclose(behavior.act(observations), expected, atol=1e-5)
    # And its noise has the same spread: 3,000 samples for one observation.
    one = np.repeat(observations[:1], 3000, axis=0)
    sampled, _ = model.predict(one)
    ours = behavior.act(one, np.random.default_rng(1).standard_normal((3000, 3)))
    np.testing.assert_allclose(np.arctanh(ours).std(0), np.arctanh(sampled).std(0), rtol=0.1)


@pytest.mark.slow
def test_training_learns_and_saves_what_it_measured(tmp_path):
    pytest.importorskip("stable_baselines3")
    config = TrainBehaviorConfig(
        "hopper",
        steps=3000,
        every=1000,
        random_steps=500,
        episodes=5,
        directory=str(tmp_path),
    )
    measurements = train(config)
    assert [m.training_steps for m in measurements] == [1000, 2000, 3000]
    assert measurements[-1].sampled_return > measurements[0].sampled_return + 20
    rows = read_returns(tmp_path)
    assert [float(row["sampled_return"]) for row in rows] == [
        m.sampled_return for m in measurements
    ]
    behavior = load_behavior(snapshot_path("hopper", 3000, tmp_path))
    assert behavior.metadata["training_steps"] == "3000"
    with Simulators("Hopper-v5", 5) as simulators:
        again = measure(TASKS["hopper"], simulators, behavior, 3000, seed=0)
    assert again == measurements[-1]
