"""The return-conditioned policy: its inputs, its loss and how it acts.

It owns all that acting needs (observation statistics, hidden observation dimensions, return scale,
action bounds, default target return), so a checkpoint of it is complete. At step t it maps the
observation, the return still to be collected (this step's reward included) and the previous action
to an action: the conditioning of Decision Transformer (Chen et al., arXiv 2106.01345) with a
recurrent backbone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from agents.backbones import build_backbone
from agents.backbones.dropout import Dropout
from agents.backbones.mixer import BackboneConfig
from agents.backbones.state import State, map_state
from common.checks import check_fields, choice, number
from common.errors import UserError


@dataclass
class PolicyConfig:
    """The policy's inputs at each step.

    Attributes:
        tokens: 1 puts return-to-go, observation and previous action into one token for each step
            (the sum of their linear embeddings); 3 gives each its own token, in Decision
            Transformer's order.
        previous_action: Whether the policy sees the previous action.
        timestep_embedding: Whether a learned embedding of the time since the episode began is
            added to each token.
        max_timestep: Rows of that embedding; later steps share the last row.
        token_norm: Whether a LayerNorm and the backbone's dropout come between the embeddings and
            the backbone, as in Decision Transformer.
        return_before_head: Whether the return-to-go is an input once more after the backbone.
        return_scale: Returns-to-go are divided by this (units of return).
        return_to_go: Whether the policy sees the return-to-go; without it this is behaviour
            cloning.
        hidden: Observation dimensions that the policy does not see: a list of indices, or
            `velocities` (locomotion tasks); null hides none.
    """

    tokens: int = choice(1, (1, 3))
    previous_action: bool = True
    timestep_embedding: bool = False
    max_timestep: int = number(1000, at_least=1, at_most=10_000_000)
    token_norm: bool = False
    return_before_head: bool = False
    return_scale: float = number(1000.0, at_least=1e-6, at_most=1_000_000_000)
    return_to_go: bool = True
    hidden: Any = None  # OmegaConf has no type for a list or a word

    def __post_init__(self) -> None:
        check_fields(self, "policy")
        if self.return_before_head and not self.return_to_go:
            raise UserError(
                "policy.return_before_head is true, but policy.return_to_go is false; set one of "
                "them the other way."
            )
        indices = self.hidden if isinstance(self.hidden, list) else []
        if (
            self.hidden not in (None, "velocities", indices)
            or any(type(index) is not int or index < 0 for index in indices)
            or len(set(indices)) != len(indices)
        ):
            raise UserError(
                f"policy.hidden is {self.hidden!r}; it must be a list of observation indices, from "
                "0 and each once, or the word velocities."
            )


def check_hidden(hidden: list[int] | None, observation_dim: int) -> None:
    """Checks that hidden dimensions exist, and that the policy sees another.

    Raises:
        UserError: One is out of range, or all are hidden.
    """
    if not set(hidden or ()) < set(range(observation_dim)):
        raise UserError(
            f"policy.hidden is {hidden}, but the observations have the indices 0 to "
            f"{observation_dim - 1}, of which at least one must be seen; give some of them."
        )


# Q (batch, time) of observations and actions (batch, time, channels).
Q = Callable[[Tensor, Tensor], Tensor]


class PolicyState(NamedTuple):
    """What the policy carries from step to step while it acts, one row for each environment.

    All but the backbone's state are those of the last step; returns are in units of return.
    """

    backbone: State
    action: Tensor  # (batch, action_dim)
    return_to_go: Tensor  # (batch,), still to be collected
    timestep: Tensor  # (batch,), since the episode began
    target_return: Tensor  # (batch,), to be collected in each episode of the row


class TrainingState(NamedTuple):
    """What `streamed` training carries from batch to batch, detached, one row for each stream."""

    backbone: State
    action: Tensor  # (batch, action_dim)


class ReturnConditionedPolicy(nn.Module):
    """Maps return-to-go, observation and previous action to an action, through a backbone."""

    observation_mean: Tensor
    observation_std: Tensor
    action_low: Tensor
    action_high: Tensor
    target_return: Tensor
    hidden: Tensor

    def __init__(
        self,
        config: PolicyConfig,
        backbone: BackboneConfig,
        *,
        observation_dim: int,
        action_dim: int,
    ) -> None:
        """Builds the network, with neutral statistics.

        Raises:
            UserError: `config.hidden` are not some of the observation dimensions.
        """
        super().__init__()
        check_hidden(config.hidden, observation_dim)
        self.config = config
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.register_buffer("observation_mean", torch.zeros(observation_dim))
        self.register_buffer("observation_std", torch.ones(observation_dim))
        self.register_buffer("action_low", torch.full((action_dim,), -1.0))
        self.register_buffer("action_high", torch.ones(action_dim))
        self.register_buffer("target_return", torch.zeros(()))
        hidden = [index in (config.hidden or ()) for index in range(observation_dim)]
        self.register_buffer("hidden", torch.tensor(hidden), persistent=False)
        d_model = backbone.d_model
        if config.tokens == 1:
            # One Linear over the concatenated inputs: the sum of an embedding for each.
            self.embedding = nn.Linear(1 + observation_dim + action_dim, d_model)
        else:
            self.return_embedding = nn.Linear(1, d_model)
            self.observation_embedding = nn.Linear(observation_dim, d_model)
            self.action_embedding = nn.Linear(action_dim, d_model)
        if config.timestep_embedding:
            self.timestep_embedding = nn.Embedding(config.max_timestep, d_model)
        if config.token_norm:
            self.token_norm = nn.Sequential(nn.LayerNorm(d_model), Dropout(backbone.dropout))
        self.backbone = build_backbone(backbone)
        if config.return_before_head:
            self.head_return_embedding = nn.Linear(1, d_model, bias=False)
        self.head = nn.Linear(d_model, action_dim)

    def set_statistics(
        self,
        *,
        observation_mean: Tensor,
        observation_std: Tensor,
        action_low: Tensor,
        action_high: Tensor,
        target_return: float,
    ) -> None:
        """Stores the data's statistics, (observation_dim,) and (action_dim,), and the target."""
        self.observation_mean.copy_(observation_mean)
        self.observation_std.copy_(observation_std)
        self.action_low.copy_(action_low)
        self.action_high.copy_(action_high)
        self.target_return.fill_(target_return)

    # -- one network, two forms ---------------------------------------------------------------

    def _returns(self, returns_to_go: Tensor) -> Tensor:
        """Scales returns-to-go (...) to the network's input (..., 1)."""
        returns = (returns_to_go / self.config.return_scale).unsqueeze(-1)
        return returns if self.config.return_to_go else torch.zeros_like(returns)

    def _tokens(
        self, observations: Tensor, returns: Tensor, previous_actions: Tensor, timesteps: Tensor
    ) -> Tensor:
        """Embeds steps (..., channels) as tokens (..., tokens, d_model)."""
        observations = (observations - self.observation_mean) / self.observation_std
        if self.config.hidden:  # filled, not multiplied by 0: they may be NaN
            observations = observations.masked_fill(self.hidden, 0.0)
        if not self.config.previous_action:
            previous_actions = torch.zeros_like(previous_actions)
        if self.config.tokens == 1:
            inputs = torch.cat([returns, observations, previous_actions], dim=-1)
            tokens = self.embedding(inputs).unsqueeze(-2)
        else:
            # The previous action comes first, so that the observation's token, from which the
            # action is read, is the step's last: along an episode, Decision Transformer's order.
            tokens = torch.stack(
                [
                    self.action_embedding(previous_actions),
                    self.return_embedding(returns),
                    self.observation_embedding(observations),
                ],
                dim=-2,
            )
        if self.config.timestep_embedding:
            last = self.config.max_timestep - 1
            times = timesteps.clamp(max=last).unsqueeze(-1).repeat_interleave(tokens.shape[-2], -1)
            if self.config.tokens == 3:
                # The previous action belongs to the step before.
                times = torch.cat([(times[..., :1] - 1).clamp(min=0), times[..., 1:]], dim=-1)
            tokens = tokens + self.timestep_embedding(times)
        if self.config.token_norm:
            tokens = self.token_norm(tokens)
        return tokens

    def _first_token(self, resets: Tensor) -> Tensor:
        """Maps resets (...) to those of each of a step's tokens (..., tokens)."""
        if self.config.tokens == 1:
            return resets.unsqueeze(-1)
        others = torch.zeros_like(resets)
        # At the return's token, because a first step has no previous action: forget its token too.
        return torch.stack([others, resets, others], dim=-1)

    def _action(self, features: Tensor, returns: Tensor) -> Tensor:
        if self.config.return_before_head:
            features = features + self.head_return_embedding(returns)
        unit = torch.tanh(self.head(features))
        middle = (self.action_high + self.action_low) / 2
        return middle + unit * (self.action_high - self.action_low) / 2

    def forward(
        self,
        observations: Tensor,
        returns_to_go: Tensor,
        previous_actions: Tensor,
        timesteps: Tensor,
        resets: Tensor,
        state: State,
    ) -> tuple[Tensor, State]:
        """Maps a whole sequence in parallel to actions (batch, time, action_dim), and the state.

        Args:
            observations: (batch, time, observation_dim), in the environment's units.
            returns_to_go: (batch, time), in units of return, each step's own reward included.
            previous_actions: (batch, time, action_dim).
            timesteps: (batch, time) integers, steps since the episode began.
            resets: (batch, time) bool; true where the row restarts from the initial state.
            state: The backbone's state before the first step.
        """
        batch, time = resets.shape
        returns = self._returns(returns_to_go)
        previous_actions = previous_actions.masked_fill(resets.unsqueeze(-1), 0.0)
        tokens = self._tokens(observations, returns, previous_actions, timesteps)
        features, state = self.backbone(
            tokens.flatten(1, 2), state, self._first_token(resets).flatten(1, 2)
        )
        features = features.view(batch, time, self.config.tokens, -1)[:, :, -1]
        return self._action(features, returns), state

    def step(
        self,
        observation: Tensor,
        return_to_go: Tensor,
        previous_action: Tensor,
        timestep: Tensor,
        resets: Tensor,
        state: State,
    ) -> tuple[Tensor, State]:
        """Maps one step in constant time and memory: `forward` without the time axis."""
        returns = self._returns(return_to_go)
        previous_action = previous_action.masked_fill(resets.unsqueeze(-1), 0.0)
        tokens = self._tokens(observation, returns, previous_action, timestep)
        first = self._first_token(resets)
        for i in range(self.config.tokens):
            features, state = self.backbone.step(tokens[:, i], state, first[:, i])
        return self._action(features, returns), state

    # -- training -----------------------------------------------------------------------------

    def loss(
        self,
        actions: Tensor,
        mask: Tensor,
        imitation_weights: Tensor | None = None,
        q_weights: Tensor | None = None,
        q: Q | None = None,
        **inputs: Any,
    ) -> tuple[Tensor, TrainingState]:
        """Returns the mean squared error of the actions over real steps, and the last state.

        With a Q, each step's error has a weight, and the weighted Q of its action is subtracted.

        Args as in `predict`, and:
            mask: (batch, time) bool, true on real steps; padding may only follow real steps.
            imitation_weights: (batch, time), of the errors.
            q_weights: (batch, time), of Q of the predicted actions.
            q: A critic of the data, whose parameters have no gradient; see agents.critic.learning.
        """
        predicted, state = self.predict(actions=actions, **inputs)
        # In float32 even under mixed precision.
        predicted = predicted.float()
        loss = (predicted - actions).square().mean(-1)
        if q is not None:
            assert imitation_weights is not None and q_weights is not None
            values = q(inputs["observations"], predicted).float()
            loss = imitation_weights * loss - q_weights * values
        return (loss * mask).sum() / mask.sum().clamp(min=1), state

    def predict(
        self,
        observations: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        resets: Tensor,
        state: TrainingState | None = None,
    ) -> tuple[Tensor, TrainingState]:
        """Predicts the actions of a batch, (batch, time, action_dim), and returns the last state.

        Args as in `forward`, and:
            actions: (batch, time, action_dim), the data's; each is the previous action of the step
                after it.
            state: The state after the previous batch, for `streamed` training; None starts from
                the initial state.
        """
        if state is None:
            batch = resets.shape[0]
            state = TrainingState(
                self.backbone.initial_state(batch), actions.new_zeros(batch, self.action_dim)
            )
        previous_actions = torch.cat([state.action.unsqueeze(1), actions[:, :-1]], dim=1)
        predicted, backbone = self(
            observations, returns_to_go, previous_actions, timesteps, resets, state.backbone
        )
        return predicted, TrainingState(map_state(Tensor.detach, backbone), actions[:, -1])

    # -- acting -------------------------------------------------------------------------------

    def initial_state(
        self, batch_size: int, target_return: float | Tensor | None = None
    ) -> PolicyState:
        """Returns the state of environments that are about to begin an episode.

        The target is in units of return: one for all rows, or a tensor (batch_size,) with one for
        each row. None asks for the policy's own default.
        """
        default = self.target_return
        target = default if target_return is None else torch.as_tensor(target_return).to(default)
        if target.shape not in ((), (batch_size,)):
            raise ValueError(
                f"target_return has the shape {tuple(target.shape)}; expected one number, or a "
                f"tensor of shape ({batch_size},) with one for each row."
            )
        target = target.expand(batch_size).clone()
        return PolicyState(
            backbone=self.backbone.initial_state(batch_size),
            action=self.action_low.new_zeros(batch_size, self.action_dim),
            return_to_go=target,
            timestep=self.action_low.new_zeros(batch_size, dtype=torch.long),
            target_return=target,
        )

    def on_device(self, *tensors: Tensor) -> list[Tensor]:
        """Returns the tensors on the policy's device."""
        return [tensor.to(self.action_low.device) for tensor in tensors]

    def observe(
        self, reward: Tensor, state: PolicyState, is_first: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns return-to-go, the target less the rewards received, and timestep, (batch,)."""
        return_to_go = torch.where(is_first, state.target_return, state.return_to_go - reward)
        timestep = torch.where(is_first, 0, state.timestep + 1)
        return return_to_go, timestep

    def act(
        self, observation: Tensor, reward: Tensor, state: PolicyState, is_first: Tensor
    ) -> tuple[Tensor, PolicyState]:
        """Acts in a batch of environments, with the state carried through the whole episode.

        Args:
            observation: (batch, observation_dim).
            reward: (batch,), the reward of the previous action; ignored where is_first is true.
            state: From the previous step, or `initial_state`.
            is_first: (batch,) bool; true on the observation that begins an episode.
        """
        observation, reward, is_first = self.on_device(observation, reward, is_first)
        return_to_go, timestep = self.observe(reward, state, is_first)
        action, backbone = self.step(
            observation, return_to_go, state.action, timestep, is_first, state.backbone
        )
        return action, PolicyState(backbone, action, return_to_go, timestep, state.target_return)
