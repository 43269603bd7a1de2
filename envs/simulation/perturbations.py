"""Harder conditions for a policy: noisy observations, and actions that arrive late."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from envs.simulation.rollout import Actor
from envs.tasks import Evaluation


class PerturbedActor:
    """An actor that sees noise, in units of `observation_std`, and acts late.

    Every target return of an evaluation meets the same noise. Until the first action arrives, the
    action is zero; the policy takes its last action for the one that was carried out.
    """

    def __init__(
        self, actor: Actor, evaluation: Evaluation, *, observation_std: Tensor, action_dim: int
    ) -> None:
        self.actor = actor
        self.scale = evaluation.observation_noise * observation_std.cpu()
        self.action_delay = evaluation.action_delay
        self.targets = len(evaluation.target_returns)
        self.observation_dim = len(observation_std)
        self.action_dim = action_dim
        self.generator = torch.Generator().manual_seed(evaluation.seed)

    def initial_state(self, batch_size: int, target_return: Tensor) -> tuple[Any, Tensor]:
        """Returns the policy's state and the delayed actions (batch, action_delay, action_dim)."""
        delayed = torch.zeros(batch_size, self.action_delay, self.action_dim)
        return self.actor.initial_state(batch_size, target_return), delayed

    def act(
        self, observation: Tensor, reward: Tensor, state: tuple[Any, Tensor], is_first: Tensor
    ) -> tuple[Tensor, tuple[Any, Tensor]]:
        """Acts as `envs.simulation.rollout.Actor.act` does."""
        inner, delayed = state
        rows, width = len(observation) // self.targets, observation.shape[1]
        noise = torch.randn(rows, width, generator=self.generator).repeat(self.targets, 1)
        action, inner = self.actor.act(observation + self.scale * noise, reward, inner, is_first)
        if not self.action_delay:
            return action, (inner, delayed)
        delayed = delayed.masked_fill(is_first[:, None, None], 0.0)
        queue = torch.cat([delayed, action.cpu().unsqueeze(1)], dim=1)
        return queue[:, 0], (inner, queue[:, 1:])
