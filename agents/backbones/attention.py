"""The attention mixer: Decision Transformer's (Chen et al., arXiv 2106.01345), run recurrently.

Causal self-attention as in GPT-2, over the last context_length tokens of the episode. Their keys
and values are the state, so a step recomputes nothing. It has no positional encoding of its own:
Decision Transformer's is policy.timestep_embedding.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.backbones.mixer import BackboneConfig, Mixer
from common.checks import number
from common.errors import UserError

AttentionState = tuple[Tensor, Tensor, Tensor]


@dataclass
class HeadsConfig(BackboneConfig):
    """The settings that attention and Aaren share.

    Attributes:
        n_head: Heads; each has d_model / n_head channels.
    """

    begins_empty: ClassVar[bool] = True
    n_head: int = number(1, at_least=1, at_most=65_536)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.d_model % self.n_head:
            raise UserError(
                f"backbone.n_head is {self.n_head}, which does not divide backbone.d_model = "
                f"{self.d_model}; give a number of heads that does."
            )


@dataclass
class AttentionConfig(HeadsConfig):
    """Attention's own settings; `dropout` also drops attention weights, as in GPT-2.

    Attributes:
        context_length: Tokens that a token attends to, itself included. A step of the policy is
            policy.tokens of them: Decision Transformer's 20 steps of three tokens are 60.
    """

    name: str = "attention"
    context_length: int = number(20, at_least=1, at_most=1_000_000)


class Attention(Mixer):
    """softmax(q k / sqrt(d_head)) v over the last tokens of the episode, for each head."""

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.context_length = config.context_length
        self.dropout = config.dropout
        self.projection = nn.Linear(config.d_model, 3 * config.d_model)  # query, key, value
        self.output = nn.Linear(config.d_model, config.d_model)

    def initial_state(self, batch_size: int) -> AttentionState:
        """Returns empty keys and values and their number.

        Keys and values are (batch, context_length, d_model), the newest last and zeros before the
        episode's first; the third tensor (batch,) counts those of the episode.
        """
        weight = self.output.weight
        keys = weight.new_zeros(batch_size, self.context_length, weight.shape[0])
        length = torch.zeros(batch_size, dtype=torch.long, device=weight.device)
        return keys, keys.clone(), length

    def forward(
        self, x: Tensor, state: AttentionState, resets: Tensor
    ) -> tuple[Tensor, AttentionState]:
        """Maps x (batch, time, d_model); run time and memory are linear in time."""
        time, context = resets.shape[1], self.context_length
        query, keys, values = self.projection(x).chunk(3, dim=-1)
        keys, values, length = _append(state[0], keys), _append(state[1], values), state[2]
        # Positions count from the state's oldest key; the sequence begins at `context`. `oldest` is
        # the first key that each token sees: its episode's begin, or context_length tokens back.
        position = torch.arange(context, context + time, device=x.device)
        begin = torch.where(resets, position, (context - length).unsqueeze(1)).cummax(1).values
        oldest = torch.maximum(begin, position - (context - 1))
        if time > context:
            y = self._attend_in_blocks(query, keys, values, oldest)
        else:
            # Without the blank keys before all rows' episodes: most windows have no past at all.
            blank = context - int(length.max())
            visible = _visible(oldest - blank, context - blank)
            y = self._attend(query, keys[:, blank:], values[:, blank:], visible)

        # The next state: the last context_length keys, zero before the episode's begin.
        length = (context + time - begin[:, -1]).clamp(max=context)
        gone = ~self._held(length).unsqueeze(-1)
        keys, values = (part[:, time:].masked_fill(gone, 0.0) for part in (keys, values))
        return self.output(y), (keys, values, length)

    def step(self, x: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        """Maps x (batch, d_model) in constant time."""
        query, keys, values = self.projection(x.unsqueeze(1)).chunk(3, dim=-1)
        keys, values = _append(state[0][:, 1:], keys), _append(state[1][:, 1:], values)
        length = (state[2] + 1).clamp(max=self.context_length)
        y = self._attend(query, keys, values, self._held(length).unsqueeze(1))
        return self.output(y.squeeze(1)), (keys, values, length)

    def _held(self, length: Tensor) -> Tensor:
        """Returns which of the state's keys belong to the episode, (batch, context_length) bool."""
        position = torch.arange(self.context_length, device=length.device)
        return position >= (self.context_length - length).unsqueeze(1)

    def _attend_in_blocks(
        self, query: Tensor, keys: Tensor, values: Tensor, oldest: Tensor
    ) -> Tensor:
        """Attends from each query to the keys from `oldest` (batch, time) to its own.

        No token sees further back than context_length. So the queries are split into blocks of
        that many, each with the 2 * context_length keys that its tokens can see.
        """
        (batch, time), size = oldest.shape, self.context_length
        blocks = -(-time // size)
        padding = blocks * size - time
        query, keys, values = (F.pad(t, (0, 0, 0, padding)) for t in (query, keys, values))
        # Block i has the keys from i * size on; positions count from there.
        keys, values = (
            t.unfold(1, 2 * size, size).transpose(2, 3).flatten(0, 1) for t in (keys, values)
        )
        # Padded queries see all keys, because without any they would be NaN; they are cut off.
        oldest = F.pad(oldest, (0, padding)).view(batch, blocks, size)
        oldest = oldest - torch.arange(blocks, device=oldest.device).unsqueeze(1) * size
        visible = _visible(oldest.flatten(0, 1), size)
        y = self._attend(query.reshape(batch * blocks, size, -1), keys, values, visible)
        return y.reshape(batch, blocks * size, -1)[:, :time]

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
        """Attends with all heads; visible is (batch, queries, keys)."""
        query, keys, values = (
            t.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for t in (query, keys, values)
        )
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(query, keys, values, visible.unsqueeze(1), dropout)
        return y.transpose(1, 2).flatten(2)


def _append(past: Tensor, new: Tensor) -> Tensor:
    return torch.cat([past.to(new.dtype), new], dim=1)


def _visible(oldest: Tensor, past: int) -> Tensor:
    """Returns which keys a query sees, from position `oldest` (batch, queries) up to its own.

    (batch, queries, past + queries) bool; there are `past` keys before the first query's.
    """
    position = torch.arange(past + oldest.shape[1], device=oldest.device)
    return (position >= oldest.unsqueeze(-1)) & (position <= position[past:].unsqueeze(1))
