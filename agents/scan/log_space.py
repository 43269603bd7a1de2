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

from agents.scan.reference import gate_and_candidate


def minimal_scan(preactivations: Tensor, initial_state: Tensor, resets: Tensor | None) -> Tensor:
    """The form of `agents.scan.minimal_scan` in the paper's appendix B."""
    gate, candidate = gate_and_candidate(preactivations, initial_state.shape[-1])
    if gate.numel() == 0:
        return candidate.clone()
    log_decay = F.logsigmoid(-gate)
    if resets is not None:
        # Just low enough to make the past vanish: a lower one would cost the sums over time digits.
        log_zero = 2 * math.log(torch.finfo(gate.dtype).eps)
        log_decay = log_decay.masked_fill(resets.unsqueeze(-1), log_zero)
    total = log_decay.cumsum(dim=1)
    log_input = F.logsigmoid(gate) + _log_positive(candidate)
    states = (total + torch.logcumsumexp(log_input - total, dim=1)).exp()
    # The initial state may be zero or negative and so has no logarithm.
    return states + total.exp() * initial_state.unsqueeze(1)


def _log_positive(x: Tensor) -> Tensor:
    """Returns log g(x), exact where g is too small for its floating-point type."""
    return torch.where(x >= 0, (x.relu() + 0.5).log(), F.logsigmoid(x))
