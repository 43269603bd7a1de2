# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False
"""Mamba's selective scan on CPUs: only the states of the current step exist, in the cache.

As in `kernels.py`, but threads share the rows alone, because the gradients of B and C are sums over
the channels: `c0` and `c1` are ignored. The backward pass recomputes the states stretch by stretch
of time, from the state before each stretch.
"""

import numpy as np
from numba import njit

from agents.scan import kernels
from agents.scan.kernels import OPTIONS, dot, exp_nonpositive, kernel

STRETCH = 16  # steps whose states the backward pass keeps at once: 16 x 4096 numbers, twice


@njit(**OPTIONS)
def _advance(dt, dt_x, b, a, before, decay, after):
    """Computes after = decay before + b dt_x with decay = exp(dt a), over the channels."""
    for c in range(dt.shape[0]):
        decay[c] = exp_nonpositive(dt[c] * a[c])
        after[c] = decay[c] * before[c] + b * dt_x[c]


@njit(**OPTIONS)
def _advance_in_place(dt, dt_x, b, a, c, state, y):
    """Computes the same in place, and adds c * state to y."""
    for i in range(dt.shape[0]):
        now = exp_nonpositive(dt[i] * a[i]) * state[i] + b * dt_x[i]
        state[i] = now
        y[i] += c * now


@njit(**OPTIONS)
def _add_multiple(factor, x, y):
    """Adds factor * x to y."""
    for c in range(x.shape[0]):
        y[c] += factor * x[c]


@njit(**OPTIONS)
def _decay_gradients(carry, before, decay, a, dt, d_dt, d_a):
    """Adds the gradients of a step's decay; `carry` becomes the gradient of the state before."""
    for c in range(carry.shape[0]):
        carry[c] *= decay[c]
        through = carry[c] * before[c]
        d_dt[c] += through * a[c]
        d_a[c] += through * dt[c]


@kernel(kernels)
def selective_forward(dt, dt_x, b, c, a, resets, h, befores, y, b0, b1, c0, c1):
    """y_t = C_t h_t with h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t; h is overwritten.

    `befores` (batch, stretches, d_state, inner) receives the state before each stretch.
    """
    d_state, inner = a.shape
    for row in range(b0, b1):
        for t in range(y.shape[1]):
            reset = resets.shape[0] > 0 and resets[row, t]
            for channel in range(inner):
                y[row, t, channel] = y.dtype.type(0.0)
            for n in range(d_state):
                state = h[row, n]
                if t % STRETCH == 0:
                    befores[row, t // STRETCH, n, :] = state
                if reset:
                    state[:] = y.dtype.type(0.0)
                _advance_in_place(
                    dt[row, t], dt_x[row, t], b[row, t, n], a[n], c[row, t, n], state, y[row, t]
                )


@kernel(kernels)
def selective_backward(
    dt, dt_x, b, c, a, resets, befores, d_y, d_dt, d_dt_x, d_b, d_c, d_a, d_h, b0, b1, c0, c1
):
    """Gradients of `selective_forward`.

    `d_a` (batch, d_state, inner), of each row, `d_dt` and `d_dt_x` must be zeros on entry. `d_h` is
    the gradient of the last state on entry and of the first state on return.
    """
    d_state, inner = a.shape
    steps = d_y.shape[1]
    zero = d_y.dtype.type(0.0)
    states = np.empty((STRETCH + 1, d_state, inner), d_y.dtype)
    decays = np.empty((STRETCH, d_state, inner), d_y.dtype)
    nothing = np.zeros(inner, d_y.dtype)
    for row in range(b0, b1):
        for stretch in range(befores.shape[1] - 1, -1, -1):
            begin = stretch * STRETCH
            length = min(STRETCH, steps - begin)
            # The states and decays of the stretch again.
            states[0] = befores[row, stretch]
            for s in range(length):
                t = begin + s
                reset = resets.shape[0] > 0 and resets[row, t]
                for n in range(d_state):
                    before = nothing if reset else states[s, n]
                    _advance(
                        dt[row, t], dt_x[row, t], b[row, t, n], a[n],
                        before, decays[s, n], states[s + 1, n],
                    )  # fmt: skip
            # The gradients, backwards in time.
            for s in range(length - 1, -1, -1):
                t = begin + s
                reset = resets.shape[0] > 0 and resets[row, t]
                for n in range(d_state):
                    carry = d_h[row, n]
                    _add_multiple(c[row, t, n], d_y[row, t], carry)
                    d_c[row, t, n] = dot(d_y[row, t], states[s + 1, n])
                    d_b[row, t, n] = dot(carry, dt_x[row, t])
                    _add_multiple(b[row, t, n], carry, d_dt_x[row, t])
                    if reset:
                        carry[:] = zero
                    else:
                        _decay_gradients(
                            carry, states[s, n], decays[s, n], a[n],
                            dt[row, t], d_dt[row, t], d_a[row, n],
                        )  # fmt: skip
