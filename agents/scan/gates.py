"""The gates of minGRU and minLSTM in plain PyTorch.

Feng et al. 2024, "Were RNNs All We Needed?" (arXiv:2410.01201): minGRU is equation block 3.1,
minLSTM block 3.2, their log-space forms appendix B. Gates come first, the candidate last.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def positive(x: Tensor) -> Tensor:
    """g(x) = x + 0.5 for x >= 0 and sigmoid(x) below: the candidate, always positive."""
    return torch.where(x >= 0, x + 0.5, x.sigmoid())


def log_positive(x: Tensor) -> Tensor:
    """The logarithm of g(x), exact where g is too small for its floating-point type."""
    return torch.where(x >= 0, (x.relu() + 0.5).log(), F.logsigmoid(x))


def min_gru_gates(preactivations: Tensor) -> tuple[Tensor, Tensor]:
    """(batch, time, 2 * channels) -> the update gate z's pre-activation and the candidate's."""
    gate, candidate = preactivations.chunk(2, dim=-1)
    return gate, candidate


def min_lstm_gates(preactivations: Tensor) -> tuple[Tensor, Tensor]:
    """(batch, time, 3 * channels) -> the pre-activation of i' = i / (f + i) and the candidate's.

    i' is itself a sigmoid, of log i - log f, so that minLSTM is minGRU with this pre-activation.
    """
    forget, enter, candidate = preactivations.chunk(3, dim=-1)
    return F.logsigmoid(enter) - F.logsigmoid(forget), candidate
