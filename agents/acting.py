"""Three ways to act with one policy: carried, rolling and window.

`carried` is the policy itself, with one state through the whole episode. In the other two the
network sees a past no longer than in training on windows of `context_length` steps: `rolling` runs
step by step in constant time, `window` runs the last context_length steps again at every step, as
Decision Transformer does (arXiv 2106.01345, algorithm 1).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from agents.critic.choosing import ChoosingActor
from agents.policy import PolicyState, Q, ReturnConditionedPolicy
from agents.step.fused import FusedPolicy, fuse

ROLLOUTS = ("carried", "rolling", "window")


class _BoundedActor:
    """What both actors with a bounded past have in common."""

    rollout: str
    shortest: int  # context_length

    def __init__(self, policy: ReturnConditionedPolicy, context_length: int) -> None:
        if context_length < self.shortest:
            raise ValueError(
                f"rollout '{self.rollout}' needs a context_length of at least {self.shortest}, "
                f"not {context_length}."
            )
        self.policy, self.context_length = policy, context_length
        self.observation_dim, self.action_dim = policy.observation_dim, policy.action_dim


class RollingActor(_BoundedActor):
    """Keeps two states of each environment, reset half a period apart; acts with the older.

    Each is reset every context_length steps. So the past of an action is never longer than
    context_length steps and, after the episode's first half period, never shorter than half of
    that. A step costs twice that of `carried`, at any time.
    """

    rollout, shortest = "rolling", 2

    def __init__(self, policy: ReturnConditionedPolicy, context_length: int) -> None:
        super().__init__(policy, context_length)
        self.compiled = fuse(policy)

    def initial_state(
        self, batch_size: int, target_return: float | Tensor | None = None
    ) -> PolicyState:
        """Returns a policy state whose backbone part has two rows for each environment."""
        state = self.policy.initial_state(batch_size, target_return)
        return state._replace(backbone=self.policy.backbone.initial_state(2 * batch_size))

    def act(
        self, observation: Tensor, reward: Tensor, state: PolicyState, is_first: Tensor
    ) -> tuple[Tensor, PolicyState]:
        """Acts as `ReturnConditionedPolicy.act` does."""
        if isinstance(self.compiled, FusedPolicy):
            return self.compiled.act_rolling(
                observation, reward, state, is_first, self.context_length
            )
        observation, reward, is_first = self.policy.on_device(observation, reward, is_first)
        return_to_go, timestep = self.policy.observe(reward, state, is_first)
        half = self.context_length // 2
        age = timestep % self.context_length
        late_age = torch.where(timestep < half, timestep, (timestep - half) % self.context_length)
        actions, backbone = self.policy.step(
            observation.repeat(2, 1),
            return_to_go.repeat(2),
            state.action.repeat(2, 1),
            timestep.repeat(2),
            torch.cat([age == 0, late_age == 0]),
            state.backbone,
        )
        first, second = actions.chunk(2)
        action = torch.where((age >= late_age).unsqueeze(-1), first, second)
        return action, PolicyState(backbone, action, return_to_go, timestep, state.target_return)


class WindowState(NamedTuple):
    """The inputs (batch, context_length, ...) of the last steps, the newest at the end."""

    past: PolicyState  # without its backbone part
    observations: Tensor
    returns_to_go: Tensor
    previous_actions: Tensor
    timesteps: Tensor
    length: Tensor  # (batch,), real steps in each window


class WindowActor(_BoundedActor):
    """Runs the last context_length steps at every step, from the initial state."""

    rollout, shortest = "window", 1

    def initial_state(
        self, batch_size: int, target_return: float | Tensor | None = None
    ) -> WindowState:
        """Returns empty windows."""
        past = self.policy.initial_state(batch_size, target_return)
        shape = (batch_size, self.context_length)
        zeros = past.action.new_zeros(shape)
        return WindowState(
            past=past._replace(backbone=()),
            observations=zeros.unsqueeze(-1).repeat(1, 1, self.observation_dim),
            returns_to_go=zeros,
            previous_actions=zeros.unsqueeze(-1).repeat(1, 1, self.action_dim),
            timesteps=zeros.long(),
            length=torch.zeros(batch_size, dtype=torch.long, device=zeros.device),
        )

    def act(
        self, observation: Tensor, reward: Tensor, state: WindowState, is_first: Tensor
    ) -> tuple[Tensor, WindowState]:
        """Acts as `ReturnConditionedPolicy.act` does, at the cost of context_length steps."""
        observation, reward, is_first = self.policy.on_device(observation, reward, is_first)
        return_to_go, timestep = self.policy.observe(reward, state.past, is_first)

        def push(window: Tensor, newest: Tensor) -> Tensor:
            return torch.cat([window[:, 1:], newest.unsqueeze(1)], dim=1)

        newest = (observation, return_to_go, state.past.action, timestep)
        pairs = zip(state[1:5], newest, strict=True)
        observations, returns_to_go, previous_actions, timesteps = (push(*pair) for pair in pairs)
        inputs = observations, returns_to_go, previous_actions, timesteps
        length = torch.where(is_first, 1, (state.length + 1).clamp(max=self.context_length))
        # The window's first real step resets, as in training.
        position = torch.arange(self.context_length, device=length.device)
        begins = position == (self.context_length - length).unsqueeze(1)
        blank = self.policy.backbone.initial_state(len(length))
        action = self.policy(*inputs, begins, blank)[0][:, -1]
        past = PolicyState((), action, return_to_go, timestep, state.past.target_return)
        return action, WindowState(past, *inputs, length)


def make_actor(
    policy: ReturnConditionedPolicy, rollout: str, context_length: int, q: Q | None = None
) -> FusedPolicy | ReturnConditionedPolicy | RollingActor | WindowActor | ChoosingActor:
    """Returns the actor of a rollout: the policy itself, or the policy with a bounded past.

    The step of `carried` and `rolling` is fused into one kernel where possible; see
    agents.step.fused. The actor then has a copy of the weights as they are now. With a critic `q`
    it chooses at each step between counting its target down and holding it; see
    agents.critic.choosing.
    """
    if q is not None:
        return ChoosingActor(make_actor(policy, rollout, context_length), q)
    if rollout == "carried":
        return fuse(policy)
    for actor in (RollingActor, WindowActor):
        if rollout == actor.rollout:
            return actor(policy, context_length)
    raise ValueError(f"rollout '{rollout}' does not exist; there are: {', '.join(ROLLOUTS)}.")
