"""The minGRU mixer (Feng et al., arXiv 2410.01201, section 3.1)."""

from dataclasses import dataclass

from agents.backbones.minimal import MinimalConfig, MinimalRNN
from common.checks import number


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
