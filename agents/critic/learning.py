"""Value help: a critic of the data, and how it changes what each of their steps teaches.

The critic is that of implicit Q-learning (Kostrikov et al., arXiv 2110.06169): Q and V are learned
from the actions of the data alone, never from those of a policy, so it is trained once, before the
policy, and stays as it is. Q learns from several rewards at a time, which an episode has in order.

The policy then learns as in Q-aided conditional supervised learning (Kim et al., arXiv 2402.02017):
the poorer an episode, the more of the gradient comes from Q of the policy's own action. Steps whose
action was better than usual are imitated more (advantage-weighted regression, as in IQL).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from common.checks import MOST_STEPS, check_fields, number
from common.errors import UserError
from common.memory import require_memory

_TARGET_RATE = 0.005  # share of the weights that the target networks take over at each update
_LEAST_WEIGHT, _MOST_WEIGHT = 0.05, 20.0
_ROWS = 65_536  # steps that are judged at once


@dataclass
class CriticConfig:
    """Value help. The critic sees all observations, also those that `policy.hidden` hides.

    Attributes:
        updates: Updates of the critic; 0 trains the policy without value help.
        expectile: What V is of Q over the actions of the data: 0.5 is their mean, 1 their best.
        discount: Discount of the next step.
        n_steps: Rewards that Q learns from before it asks V.
        batch_size: Steps in an update.
        learning_rate: Highest learning rate of Adam; it falls to zero as a cosine.
        width: Channels of the two hidden layers of each network.
        advantage_weight: A step is imitated with a weight of exp(this times its advantage in
            standard deviations); 0 weighs all alike.
        q_weight: Weight of Q, divided by its mean size, for the worst episode of the data; it
            falls with the return of the episode, in proportion, to 0 for the best.
    """

    updates: int = number(0, at_least=0, at_most=MOST_STEPS)
    expectile: float = number(0.7, above=0, below=1)
    discount: float = number(0.99, at_least=0, below=1)
    n_steps: int = number(5, at_least=1, at_most=10_000)
    batch_size: int = number(256, at_least=1, at_most=10_000_000)
    learning_rate: float = number(5e-4, above=0, at_most=1e30)
    width: int = number(256, at_least=1, at_most=100_000)
    advantage_weight: float = number(1.5, at_least=0, at_most=1000)
    q_weight: float = number(1.0, at_least=0, at_most=1e30)

    def __post_init__(self) -> None:
        check_fields(self, "critic")
        if self.updates:
            # Five networks of width^2 weights, three with gradient and moments; activations.
            size = 4 * self.width * (15 * self.width + 30 * self.batch_size)
            asked = f"critic.width={self.width} with critic.batch_size={self.batch_size}"
            require_memory(size, asked, "lower one of them.")


class Transitions(NamedTuple):
    """The steps that a critic learns from, in arrays with a row for each.

    Episode i is the rows starts[i] to starts[i] + lengths[i] - 1; the observation after its last
    action is not known.
    """

    observations: np.ndarray  # (rows, observation_dim)
    actions: np.ndarray  # (rows, action_dim)
    rewards: np.ndarray  # (rows,)
    terminations: np.ndarray  # (rows,) bool
    starts: np.ndarray  # (episodes,)
    lengths: np.ndarray  # (episodes,)

    @property
    def returns(self) -> np.ndarray:
        """The sum of the rewards of each episode, (episodes,) float64."""
        spans = zip(self.starts, self.lengths, strict=True)
        return np.array([self.rewards[b : b + n].sum(dtype=np.float64) for b, n in spans])


class Targets(NamedTuple):
    """What Q is trained towards: rewards + factor * V(later), a row for each step that has it."""

    rows: np.ndarray  # (n,) int64, the step
    rewards: np.ndarray  # (n,) float32, discounted sum of at most n_steps rewards
    later: np.ndarray  # (n,) int64, the row whose V is asked
    factors: np.ndarray  # (n,) float32, discount of that V; 0 after a termination


def make_targets(data: Transitions, n_steps: int, discount: float) -> Targets:
    """Makes the targets of n steps, each within its episode.

    A termination ends the sum. Where a time limit ends the episode, V is asked at the last
    observation that is known, so that fewer rewards are summed; the last step has no target.
    """
    found = []
    powers = discount ** np.arange(n_steps + 1)
    for start, length in zip(data.starts, data.lengths, strict=True):
        rewards = data.rewards[start : start + length].astype(np.float64)
        ends = bool(data.terminations[start + length - 1])
        left = np.arange(length, 0, -1)  # steps to the end, this one included
        count = np.minimum(n_steps, left if ends else left - 1)
        sums = np.zeros(length)
        for k in range(min(n_steps, length)):
            sums[: length - k] += powers[k] * rewards[k:] * (count[: length - k] > k)
        asks = count < left
        later = start + np.arange(length) + count * asks
        has_target = count > 0
        rows = np.arange(start, start + length)
        arrays = (rows, sums.astype(np.float32), later, (powers[count] * asks).astype(np.float32))
        found.append([array[has_target] for array in arrays])
    return Targets(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


# -- the networks -----------------------------------------------------------------------------


def _network(inputs: int, width: int) -> nn.Sequential:
    """Two hidden layers. LayerNorm bounds what Q says of actions that are far from the data's."""
    layers: list[nn.Module] = []
    for channels in (inputs, width):
        layers += [nn.Linear(channels, width), nn.LayerNorm(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 1))


