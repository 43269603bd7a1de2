"""The minGRU mixer (Feng et al., arXiv 2410.01201, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from agents.backbones.state import check_state
from agents.block import BackboneConfig, Mixer, zeros_like_weight
from agents.scan import min_gru_step
from agents.scan.layer import min_gru_layer


@dataclass
class MinGRUConfig(BackboneConfig):
    """minGRU's own settings.

    Attributes:
        gate_bias: Initial bias of the update gate z. Above 0 the state starts out forgetting
            faster: 0 halves it at every step, 2 keeps 12 %.
        expansion: Channels of the state, in units of d_model; above 1 a Linear leads back to
            d_model.
        scan: The form of the recurrence in training; see agents.scan.
        recompute: Multiplies again in the backward pass instead of keeping the pre-activations:
            less memory, more time.
    """

    name: str = "min_gru"
    gate_bias: float = 0.0
    expansion: int = 1
    scan: str = "auto"
    recompute: bool = False

    def __post_init__(self) -> None:
        if self.expansion < 1:
            raise ValueError(f"backbone.expansion is {self.expansion}; it must be at least 1.")


class MinGRU(Mixer):
    """h_t = (1 - z_t) h_{t-1} + z_t g(W_h x_t), z_t = sigmoid(W_z x_t); the output is h_t."""

    def __init__(self, config: MinGRUConfig) -> None:
        super().__init__()
        self.scan = config.scan
        self.recompute = config.recompute
        self.channels = config.expansion * config.d_model
        # Gate and candidate side by side, the layout that the fused scan reads.
        self.projection = nn.Linear(config.d_model, 2 * self.channels)
        nn.init.constant_(self.projection.bias[: self.channels], config.gate_bias)
        self.output = (
            nn.Linear(self.channels, config.d_model) if config.expansion > 1 else nn.Identity()
        )

    def initial_state(self, batch_size: int) -> Tensor:
        """Returns zeros (batch, expansion * d_model)."""
        return zeros_like_weight(self.projection.weight, batch_size, self.channels)

    def forward(self, x: Tensor, state: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
        """Maps x (batch, time, d_model) by the parallel scan; see Mixer."""
        check_state("min_gru", state, (x.shape[0], self.channels))
        weight, bias = self.projection.weight, self.projection.bias
        states = min_gru_layer(
            x, weight, bias, state, is_first, form=self.scan, recompute=self.recompute
        )
        return self.output(states), states[:, -1]

    def step(self, x: Tensor, state: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
        """Maps x (batch, d_model) by one step of the recurrence; see Mixer."""
        check_state("min_gru", state, (x.shape[0], self.channels))
        state = min_gru_step(self.projection(x), state, is_first)
        return self.output(state), state
