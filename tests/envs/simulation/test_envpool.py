"""EnvPool beside Gymnasium: the same physics step by step, the same returns over many episodes.

Needs the extra `envpool`, half a gigabyte of other tasks' models, and is skipped without it.
"""

import importlib.util

import gymnasium
import numpy as np
import pytest
import torch
from scipy import stats

from common.errors import UserError
from envs.simulation.envpool import EnvPoolSimulators
from envs.simulation.rollout import rollout, start_seeds
from envs.tasks import Evaluation

installed = importlib.util.find_spec("envpool") is not None
needs_envpool = pytest.mark.skipif(not installed, reason="the extra 'envpool' is not installed")


class Swaying:
    """A fixed reaction to the observation: good enough to make episodes of various lengths."""

    def __init__(self, observation_dim: int, action_dim: int) -> None:
        generator = np.random.default_rng(0)
        self.weight = torch.tensor(0.3 * generator.normal(size=(observation_dim, action_dim)))

    def initial_state(self, batch_size: int, target_return) -> None:
        return None

    def act(self, observation, reward, state, is_first):
        return torch.tanh(observation.double() @ self.weight).float(), None


def play(actor, environment_id, **keys):
    return rollout(actor, Evaluation(environment_id, "carried", 20, (0.0,), **keys))


TASKS = [("Hopper-v5", 11, 3), ("HalfCheetah-v5", 17, 6), ("Walker2d-v5", 17, 6)]


@needs_envpool
@pytest.mark.parametrize(("environment_id", "observation_dim", "action_dim"), TASKS)
def test_a_step_from_the_same_state_is_the_same(environment_id, observation_dim, action_dim):
    seeds = np.array([7, 2**32 - 1, 7])
    pool = EnvPoolSimulators(environment_id, 2, seeds, horizon=None)
    first = pool.reset(np.array([0, 1]), seeds[:2])
    twin = gymnasium.make(environment_id).unwrapped
    twin.reset(seed=0)
    # x is not observed and does not matter to the physics.
    positions = np.concatenate([[0.0], first[1][: twin.model.nq - 1]])
    twin.set_state(positions, first[1][twin.model.nq - 1 :])
    generator = np.random.default_rng(0)
    for _ in range(10):
        actions = generator.uniform(-0.3, 0.3, (2, action_dim)).astype(np.float32)
        observations, rewards, terminations, _ = pool.step(np.array([1, 0]), actions)
        observation, reward, terminated, _, _ = twin.step(actions[0])
        np.testing.assert_allclose(observations[0], observation, atol=1e-4)
        assert rewards[0] == pytest.approx(reward, abs=1e-4)
        assert terminations[0] == terminated
    # The same seed begins in the same state, in whatever slot.
    np.testing.assert_array_equal(pool.reset(np.array([1]), seeds[2:])[0], first[0])
    pool.close()


@needs_envpool
def test_returns_agree_with_gymnasiums_within_their_confidence():
    actor = Swaying(11, 3)
    ours, theirs = (
        play(actor, "Hopper-v5", episodes=100, seed=0, n_envs=40, engine=engine)
        for engine in ("gymnasium", "envpool")
    )
    assert theirs.mujoco_version is None and theirs.engine_version != ours.engine_version
    assert stats.ttest_ind(ours.episode_returns[0], theirs.episode_returns[0]).pvalue > 0.01
    assert stats.ttest_ind(ours.episode_lengths[0], theirs.episode_lengths[0]).pvalue > 0.01
    again = play(actor, "Hopper-v5", episodes=100, seed=0, n_envs=7, engine="envpool")
    np.testing.assert_array_equal(theirs.episode_returns, again.episode_returns)


@needs_envpool
def test_episodes_are_cut_at_the_horizon():
    actor = Swaying(17, 6)
    short, long = (
        play(actor, "HalfCheetah-v5", episodes=3, seed=0, horizon=horizon, engine="envpool")
        for horizon in (9, 1100)
    )
    assert short.episode_lengths.tolist() == [[9] * 3]
    assert long.episode_lengths.tolist() == [[1100] * 3]


@needs_envpool
def test_an_environment_that_envpool_lacks_is_one_sentence():
    with pytest.raises(UserError, match="has no environment 'Nothing-v0'"):
        EnvPoolSimulators("Nothing-v0", 1, start_seeds(0, np.arange(1)), horizon=None)


@pytest.mark.skipif(installed, reason="the extra 'envpool' is installed")
def test_a_missing_envpool_is_one_sentence():
    with pytest.raises(UserError, match=r"engine=envpool needs an extra .*\[envpool\]"):
        play(Swaying(11, 3), "Hopper-v5", episodes=1, seed=0, engine="envpool")
