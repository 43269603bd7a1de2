# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False
"""The CPU kernels: serial loops that release the GIL, vectorised over channels by Numba.

Each kernel computes the rows `b0:b1` of the batch and the channels `c0:c1`, so that several threads
can share the same arrays. The previous state is read from the output; nothing else is stored.
`resets` of length 0 means none.

Written for LLVM's vectoriser: the inner loop runs over a contiguous slice, has selects in place of
branches, and calls no library function (`math.exp` would be a scalar call, eight times slower).
"""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

# `contract` allows fused multiply-add, `nsz` ignores the sign of zero. No flag that assumes the
# absence of NaN, because a NaN must stay a NaN. The numpy error model drops the check for division
# by zero, which would prevent vectorisation.
OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract", "nsz"}}
# Sums along a row may be taken in any order, or they would not vectorise.
SUM_OPTIONS = {**OPTIONS, "fastmath": OPTIONS["fastmath"] | {"reassoc"}}


def kernel(*inlined: ModuleType) -> Callable[[Callable[..., Any]], Any]:
    """Returns a decorator: compiles on the first call, and caches the machine code on disk.

    `inlined` are the other modules whose functions the kernel calls: Numba recompiles it when its
    own file changes, but not when theirs do. So a hash of them becomes part of the qualified name,
    by which Numba names the files of its cache.
    """
    sources = b"".join(Path(str(module.__file__)).read_bytes() for module in inlined)

    def compiled(function: Callable[..., Any]) -> Any:
        if inlined:
            function.__qualname__ += "_" + hashlib.sha256(sources).hexdigest()[:8]
        try:
            return njit(nogil=True, cache=True, **OPTIONS)(function)
        except RuntimeError:  # no folder for the cache is writable: compile in each process
            return njit(nogil=True, **OPTIONS)(function)

    return compiled


def exp_nonpositive(x):
    """Returns exp(x) for x <= 0; NaN stays NaN."""
    return math.exp(x)


@overload(exp_nonpositive, jit_options=OPTIONS)
def _exp_nonpositive_overload(x):
    if x != types.float32:
        return lambda x: math.exp(x)
    # Range reduction x = n ln 2 + r with |r| <= ln 2 / 2 and the minimax polynomial of Cephes' expf
    # (S. Moshier, netlib.org/cephes); relative error about 1e-7. Below -87 the result is exactly 0.
    log2e, ln2_high = np.float32(1.44269504), np.float32(0.693359375)
    ln2_low, p0 = np.float32(-2.12194440e-4), np.float32(1.9875691500e-4)
    p1, p2 = np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
    p3, p4 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1)
    p5 = np.float32(5.0000001201e-1)
    lowest, half, one, zero = np.float32(-87.0), np.float32(0.5), np.float32(1.0), np.float32(0.0)

    def exp_nonpositive(x):
        y = lowest if x < lowest else x
        n = np.int32(y * log2e - half)  # truncation rounds to the nearest integer, as y <= 0
        f = np.float32(n)
        r = (y - f * ln2_high) - f * ln2_low
        poly = ((((p0 * r + p1) * r + p2) * r + p3) * r + p4) * r + p5
        power = np.int32((n + np.int32(127)) << np.int32(23)).view(np.float32)  # 2 ** n
        result = (poly * r * r + r + one) * power
        return zero if x < lowest else result

    return exp_nonpositive


@njit(**SUM_OPTIONS)
def dot(x, y):
    """Returns the dot product of two vectors."""
    total = x.dtype.type(0.0)
    for c in range(x.shape[0]):
        total += x[c] * y[c]
    return total


@kernel()
def linear_forward(decay, value, state, resets, out, b0, b1, c0, c1):
    """h_t = decay_t * h_{t-1} + value_t."""
    nothing = np.zeros(c1 - c0, out.dtype)
    for b in range(b0, b1):
        for t in range(out.shape[1]):
            previous = state[b, c0:c1] if t == 0 else out[b, t - 1, c0:c1]
            if resets.shape[0] > 0 and resets[b, t]:
                previous = nothing
            a = decay[b, t, c0:c1]
            v = value[b, t, c0:c1]
            h = out[b, t, c0:c1]
            for c in range(c1 - c0):
                h[c] = a[c] * previous[c] + v[c]


