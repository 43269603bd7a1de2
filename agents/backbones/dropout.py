"""Dropout whose masks cost little on a CPU, where PyTorch's own take a fifth of an update."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEVELS = 2**16


class Dropout(nn.Dropout):
    """nn.Dropout that draws 16 random bits an element on CPUs; on other devices nn.Dropout itself.

    PyTorch draws a Bernoulli number for each element, one after the other. Here one draw of its
    generator makes the masks of four elements. The probability is rounded to 1/65,536, and what is
    kept is scaled by that rounded one, so that the mean is exact.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drops elements of a tensor of any shape in training; returns it as it is otherwise."""
        kept = round((1 - self.p) * _LEVELS)
        ours = input.device.type == "cpu" and not torch.compiler.is_compiling()
        if not self.training or not ours or kept in (0, _LEVELS):
            return super().forward(input)
        # From the lowest integer on, for else the sign bit would always be zero.
        draws = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = draws.view(torch.int16)[: input.numel()].view(input.shape)
        mask = (bits < kept - _LEVELS // 2).to(input.dtype)
        return input * mask.mul_(_LEVELS / kept)
