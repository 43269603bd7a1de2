"""A mixer from outside the project, as a user would write it: a leaky integrator.

h_t = a * h_(t-1) + (1 - a) * W x_t, with a learned decay `a` for each channel; the output is h_t.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agents import BackboneConfig, Mixer, register_backbone
from common.checks import number


@dataclass
class LeakyConfig(BackboneConfig):
    """Settings of the leaky integrator.

    Attributes:
        memory: Steps after which a channel has forgotten all but 1/e, at initialisation.
    """

    name: str = "leaky"
    memory: float = number(10.0, at_least=1, at_most=1e6)


class Leaky(Mixer):
    """A leaky integrator, trained step by step: simple, and slow."""

    undecayed = ("decay",)

    def __init__(self, config: LeakyConfig) -> None:
        super().__init__()
        self.input = nn.Linear(config.d_model, config.d_model)
        keeps = torch.full((config.d_model,), 1 - 1 / (config.memory + 1))
        self.decay = nn.Parameter(torch.logit(keeps))

    def initial_state(self, batch_size: int) -> Tensor:
        return self.decay.new_zeros(batch_size, len(self.decay))

    def forward(self, x: Tensor, state: Tensor, resets: Tensor) -> tuple[Tensor, Tensor]:
        outputs = []
        for t in range(x.shape[1]):
            state = torch.where(resets[:, t, None], 0.0, state)
            y, state = self.step(x[:, t], state)
            outputs.append(y)
        return torch.stack(outputs, 1), state

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        keeps = torch.sigmoid(self.decay)
        state = keeps * state + (1 - keeps) * self.input(x)
        return state, state


register_backbone(LeakyConfig, Leaky)