class Critic(nn.Module):
    """Two Q and a V, in units of reward.

    The networks see and give numbers of unit variance, whatever the task: one learning rate serves
    all.
    """

    observation_mean: Tensor
    observation_std: Tensor
    return_mean: Tensor
    return_std: Tensor

    def __init__(self, width: int, observation_dim: int, action_dim: int) -> None:
        super().__init__()
        self.register_buffer("observation_mean", torch.zeros(observation_dim))
        self.register_buffer("observation_std", torch.ones(observation_dim))
        self.register_buffer("return_mean", torch.zeros(()))
        self.register_buffer("return_std", torch.ones(()))
        self.qs = nn.ModuleList(_network(observation_dim + action_dim, width) for _ in range(2))
        self.v = _network(observation_dim, width)

    def both(
        self, observations: Tensor, actions: Tensor, qs: nn.ModuleList | None = None
    ) -> list[Tensor]:
        """Returns what each Q says of actions (..., action_dim), or each of `qs` in their place."""
        inputs = torch.cat([self._normalised(observations), actions], dim=-1)
        return [self._returns(q(inputs)) for q in qs or self.qs]

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Returns the lesser Q (...) of actions (..., action_dim)."""
        first, second = self.both(observations, actions)
        return torch.minimum(first, second)

    def value(self, observations: Tensor) -> Tensor:
        """Returns V (...) of observations (..., observation_dim)."""
        return self._returns(self.v(self._normalised(observations)))

    def _normalised(self, observations: Tensor) -> Tensor:
        return (observations - self.observation_mean) / self.observation_std

    def _returns(self, outputs: Tensor) -> Tensor:
        return self.return_mean + self.return_std * outputs.float().squeeze(-1)


# -- training ---------------------------------------------------------------------------------


def discounted_returns(data: Transitions, discount: float) -> np.ndarray:
    """Returns the discounted sum of the rewards from each step to the end of its episode, (n,)."""
    found: list[float] = []
    for start, length in zip(data.starts, data.lengths, strict=True):
        backwards = data.rewards[start : start + length][::-1].tolist()
        sums = accumulate(backwards, lambda total, reward: reward + discount * total)
        found += reversed(list(sums))
    return np.array(found)


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """Returns the mean of |expectile - 1(u < 0)| u^2 over differences u (arXiv 2110.06169)."""
    weight = (expectile - (difference < 0).to(difference.dtype)).abs()
    return (weight * difference.square()).mean()


def train_critic(
    config: CriticConfig,
    data: Transitions,
    observation_mean: Tensor,
    observation_std: Tensor,
    *,
    seed: int,
    stopped: Callable[[], bool] = lambda: False,
    console: Console | None = None,
) -> Critic | None:
    """Trains a critic on the device of the statistics; None if it was stopped.

    It draws from generators of its own: equal arguments make equal critics, to the bit.
    """
    device = observation_mean.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critic = Critic(config.width, data.observations.shape[1], data.actions.shape[1])
    critic.observation_mean.copy_(observation_mean)
    critic.observation_std.copy_(observation_std)
    returns = discounted_returns(data, config.discount)
    critic.return_mean.fill_(returns.mean())
    critic.return_std.fill_(max(float(returns.std()), 1e-6))
    critic.to(device)
    delayed = copy.deepcopy(critic.qs).requires_grad_(False)
    optimizer = torch.optim.Adam(critic.parameters(), lr=config.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.updates)
    targets = make_targets(data, config.n_steps, config.discount)
    if not len(targets.rows):
        raise UserError(
            f"critic.updates is {config.updates}, but no step of the data has one after it or ends "
            "in a termination, so there is nothing to learn a value from; give critic.updates=0."
        )
    generator = np.random.default_rng(seed)

    def on_device(array: np.ndarray) -> Tensor:
        return torch.as_tensor(array).to(device)

    rounds = range(config.updates)
    for _ in track(rounds, "training the critic", console=console, transient=True):
        if stopped():
            return None
        # A batch of steps with their targets.
        drawn = generator.integers(len(targets.rows), size=config.batch_size)
        rows, later = targets.rows[drawn], targets.later[drawn]
        observations = on_device(data.observations[rows])
        actions = on_device(data.actions[rows])
        with torch.no_grad():
            lesser = torch.minimum(*critic.both(observations, actions, delayed))
            bootstrap = critic.value(on_device(data.observations[later]))
            target = on_device(targets.rewards[drawn])
            target = target + on_device(targets.factors[drawn]) * bootstrap
        # V is an expectile of the delayed Q; each Q follows the target.
        unit = critic.return_std
        loss = expectile_loss((lesser - critic.value(observations)) / unit, config.expectile)
        for q in critic.both(observations, actions):
            loss = loss + ((q - target) / unit).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        for slow, fast in zip(delayed.parameters(), critic.qs.parameters(), strict=True):
            slow.lerp_(fast.detach(), _TARGET_RATE)
    if not all(parameter.isfinite().all() for parameter in critic.parameters()):
        raise UserError(
            f"the critic is not finite after {config.updates} updates: lower critic.learning_rate "
            "or look for extreme values in the data."
        )
    return critic.requires_grad_(False)


# -- what it says of the data -----------------------------------------------------------------


@torch.no_grad()
def step_weights(critic: Critic, data: Transitions, config: CriticConfig) -> dict[str, np.ndarray]:
    """Returns what a critic makes of each step of the data.

    Returns:
        `imitation_weights`, of mean 1, and `q_weights`, arguments of
        `ReturnConditionedPolicy.loss`; (rows,) float32, 0 in rows of no episode.
    """
    device = critic.observation_mean.device
    episodes = zip(data.starts, data.lengths, strict=True)
    rows = np.concatenate([np.arange(begin, begin + n) for begin, n in episodes])
    advantages, sizes = np.empty((2, len(rows)), np.float32)
    for begin in range(0, len(rows), _ROWS):
        piece = rows[begin : begin + _ROWS]
        observations = torch.as_tensor(data.observations[piece]).to(device)
        q = critic(observations, torch.as_tensor(data.actions[piece]).to(device))
        advantages[begin : begin + _ROWS] = (q - critic.value(observations)).cpu()
        sizes[begin : begin + _ROWS] = q.abs().cpu()
    advantages = (advantages - advantages.mean()) / max(float(advantages.std()), 1e-9)
    limits = np.log(_LEAST_WEIGHT), np.log(_MOST_WEIGHT)
    imitation = np.exp((config.advantage_weight * advantages).clip(*limits))
    imitation /= imitation.mean()
    # How far each episode's return is from the best, in parts of the way to the worst.
    returns = data.returns
    shortfall = (returns.max() - returns) / max(returns.max() - returns.min(), 1e-9)
    pull = config.q_weight * np.repeat(shortfall, data.lengths) / max(float(sizes.mean()), 1e-9)
    weights = {"imitation_weights": imitation, "q_weights": pull}
    found = {name: np.zeros(len(data.rewards), np.float32) for name in weights}
    for name, values in weights.items():
        found[name][rows] = values
    return found
