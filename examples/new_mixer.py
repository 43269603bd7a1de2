"""A backbone of your own: a leaky integrator, trained with this project's parallel scan.

python train.py backbone.module=examples.new_mixer backbone=leaky_integrator
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agents import BackboneConfig, Mixer, register_backbone
from agents.scan import linear_scan


@dataclass
class LeakyConfig(BackboneConfig):
    name: str = "leaky_integrator"


class Leaky(Mixer):
    def __init__(self, config: LeakyConfig) -> None:
        super().__init__()
        self.input = nn.Linear(config.d_model, config.d_model)
        self.decay = nn.Parameter(torch.full((config.d_model,), 2.0))  # keeps 88 %

    def initial_state(self, batch_size: int) -> Tensor:
        return self.decay.new_zeros(batch_size, len(self.decay))

    def forward(self, x: Tensor, state: Tensor, resets: Tensor) -> tuple[Tensor, Tensor]:
        keep = self.decay.sigmoid().expand_as(x)
        states = linear_scan(keep, (1 - keep) * self.input(x), state, resets)
        return states, states[:, -1]

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        keep = self.decay.sigmoid()
        state = keep * state + (1 - keep) * self.input(x)
        return state, state


register_backbone(LeakyConfig, Leaky)
