"""The residual block that every mixer shares, and the stack of blocks: the backbone.

A mixer is the layer that mixes over time; all else in a block works step by step. So a backbone
is told apart from another by its mixer alone, and the contract below is all that a new one needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from agents.convolution import CausalConvolution

# What a mixer remembers of the past: a tensor whose first axis is the batch, or a tuple of states.
State = Any


def map_state(function: Callable[[Tensor], Tensor], state: State) -> State:
    """Applies a function to every tensor of a state, keeping its structure."""
    if isinstance(state, Tensor):
        return function(state)
    return tuple(map_state(function, part) for part in state)


@dataclass
class BackboneConfig:
    """What every backbone has; each mixer's own configuration adds to it.

    Attributes:
        name: The mixer's name in the registry.
        d_model: Channels of the residual stream.
        n_layer: Blocks.
        mlp_ratio: Width of the MLP, in units of d_model.
        dropout: Probability of dropping a mixer's or an MLP's output channel in training.
        convolution: Steps that a causal convolution before each mixer sees (where minGRU's paper
            has one: 4); 0 has none.
    """

    name: str = "min_gru"
    d_model: int = 128
    n_layer: int = 3
    mlp_ratio: int = 4
    dropout: float = 0.1
    convolution: int = 0

    def __post_init__(self) -> None:
        if self.convolution < 0:
            raise ValueError(f"backbone.convolution is {self.convolution}; it must be at least 0.")


class Mixer(nn.Module):
    """The contract of a layer that mixes over time: train in parallel, run step by step.

    `forward` over a sequence and `step` over its elements, one after the other, give the same
    outputs and the same last state, whatever the state before. Where `is_first` is true, the past
    (the state given and all earlier steps of the row) must not matter.
    """

    def initial_state(self, batch_size: int) -> State:
        """Returns the state before an episode begins; its tensors are (batch, ...)."""
        raise NotImplementedError

    def forward(self, x: Tensor, state: State, is_first: Tensor) -> tuple[Tensor, State]:
        """Maps x (batch, time, d_model), is_first (batch, time) to outputs of x's shape."""
        raise NotImplementedError

    def step(self, x: Tensor, state: State, is_first: Tensor) -> tuple[Tensor, State]:
        """Maps x (batch, d_model), is_first (batch,) to outputs of x's shape."""
        raise NotImplementedError


class Block(nn.Module):
    """norm -> mixer -> norm -> MLP, with residuals around both (pre-norm).

    With a convolution before the mixer, the state is its window and the mixer's state.
    """

    def __init__(self, mixer: Mixer, config: BackboneConfig) -> None:
        super().__init__()
        width = config.mlp_ratio * config.d_model
        self.mixer_norm = nn.LayerNorm(config.d_model)
        self.convolution: CausalConvolution | None = None
        if config.convolution:
            self.convolution = CausalConvolution(config.d_model, config.convolution)
        self.mixer = mixer
        self.mlp_norm = nn.LayerNorm(config.d_model)
        self.mlp = nn.Sequential(
            nn.Linear(config.d_model, width), nn.ReLU(), nn.Linear(width, config.d_model)
        )
        self.dropout = nn.Dropout(config.dropout)

    def initial_state(self, batch_size: int) -> State:
        """Returns the state before an episode begins."""
        state = self.mixer.initial_state(batch_size)
        if self.convolution is None:
            return state
        return self.convolution.initial_state(batch_size), state

    def _residual(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + self.dropout(mixed)
        return x + self.dropout(self.mlp(self.mlp_norm(x)))

    def forward(self, x: Tensor, state: State, is_first: Tensor) -> tuple[Tensor, State]:
        """Maps x (batch, time, d_model), is_first (batch, time) to outputs of x's shape."""
        if self.convolution is None:
            mixed, state = self.mixer(self.mixer_norm(x), state, is_first)
            return self._residual(x, mixed), state
        window, state = state
        convolved, window = self.convolution(self.mixer_norm(x), window, is_first)
        mixed, state = self.mixer(convolved, state, is_first)
        return self._residual(x, mixed), (window, state)

    def step(self, x: Tensor, state: State, is_first: Tensor) -> tuple[Tensor, State]:
        """Maps x (batch, d_model), is_first (batch,) to outputs of x's shape."""
        if self.convolution is None:
            mixed, state = self.mixer.step(self.mixer_norm(x), state, is_first)
            return self._residual(x, mixed), state
        window, state = state
        convolved, window = self.convolution.step(self.mixer_norm(x), window, is_first)
        mixed, state = self.mixer.step(convolved, state, is_first)
        return self._residual(x, mixed), (window, state)


class Backbone(nn.Module):
    """A stack of blocks with a final norm; its state is the tuple of its mixers' states."""

    def __init__(self, mixers: list[Mixer], config: BackboneConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(mixer, config) for mixer in mixers)
        self.norm = nn.LayerNorm(config.d_model)

    def _blocks(self) -> Iterator[Block]:
        yield from cast("Iterator[Block]", self.blocks)

    def initial_state(self, batch_size: int) -> State:
        """Returns the state before an episode begins, one entry a block."""
        return tuple(block.initial_state(batch_size) for block in self._blocks())

    def forward(self, x: Tensor, state: State, is_first: Tensor) -> tuple[Tensor, State]:
        """Maps a sequence in parallel.

        Args:
            x: (batch, time, d_model).
            state: What the rows remember from before their first step.
            is_first: (batch, time) bool; true forgets all that came before in that row.

        Returns:
            The outputs (batch, time, d_model) and the state after the last step.
        """
        states = []
        for block, block_state in zip(self._blocks(), state, strict=True):
            x, block_state = block(x, block_state, is_first)
            states.append(block_state)
        return self.norm(x), tuple(states)

    def step(self, x: Tensor, state: State, is_first: Tensor) -> tuple[Tensor, State]:
        """Maps one step: x (batch, d_model), is_first (batch,), in constant time and memory."""
        states = []
        for block, block_state in zip(self._blocks(), state, strict=True):
            x, block_state = block.step(x, block_state, is_first)
            states.append(block_state)
        return self.norm(x), tuple(states)


def zeros_like_weight(weight: Tensor, *shape: int) -> Tensor:
    """Returns zeros on the device and in the dtype of a weight: the usual initial state."""
    return torch.zeros(shape, device=weight.device, dtype=weight.dtype)
