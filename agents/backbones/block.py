"""The residual block that every mixer shares, and the stack of blocks: the backbone.

A mixer is the layer that mixes over time; all else in a block works step by step. So a backbone
is told apart from another by its mixer alone, and the contract below is all that a new one needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from agents.backbones.convolution import CausalConvolution
from agents.backbones.dropout import Dropout
from agents.backbones.state import State, check_state, map_state, restart, run_pieces, tensors_of
from common.checks import check_fields, number
from common.errors import UserError


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
        learnable_initial_state: Whether the state of each mixer at which an episode begins is
            learned. It starts at zero, where the policy is the same as without.
    """

    # Whether a mixer begins with no step seen instead of a state of numbers.
    begins_empty: ClassVar[bool] = False

    name: str = "min_gru"
    d_model: int = number(128, at_least=1, at_most=65_536)
    n_layer: int = number(3, at_least=1, at_most=1000)
    mlp_ratio: int = number(4, at_least=1, at_most=1024)
    dropout: float = number(0.1, at_least=0, below=1)
    convolution: int = number(0, at_least=0, at_most=1024)
    learnable_initial_state: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "backbone")
        own = type(self).name
        if self.name != own:
            raise UserError(
                f"backbone.name is '{self.name}', but these are the settings of '{own}'; choose "
                "another backbone as a whole, with backbone=NAME."
            )
        if self.learnable_initial_state and self.begins_empty:
            raise UserError(
                f"backbone.learnable_initial_state is true, but backbone '{self.name}' begins with "
                "no step seen, and so with nothing to learn; leave it at false."
            )


def check_heads(n_head: int, d_model: int) -> None:
    """Checks that heads can share the channels evenly."""
    if d_model % n_head:
        raise UserError(
            f"backbone.n_head is {n_head}, which does not divide backbone.d_model = {d_model}; "
            "give a number of heads that does."
        )


class Mixer(nn.Module):
    """The contract of a layer that mixes over time: train in parallel, run step by step.

    `forward` over a sequence and `step` over its elements, one after the other, give the same
    outputs and the same last state, whatever the state before. Where `resets` is true, the past
    (the state given and all earlier steps of the row) must not matter.

    Attributes:
        undecayed: Names of the parameters that weight decay must leave alone.
    """

    undecayed: tuple[str, ...] = ()

    def initial_state(self, batch_size: int) -> State:
        """Returns the state before an episode begins; its tensors are (batch, ...)."""
        raise NotImplementedError

    def forward(self, x: Tensor, state: State, resets: Tensor) -> tuple[Tensor, State]:
        """Maps x (batch, time, d_model), resets (batch, time) to outputs of x's shape."""
        raise NotImplementedError

    def step(self, x: Tensor, state: State, resets: Tensor) -> tuple[Tensor, State]:
        """Maps x (batch, d_model), resets (batch,) to outputs of x's shape."""
        raise NotImplementedError


