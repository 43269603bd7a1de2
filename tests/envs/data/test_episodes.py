import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from envs.data.episodes import OBSERVATION_STD_FLOOR, TYPES, Episodes


def make(rewards, offsets, **changes):
    """Episodes with one observation and one action dimension, flags where episodes end."""
    rewards = np.asarray(rewards)
    steps = len(rewards)
    terminations = np.zeros(steps, bool)
    terminations[[end - 1 for end in offsets[1:] if 0 < end <= steps]] = True
    arrays = {
        "observations": np.arange(steps, dtype=np.float32)[:, None],
        "actions": np.zeros((steps, 1), np.float32),
        "rewards": rewards,
        "terminations": terminations,
        "truncations": np.zeros(steps, bool),
        "lengths": np.diff(offsets),
        "action_low": np.array([-1.0]),
        "action_high": np.array([1.0]),
        "dataset_id": "test/data-v0",
        "environment_id": "Test-v0",
    }
    return Episodes(**(arrays | changes))


def test_returns_to_go_include_their_own_reward_and_stop_at_the_border():
    episodes = make([1.0, 2.0, 3.0, 10.0, 20.0, 7.0], [0, 3, 5, 6])
    np.testing.assert_array_equal(episodes.returns_to_go, [6, 5, 3, 30, 20, 7])
    np.testing.assert_array_equal(episodes.returns, [6, 30, 7])
    np.testing.assert_array_equal(episodes.lengths, [3, 2, 1])
    assert episodes.returns_to_go.dtype == np.float32
    assert episodes.returns.dtype == np.float64


@given(
    st.lists(
        st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=12),
        min_size=1,
        max_size=8,
    )
)
def test_returns_to_go_equal_a_slow_loop(per_episode):
    """Even beside an episode whose rewards are 30 orders of magnitude larger."""
    expected = []
    for rewards in per_episode:
        for t in range(len(rewards)):
            total = 0.0
            for reward in reversed(rewards[t:]):
                total += reward
            expected.append(np.float32(total))
    offsets = np.cumsum([0] + [len(rewards) for rewards in per_episode])
    episodes = make(np.concatenate(per_episode), offsets)
    np.testing.assert_array_equal(episodes.returns_to_go, expected)
    np.testing.assert_allclose(
        episodes.returns_to_go[episodes.starts], episodes.returns, rtol=1e-6, atol=1e16
    )


def test_statistics():
    observations = np.array([[0.0, 5.0], [2.0, 5.0], [4.0, 5.0]])
    episodes = make([1.0, 5.0, 3.0], [0, 1, 2, 3], observations=observations)
    np.testing.assert_allclose(episodes.observation_mean, [2.0, 5.0])
    np.testing.assert_allclose(
        episodes.observation_std, [np.sqrt(8 / 3), OBSERVATION_STD_FLOOR], rtol=1e-6
    )
    assert episodes.top_fraction_return(0.1) == 5.0
    assert episodes.top_fraction_return(2 / 3) == 4.0


