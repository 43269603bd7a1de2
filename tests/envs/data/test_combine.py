"""Mixes and slices keep whole episodes, their environment and their reference scores."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from envs.data.combine import best, concatenate, hold_out, limit
from envs.data.episodes import Episodes
from envs.data.sources import DatasetConfig, load_episodes, load_named
from envs.data.store import store_episodes
from envs.tasks import Reference


def make(lengths, returns, name="test/a-v0", **changes):
    """Episodes whose first observation dimension is the episode's number, the second the step's."""
    lengths = np.asarray(lengths)
    steps = int(lengths.sum())
    ends = np.cumsum(lengths) - 1
    rewards = np.zeros(steps)
    rewards[ends] = returns
    flags = np.zeros(steps, bool)
    flags[ends] = True
    arguments = {
        "observations": np.stack(
            [np.repeat(np.arange(len(lengths)), lengths), np.arange(steps)], 1
        ),
        "actions": np.zeros((steps, 1)),
        "rewards": rewards,
        "terminations": flags,
        "truncations": np.zeros(steps, bool),
        "lengths": lengths,
        "action_low": [-1],
        "action_high": [1],
        "dataset_id": name,
        "environment_id": "Hopper-v5",
        "reference": Reference(1.0, 9.0, "somewhere"),
    }
    return Episodes(**arguments | changes)


def numbers(episodes):
    return episodes.observations[episodes.starts, 0].astype(int).tolist()


def test_the_best_fraction_is_of_the_episodes_by_return():
    episodes = make([2, 3, 1, 4, 2], [5.0, 1.0, 9.0, 7.0, 9.0])
    chosen = best(episodes, 0.6)
    assert numbers(chosen) == [2, 3, 4]
    np.testing.assert_array_equal(chosen.returns, [9, 7, 9])
    np.testing.assert_array_equal(chosen.lengths, [1, 4, 2])
    assert chosen.returns.mean() == episodes.top_fraction_return(0.6)
    assert chosen.dataset_id == "test/a-v0 (best 60 %)"
    assert chosen.reference == episodes.reference
    assert numbers(best(episodes, 0.01)) == [2]
    chosen.validate()


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=12),
    st.data(),
)
def test_a_selection_is_an_index_and_equals_a_slow_copy(lengths, data):
    episodes = make(lengths, np.arange(len(lengths), dtype=float))
    chosen = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=8))
    selected = episodes.select(np.array(chosen), "test/b-v0")
    chosen = np.unique(chosen)
    rows = [t for e in chosen for t in range(*list(episodes.borders)[e])]
    slow = make(episodes.lengths[chosen], episodes.returns[chosen])
    slow = replace(slow, observations=episodes.observations[rows])
    assert selected.observations is episodes.observations and selected.n_steps == len(rows)
    np.testing.assert_array_equal(selected.returns, slow.returns)
    np.testing.assert_array_equal(selected.returns_to_go[rows], slow.returns_to_go)
    np.testing.assert_allclose(selected.observation_mean, slow.observation_mean, rtol=1e-6)
    np.testing.assert_allclose(selected.observation_std, slow.observation_std, rtol=1e-5)
    assert selected.sha256 == slow.sha256
    assert [t for begin, end in selected.spans for t in range(begin, end)] == rows
    assert all(a[1] < b[0] for a, b in itertools.pairwise(selected.spans))
    selected.validate()


@given(st.lists(st.integers(1, 6), min_size=2, max_size=15), st.integers(1, 15), st.integers(6, 60))
def test_limits_hold_and_smaller_choices_are_part_of_larger_ones(lengths, most, steps):
    episodes = make(lengths, np.zeros(len(lengths)))
    smaller, larger = limit(episodes, most), limit(episodes, most + 1)
    assert smaller.n_episodes == min(most, len(lengths))
    assert set(numbers(smaller)) <= set(numbers(larger))
    few = limit(episodes, max_steps=steps)
    assert few.n_steps <= steps
    assert few.n_steps > steps - 6 or few.n_episodes == episodes.n_episodes
    assert numbers(few) == sorted(numbers(few))
    both = limit(episodes, most, steps)
    assert both.n_episodes <= most and both.n_steps <= steps


def test_held_out_episodes_are_not_trained_on():
    episodes = make([2, 3, 1, 4, 2], np.arange(5.0))
    train, held_out = hold_out(episodes, 0.4, seed=0)
    assert held_out.n_episodes == 2
    assert sorted(numbers(train) + numbers(held_out)) == [0, 1, 2, 3, 4]
    assert numbers(hold_out(episodes, 0.4, seed=0)[1]) == numbers(held_out)
    assert len({tuple(numbers(hold_out(episodes, 0.4, seed=s)[1])) for s in range(8)}) > 1
    assert hold_out(episodes, 0.99, seed=0)[0].n_episodes == 1
    assert train.dataset_id == "test/a-v0" and held_out.reference == episodes.reference
    with pytest.raises(UserError, match="has one episode only"):
        hold_out(make([3], [1.0]), 0.5, seed=0)


def test_a_mix_is_its_parts_end_to_end():
    a, b = make([2, 1], [1.0, 2.0]), make([3, 2], [5.0, 6.0], "test/b-v0")
    mixed = concatenate([a, b])
    np.testing.assert_array_equal(mixed.lengths, [2, 1, 3, 2])
    np.testing.assert_array_equal(concatenate([b, best(a, 0.5)]).returns, [5, 6, 2])
    np.testing.assert_array_equal(mixed.returns, [1, 2, 5, 6])
    np.testing.assert_array_equal(mixed.observations[3:], b.observations)
    assert mixed.dataset_id == "test/a-v0 + test/b-v0"
    assert mixed.reference == a.reference
    mixed.validate()


def test_the_scores_of_a_mix_are_those_of_the_part_that_has_some(caplog):
    none = make([1], [1.0], reference=None)
    assert concatenate([none, make([1], [1.0])]).reference == Reference(1.0, 9.0, "somewhere")
    assert concatenate([none, none]).reference is None
    assert not caplog.records
    other = make([1], [1.0], "test/b-v0", reference=Reference(1.0, 7.0))
    assert concatenate([make([1], [1.0]), other]).reference == Reference(1.0, 9.0, "somewhere")
    assert "different reference scores; taken: test/a-v0" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"environment_id": "Hopper-v4"},
            "test/a-v0 and test/b-v0 differ in their environment: Hopper-v5 and Hopper-v4; mix",
        ),
        (
            {"environment_kwargs": {"healthy_reward": 2.0}},
            r"environment: Hopper-v5 and Hopper-v5 \{'healthy_reward': 2.0\}",
        ),
        ({"observations": np.zeros((2, 3))}, "differ in observation_dim: 2 and 3"),
        ({"action_low": [-2]}, r"differ in action_low: \[-1.0\] and \[-2.0\]"),
    ],
)
def test_parts_that_do_not_fit_are_one_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        concatenate([make([2], [1.0]), make([2], [1.0], "test/b-v0", **changes)])


def hopper(dataset_id, returns, environment_id="Hopper-v5"):
    steps = 2 * len(returns)
    arrays = {
        "observations": np.zeros((steps, 11)),
        "actions": np.zeros((steps, 3)),
        "rewards": np.stack([np.zeros(len(returns)), returns], axis=1).ravel(),
        "terminations": np.arange(steps) % 2,
        "truncations": np.zeros(steps),
    }
    store_episodes(dataset_id, arrays, environment_id=environment_id)


def test_keys_mix_and_cut():
    hopper("mine/a-v0", [1.0, 2.0, 3.0])
    hopper("mine/b-v0", [10.0, 20.0], "Hopper-v4")
    parts = ["mine/a-v0", "mine/b-v0"]
    with pytest.raises(UserError, match=r"dataset\.environment=Hopper-v5"):
        load_episodes(DatasetConfig("mix", parts=parts))
    config = DatasetConfig("mix", parts=parts, environment="Hopper-v4")
    mixed = load_episodes(config)
    np.testing.assert_array_equal(mixed.returns, [1, 2, 3, 10, 20])
    assert config.label == "mine-a+mine-b"
    assert mixed.environment_id == "Hopper-v4" and mixed.reference.maximum == 3234.3
    cut = DatasetConfig("mix", parts=parts, environment="Hopper-v4", top_fraction=0.4)
    np.testing.assert_array_equal(load_episodes(cut).returns, [10, 20])
    cut = DatasetConfig("minari", "mine/a-v0", max_steps=4, max_episodes=3)
    assert load_episodes(cut).n_episodes == 2
    assert load_named("mine/a-v0", "Hopper-v4").environment_id == "Hopper-v4"


@pytest.mark.parametrize(
    ("source", "given", "message"),
    [
        ("mix", {}, r"a mix needs parts: dataset\.parts=\[hopper-medium,"),
        (
            "mix",
            {"parts": ["mine/a-v0", "hoper-medium"]},
            "there is no data set 'hoper-medium'; give the name of a built-in one, such as hopper",
        ),
        ("minari", {}, r"dataset\.id has no value; give one as dataset\.id=VALUE"),
        (
            "minari",
            {"id": "mine/a-v0", "path": "a.hdf5"},
            r"dataset\.path is given, but a data set of source 'minari' has dataset\.id; remove",
        ),
        ("minari", {"id": "mine/a-v0", "max_steps": 1}, "first episode drawn has 2 steps"),
        ("minari", {"id": "mine/a-v0", "environment": "Ant-v5"}, "have 11 dim.* Ant-v5 105"),
    ],
)
def test_wrong_keys_are_one_sentence(source, given, message):
    hopper("mine/a-v0", [1.0])
    with pytest.raises(UserError, match=message):
        load_episodes(DatasetConfig(source, **given))