class Block(nn.Module):
    """norm -> mixer -> norm -> MLP, with residuals around both (pre-norm).

    With a convolution before the mixer, the state is its window and the mixer's state.

    Mixers reset to zero. Where their initial state is learned, the block restarts them instead:
    it cuts the rows where episodes begin, and the mixer sees each piece as one that goes on.
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
            # Copies, for a mixer may give the same zeros twice.
            self.start = nn.ParameterList(t.clone() for t in tensors_of(mixer.initial_state(1)))
        self.mlp_norm = nn.LayerNorm(config.d_model)
        self.mlp = nn.Sequential(
            nn.Linear(config.d_model, width), nn.ReLU(), nn.Linear(width, config.d_model)
        )
        self.dropout = Dropout(config.dropout)

    def initial_state(self, batch_size: int) -> State:
        """Returns the state before an episode begins."""
        state = self._initial_state(batch_size)
        if self.convolution is None:
            return state
        return self.convolution.initial_state(batch_size), state

    def _initial_state(self, batch_size: int) -> State:
        """Returns the mixer's own part of it."""
        state = self.mixer.initial_state(batch_size)
        if self.start is None:
            return state
        learned = iter(self.start)
        return map_state(lambda zeros: next(learned).expand_as(zeros), state)

    def _mix(self, x: Tensor, state: State, resets: Tensor) -> tuple[Tensor, State]:
        if self.start is None:
            return self.mixer(x, state, resets)

        def run(x: Tensor, state: State) -> tuple[Tensor, State]:
            return self.mixer(x, state, resets.new_zeros(x.shape[:2]))

        return run_pieces(run, self._initial_state, x, state, resets)

    def _mix_step(self, x: Tensor, state: State, resets: Tensor) -> tuple[Tensor, State]:
        if self.start is None:
            return self.mixer.step(x, state, resets)
        state = restart(state, self._initial_state(x.shape[0]), resets)
        return self.mixer.step(x, state, torch.zeros_like(resets))

    def _residual(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + self.dropout(mixed)
        return x + self.dropout(self.mlp(self.mlp_norm(x)))

    def forward(self, x: Tensor, state: State, resets: Tensor) -> tuple[Tensor, State]:
        """Maps x (batch, time, d_model), resets (batch, time) to outputs of x's shape."""
        if self.convolution is None:
            mixed, state = self._mix(self.mixer_norm(x), state, resets)
            return self._residual(x, mixed), state
        window, state = state
        convolved, window = self.convolution(self.mixer_norm(x), window, resets)
        mixed, state = self._mix(convolved, state, resets)
        return self._residual(x, mixed), (window, state)

    def step(self, x: Tensor, state: State, resets: Tensor) -> tuple[Tensor, State]:
        """Maps x (batch, d_model), resets (batch,) to outputs of x's shape."""
        if self.convolution is None:
            mixed, state = self._mix_step(self.mixer_norm(x), state, resets)
            return self._residual(x, mixed), state
        window, state = state
        convolved, window = self.convolution.step(self.mixer_norm(x), window, resets)
        mixed, state = self._mix_step(convolved, state, resets)
        return self._residual(x, mixed), (window, state)


class Backbone(nn.Module):
    """A stack of blocks with a final norm; its state is the tuple of its mixers' states."""

    def __init__(self, mixers: list[Mixer], config: BackboneConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(mixer, config) for mixer in mixers)
        self.norm = nn.LayerNorm(config.d_model)
        self.owner = f"backbone '{config.name}'"
        # Shapes without numbers.
        self.expected = map_state(lambda t: t.detach().to("meta"), self.initial_state(1))

    def _blocks(self) -> Iterator[Block]:
        yield from cast("Iterator[Block]", self.blocks)

    def initial_state(self, batch_size: int) -> State:
        """Returns the state before an episode begins, one entry a block."""
        return tuple(block.initial_state(batch_size) for block in self._blocks())

    def forward(self, x: Tensor, state: State, resets: Tensor) -> tuple[Tensor, State]:
        """Maps a sequence in parallel.

        Args:
            x: (batch, time, d_model).
            state: What the rows remember from before their first step.
            resets: (batch, time) bool; true forgets all that came before in that row.

        Returns:
            The outputs (batch, time, d_model) and the state after the last step.

        Raises:
            ValueError: The state is of another batch size or of another backbone.
        """
        check_state(state, self.expected, x.shape[0], self.owner)
        states = []
        for block, block_state in zip(self._blocks(), state, strict=True):
            x, block_state = block(x, block_state, resets)
            states.append(block_state)
        return self.norm(x), tuple(states)

    def step(self, x: Tensor, state: State, resets: Tensor) -> tuple[Tensor, State]:
        """Maps one step: x (batch, d_model), resets (batch,), in constant time and memory.

        Raises:
            ValueError: The state is of another batch size or of another backbone.
        """
        check_state(state, self.expected, x.shape[0], self.owner)
        states = []
        for block, block_state in zip(self._blocks(), state, strict=True):
            x, block_state = block.step(x, block_state, resets)
            states.append(block_state)
        return self.norm(x), tuple(states)


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Deals parameters out to an optimiser, those apart that weight decay must leave alone.

    Only what a mixer names as such is exempt: Decision Transformer, whose recipe this is, decays
    biases and norms too.

    Returns:
        One group, as an optimiser makes of parameters, or a second one where any is exempt.
    """
    mixers = [module for module in model.modules() if isinstance(module, Mixer)]
    exempt = [mixer.get_parameter(name) for mixer in mixers for name in mixer.undecayed]
    names = {id(parameter) for parameter in exempt}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if id(p) not in names]}
    ]
    return [*groups, {"params": exempt, "weight_decay": 0.0}] if exempt else groups


def zeros_like_weight(weight: Tensor, *shape: int) -> Tensor:
    """Returns zeros on the device and in the dtype of a weight: the usual initial state."""
    return torch.zeros(shape, device=weight.device, dtype=weight.dtype)
