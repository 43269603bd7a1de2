"""The recurrences one step at a time: the oracle that every other form is tested against.

Any dtype, any device, differentiable any number of times; as slow as a loop over time is.
"""

import torch
from torch import Tensor

from agents.scan.gates import min_gru_gates, min_lstm_gates, positive


def _previous(state: Tensor, resets: Tensor | None) -> Tensor:
    """(batch, channels) -> the same with zeros, whatever stood there, where an episode begins."""
    return state if resets is None else state.masked_fill(resets.unsqueeze(-1), 0.0)


def _step(gate: Tensor, candidate: Tensor, state: Tensor, resets: Tensor | None) -> Tensor:
    # lerp starts from the nearer end, so that gates of exactly 0 and 1 copy without rounding
    return torch.lerp(_previous(state, resets), positive(candidate), gate.sigmoid())


def min_gru_step(preactivations: Tensor, state: Tensor, resets: Tensor | None = None) -> Tensor:
    """One step of minGRU, (batch, 2 * channels) and (batch, channels) -> (batch, channels)."""
    return _step(*min_gru_gates(preactivations), state, resets)


def min_lstm_step(preactivations: Tensor, state: Tensor, resets: Tensor | None = None) -> Tensor:
    """One step of minLSTM, (batch, 3 * channels) and (batch, channels) -> (batch, channels)."""
    return _step(*min_lstm_gates(preactivations), state, resets)


def linear_scan(
    decay: Tensor, input: Tensor, initial_state: Tensor, resets: Tensor | None
) -> Tensor:
    """The loop behind `agents.scan.linear_scan`."""
    states, state = [], initial_state
    for t in range(decay.shape[1]):
        previous = _previous(state, None if resets is None else resets[:, t])
        state = decay[:, t] * previous + input[:, t]
        states.append(state)
    return torch.stack(states, dim=1) if states else input.clone()


def min_gru_scan(preactivations: Tensor, initial_state: Tensor, resets: Tensor | None) -> Tensor:
    """The loop behind `agents.scan.min_gru_scan`."""
    return _scan(*min_gru_gates(preactivations), initial_state, resets)


def min_lstm_scan(preactivations: Tensor, initial_state: Tensor, resets: Tensor | None) -> Tensor:
    """The loop behind `agents.scan.min_lstm_scan`."""
    return _scan(*min_lstm_gates(preactivations), initial_state, resets)


def _scan(gate: Tensor, candidate: Tensor, state: Tensor, resets: Tensor | None) -> Tensor:
    states = []
    for t in range(gate.shape[1]):
        first = None if resets is None else resets[:, t]
        state = _step(gate[:, t], candidate[:, t], state, first)
        states.append(state)
    return torch.stack(states, dim=1) if states else candidate.clone()
