"""The recurrences one step at a time: the oracle that every other form is tested against.

Any dtype, any device, differentiable any number of times; slow, as a loop over time is. The gates
are those of Feng et al. 2024, "Were RNNs All We Needed?" (arXiv 2410.01201): minGRU is equation
block 3.1, minLSTM block 3.2, their log-space forms appendix B.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def positive(x: Tensor) -> Tensor:
    """Returns g(x) = x + 0.5 for x >= 0 and sigmoid(x) below: the candidate, always positive."""
    return torch.where(x >= 0, x + 0.5, x.sigmoid())


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


def minimal_step(preactivations: Tensor, state: Tensor) -> Tensor:
    """Returns h_t from the pre-activations of step t and h_{t-1}."""
    return _step(*gate_and_candidate(preactivations, state.shape[-1]), state)


def linear_scan(
    decay: Tensor, input: Tensor, initial_state: Tensor, resets: Tensor | None
) -> Tensor:
    """The loop of `agents.scan.linear_scan`."""
    states, state = [], initial_state
    for t in range(decay.shape[1]):
        state = decay[:, t] * _previous(state, resets, t) + input[:, t]
        states.append(state)
    return torch.stack(states, dim=1) if states else input.clone()


def minimal_scan(preactivations: Tensor, initial_state: Tensor, resets: Tensor | None) -> Tensor:
    """The loop of `agents.scan.minimal_scan`."""
    gate, candidate = gate_and_candidate(preactivations, initial_state.shape[-1])
    states, state = [], initial_state
    for t in range(gate.shape[1]):
        state = _step(gate[:, t], candidate[:, t], _previous(state, resets, t))
        states.append(state)
    return torch.stack(states, dim=1) if states else candidate.clone()


def _previous(state: Tensor, resets: Tensor | None, t: int) -> Tensor:
    """Returns the state (batch, channels) before step t, with zeros in the rows that reset."""
    return state if resets is None else state.masked_fill(resets[:, t].unsqueeze(-1), 0.0)


def _step(gate: Tensor, candidate: Tensor, state: Tensor) -> Tensor:
    # lerp starts from the nearer end, so that gates of exactly 0 and 1 copy without rounding.
    return torch.lerp(state, positive(candidate), gate.sigmoid())
