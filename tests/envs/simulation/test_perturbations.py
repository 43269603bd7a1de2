import pytest
import torch

from common.errors import UserError
from envs.simulation.perturbations import PerturbedActor
from envs.simulation.rollout import (
    rollout,
)


class Counter:
    """Acts with the number of the step; remembers what it saw."""

    def __init__(self) -> None:
        self.seen = []

    def initial_state(self, batch_size):
        return torch.zeros(batch_size)

    def act(self, observation, reward, state, is_first):
        self.seen.append(observation)
        state = torch.where(is_first, 1.0, state + 1)
        return state.unsqueeze(1), state


def make(noise=0.0, delay=0, dim=2):
    inner = Counter()
    return inner, PerturbedActor(
        inner,
        observation_noise=noise,
        observation_std=torch.tensor([1.0, 100.0])[:dim],
        action_delay=delay,
        action_dim=1,
        seed=0,
    )


def test_an_action_arrives_after_the_delay_and_never_in_the_next_episode():
    _, actor = make(delay=2)
    state, taken = actor.initial_state(1), []
    for first in (True, False, False, False, True, False, False):
        action, state = actor.act(torch.zeros(1, 2), torch.zeros(1), state, torch.tensor([first]))
        taken.append(action.item())
    assert taken == [0, 0, 1, 2, 0, 0, 1]


def test_noise_is_scaled_by_the_data_and_fixed_by_the_seed():
    inner, actor = make(noise=0.1)
    again, other = make(noise=0.1)
    for a in (actor, other):
        a.act(torch.zeros(20000, 2), torch.zeros(1), a.initial_state(1), torch.tensor([True]))
    torch.testing.assert_close(inner.seen[0].std(0), torch.tensor([0.1, 10.0]), rtol=0.05, atol=0.0)
    assert torch.equal(inner.seen[0], again.seen[0])


def test_runs_in_an_environment():
    class Still:
        def initial_state(self, batch_size):
            return None

        def act(self, observation, reward, state, is_first):
            return torch.zeros(len(observation), 3), None

    actor = PerturbedActor(
        Still(),
        observation_noise=0.5,
        observation_std=torch.ones(11),
        action_delay=3,
        action_dim=3,
        seed=0,
    )
    assert rollout(actor, "Hopper-v5", episodes=3, seed=0, n_envs=2).episode_lengths.min() > 1


def test_negative_settings_are_refused():
    with pytest.raises(UserError, match="action_delay is -1"):
        make(delay=-1)
    with pytest.raises(UserError, match=r"observation_noise is -0\.5"):
        make(noise=-0.5)