@kernel()
def linear_backward(decay, state, resets, out, d_out, d_decay, d_value, d_state, b0, b1, c0, c1):
    """Gradients of `linear_forward`; `d_state` holds the gradient of h_t from step to step."""
    nothing = np.zeros(c1 - c0, out.dtype)
    for b in range(b0, b1):
        carry = d_state[b, c0:c1]
        carry[:] = nothing
        for t in range(out.shape[1] - 1, -1, -1):
            reset = resets.shape[0] > 0 and resets[b, t]
            previous = state[b, c0:c1] if t == 0 else out[b, t - 1, c0:c1]
            if reset:
                previous = nothing
            a = decay[b, t, c0:c1]
            dh = d_out[b, t, c0:c1]
            da = d_decay[b, t, c0:c1]
            dv = d_value[b, t, c0:c1]
            for c in range(c1 - c0):
                total = dh[c] + carry[c]
                da[c] = total * previous[c]
                dv[c] = total
                carry[c] = total * a[c]
            if reset:
                carry[:] = nothing


@njit(forceinline=True, **OPTIONS)
def _min_gru_gates(k, x, one, half):
    """Returns the larger and the smaller of z and 1 - z, the candidate g and its slope."""
    e = exp_nonpositive(-abs(k))
    u = exp_nonpositive(-abs(x))
    # 1 / d and 1 / q by one division: r q and r d.
    d = one + e
    q = one + u
    r = one / (d * q)
    larger = r * q
    inverse_q = r * d
    g = x + half if x >= 0 else u * inverse_q
    slope = one if x >= 0 else u * inverse_q * inverse_q
    return larger, e * larger, g, slope


@kernel()
def min_gru_forward(preactivations, state, resets, out, b0, b1, c0, c1):
    """h_t = (1 - z_t) h_{t-1} + z_t g_t, computed from the nearer of h_{t-1} and g_t.

    With the smaller of z and 1 - z as weight, gates of exactly 0 and 1 copy without rounding.
    """
    one = out.dtype.type(1.0)
    half = out.dtype.type(0.5)
    channels = out.shape[2]
    nothing = np.zeros(c1 - c0, out.dtype)
    for b in range(b0, b1):
        for t in range(out.shape[1]):
            previous = state[b, c0:c1] if t == 0 else out[b, t - 1, c0:c1]
            if resets.shape[0] > 0 and resets[b, t]:
                previous = nothing
            gate = preactivations[b, t, c0:c1]
            candidate = preactivations[b, t, channels + c0 : channels + c1]
            h = out[b, t, c0:c1]
            for c in range(c1 - c0):
                k = gate[c]
                p = previous[c]
                _, smaller, g, _ = _min_gru_gates(k, candidate[c], one, half)
                near = g if k >= 0 else p
                far = p if k >= 0 else g
                h[c] = near + smaller * (far - near)


@kernel()
def min_gru_backward(
    preactivations, state, resets, out, d_out, d_preactivations, d_state, b0, b1, c0, c1
):
    """Gradients of `min_gru_forward`: one reverse scan that recomputes the gates."""
    one = out.dtype.type(1.0)
    half = out.dtype.type(0.5)
    channels = out.shape[2]
    nothing = np.zeros(c1 - c0, out.dtype)
    for b in range(b0, b1):
        carry = d_state[b, c0:c1]
        carry[:] = nothing
        for t in range(out.shape[1] - 1, -1, -1):
            reset = resets.shape[0] > 0 and resets[b, t]
            previous = state[b, c0:c1] if t == 0 else out[b, t - 1, c0:c1]
            if reset:
                previous = nothing
            gate = preactivations[b, t, c0:c1]
            candidate = preactivations[b, t, channels + c0 : channels + c1]
            dh = d_out[b, t, c0:c1]
            d_gate = d_preactivations[b, t, c0:c1]
            d_candidate = d_preactivations[b, t, channels + c0 : channels + c1]
            for c in range(c1 - c0):
                k = gate[c]
                larger, smaller, g, slope = _min_gru_gates(k, candidate[c], one, half)
                z = larger if k >= 0 else smaller
                keep = smaller if k >= 0 else larger
                # `total` is the whole gradient of h_t; sigmoid'(k) = larger * smaller.
                total = dh[c] + carry[c]
                d_gate[c] = total * (g - previous[c]) * (larger * smaller)
                d_candidate[c] = total * z * slope
                carry[c] = total * keep
            if reset:
                carry[:] = nothing


