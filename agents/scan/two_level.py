"""The scan in plain PyTorch in about 2 sqrt(time) steps: the form for devices without a kernel.

Time is cut into about sqrt(time) blocks. All blocks are scanned in parallel from a zero state, then
their last states are chained, and the state before each block decays into it. As accurate as the
loop.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from agents.scan.reference import gate_and_candidate, positive


def _scan(decay: Tensor, value: Tensor) -> Tensor:
    """Returns h_t = decay_t * h_{t-1} + value_t from h_{-1} = 0, all (batch, time, channels)."""
    batch, time, channels = value.shape
    length = max(1, math.isqrt(time))
    blocks = -(-time // length)
    padding = (0, 0, 0, blocks * length - time)
    a = F.pad(decay, padding).view(batch, blocks, length, channels)
    h = F.pad(value, padding).view(batch, blocks, length, channels).clone()
    product = a.clone()
    # Each block from a zero state; `product` is the decay from the block's start to step t.
    for t in range(1, length):
        h[:, :, t].addcmul_(a[:, :, t], h[:, :, t - 1])
        product[:, :, t] *= product[:, :, t - 1]
    # The state at the end of each block.
    carries = h[:, :, -1].clone()
    for block in range(1, blocks):
        carries[:, block].addcmul_(product[:, block, -1], carries[:, block - 1])
    h[:, 1:].addcmul_(product[:, 1:], carries[:, :-1].unsqueeze(2))
    return h.view(batch, blocks * length, channels)[:, :time]


class _LinearScan(torch.autograd.Function):
    """The gradient of a scan is the scan backwards in time: g_t = dh_t + decay_{t+1} g_{t+1}."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, value: Tensor) -> Tensor:
        states = _scan(decay, value)
        ctx.save_for_backward(decay, states)
        return states

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        decay, states = ctx.saved_tensors
        later = F.pad(decay[:, 1:], (0, 0, 0, 1))
        d_value = _LinearScan.apply(later.flip(1), grad.flip(1)).flip(1)
        return d_value * F.pad(states[:, :-1], (0, 0, 1, 0)), d_value


def linear_scan(
    decay: Tensor, input: Tensor, initial_state: Tensor, resets: Tensor | None
) -> Tensor:
    """The block form of `agents.scan.linear_scan`."""
    if input.shape[1] == 0:
        return input.clone()
    if resets is not None:
        decay = decay.masked_fill(resets.unsqueeze(-1), 0.0)
    first = torch.addcmul(input[:, 0], decay[:, 0], initial_state)
    states: Tensor = _LinearScan.apply(decay, torch.cat((first.unsqueeze(1), input[:, 1:]), dim=1))
    return states


def minimal_scan(preactivations: Tensor, initial_state: Tensor, resets: Tensor | None) -> Tensor:
    """The block form of `agents.scan.minimal_scan`."""
    gate, candidate = gate_and_candidate(preactivations, initial_state.shape[-1])
    # sigmoid(-x) and not 1 - sigmoid(x), which loses the digits of a small decay.
    decay, weight = (-gate).sigmoid(), gate.sigmoid()
    return linear_scan(decay, weight * positive(candidate), initial_state, resets)
