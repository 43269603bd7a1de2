"""The batched environments are Gymnasium's to the bit, over whole episodes and resets."""

import numpy as np
import pytest

from envs.behaviors import find_recipe
from envs.simulation.batched import RULES, BatchedSimulators, make_simulators
from envs.simulation.simulators import Simulators

NAMES = {"Hopper-v5": "hopper", "HalfCheetah-v5": "halfcheetah", "Walker2d-v5": "walker2d"}


def run(simulators, actions_of, steps, seed):
    """All columns of `steps` steps of 3 environments, each reset where its episode ends."""
    index = np.arange(3)
    seeds = np.random.default_rng(seed)
    observation = simulators.reset(index, seeds.integers(2**32, size=3))
    columns = [[observation]]
    for _ in range(steps):
        step = simulators.step(index, actions_of(observation))
        columns.append(list(step))
        observation, ended = step[0].copy(), step[2] | step[3]
        if ended.any():
            first = simulators.reset(index[ended], seeds.integers(2**32, size=ended.sum()))
            columns.append([first])
            observation[ended] = first
    return columns


def assert_same_bits(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        for x, y in zip(a, b, strict=True):
            assert x.dtype == y.dtype and x.tobytes() == y.tobytes()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("environment_id", RULES)
def test_whole_episodes_equal_gymnasiums_to_the_bit(environment_id, workers):
    """A policy that walks and falls, and beyond the time limit of 1,000 steps."""
    behavior = find_recipe(f"{NAMES[environment_id]}-medium").behaviors()[0]
    with Simulators(environment_id, 3) as simulators:
        noise = np.random.default_rng(1)
        dim = simulators.action_dim
        theirs = run(simulators, lambda o: behavior.act(o, noise.normal(size=(3, dim))), 1100, 0)
    with BatchedSimulators(environment_id, 3, workers=workers) as simulators:
        noise = np.random.default_rng(1)
        ours = run(simulators, lambda o: behavior.act(o, noise.normal(size=(3, dim))), 1100, 0)
    assert_same_bits(ours, theirs)
    steps = [columns for columns in ours if len(columns) == 4]
    column = 3 if environment_id == "HalfCheetah-v5" else 2  # which never falls
    assert any(step[column].any() for step in steps)


@pytest.mark.parametrize("environment_id", RULES)
def test_wild_actions_equal_gymnasiums_to_the_bit(environment_id):
    """Random actions beyond the bounds: short episodes, clipped velocities."""
    columns = []
    for make in (Simulators, BatchedSimulators):
        with make(environment_id, 3) as simulators:
            rng, dim = np.random.default_rng(2), simulators.action_dim
            columns.append(
                run(
                    simulators,
                    lambda _, r=rng, d=dim: r.normal(0, 2, (3, d)).astype(np.float32),
                    300,
                    5,
                )
            )
    assert_same_bits(*columns)
    if np.isfinite(RULES[environment_id].velocity_clip):
        velocities = np.concatenate([step[0] for step in columns[0]])
        assert np.abs(velocities).max() == RULES[environment_id].velocity_clip


def test_the_horizon_truncates_as_in_simulators():
    columns = []
    for make in (Simulators, BatchedSimulators):
        with make("Hopper-v5", 3) as simulators:
            simulators.horizon = 15
            columns.append(run(simulators, lambda _: np.zeros((3, 3), np.float32), 50, 5))
    assert_same_bits(*columns)
    assert sum(step[3].sum() for step in columns[0] if len(step) == 4) == 9


def test_subsets_step_alone_and_errors_are_those_of_simulators():
    with BatchedSimulators("Hopper-v5", 3) as simulators:
        simulators.reset(np.array([0, 2]), [1, 2])
        with pytest.raises(RuntimeError, match=r"environments \[1\] must be reset"):
            simulators.step(np.arange(3), np.zeros((3, 3), np.float32))
        with pytest.raises(ValueError, match=r"actions have shape \(1, 5\), not \(1, 3\)"):
            simulators.step(np.array([0]), np.zeros((1, 5), np.float32))
        observation = simulators.step(np.array([2]), np.zeros((1, 3), np.float32))[0]
    with Simulators("Hopper-v5", 1) as simulators:
        simulators.reset(np.array([0]), [2])
        expected = simulators.step(np.array([0]), np.zeros((1, 3), np.float32))[0]
    np.testing.assert_array_equal(observation, expected)


def test_other_environments_get_gymnasiums_own_step():
    with make_simulators("InvertedPendulum-v5", 1) as simulators:
        assert type(simulators) is Simulators
    with make_simulators("Hopper-v5", 1) as simulators:
        assert type(simulators) is BatchedSimulators
