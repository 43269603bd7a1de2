"""The residual block around a mixer, and the stack of blocks: the backbone."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from agents.backbones.convolution import CausalConvolution
from agents.backbones.dropout import Dropout
from agents.backbones.mixer import BackboneConfig, Mixer
from agents.backbones.state import State, check_state, map_state, restart, run_pieces, tensors_of


class Block(nn.Module):
    """norm -> [convolution ->] mixer -> norm -> MLP, with residuals around both (pre-norm).

    The state is the mixer's, or with a convolution the pair of its window and the mixer's state.
    """

    def __init__(self, mixer: Mixer, config: BackboneConfig) -> None:
        super().__init__()
        width = config.mlp_ratio * config.d_model
        self.mixer_norm = nn.LayerNorm(config.d_model)
        self.convolution: CausalConvolution | None = None
        if config.convolution:
            self.convolution = CausalConvolution(config.d_model, config.convolution)
        self.mixer = mixer
        self.start: nn.ParameterList | None = None
        if config.learnable_initial_state:
            # Copies, because a mixer may use the same zeros twice in its state.
            self.start = nn.ParameterList(t.clone() for t in tensors_of(mixer.initial_state(1)))
        self.mlp_norm = nn.LayerNorm(config.d_model)
        self.mlp = nn.Sequential(
            nn.Linear(config.d_model, width), nn.ReLU(), nn.Linear(width, config.d_model)
        )
        self.dropout = Dropout(config.dropout)

    def initial_state(self, batch_size: int) -> State:
        """Returns the state before an episode begins."""
        state = self._mixer_state(batch_size)
        if self.convolution is None:
            return state
        return self.convolution.initial_state(batch_size), state

    def _mixer_state(self, batch_size: int) -> State:
        state = self.mixer.initial_state(batch_size)
        if self.start is None:
            return state
        learned = iter(self.start)
        return map_state(lambda zeros: next(learned).expand_as(zeros), state)

    def _mix(self, x: Tensor, state: State, resets: Tensor) -> tuple[Tensor, State]:
        if self.start is None:
            return self.mixer(x, state, resets)

        # A mixer resets to its own initial state. To reset to a learned one, the rows are cut at
        # the resets, and each piece runs from its own state without any.
        def run(x: Tensor, state: State) -> tuple[Tensor, State]:
            return self.mixer(x, state, resets.new_zeros(x.shape[:2]))

        return run_pieces(run, self._mixer_state, x, state, resets)

    def _residual(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + self.dropout(mixed)
        return x + self.dropout(self.mlp(self.mlp_norm(x)))

    def forward(self, x: Tensor, state: State, resets: Tensor) -> tuple[Tensor, State]:
        """Maps x (batch, time, d_model), resets (batch, time) to outputs of x's shape."""
        inputs = self.mixer_norm(x)
        if self.convolution is None:
            mixed, state = self._mix(inputs, state, resets)
        else:
            inputs, window = self.convolution(inputs, state[0], resets)
            mixed, state = self._mix(inputs, state[1], resets)
            state = window, state
        return self._residual(x, mixed), state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Maps x (batch, d_model) to outputs of x's shape."""
        inputs = self.mixer_norm(x)
        if self.convolution is None:
            mixed, state = self.mixer.step(inputs, state)
        else:
            inputs, window = self.convolution.step(inputs, state[0])
            mixed, state = self.mixer.step(inputs, state[1])
            state = window, state
        return self._residual(x, mixed), state


class Backbone(nn.Module):
    """A stack of blocks with a final norm; its state is the tuple of its blocks' states."""

    def __init__(self, mixers: list[Mixer], config: BackboneConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(mixer, config) for mixer in mixers)
        self.norm = nn.LayerNorm(config.d_model)
        self.owner = f"backbone '{config.name}'"
        # Shapes without numbers.
        self.expected = map_state(lambda t: t.detach().to("meta"), self.initial_state(1))

    def initial_state(self, batch_size: int) -> State:
        """Returns the state before an episode begins, one entry for each block."""
        return tuple(cast("Block", block).initial_state(batch_size) for block in self.blocks)

    def forward(self, x: Tensor, state: State, resets: Tensor) -> tuple[Tensor, State]:
        """Maps a sequence x (batch, time, d_model) to outputs of x's shape, in parallel.

        Where resets (batch, time) is true, the row restarts from the initial state. Returns also
        the state after the last step.
        """
        check_state(state, self.expected, x.shape[0], self.owner)
        return self._run(x, state, lambda block, *inputs: block(*inputs, resets))

    def step(self, x: Tensor, state: State, resets: Tensor) -> tuple[Tensor, State]:
        """Maps one step, x (batch, d_model) and resets (batch,), in constant time and memory."""
        check_state(state, self.expected, x.shape[0], self.owner)
        # The one place where a step resets: blocks and mixers need not know of it. It copies the
        # whole state, so only where a row resets.
        if torch.compiler.is_compiling() or resets.any():
            state = restart(state, self.initial_state(1), resets)
        return self._run(x, state, Block.step)

    def _run(self, x: Tensor, state: State, run: Callable[..., Any]) -> tuple[Tensor, State]:
        states = []
        for block, block_state in zip(self.blocks, state, strict=True):
            x, block_state = run(block, x, block_state)
            states.append(block_state)
        return self.norm(x), tuple(states)
