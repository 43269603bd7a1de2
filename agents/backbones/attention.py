"""The attention mixer: Decision Transformer's (Chen et al., arXiv 2106.01345), run recurrently.

Causal self-attention as in GPT-2, over the last context_length tokens of the own episode. The
keys and values of those tokens are the state, so a step computes nothing again. It has no sense of
order of its own: Decision Transformer gets that from policy.timestep_embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.backbones.block import BackboneConfig, Mixer, check_heads, zeros_like_weight
from common.checks import number

AttentionState = tuple[Tensor, Tensor, Tensor]


@dataclass
class AttentionConfig(BackboneConfig):
    """Attention's own settings; `dropout` also drops attention weights, as in GPT-2.

    Attributes:
        n_head: Heads; they share d_model evenly.
        context_length: Tokens that a token attends to, itself included. A step of the policy is
            policy.tokens of them: Decision Transformer's 20 steps of three tokens are 60.
    """

    begins_empty: ClassVar[bool] = True
    name: str = "attention"
    n_head: int = number(1, at_least=1, at_most=65_536)
    context_length: int = number(20, at_least=1, at_most=1_000_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.n_head, self.d_model)


class Attention(Mixer):
    """softmax(q k / sqrt(d_head)) v over the last tokens of the episode, heads side by side."""

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.context_length = config.context_length
        self.dropout = config.dropout
        self.projection = nn.Linear(config.d_model, 3 * config.d_model)  # query, key, value
        self.output = nn.Linear(config.d_model, config.d_model)

    def initial_state(self, batch_size: int) -> AttentionState:
        """Returns no keys and no values yet.

        Both are (batch, context_length, d_model), the newest at the end and zeros in front of the
        episode's first; the third tensor (batch,) counts how many belong to the episode.
        """
        weight = self.output.weight
        keys = zeros_like_weight(weight, batch_size, self.context_length, weight.shape[0])
        length = torch.zeros(batch_size, dtype=torch.long, device=weight.device)
        return keys, keys.clone(), length

    def forward(
        self, x: Tensor, state: AttentionState, resets: Tensor
    ) -> tuple[Tensor, AttentionState]:
        """Maps x (batch, time, d_model), in time linear in time; see Mixer."""
        time, context = resets.shape[1], self.context_length
        query, keys, values = self._project(x)
        keys, values, length = _append(state[0], keys), _append(state[1], values), state[2]
        # A key's position counts from the state's oldest; the sequence begins at `context`. First
        # comes each token's episode, then how far back it sees: context_length or that.
        position = torch.arange(context, context + time, device=x.device)
        begin = torch.where(resets, position, (context - length).unsqueeze(1)).cummax(1).values
        oldest = torch.maximum(begin, position - (context - 1))
        if time > context:
            y = self._attend_in_blocks(query, keys, values, oldest)
        else:
            # The usual window has no past at all, and so no keys before its own.
            blank = context - int(length.max())
            visible = _visible(oldest - blank, context - blank)
            y = self._attend(query, keys[:, blank:], values[:, blank:], visible)

        length = (context + time - begin[:, -1]).clamp(max=context)
        gone = ~self._held(length).unsqueeze(-1)
        keys, values = (part[:, time:].masked_fill(gone, 0.0) for part in (keys, values))
        return self.output(y), (keys, values, length)

    def step(
        self, x: Tensor, state: AttentionState, resets: Tensor
    ) -> tuple[Tensor, AttentionState]:
        """Maps x (batch, d_model) in constant time; see Mixer."""
        query, keys, values = self._project(x.unsqueeze(1))
        length = (state[2].masked_fill(resets, 0) + 1).clamp(max=self.context_length)
        held = self._held(length)
        gone = ~held.unsqueeze(-1)
        keys = _append(state[0][:, 1:], keys).masked_fill_(gone, 0.0)
        values = _append(state[1][:, 1:], values).masked_fill_(gone, 0.0)
        y = self._attend(query, keys, values, held.unsqueeze(1))
        return self.output(y.squeeze(1)), (keys, values, length)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the queries, keys and values of x, (batch, time, d_model) each."""
        query, keys, values = self.projection(x).chunk(3, dim=-1)
        return query, keys, values

    def _held(self, length: Tensor) -> Tensor:
        """Says which of the state's keys belong to the episode, (batch, context_length)."""
        position = torch.arange(self.context_length, device=length.device)
        return position >= (self.context_length - length).unsqueeze(1)

    def _attend_in_blocks(
        self, query: Tensor, keys: Tensor, values: Tensor, oldest: Tensor
    ) -> Tensor:
        """Attends from each query to the keys from `oldest` (batch, time) to its own.

        No token sees further back than context_length, so queries are dealt out in blocks of that
        many, each with the keys that its tokens can see: memory and time linear in time.
        """
        (batch, time), size = oldest.shape, self.context_length
        blocks = -(-time // size)
        padding = blocks * size - time
        query, keys, values = (F.pad(t, (0, 0, 0, padding)) for t in (query, keys, values))
        # Block i has the keys from i * size on, and counts positions from there.
        keys, values = (
            t.unfold(1, 2 * size, size).transpose(2, 3).flatten(0, 1) for t in (keys, values)
        )
        # Padded queries, whose answers are cut off, see all: one that saw nothing would be NaN.
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
    """Says which keys a query sees: from position `oldest` (batch, queries) on, up to its own.

    Returns:
        (batch, queries, past + queries) bool; there are `past` keys before the first query's.
    """
    position = torch.arange(past + oldest.shape[1], device=oldest.device)
    return (position >= oldest.unsqueeze(-1)) & (position <= position[past:].unsqueeze(1))
