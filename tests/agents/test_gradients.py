"""The gradient of a batch, shared among threads, against the batch as a whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.backbones import BUILT_IN, MIXERS
from agents.backbones.state import tensors_of
from agents.critic.learning import Critic
from agents.gradients import backward, can_share
from agents.policy import PolicyConfig, ReturnConditionedPolicy


@pytest.fixture(autouse=True, scope="module")
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def make_policy(name: str, **config) -> ReturnConditionedPolicy:
    torch.manual_seed(0)
    backbone = MIXERS[name][0](d_model=16, n_layer=2, **config)
    policy = ReturnConditionedPolicy(PolicyConfig(), backbone, observation_dim=5, action_dim=2)
    return policy.double().train()


def make_batch(rows: int, steps: int, seed: int) -> dict[str, torch.Tensor]:
    """Rows that end with padding, at different steps."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(rows, steps, *shape, generator=generator, dtype=torch.float64)

    lengths = torch.randint(1, steps + 1, (rows, 1), generator=generator)
    return {
        "observations": random(5),
        "actions": random(2),
        "returns_to_go": random() * 1000,
        "timesteps": torch.arange(steps).expand(rows, steps),
        "resets": random() < 0.05,
        "mask": torch.arange(steps) < lengths,
    }


@pytest.mark.parametrize("name", sorted(BUILT_IN))
@settings(max_examples=4, deadline=None)
@given(rows=st.integers(2, 7), steps=st.integers(60, 130), seed=st.integers(0, 99))
def test_shares_add_up_to_the_whole(name, rows, steps, seed):
    policy, batch = make_policy(name), make_batch(rows, steps, seed)
    state = None
    for _ in range(2):  # from the initial state, then from the state that was left
        loss, after = policy.loss(**batch, state=state)
        policy.zero_grad()
        loss.backward()
        wanted = {key: p.grad for key, p in policy.named_parameters()}
        found, carried = backward(policy, batch, state)
        assert torch.get_num_threads() == 2
        torch.testing.assert_close(found, loss.detach())
        for key, parameter in policy.named_parameters():
            torch.testing.assert_close(parameter.grad, wanted[key])
        for part, expected in zip(tensors_of(carried), tensors_of(after), strict=True):
            torch.testing.assert_close(part, expected)
        state = carried


@settings(max_examples=4, deadline=None)
@given(rows=st.integers(2, 7), steps=st.integers(60, 130), seed=st.integers(0, 99))
def test_shares_add_up_with_a_critic_too(rows, steps, seed):
    policy, batch = make_policy("min_gru"), make_batch(rows, steps, seed)
    critic = Critic(8, 5, 2).double().requires_grad_(False)
    batch["imitation_weights"], batch["q_weights"] = torch.rand(2, rows, steps).double()
    loss, _ = policy.loss(**batch, q=critic)
    policy.zero_grad()
    loss.backward()
    wanted = {key: p.grad for key, p in policy.named_parameters()}
    found, _ = backward(policy, batch, None, q=critic)
    torch.testing.assert_close(found, loss.detach())
    for key, parameter in policy.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[key])


def test_equal_batches_have_equal_gradients_to_the_bit():
    policy, batch = make_policy("min_gru").float(), make_batch(5, 200, 1)
    batch = {k: v.float() if v.is_floating_point() else v for k, v in batch.items()}
    found = []
    for _ in range(5):
        loss, _ = backward(policy, batch, None)
        found.append([loss, *(p.grad for p in policy.parameters())])
    for again in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0], again, strict=True))


def test_an_error_in_a_share_is_raised_and_the_number_of_threads_kept():
    policy, batch = make_policy("min_gru"), make_batch(4, 100, 0)
    batch["actions"] = batch["actions"][:3]  # the last row has none
    with pytest.raises(RuntimeError):
        backward(policy, batch, None)
    assert torch.get_num_threads() == 2


def test_what_cannot_be_shared():
    assert can_share(make_policy("min_gru"))
    assert not can_share(make_policy("min_gru", dropout=0.1))

    class Outside(MIXERS["min_gru"][1]):
        """As one that a user has written."""

    policy = make_policy("min_gru")
    policy.backbone.blocks[1].mixer.__class__ = Outside
    assert not can_share(policy)
