"""Compiled episodes are Gymnasium's to the bit, whatever runs beside them."""

import gymnasium as gym
import numpy as np
import pytest

from common.errors import UserError
from envs.behaviors import SNAPSHOTS, find_recipe, snapshot_path
from envs.behaviors.episodes import run_episodes
from envs.behaviors.kernel import RULES
from envs.behaviors.policy import Behavior, load_behavior
from envs.tasks import TASKS

EARLY = find_recipe("hopper-medium-replay").behaviors()[0]  # falls after about a hundred steps


def run(**arguments):
    return run_episodes("Hopper-v5", EARLY, seed=(0,), **arguments)


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        for name in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert (a.seed, a.terminated) == (b.seed, b.terminated)


def wild(behavior):
    """The same policy with noise far beyond the actions' bounds: high velocities, odd poses."""
    bias = np.full_like(behavior.weights["log_std.bias"], 30.0)
    return Behavior({**behavior.weights, "log_std.bias": bias}, behavior.metadata)


@pytest.mark.parametrize("make", [lambda behavior: behavior, wild])
@pytest.mark.parametrize("name", SNAPSHOTS)
def test_episodes_are_those_of_gymnasiums_step_to_the_bit(name, make):
    environment_id = TASKS[name].environment_id
    behavior = make(load_behavior(snapshot_path(name, SNAPSHOTS[name].medium)))
    environment = gym.make(environment_id)
    episodes = run_episodes(environment_id, behavior, seed=(3,), steps=1500)
    for episode in episodes:
        observation, _ = environment.reset(seed=episode.seed)
        observations, rewards = [observation], []
        for action in episode.actions:
            observation, reward, terminated, truncated, _ = environment.step(action)
            observations.append(observation)
            rewards.append(reward)
            assert (terminated or truncated) == (len(rewards) == len(episode.actions))
        assert np.array(observations, np.float32).tobytes() == episode.observations.tobytes()
        assert np.array(rewards, np.float64).tobytes() == episode.rewards.tobytes()
        assert terminated == episode.terminated
    if make is wild and np.isfinite(RULES[environment_id].velocity_clip):
        velocities = np.concatenate([episode.observations for episode in episodes])
        assert np.abs(velocities).max() == RULES[environment_id].velocity_clip


def test_the_actions_are_those_of_the_policy():
    mean_actions = run(episodes=2, sampled=False)[1]
    expected = EARLY.act(mean_actions.observations[:-1])
    np.testing.assert_array_equal(mean_actions.actions, expected)
    sampled = run(episodes=2)[1]
    generator = np.random.default_rng(np.random.SeedSequence([0, 1]))
    noise = generator.standard_normal((1000, 3), np.float32)[: len(sampled.actions)]
    np.testing.assert_array_equal(sampled.actions, EARLY.act(sampled.observations[:-1], noise))
    assert np.abs(sampled.actions - EARLY.act(sampled.observations[:-1])).mean() > 0.01


def test_threads_do_not_change_the_episodes():
    reference = run(episodes=6, workers=1)
    for workers in (2, 5):
        assert_same(run(episodes=6, workers=workers), reference)
    assert len({len(episode.rewards) for episode in reference}) > 1


@pytest.mark.parametrize("workers", [1, 4])
def test_kept_are_the_first_episodes_and_no_more_than_needed(workers):
    """Not those that end first: these would be the short ones."""
    counts = []
    kept = run(steps=700, workers=workers, on_steps=counts.append)
    assert_same(kept, run(episodes=12)[: len(kept)])
    lengths = [len(episode.rewards) for episode in kept]
    assert sum(lengths[:-1]) < 700 <= sum(lengths)
    assert counts == np.cumsum(lengths).tolist()


def test_a_policy_of_another_environment_is_one_sentence():
    with pytest.raises(UserError, match="has 11 observations and 3 actions, but Walker2d"):
        run_episodes("Walker2d-v5", EARLY, seed=(0,))
