"""Harder conditions for a policy: noisy observations, actions that arrive late.

They stand between a policy and its environment, which neither notices: a policy with a delay still
believes that its last action was carried out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from envs.simulation.rollout import (
    Actor,
)


class PerturbedActor:
    """An actor that sees noise and acts late.

    Args:
        actor: The policy.
        observation_noise: Standard deviation of Gaussian noise on each observation, in units of
            `observation_std`.
        observation_std: (observation_dim,), of the policy's data.
        action_delay: Steps between choosing an action and taking it; before the first one
            arrives, the action is zero.
        action_dim: Length of an action.
        seed: Of the noise.

    Raises:
        UserError: The noise or the delay is negative.
    """

    def __init__(
        self,
        actor: Actor,
        *,
        observation_noise: float,
        observation_std: Tensor,
        action_delay: int,
        action_dim: int,
        seed: int,
    ) -> None:
        for name, value in (
            ("observation_noise", observation_noise),
            ("action_delay", action_delay),
        ):
            if not value >= 0:
                raise UserError(f"{name} is {value}, but must be at least 0.")
        self.actor = actor
        self.scale = observation_noise * observation_std.cpu()
        self.action_delay = action_delay
        self.observation_dim = len(observation_std)
        self.action_dim = action_dim
        self.generator = torch.Generator().manual_seed(seed)

    def initial_state(self, batch_size: int) -> tuple[Any, Tensor]:
        """Returns the policy's state and no actions under way (batch, action_delay, action_dim)."""
        under_way = torch.zeros(batch_size, self.action_delay, self.action_dim)
        return self.actor.initial_state(batch_size), under_way

    def act(
        self, observation: Tensor, reward: Tensor, state: tuple[Any, Tensor], is_first: Tensor
    ) -> tuple[Tensor, tuple[Any, Tensor]]:
        """As `envs.simulation.rollout.Actor.act`."""
        inner, under_way = state
        noise = self.scale * torch.randn(observation.shape, generator=self.generator)
        action, inner = self.actor.act(observation + noise, reward, inner, is_first)
        if not self.action_delay:
            return action, (inner, under_way)
        under_way = under_way.masked_fill(is_first[:, None, None], 0.0)
        queue = torch.cat([under_way, action.cpu().unsqueeze(1)], dim=1)
        return queue[:, 0], (inner, queue[:, 1:])
