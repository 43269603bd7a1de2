"""The minGRU mixer (Feng et al., arXiv 2410.01201, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

from agents.backbones.minimal import MinimalConfig, MinimalRNN
from agents.scan import min_gru_step
from agents.scan.layer import min_gru_layer
from common.checks import number


@dataclass
class MinGRUConfig(MinimalConfig):
    """minGRU's own settings.

    Attributes:
        gate_bias: Initial bias of the update gate z: at first sigmoid(-gate_bias) of the state is
            kept at every step, 88 % by default; 0 would halve it (benchmarks/FINDINGS.md).
    """

    name: str = "min_gru"
    gate_bias: float = number(-2.0, at_least=-100, at_most=100)


class MinGRU(MinimalRNN):
    """h_t = (1 - z_t) h_{t-1} + z_t g(W_h x_t), z_t = sigmoid(W_z x_t)."""

    def __init__(self, config: MinGRUConfig) -> None:
        super().__init__(config, biases=(config.gate_bias,), layer=min_gru_layer, step=min_gru_step)
