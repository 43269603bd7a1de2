"""Harder conditions for a policy: noisy or lost observations, and actions that arrive late."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.simulation.rollout import Actor
from envs.tasks import Evaluation


class PerturbedState(NamedTuple):
    """The policy's state, the last observation that arrived, and the actions on their way."""

    policy: Any
    observation: Tensor  # (batch, observation_dim)
    actions: Tensor  # (batch, action_delay, action_dim)


class PerturbedActor:
    """An actor that sees noise, in units of `observation_std`, loses observations and acts late.

    Every target return of an evaluation meets the same noise and losses. In place of a lost
    observation the last that arrived is repeated, its noise included; the first of an episode is
    never lost. Until the first action arrives, the action is zero; the policy takes its last action
    for the one that was carried out.
    """

    def __init__(
        self, actor: Actor, evaluation: Evaluation, *, observation_std: Tensor, action_dim: int
    ) -> None:
        self.actor = actor
        self.scale = evaluation.observation_noise * observation_std.cpu()
        self.observation_loss = evaluation.observation_loss
        self.action_delay = evaluation.action_delay
        self.targets = len(evaluation.target_returns)
        self.observation_dim = len(observation_std)
        self.action_dim = action_dim
        self.generator = torch.Generator().manual_seed(evaluation.seed)

    def initial_state(self, batch_size: int, target_return: Tensor) -> PerturbedState:
        """Returns the state before the first step."""
        return PerturbedState(
            self.actor.initial_state(batch_size, target_return),
            torch.zeros(batch_size, self.observation_dim),
            torch.zeros(batch_size, self.action_delay, self.action_dim),
        )

    def act(
        self, observation: Tensor, reward: Tensor, state: PerturbedState, is_first: Tensor
    ) -> tuple[Tensor, PerturbedState]:
        """Acts as `envs.simulation.rollout.Actor.act` does."""
        rows = len(observation) // self.targets
        noise = torch.randn(rows, self.observation_dim, generator=self.generator)
        observation = observation + self.scale * noise.repeat(self.targets, 1)
        if self.observation_loss:
            lost = torch.rand(rows, generator=self.generator) < self.observation_loss
            lost = lost.repeat(self.targets) & ~is_first
            observation = torch.where(lost.unsqueeze(1), state.observation, observation)
        action, policy = self.actor.act(observation, reward, state.policy, is_first)
        actions = state.actions
        if self.action_delay:
            actions = actions.masked_fill(is_first[:, None, None], 0.0)
            actions = torch.cat([actions, action.cpu().unsqueeze(1)], dim=1)
            action, actions = actions[:, 0], actions[:, 1:]
        return action, PerturbedState(policy, observation, actions)
