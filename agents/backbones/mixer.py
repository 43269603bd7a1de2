"""The contract of a mixer, the layer that mixes over time, and what every mixer's settings have.

All else in a block works on each step by itself, so two backbones differ in their mixer alone: a
new one needs a configuration and the three methods of `Mixer`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from agents.backbones.state import State
from common.checks import check_fields, number
from common.errors import UserError


@dataclass
class BackboneConfig:
    """The settings of every backbone; each mixer's own configuration adds to them.

    Attributes:
        name: The mixer's name in the registry.
        d_model: Channels of the residual stream.
        n_layer: Number of blocks.
        mlp_ratio: Width of the MLP, in units of d_model.
        dropout: Probability of dropping a mixer's or an MLP's output channel in training.
        convolution: Steps that a causal convolution before each mixer sees (where minGRU's paper
            has one: 4); 0 has none.
        learnable_initial_state: Whether the state in which each mixer begins an episode is
            learned. It is initialised to zeros, as it is without this option.
    """

    # Whether the mixer's initial state is "no step seen", with no numbers to learn.
    begins_empty: ClassVar[bool] = False

    name: str = "min_gru"
    d_model: int = number(128, at_least=1, at_most=65_536)
    n_layer: int = number(3, at_least=1, at_most=1000)
    mlp_ratio: int = number(4, at_least=1, at_most=1024)
    dropout: float = number(0.0, at_least=0, below=1)
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


class Mixer(nn.Module):
    """A layer that mixes over time: trained in parallel, run step by step.

    `forward` over a sequence and `step` over its elements, one after the other, give the same
    outputs and the same last state, from any state. A state is a tensor (batch, ...) or a tuple of
    states.

    Attributes:
        undecayed: Names of the parameters that get no weight decay.
    """

    undecayed: tuple[str, ...] = ()

    def initial_state(self, batch_size: int) -> State:
        """Returns the state before an episode begins."""
        raise NotImplementedError

    def forward(self, x: Tensor, state: State, resets: Tensor) -> tuple[Tensor, State]:
        """Maps x (batch, time, d_model) to outputs of the same shape and the last state.

        Where resets (batch, time) is true, the row restarts from the initial state: the state given
        and all earlier steps of the row must not matter.
        """
        raise NotImplementedError

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Maps x (batch, d_model) and the state, which the backbone has reset, to the next."""
        raise NotImplementedError


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Returns an optimizer's parameter groups; parameters in `undecayed` get no weight decay.

    All others are decayed, biases and norms too, as in Decision Transformer's recipe. Where no
    mixer names any, there is one group.
    """
    mixers = [module for module in model.modules() if isinstance(module, Mixer)]
    exempt = [mixer.get_parameter(name) for mixer in mixers for name in mixer.undecayed]
    ids = {id(parameter) for parameter in exempt}
    groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if id(p) not in ids]}]
    return [*groups, {"params": exempt, "weight_decay": 0.0}] if exempt else groups
