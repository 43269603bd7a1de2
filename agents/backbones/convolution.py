"""A short causal convolution over time, each channel for itself: trained in parallel, run stepwise.

Mamba has one before its scan (Gu & Dao, arXiv 2312.00752), and any block may have one before its
mixer. What the next steps must still see of the past is a window of size - 1 steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class CausalConvolution(nn.Module):
    """y_t = bias + sum_k weight_k x_{t-k} over the last steps of the episode, those before it zero.

    Initialised as torch.nn.Conv1d with one group a channel, whose parameters it has.

    Args:
        channels: Channels of x and y.
        size: Steps that an output sees, its own included.
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
        """Returns the weight (size, channels), the current step's last."""
        return self.weight.squeeze(1).t()

    def forward(self, x: Tensor, window: Tensor, resets: Tensor) -> tuple[Tensor, Tensor]:
        """Maps a sequence.

        Args:
            x: (batch, time, channels).
            window: The steps before, (batch, size - 1, channels).
            resets: (batch, time) bool; true where an episode begins.

        Returns:
            The outputs in the shape of x, and the next window: zeros before the episode's begin.
        """
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

    def step(self, x: Tensor, window: Tensor, resets: Tensor) -> tuple[Tensor, Tensor]:
        """Maps one step: x (batch, channels), resets (batch,)."""
        window = window.masked_fill(resets.view(-1, 1, 1), 0.0)
        seen = torch.cat([window, x.unsqueeze(1)], dim=1)
        return (seen * self._taps()).sum(1) + self.bias, seen[:, 1:]
