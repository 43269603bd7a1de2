"""Dropout with cheap masks on CPUs, where PyTorch's own take a fifth of an update."""

import torch
from torch import Tensor, nn

_LEVELS = 2**16


class Dropout(nn.Dropout):
    """nn.Dropout, with 16 random bits for each element on CPUs.

    PyTorch draws one Bernoulli number after the other; here one 64-bit draw of its generator masks
    four elements. The probability is rounded to 1/65,536, and the kept elements are scaled by the
    rounded one, so that the mean is exact.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drops elements of a tensor of any shape in training; the identity otherwise."""
        kept = round((1 - self.p) * _LEVELS)
        ours = input.device.type == "cpu" and not torch.compiler.is_compiling()
        if not self.training or not ours or kept in (0, _LEVELS):
            return super().forward(input)
        # random_ without bounds would never set the sign bit.
        draws = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = draws.view(torch.int16)[: input.numel()].view(input.shape)
        mask = (bits < kept - _LEVELS // 2).to(input.dtype)
        return input * mask.mul_(_LEVELS / kept)
