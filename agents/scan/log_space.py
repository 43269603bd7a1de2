"""The parallel scan of the paper, in logarithms.

Heinsen 2023 (arXiv:2311.06281); Feng et al. 2024 (arXiv:2410.01201), appendix B.

log h_t = A_t + logcumsumexp(log b_t - A_t) with A = cumsum(log a). Portable: two library calls, no
loop. It never overflows, but A grows with time and float32 keeps only its leading digits: at
100,000 steps the gradients of ordinary inputs are wrong by a third. So it is here for comparison
with the paper and never the default.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from agents.scan.gates import gate_and_candidate, log_positive


def _log_scan(log_decay: Tensor, log_input: Tensor) -> Tensor:
    total = log_decay.cumsum(dim=1)
    return (total + torch.logcumsumexp(log_input - total, dim=1)).exp()


def _with_state(log_decay: Tensor, states: Tensor, initial_state: Tensor) -> Tensor:
    """Adds the decayed initial state, which may be zero or negative and so has no logarithm."""
    return states + log_decay.cumsum(dim=1).exp() * initial_state.unsqueeze(1)


def _reset(log_decay: Tensor, resets: Tensor | None) -> Tensor:
    # The finite stand-in for log 0 is just large enough to make the past vanish: a larger one
    # would cost the sums over time their digits.
    if resets is None:
        return log_decay
    return log_decay.masked_fill(
        resets.unsqueeze(-1), 2 * math.log(torch.finfo(log_decay.dtype).eps)
    )


def linear_scan(
    decay: Tensor, input: Tensor, initial_state: Tensor, resets: Tensor | None
) -> Tensor:
    """The log-space scan behind `agents.scan.linear_scan`.

    Logarithms need positive inputs, so a constant is added to the inputs, and the scan of the
    constant subtracted from the states.

    Raises:
        ValueError: A decay is negative.
    """
    if input.numel() == 0:
        return input.clone()
    if bool((decay < 0).any()):
        raise ValueError(
            f"form 'log_space' takes the logarithm of decay, whose smallest value is "
            f"{decay.min().item():g}; use form 'two_level' or 'reference' for a negative decay."
        )
    log_decay = _reset(decay.clamp(min=torch.finfo(decay.dtype).tiny).log(), resets)
    offset = (2 * input.detach().abs().amax()).clamp(min=torch.finfo(input.dtype).tiny)
    shifted = _log_scan(log_decay, (input + offset).log())
    constant = _log_scan(log_decay, offset.log().expand_as(input))
    return _with_state(log_decay, shifted - constant, initial_state)


def minimal_scan(preactivations: Tensor, initial_state: Tensor, resets: Tensor | None) -> Tensor:
    """The log-space scan behind `agents.scan.minimal_scan`."""
    gate, candidate = gate_and_candidate(preactivations, initial_state.shape[-1])
    if gate.numel() == 0:
        return candidate.clone()
    log_decay = _reset(F.logsigmoid(-gate), resets)
    states = _log_scan(log_decay, F.logsigmoid(gate) + log_positive(candidate))
    return _with_state(log_decay, states, initial_state)
