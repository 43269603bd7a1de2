"""The recurrences one step at a time: the oracle that every other form is tested against.

Any dtype, any device, differentiable any number of times; slow, as a loop over time is.
"""

import torch
from torch import Tensor

from agents.scan.gates import gate_and_candidate, positive


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
