import numpy as np
import torch

from envs.simulation.perturbations import PerturbedActor
from envs.simulation.rollout import rollout
from envs.tasks import Evaluation


class Counter:
    """Acts with the number of the step; remembers what it saw."""

    def __init__(self) -> None:
        self.seen = []

    def initial_state(self, batch_size, target_return):
        return torch.zeros(batch_size)

    def act(self, observation, reward, state, is_first):
        self.seen.append(observation)
        state = torch.where(is_first, 1.0, state + 1)
        return state.unsqueeze(1), state


def make(noise=0.0, delay=0, targets=(0.0,), loss=0.0):
    inner = Counter()
    conditions = {"observation_noise": noise, "observation_loss": loss, "action_delay": delay}
    asked = Evaluation("Hopper-v5", "carried", 20, targets, seed=0, **conditions)
    return inner, PerturbedActor(
        inner, asked, observation_std=torch.tensor([1.0, 100.0]), action_dim=1
    )


def test_an_action_arrives_after_the_delay_and_never_in_the_next_episode():
    _, actor = make(delay=2)
    state, taken = actor.initial_state(1, torch.zeros(1)), []
    for first in (True, False, False, False, True, False, False):
        action, state = actor.act(torch.zeros(1, 2), torch.zeros(1), state, torch.tensor([first]))
        taken.append(action.item())
    assert taken == [0, 0, 1, 2, 0, 0, 1]


def test_noise_is_scaled_by_the_data_and_fixed_by_the_seed():
    inner, actor = make(noise=0.1)
    again, other = make(noise=0.1)
    for a in (actor, other):
        a.act(
            torch.zeros(20000, 2),
            torch.zeros(1),
            a.initial_state(1, torch.zeros(1)),
            torch.tensor([True]),
        )
    torch.testing.assert_close(inner.seen[0].std(0), torch.tensor([0.1, 10.0]), rtol=0.05, atol=0.0)
    assert torch.equal(inner.seen[0], again.seen[0])


def test_a_lost_observation_is_the_last_that_arrived_and_the_first_is_never_lost():
    inner, actor = make(noise=0.1, loss=0.5, targets=(0.0, 1.0))
    state = actor.initial_state(40, torch.zeros(40))
    seen, lost = None, []
    for t in range(60):
        is_first = torch.full((40,), t == 0) | (torch.arange(40) % 20 == t % 30)
        observation = torch.full((40, 2), float(t))
        _, state = actor.act(observation, torch.zeros(40), state, is_first)
        now = inner.seen[-1]
        assert torch.equal(now[:20], now[20:])  # every target meets the same losses and noise
        if seen is not None:
            repeated = (now == seen).all(1)  # with its noise
            assert not (repeated & is_first).any()
            assert ((now - observation).abs() < 60)[~repeated].all()
            lost.append(repeated[~is_first])
        seen = now
    assert abs(torch.cat(lost).float().mean() - 0.5) < 0.05


class Still:
    """Acts on what it sees, and remembers it."""

    def __init__(self):
        self.seen = []

    def initial_state(self, batch_size, target_return):
        return target_return

    def act(self, observation, reward, state, is_first):
        self.seen.append(observation)
        return 0.1 * torch.tanh(observation[:, :3] + state[:, None]), state


def test_an_environment_whose_observations_are_lost_is_otherwise_itself():
    def play(**conditions):
        asked = Evaluation("Hopper-v5", "carried", 20, (0.0,), episodes=2, horizon=30, **conditions)
        actor = PerturbedActor(Still(), asked, observation_std=torch.ones(11), action_dim=3)
        return rollout(actor, asked), torch.stack(actor.actor.seen)

    asked = Evaluation("Hopper-v5", "carried", 20, (0.0,), episodes=2, horizon=30)
    still = Still()
    bare, real = rollout(still, asked), torch.stack(still.seen)
    result, seen = play(observation_loss=0.0)
    assert torch.equal(seen, real)
    assert np.array_equal(result.episode_returns, bare.episode_returns)

    _, seen = play(observation_loss=0.4)
    repeats = (seen[1:] == seen[:-1]).all(2)
    assert 0.2 < repeats.float().mean() < 0.6
    assert torch.equal(seen[0], real[0])  # the first of an episode arrives
    assert not torch.equal(seen, real)
    assert torch.equal(play(observation_loss=0.4)[1], seen)  # by its seed


def test_every_target_return_meets_the_same_noise():
    def returns(*targets):
        asked = Evaluation(
            "Hopper-v5",
            "carried",
            20,
            targets,
            episodes=3,
            n_envs=2,
            observation_noise=0.5,
            observation_loss=0.3,
            action_delay=3,
        )
        actor = PerturbedActor(Still(), asked, observation_std=torch.ones(11), action_dim=3)
        return rollout(actor, asked).episode_returns

    together = returns(0.0, 1.0)
    assert np.array_equal(together[1], returns(1.0)[0])
    assert len(np.unique(together)) == 6
