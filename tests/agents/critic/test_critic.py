"""Value help: the critic's targets, its losses, what it learns, and what it says of the data."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from agents.critic.file import CRITIC, load_critic, save_critic
from agents.critic.learning import (
    Critic,
    CriticConfig,
    Transitions,
    discounted_returns,
    expectile_loss,
    make_targets,
    step_weights,
    train_critic,
)
from common.errors import UserError


def make_transitions(*episodes: tuple[list[float], bool], seed: int = 0) -> Transitions:
    """Episodes of given rewards, each with whether it ends in a termination; one row between."""
    draw = np.random.default_rng(seed)
    lengths = np.array([len(rewards) for rewards, _ in episodes])
    starts = np.cumsum(lengths + 1) - lengths  # row 0 and those between belong to no episode
    rows = int(starts[-1] + lengths[-1])
    rewards, terminations = np.full(rows, 1e6, np.float32), np.zeros(rows, bool)
    for (values, ends), start, length in zip(episodes, starts, lengths, strict=True):
        rewards[start : start + length] = values
        terminations[start + length - 1] = ends
    observations = draw.normal(size=(rows, 3)).astype(np.float32)
    actions = draw.uniform(-1, 1, (rows, 2)).astype(np.float32)
    return Transitions(observations, actions, rewards, terminations, starts, lengths)


def train(config: CriticConfig, data: Transitions, seed: int = 0, **others) -> Critic | None:
    return train_critic(config, data, torch.zeros(3), torch.ones(3), seed=seed, **others)


def test_the_targets_of_an_episode_worked_by_hand():
    # Rows 1 to 4 end in a termination, rows 6 to 8 at a time limit; three steps, discount 0.5.
    data = make_transitions(([1, 2, 4, 8], True), ([1, 2, 4], False))
    found = make_targets(data, n_steps=3, discount=0.5)
    assert found.rows.tolist() == [1, 2, 3, 4, 6, 7]  # what follows row 8 is not known
    assert found.rewards.tolist() == [1 + 1 + 1, 2 + 2 + 2, 4 + 4, 8, 1 + 1, 2]
    # Row 1 asks V three steps later; rows 2 to 4 see the end; 6 and 7 ask at the last observation.
    assert found.factors.tolist() == [0.125, 0, 0, 0, 0.25, 0.5]
    asked = found.later[found.factors > 0]
    assert asked.tolist() == [4, 8, 8]


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    n_steps=st.integers(1, 15),
    discount=st.floats(0, 0.99),
    seed=st.integers(0, 99),
)
def test_targets_are_the_sums_that_they_say(lengths, n_steps, discount, seed):
    draw = np.random.default_rng(seed)
    data = make_transitions(*[(draw.normal(size=n).tolist(), draw.random() < 0.5) for n in lengths])
    found = make_targets(data, n_steps, discount)
    wanted = []
    for start, length in zip(data.starts, data.lengths, strict=True):
        last = start + length - 1
        for t in range(start, last + 1):
            until = min(t + n_steps, last + 1 if data.terminations[last] else last)
            total = sum(discount ** (k - t) * float(data.rewards[k]) for k in range(t, until))
            if until > t:
                wanted.append((t, total, 0 if until > last else discount ** (until - t)))
    assert found.rows.tolist() == [t for t, _, _ in wanted]
    np.testing.assert_allclose(found.rewards, [total for _, total, _ in wanted], atol=1e-5)
    np.testing.assert_allclose(found.factors, [factor for _, _, factor in wanted], atol=1e-6)
    asks = found.factors > 0
    assert np.isin(found.later, np.concatenate([found.rows, data.starts + data.lengths - 1])).all()
    assert (found.later - found.rows)[asks].max(initial=0) <= n_steps


def test_discounted_returns_by_hand():
    found = discounted_returns(make_transitions(([1, 2, 4], True), ([8], False)), 0.5)
    assert found.tolist() == [1 + 1 + 1, 2 + 2, 4, 8]


@given(values=st.lists(st.floats(-5, 5), min_size=1, max_size=9), expectile=st.floats(0.05, 0.95))
def test_the_expectile_loss_is_its_definition_and_least_at_the_expectile(values, expectile):
    x = torch.tensor(values, dtype=torch.float64)
    by_hand = sum(abs(expectile - (u < 0)) * u * u for u in values) / len(values)
    assert expectile_loss(x, expectile).item() == pytest.approx(by_hand, abs=1e-12)
    # The expectile m, by bisection of its equation: what lies above and below balances.
    low, high = min(values), max(values)
    for _ in range(100):
        m = (low + high) / 2
        balance = sum(abs(expectile - (v < m)) * (v - m) for v in values)
        low, high = (m, high) if balance > 0 else (low, m)
    least = expectile_loss(x - m, expectile)
    for other in (m - 0.1, m + 0.1):
        assert least <= expectile_loss(x - other, expectile) + 1e-12


def test_a_critic_learns_which_action_pays():
    # One step an episode, a reward of 2 for the positive half of the actions and 1 for the others.
    data = make_transitions(*[([0.0], True)] * 400)
    data.rewards[data.starts] = 1 + (data.actions[data.starts, 0] > 0)
    critic = train(CriticConfig(updates=600, width=32, expectile=0.9), data)
    observations = torch.zeros(2, 3)
    worse, better = critic(observations, torch.tensor([[-0.7, 0.0], [0.7, 0.0]])).tolist()
    assert worse == pytest.approx(1, abs=0.2) and better == pytest.approx(2, abs=0.2)
    # The expectile 0.9 of two equally frequent values, 1 and 2, is 1.9.
    assert critic.value(observations)[0].item() == pytest.approx(1.9, abs=0.2)
    # The better half of the steps is imitated more, and only the worse is pulled by Q.
    weights = step_weights(critic, data, CriticConfig(updates=1, q_weight=3.0))
    pays = data.rewards[data.starts] == 2
    imitation, pull = (weights[name][data.starts] for name in ("imitation_weights", "q_weights"))
    assert imitation[pays].mean() > 5 * imitation[~pays].mean()
    assert imitation.mean() == pytest.approx(1, abs=1e-4)
    assert (pull[pays] == 0).all() and np.ptp(pull[~pays]) == 0
    mean_q = critic(torch.tensor(data.observations), torch.tensor(data.actions))[data.starts].mean()
    assert pull[~pays][0] == pytest.approx(3 / mean_q.item(), rel=1e-4)
    assert all(values[0] == 0 for values in weights.values()), "the row of no episode"


def test_weights_stay_within_their_limits_and_are_alike_without_a_temperature():
    data = make_transitions(([1.0] * 30, True), ([2.0] * 30, False))
    critic = Critic(8, 3, 2).requires_grad_(False)
    rows = np.concatenate([np.arange(s, s + 30) for s in data.starts])
    wild = step_weights(critic, data, CriticConfig(updates=1, advantage_weight=900))
    imitation = wild["imitation_weights"][rows]
    assert np.isfinite(imitation).all()
    assert imitation.max() / imitation.min() == pytest.approx(20 / 0.05, rel=1e-4)
    alike = step_weights(critic, data, CriticConfig(updates=1, advantage_weight=0))
    assert (alike["imitation_weights"][rows] == 1).all()


def test_equal_seeds_make_equal_critics_and_touch_no_other_generator():
    data = make_transitions(([1, 2, 3, 4], True), ([1, 2, 3], False))
    config = CriticConfig(updates=5, width=16)
    torch.manual_seed(7)
    first = train(config, data)
    after = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(3))
    second, other = train(config, data), train(config, data, seed=1)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    assert not torch.equal(first.v[0].weight, other.v[0].weight)
    assert train(config, data, stopped=lambda: True) is None


def test_a_saved_critic_is_the_same_and_of_its_own_data_only(tmp_path):
    config = CriticConfig(updates=3, width=16)
    data = make_transitions(([1, 2, 3, 4], True), ([2, 2], True))
    critic = train(config, data)
    assert load_critic(tmp_path, config, "abc") is None
    save_critic(tmp_path, critic, config, "abc")
    found = load_critic(tmp_path, config, "abc")
    inputs = torch.randn(5, 3), torch.rand(5, 2)
    assert torch.equal(found(*inputs), critic(*inputs))
    assert load_file(tmp_path / CRITIC).keys() == critic.state_dict().keys()
    with pytest.raises(UserError, match=r"critic\.safetensors is the critic of other data"):
        load_critic(tmp_path, config, "xyz")
    content = (tmp_path / CRITIC).read_bytes()
    changed = content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]
    for broken in (content[:-100], b"", b"{" + content[1:], changed):
        (tmp_path / CRITIC).write_bytes(broken)
        with pytest.raises(UserError, match=r"truncated or damaged .*overwrite=true"):
            load_critic(tmp_path, config, "abc")


def test_data_without_a_target_are_one_sentence():
    data = make_transitions(([1.0], False), ([2.0], False))
    with pytest.raises(UserError, match=r"nothing to learn a value from; give critic\.updates=0"):
        train(CriticConfig(updates=1), data)


def test_a_critic_that_is_not_finite_is_one_sentence():
    data = make_transitions(([1.0, 2.0, 3.0], True), ([2.0], True))
    with pytest.raises(UserError, match=r"not finite after 5 updates: lower critic\.learning_rate"):
        train(CriticConfig(updates=5, width=8, learning_rate=1e30), data)


def test_one_episode_and_rewards_of_zero_are_finite():
    data = make_transitions(([0.0] * 6, False))
    critic = train(CriticConfig(updates=2, width=8), data)
    for values in step_weights(critic, data, CriticConfig(updates=2)).values():
        assert np.isfinite(values).all()
    assert math.isfinite(critic.value(torch.zeros(1, 3)).item())
