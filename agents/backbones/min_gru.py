"""The minGRU mixer (Feng et al., arXiv 2410.01201, section 3.1), and minLSTM's base."""

from dataclasses import dataclass

from torch import Tensor, nn

from agents.backbones.mixer import BackboneConfig, Mixer
from agents.scan import FORMS, minimal_step
from agents.scan.layer import minimal_layer
from common.checks import choice, number


@dataclass
class MinimalConfig(BackboneConfig):
    """The settings of both minimal RNNs.

    Attributes:
        expansion: Channels of the state, in units of d_model; above 1 a Linear maps them back to
            d_model.
        scan: The form of the recurrence in training; see agents.scan.
        recompute: Whether the backward pass multiplies again instead of keeping the
            pre-activations: less memory, more time.
    """

    expansion: int = number(1, at_least=1, at_most=1024)
    scan: str = choice("auto", FORMS)
    recompute: bool = False


class MinimalRNN(Mixer):
    """A recurrence whose gates depend on the input alone; the output is the state h_t.

    `gate_biases` has the initial bias of each gate: one for minGRU, two for minLSTM.
    """

    def __init__(self, config: MinimalConfig, *, gate_biases: tuple[float, ...]) -> None:
        super().__init__()
        self.form, self.recompute = config.scan, config.recompute
        self.channels = config.expansion * config.d_model
        # The gates, then the candidate: the layout that the scan reads.
        parts = len(gate_biases) + 1
        self.projection = nn.Linear(config.d_model, parts * self.channels)
        for gate, bias in zip(self.projection.bias.chunk(parts), gate_biases, strict=False):
            nn.init.constant_(gate, bias)
        self.output = (
            nn.Linear(self.channels, config.d_model) if config.expansion > 1 else nn.Identity()
        )

    def initial_state(self, batch_size: int) -> Tensor:
        """Returns zeros (batch, expansion * d_model)."""
        return self.projection.weight.new_zeros(batch_size, self.channels)

    def forward(self, x: Tensor, state: Tensor, resets: Tensor) -> tuple[Tensor, Tensor]:
        """Maps x (batch, time, d_model) by the parallel scan."""
        weight, bias = self.projection.weight, self.projection.bias
        states = minimal_layer(
            x, weight, bias, state, resets, form=self.form, recompute=self.recompute
        )
        return self.output(states), states[:, -1]

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Maps x (batch, d_model) by one step of the recurrence."""
        state = minimal_step(self.projection(x), state)
        return self.output(state), state


@dataclass
class MinGRUConfig(MinimalConfig):
    """minGRU's own settings.

    Attributes:
        gate_bias: Initial bias of the update gate z. An untrained layer keeps sigmoid(-gate_bias)
            of its state at each step: 88 % by default, half at 0 (benchmarks/FINDINGS.md).
    """

    name: str = "min_gru"
    gate_bias: float = number(-2.0, at_least=-100, at_most=100)


class MinGRU(MinimalRNN):
    """h_t = (1 - z_t) h_{t-1} + z_t g(W_h x_t), z_t = sigmoid(W_z x_t)."""

    def __init__(self, config: MinGRUConfig) -> None:
        super().__init__(config, gate_biases=(config.gate_bias,))
