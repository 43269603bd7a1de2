"""A short causal depthwise convolution over time: trained in parallel, run step by step.

Mamba has one before its scan (Gu & Dao, arXiv 2312.00752), and any block may have one before its
mixer. Its state is the window of the last size - 1 inputs.
"""

import math

import torch
from torch import Tensor, nn


class CausalConvolution(nn.Module):
    """y_t = bias + sum_k weight_k x_{t-k}, with zeros for the steps before the episode.

    An output sees `size` steps, its own included. Parameters and their initialisation are those of
    torch.nn.Conv1d with one group per channel.
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(size)
        self.weight = nn.Parameter(torch.empty(channels, 1, size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))

    def initial_state(self, batch_size: int) -> Tensor:
        """Returns a window of zeros, (batch, size - 1, channels)."""
        channels, _, size = self.weight.shape
        return self.weight.new_zeros(batch_size, size - 1, channels)

    def _taps(self) -> Tensor:
        """Returns the weight (size, channels), in the order of time: the current step is last."""
        return self.weight.squeeze(1).t()

    def forward(self, x: Tensor, window: Tensor, resets: Tensor) -> tuple[Tensor, Tensor]:
        """Maps x (batch, time, channels); the next window is zero before the last reset."""
        time, reach = x.shape[1], window.shape[1]
        steps = torch.arange(-reach, time, device=x.device)
        begin = torch.where(resets, steps[reach:], -reach).cummax(dim=1).values
        weight = self._taps()
        padded = torch.cat([window, x], dim=1)
        y = self.bias + x * weight[-1]
        for lag in range(1, reach + 1):
            same_episode = steps[reach - lag : time + reach - lag] >= begin
            earlier = padded[:, reach - lag : time + reach - lag]
            y = y + earlier * same_episode.unsqueeze(-1) * weight[-1 - lag]
        kept = steps[time:] >= begin[:, -1:]
        return y, padded[:, time:] * kept.unsqueeze(-1)

    def step(self, x: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
        """Maps one step, x (batch, channels)."""
        seen = torch.cat([window, x.unsqueeze(1)], dim=1)
        return (seen * self._taps()).sum(1) + self.bias, seen[:, 1:]
