# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False
"""One step of the GRU and the LSTM beside its matrix product, forwards and backwards, by Numba.

Arrays are time first. `inputs` (time, batch, gates * channels) is what x adds to the gates,
`recurrent` (batch, gates * channels) what the state adds, in PyTorch's order: reset, update, new;
input, forget, cell, output. `before` and `cells` (time + 1, batch, channels) are the states that
each step begins with, after resets. `gates` keeps the gates, and of the GRU the state's part of the
new one, of the LSTM tanh(c).

The kernels that go backwards begin with the gradients of the later steps in `d_state` (batch,
channels) and `d_cell`, and leave in `d_state` what reaches the state before past the product.
"""

import math

from numba import njit

from agents.scan import kernels
from agents.scan.kernels import OPTIONS, exp_nonpositive, kernel


@njit(forceinline=True, **OPTIONS)
def _sigmoid(x, one):
    e = exp_nonpositive(-abs(x))
    return (one if x >= 0 else e) / (one + e)


@njit(forceinline=True, **OPTIONS)
def _tanh(x, one):
    e = exp_nonpositive(-abs(x) - abs(x))
    y = (one - e) / (one + e)
    return math.copysign(y, x)


@njit(forceinline=True, **OPTIONS)
def _parts(row, channels):
    """Returns the three gates of a row as slices: Numba vectorises no sums of indices."""
    return row[:channels], row[channels : 2 * channels], row[2 * channels : 3 * channels]


@kernel(kernels)
def gru_forward(t, inputs, recurrent, resets, gates, before, states):
    """Computes gates[t], states[t] and before[t + 1]."""
    channels = states.shape[2]
    one, zero = states.dtype.type(1.0), states.dtype.type(0.0)
    for b in range(states.shape[1]):
        x, u = inputs[t, b], recurrent[b]
        x_new, u_new = x[2 * channels :], u[2 * channels :]
        reset, update, new = _parts(gates[t, b], channels)
        both, part = gates[t, b, : 2 * channels], gates[t, b, 3 * channels :]
        h, out, later = before[t, b], states[t, b], before[t + 1, b]
        kept = zero if t + 1 < len(states) and resets[b, t + 1] else one
        for c in range(2 * channels):
            both[c] = _sigmoid(x[c] + u[c], one)
        for c in range(channels):
            new[c] = _tanh(x_new[c] + reset[c] * u_new[c], one)
        for c in range(channels):
            part[c] = u_new[c]
            out[c] = new[c] + update[c] * (h[c] - new[c])
            later[c] = kept * out[c]


@kernel(kernels)
def gru_backward(t, gates, before, resets, d_states, d_state, d_inputs, d_recurrent):
    """Computes the gradients of what x and the state add to the gates at step t."""
    channels = d_state.shape[1]
    one, zero = d_state.dtype.type(1.0), d_state.dtype.type(0.0)
    for b in range(len(d_state)):
        reset, update, new = _parts(gates[t, b], channels)
        d_reset, d_update, d_new = _parts(d_inputs[t, b], channels)
        u_reset, u_update, u_new = _parts(d_recurrent[t, b], channels)
        part, h = gates[t, b, 3 * channels :], before[t, b]
        d_out, total = d_states[t, b], d_state[b]
        kept = zero if t + 1 < len(d_states) and resets[b, t + 1] else one
        for c in range(channels):
            total[c] = d_out[c] + kept * total[c]
            d_new[c] = total[c] * (one - update[c]) * (one - new[c] * new[c])
        for c in range(channels):
            d_update[c] = total[c] * (h[c] - new[c]) * update[c] * (one - update[c])
            total[c] = total[c] * update[c]
        for c in range(channels):
            d_reset[c] = d_new[c] * part[c] * reset[c] * (one - reset[c])
            u_reset[c], u_update[c], u_new[c] = d_reset[c], d_update[c], d_new[c] * reset[c]


@kernel(kernels)
def lstm_forward(t, inputs, recurrent, resets, gates, before, states, cells):
    """Computes gates[t], states[t], before[t + 1] and cells[t + 1]."""
    channels = states.shape[2]
    one, zero = states.dtype.type(1.0), states.dtype.type(0.0)
    for b in range(states.shape[1]):
        x, u, all_gates = inputs[t, b], recurrent[b], gates[t, b]
        enter, forget, new = _parts(all_gates, channels)
        both, leave = all_gates[: 2 * channels], all_gates[3 * channels : 4 * channels]
        x_new, x_leave = x[2 * channels : 3 * channels], x[3 * channels :]
        u_new, u_leave = u[2 * channels : 3 * channels], u[3 * channels :]
        squashed, c_before, c_after = all_gates[4 * channels :], cells[t, b], cells[t + 1, b]
        out, later = states[t, b], before[t + 1, b]
        kept = zero if t + 1 < len(states) and resets[b, t + 1] else one
        for c in range(2 * channels):
            both[c] = _sigmoid(x[c] + u[c], one)
        for c in range(channels):
            new[c] = _tanh(x_new[c] + u_new[c], one)
        for c in range(channels):
            leave[c] = _sigmoid(x_leave[c] + u_leave[c], one)
        for c in range(channels):
            c_after[c] = forget[c] * c_before[c] + enter[c] * new[c]
        for c in range(channels):
            squashed[c] = _tanh(c_after[c], one)
            out[c] = leave[c] * squashed[c]
        for c in range(channels):
            later[c] = kept * out[c]
            c_after[c] = kept * c_after[c]


@kernel(kernels)
def lstm_backward(t, gates, cells, resets, d_states, d_state, d_cell, d_gates):
    """Computes the gradients of the gates at step t."""
    channels = d_state.shape[1]
    one, zero = d_state.dtype.type(1.0), d_state.dtype.type(0.0)
    for b in range(len(d_state)):
        enter, forget, new = _parts(gates[t, b], channels)
        leave = gates[t, b, 3 * channels : 4 * channels]
        squashed, c_before = gates[t, b, 4 * channels :], cells[t, b]
        d_enter, d_forget, d_new = _parts(d_gates[t, b], channels)
        d_leave, d_out = d_gates[t, b, 3 * channels :], d_states[t, b]
        total, total_cell = d_state[b], d_cell[b]
        kept = zero if t + 1 < len(d_states) and resets[b, t + 1] else one
        for c in range(channels):
            state = d_out[c] + kept * total[c]
            cell = kept * total_cell[c] + state * leave[c] * (one - squashed[c] * squashed[c])
            d_leave[c] = state * squashed[c] * leave[c] * (one - leave[c])
            total[c], total_cell[c] = zero, cell
        for c in range(channels):
            cell = total_cell[c]
            d_enter[c] = cell * new[c] * enter[c] * (one - enter[c])
            d_new[c] = cell * enter[c] * (one - new[c] * new[c])
        for c in range(channels):
            d_forget[c] = total_cell[c] * c_before[c] * forget[c] * (one - forget[c])
            total_cell[c] = total_cell[c] * forget[c]
