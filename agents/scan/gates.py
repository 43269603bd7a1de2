"""The gates of minGRU and minLSTM in plain PyTorch.

Feng et al. 2024, "Were RNNs All We Needed?" (arXiv 2410.01201): minGRU is equation block 3.1,
minLSTM block 3.2, their log-space forms appendix B. Gates come first, the candidate last.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def positive(x: Tensor) -> Tensor:
    """Returns g(x) = x + 0.5 for x >= 0 and sigmoid(x) below: the candidate, always positive."""
    return torch.where(x >= 0, x + 0.5, x.sigmoid())


def log_positive(x: Tensor) -> Tensor:
    """Returns log g(x), exact where g is too small for its floating-point type."""
    return torch.where(x >= 0, (x.relu() + 0.5).log(), F.logsigmoid(x))


def gate_and_candidate(preactivations: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Returns the pre-activations of the update gate and of the candidate, (..., channels) each.

    From (..., 2 * channels) they are minGRU's. From (..., 3 * channels), minLSTM's, the gate is
    i' = i / (f + i). That is the sigmoid of log i - log f, so minLSTM is minGRU with this gate.
    """
    if preactivations.shape[-1] == 2 * channels:
        gate, candidate = preactivations.chunk(2, dim=-1)
        return gate, candidate
    forget, enter, candidate = preactivations.chunk(3, dim=-1)
    return F.logsigmoid(enter) - F.logsigmoid(forget), candidate