def test_statistics_of_many_steps_do_not_lose_precision():
    """A float32 sum of 300,000 values near 1,000 would be off in the third digit."""
    noise = np.random.default_rng(0).standard_normal((300_000, 1))
    episodes = make(np.zeros(300_000), [0, 300_000], observations=1000 + noise)
    assert episodes.observation_mean[0] == pytest.approx(1000 + noise.mean(), abs=1e-3)
    assert episodes.observation_std[0] == pytest.approx(noise.std(), rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": [1.0, np.nan, 3.0]}, r"rewards[1] = nan (episode 0) is not finite"),
        ({"observations": [[0.0], [1.0], [np.inf]]}, r"observations[2, 0] = inf (episode 1)"),
        ({"rewards": np.array([1.0, 1e39, 0.0])}, r"rewards[1] = inf (episode 0) is not finite"),
        ({"actions": [[0.0], [0.0], [1.1]]}, r"actions[2, 0] = 1.1"),
        ({"actions": [[0.0], [-1.001], [0.0]]}, r"outside the bounds [-1.] to [1.]"),
        ({"actions": [[0.0], [0.0]]}, "2 actions for 3 rewards"),
        ({"observations": [1.0, 2.0, 3.0]}, "observations has shape (3,), not 2 dimensions"),
        ({"offsets": [0, 2, 2, 3]}, "episode 1 is empty"),
        ({"offsets": [0]}, "0 steps in episodes for 3 rewards"),
        ({"offsets": [0, 2]}, "2 steps in episodes for 3 rewards"),
        ({"starts": [0, 1]}, "its episodes overlap, or leave the 3 rows of the arrays"),
        ({"starts": [0, 3]}, "its episodes overlap, or leave the 3 rows of the arrays"),
        ({"rewards": np.array([1.0, 2.0, 3.0j])}, "rewards are complex128; they must be real"),
        ({"actions": [["a"], ["b"], ["c"]]}, "actions are <U1; they must be real numbers"),
        ({"observations": [[1.0], [2.0, 3.0], [4.0]]}, "rows of observations are of unequal"),
        ({"action_high": [np.inf]}, "action_high is [inf], not 1 finite numbers"),
        ({"action_low": [-1.0, -1.0]}, "action_low is [-1. -1.], not 1 finite numbers"),
        ({"terminations": [True, False, True]}, "terminations[0] = True (episode 0) ends"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_bad_arrays_are_one_sentence(changes, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        make(**({"rewards": [1.0, 2.0, 3.0], "offsets": [0, 2, 3]} | changes))
    assert str(error.value).startswith("test/data-v0: ")
    assert "\n" not in str(error.value)


def test_arrays_that_are_looked_at_in_pieces_are_the_same(monkeypatch):
    generator = np.random.default_rng(0)
    changes = {"observations": generator.standard_normal((10, 1)), "actions": np.zeros((10, 1))}
    whole = make(np.zeros(10), [0, 4, 10], **changes)
    whole = [whole.observation_mean, whole.observation_std]
    monkeypatch.setattr("envs.data.mapped.PIECE_BYTES", 3 * 4)
    pieces = make(np.zeros(10), [0, 4, 10], **changes)
    np.testing.assert_allclose([pieces.observation_mean, pieces.observation_std], whole, rtol=1e-6)
    changes["actions"][8] = 2.0
    with pytest.raises(UserError, match=r"actions\[8, 0\] = 2.0 \(episode 1\) is outside"):
        make(np.zeros(10), [0, 4, 10], **changes)


def test_actions_may_leave_the_bounds_by_rounding_only():
    make([0.0], [0, 1], actions=[[1.0 + 9e-6]])
    with pytest.raises(UserError, match="outside the bounds"):
        make([0.0], [0, 1], actions=[[1.0 + 2e-5]])


def flat(**changes):
    return {
        "observations": np.arange(3.0)[:, None],
        "actions": np.zeros((3, 1)),
        "rewards": np.array([[1], [2], [3]]),
        "terminations": [0, 1, 0],
        "truncations": [False, False, True],
        "action_low": [-1],
        "action_high": [1],
        "dataset_id": "test/data-v0",
    } | changes


def test_flat_arrays_are_cut_where_an_episode_ends():
    episodes = Episodes.from_arrays(**flat())
    np.testing.assert_array_equal(episodes.lengths, [2, 1])
    np.testing.assert_array_equal(episodes.rewards, [1, 2, 3])


@pytest.mark.parametrize(
    ("reward", "goal", "falls", "expected"),
    [
        (1.0, 0.0, 20, True),
        (1.0, 0.0, 19, False),  # the best ones, which last longest, reach the time limit
        (-1.0, 0.0, 20, False),  # each step costs: the goal was reached
        (0.0, 1.0, 20, False),  # a reward for the goal alone
        (0.0, 0.0, 20, False),
    ],
)
def test_the_best_episodes_are_cut_short_by_a_fall_where_going_on_would_earn_more(
    reward, goal, falls, expected
):
    lengths = np.arange(2, 22)
    ends = np.cumsum(lengths) - 1
    rewards = np.full(lengths.sum(), reward)
    rewards[ends] += goal
    flags = np.zeros((2, len(rewards)))
    flags[0, ends[:falls]] = 1
    flags[1, ends[falls:]] = 1
    many = {"observations": np.zeros((len(rewards), 2)), "actions": np.zeros((len(rewards), 1))}
    flagged = {"rewards": rewards, "terminations": flags[0], "truncations": flags[1]}
    episodes = Episodes.from_arrays(**flat(**many, **flagged))
    assert episodes.terminated.sum() == falls
    assert episodes.cut_short is expected
    later = episodes.select(np.arange(4, 20))  # of these too
    assert later.terminated.sum() == falls - 4 and later.cut_short is expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": np.zeros((2, 1))}, "2 actions for 3 rewards; each step needs one of each"),
        ({"terminations": np.zeros(2)}, "2 terminations for 3 rewards; each step needs one of"),
        ({"truncations": np.zeros(3)}, "neither terminations[2] nor truncations[2] is true"),
        ({"truncations": [0, 0, np.nan]}, "truncations[2] = nan; it must be 0 or 1, or bool"),
        ({"rewards": np.zeros((3, 2))}, "rewards has shape (3, 2), not (steps,) or (steps, 1)"),
        ({n: np.zeros((0, 1)) for n in TYPES}, "there is no episode; at least one is needed"),
    ],
)
def test_flat_arrays_that_are_no_episodes_are_one_sentence(change, message):
    with pytest.raises(UserError, match=re.escape("test/data-v0: ") + ".*" + re.escape(message)):
        Episodes.from_arrays(**flat(**change))
