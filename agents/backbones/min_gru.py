"""The minGRU mixer (Feng et al., arXiv 2410.01201, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from agents.block import BackboneConfig, Mixer, zeros_like_weight
from agents.scan import min_gru_step
from agents.scan.layer import min_gru_layer


@dataclass
class MinGRUConfig(BackboneConfig):
    """minGRU's own settings.

    Attributes:
        gate_bias: Initial bias of the update gate z. Above 0 the state starts out forgetting
            faster: 0 halves it at every step, 2 keeps 12 %.
        scan: The form of the recurrence in training; see agents.scan.
        recompute: Multiplies again in the backward pass instead of keeping the pre-activations:
            less memory, more time.
    """

    name: str = "min_gru"
    gate_bias: float = 0.0
    scan: str = "auto"
    recompute: bool = False


class MinGRU(Mixer):
    """h_t = (1 - z_t) h_{t-1} + z_t g(W_h x_t), z_t = sigmoid(W_z x_t); the output is h_t."""

    def __init__(self, config: MinGRUConfig) -> None:
        super().__init__()
        self.scan = config.scan
        self.recompute = config.recompute
        # Gate and candidate side by side, the layout that the fused scan reads.
        self.projection = nn.Linear(config.d_model, 2 * config.d_model)
        nn.init.constant_(self.projection.bias[: config.d_model], config.gate_bias)

    def initial_state(self, batch_size: int) -> Tensor:
        """Returns zeros (batch, d_model)."""
        return zeros_like_weight(self.projection.weight, batch_size, self.projection.in_features)

    def forward(self, x: Tensor, state: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
        """Maps x (batch, time, d_model) by the parallel scan; see Mixer."""
        weight, bias = self.projection.weight, self.projection.bias
        states = min_gru_layer(
            x, weight, bias, state, is_first, form=self.scan, recompute=self.recompute
        )
        return states, states[:, -1]

    def step(self, x: Tensor, state: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
        """Maps x (batch, d_model) by one step of the recurrence; see Mixer."""
        state = min_gru_step(self.projection(x), state, is_first)
        return state, state
