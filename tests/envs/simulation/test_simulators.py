import gymnasium as gym
import numpy as np
import pytest

from common.errors import UserError
from envs.simulation.simulators import Simulators


def make_reference(environment_id, seeds, actions):
    """A plain loop over gymnasium.make, one environment after another."""
    result = []
    for seed, sequence in zip(seeds, actions, strict=True):
        environment = gym.make(environment_id)
        observation, _ = environment.reset(seed=seed)
        steps = [(observation.astype(np.float32), 0.0, False, False)]
        for action in sequence:
            observation, reward, terminated, truncated, _ = environment.step(action)
            steps.append((observation.astype(np.float32), reward, terminated, truncated))
            if terminated or truncated:
                break
        result.append(steps)
        environment.close()
    return result


def run(environment_id, seeds, actions, workers):
    n = len(seeds)
    with Simulators(environment_id, n, workers=workers) as simulators:
        first = simulators.reset(np.arange(n), seeds)
        result = [[(first[i], 0.0, False, False)] for i in range(n)]
        index, t = np.arange(n), 0
        while len(index) and t < actions.shape[1]:
            columns = simulators.step(index, actions[index, t])
            for row, environment in enumerate(index):
                result[environment].append(tuple(column[row] for column in columns))
            index, t = index[~(columns[2] | columns[3])], t + 1
        return result


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize(
    ("environment_id", "n", "steps"),
    [("Hopper-v5", 5, 100), ("Walker2d-v5", 3, 60), ("InvertedPendulum-v5", 2, 1000)],
)
def test_equals_a_plain_loop_to_the_bit(environment_id, n, steps, workers):
    space = gym.make(environment_id).action_space
    actions = np.random.default_rng(0).uniform(-1, 1, (n, steps, *space.shape)).astype(np.float32)
    seeds = [11 + i for i in range(n)]
    expected = make_reference(environment_id, seeds, actions)
    actual = run(environment_id, seeds, actions, workers)
    assert len({len(steps) for steps in expected}) > 1  # episodes end at different times
    for ours, theirs in zip(actual, expected, strict=True):
        assert len(ours) == len(theirs)
        for (o1, *rest1), (o2, *rest2) in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(o1, o2)
            assert rest1 == rest2


def test_truncates_at_the_horizon_like_gymnasium():
    """HalfCheetah never falls: only the time limit ends it."""
    actions = np.random.default_rng(1).uniform(-1, 1, (1, 1100, 6)).astype(np.float32)
    (ours,) = run("HalfCheetah-v5", [3], actions, workers=1)
    (theirs,) = make_reference("HalfCheetah-v5", [3], actions)
    assert len(ours) == len(theirs) == 1001
    assert ours[-1][1:] == theirs[-1][1:] and ours[-1][3]
    assert not any(step[3] for step in ours[:-1])
    np.testing.assert_array_equal(ours[-1][0], theirs[-1][0])


def test_the_step_count_starts_anew_with_each_episode():
    with Simulators("InvertedPendulum-v5", 1) as simulators:
        simulators.horizon = 5
        index = np.array([0])
        for _ in range(2):
            simulators.reset(index, [0])
            ends = [simulators.step(index, np.zeros((1, 1), np.float32))[3][0] for _ in range(5)]
            assert ends == [False] * 4 + [True]


def test_subsets_step_alone_and_ended_episodes_must_be_reset():
    with Simulators("Hopper-v5", 3) as simulators:
        simulators.reset(np.array([0, 2]), [1, 2])
        with pytest.raises(RuntimeError, match=r"environments \[1\] must be reset"):
            simulators.step(np.arange(3), np.zeros((3, 3), np.float32))
        down = np.full((1, 3), -1.0, np.float32)
        ended = False
        for _ in range(1000):
            ended = simulators.step(np.array([2]), down)[2][0]
            if ended:
                break
        assert ended
        with pytest.raises(RuntimeError, match=r"environments \[2\] must be reset"):
            simulators.step(np.array([2]), down)
        simulators.step(np.array([0]), down)


def test_says_what_it_needs_of_an_environment():
    with pytest.raises(UserError, match="CartPole-v1: the actions are Discrete"):
        Simulators("CartPole-v1", 1)


def test_an_error_in_a_thread_reaches_the_caller():
    with Simulators("Hopper-v5", 2, workers=2) as simulators:
        simulators.reset(np.arange(2), [0, 1])
        with pytest.raises(ValueError, match="Action dimension mismatch"):
            simulators.step(np.arange(2), np.zeros((2, 5), np.float32))


def test_model_files_say_nothing_to_the_user(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Simulators("HalfCheetah-v5", 2).close()
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())
