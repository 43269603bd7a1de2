"""What minGRU and minLSTM share: one Linear for all gates, a scan in training, a step in acting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from agents.backbones.mixer import BackboneConfig, Mixer
from agents.scan import FORMS
from common.checks import choice, number


@dataclass
class MinimalConfig(BackboneConfig):
    """The settings of both minimal RNNs.

    Attributes:
        expansion: Channels of the state, in units of d_model; above 1 a Linear leads back to
            d_model.
        scan: The form of the recurrence in training; see agents.scan.
        recompute: Multiplies again in the backward pass instead of keeping the pre-activations:
            less memory, more time.
    """

    expansion: int = number(1, at_least=1, at_most=1024)
    scan: str = choice("auto", FORMS)
    recompute: bool = False


class MinimalRNN(Mixer):
    """A recurrence whose gates see the input alone; the output is its state h_t.

    Args:
        config: The settings.
        biases: Initial bias of each gate.
        layer: The whole sequence, as `agents.scan.layer.min_gru_layer`.
        step: One step of it, as `agents.scan.min_gru_step`.
    """

    def __init__(
        self,
        config: MinimalConfig,
        *,
        biases: tuple[float, ...],
        layer: Callable[..., Tensor],
        step: Callable[..., Tensor],
    ) -> None:
        super().__init__()
        self.options = {"form": config.scan, "recompute": config.recompute}
        self.scan_layer, self.scan_step = layer, step
        self.channels = config.expansion * config.d_model
        # Gates and candidate side by side, the layout that the fused scan reads.
        self.projection = nn.Linear(config.d_model, (len(biases) + 1) * self.channels)
        for gate, bias in zip(self.projection.bias.chunk(len(biases) + 1), biases, strict=False):
            nn.init.constant_(gate, bias)
        self.output = (
            nn.Linear(self.channels, config.d_model) if config.expansion > 1 else nn.Identity()
        )

    def initial_state(self, batch_size: int) -> Tensor:
        """Returns zeros (batch, expansion * d_model)."""
        return self.projection.weight.new_zeros(batch_size, self.channels)

    def forward(self, x: Tensor, state: Tensor, resets: Tensor) -> tuple[Tensor, Tensor]:
        """Maps x (batch, time, d_model) by the parallel scan; see Mixer."""
        weight, bias = self.projection.weight, self.projection.bias
        states = self.scan_layer(x, weight, bias, state, resets, **self.options)
        return self.output(states), states[:, -1]

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Maps x (batch, d_model) by one step of the recurrence."""
        state = self.scan_step(self.projection(x), state)
        return self.output(state), state