@njit(forceinline=True, **OPTIONS)
def _min_lstm_gates(kf, ki, x, one, half):
    """Returns parts of f', i' and g: see the comments.

    With m = max(-k_f, -k_i, 0) and u_k = e^-m + e^(-k-m) it is f' = u_i / (u_f + u_i): no exponent
    is positive, so nothing overflows. One of the three exponentials is always 1.
    """
    # The two gates in order: u_low and u_high are the u_k of the lower and of the higher one.
    low = kf if kf <= ki else ki
    high = ki if kf <= ki else kf
    e_low = exp_nonpositive(-abs(low))
    e_high = exp_nonpositive(-high if low >= 0 else low - high)
    u = exp_nonpositive(-abs(x))
    u_low = one + e_low
    u_high = e_high + (one if low >= 0 else e_low)
    # 1 / d and 1 / q by one division: r q and r d.
    d = u_low + u_high
    q = one + u
    r = one / (d * q)
    # The larger share is that of the higher gate.
    larger = u_low * (r * q)
    smaller = u_high * (r * q)
    # The candidate and its slope.
    inverse_q = r * d
    g = x + half if x >= 0 else u * inverse_q
    slope = one if x >= 0 else u * inverse_q * inverse_q
    # 1 - sigmoid(k) = e^(-k-m) / u_k for both gates.
    rest_low = (e_low if low >= 0 else one) / u_low
    rest_high = e_high / (u_high if u_high > 0 else one)  # 0 / 0: both underflow
    return larger, smaller, g, slope, rest_low, rest_high


@kernel()
def min_lstm_forward(preactivations, state, resets, out, b0, b1, c0, c1):
    """h_t = f' h_{t-1} + i' g_t with f' = f / (f + i) and i' = i / (f + i)."""
    one = out.dtype.type(1.0)
    half = out.dtype.type(0.5)
    channels = out.shape[2]
    nothing = np.zeros(c1 - c0, out.dtype)
    for b in range(b0, b1):
        for t in range(out.shape[1]):
            previous = state[b, c0:c1] if t == 0 else out[b, t - 1, c0:c1]
            if resets.shape[0] > 0 and resets[b, t]:
                previous = nothing
            forget = preactivations[b, t, c0:c1]
            enter = preactivations[b, t, channels + c0 : channels + c1]
            candidate = preactivations[b, t, 2 * channels + c0 : 2 * channels + c1]
            h = out[b, t, c0:c1]
            for c in range(c1 - c0):
                kf = forget[c]
                ki = enter[c]
                p = previous[c]
                _, smaller, g, _, _, _ = _min_lstm_gates(kf, ki, candidate[c], one, half)
                near = g if kf <= ki else p
                far = p if kf <= ki else g
                h[c] = near + smaller * (far - near)


@kernel()
def min_lstm_backward(
    preactivations, state, resets, out, d_out, d_preactivations, d_state, b0, b1, c0, c1
):
    """Gradients of `min_lstm_forward`: one reverse scan that recomputes the gates."""
    one = out.dtype.type(1.0)
    half = out.dtype.type(0.5)
    channels = out.shape[2]
    nothing = np.zeros(c1 - c0, out.dtype)
    for b in range(b0, b1):
        carry = d_state[b, c0:c1]
        carry[:] = nothing
        for t in range(out.shape[1] - 1, -1, -1):
            reset = resets.shape[0] > 0 and resets[b, t]
            previous = state[b, c0:c1] if t == 0 else out[b, t - 1, c0:c1]
            if reset:
                previous = nothing
            forget = preactivations[b, t, c0:c1]
            enter = preactivations[b, t, channels + c0 : channels + c1]
            candidate = preactivations[b, t, 2 * channels + c0 : 2 * channels + c1]
            dh = d_out[b, t, c0:c1]
            d_forget = d_preactivations[b, t, c0:c1]
            d_enter = d_preactivations[b, t, channels + c0 : channels + c1]
            d_candidate = d_preactivations[b, t, 2 * channels + c0 : 2 * channels + c1]
            for c in range(c1 - c0):
                kf = forget[c]
                ki = enter[c]
                larger, smaller, g, slope, rest_low, rest_high = _min_lstm_gates(
                    kf, ki, candidate[c], one, half
                )
                f = smaller if kf <= ki else larger
                i = larger if kf <= ki else smaller
                # `total` is the whole gradient of h_t.
                total = dh[c] + carry[c]
                d_share = total * (previous[c] - g) * (smaller * larger)
                d_forget[c] = d_share * (rest_low if kf <= ki else rest_high)
                d_enter[c] = -d_share * (rest_high if kf <= ki else rest_low)
                d_candidate[c] = total * i * slope
                carry[c] = total * f
            if reset:
                carry[:] = nothing


# By the number of pre-activations for each channel.
FORWARD = {1: linear_forward, 2: min_gru_forward, 3: min_lstm_forward}
BACKWARD = {1: linear_backward, 2: min_gru_backward, 3: min_lstm_backward}
