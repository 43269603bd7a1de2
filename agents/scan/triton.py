# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False
"""The fused forms for CUDA: one program scans one block of channels of one sequence.

The state stays in registers from step to step, in float32 at least. The backward pass recomputes
gates and candidate, as in the kernels for CPUs. With TRITON_INTERPRET=1 in the environment the same
code runs, slowly, on CPU tensors.
"""

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from agents.scan.operations import operation

# KIND is the number of gates.
LINEAR, MIN_GRU, MIN_LSTM = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_BLOCK = 64  # channels of a program: few, so that even a small batch fills the device


@triton.jit
def _sigmoids(x):
    """Returns sigmoid(x) and sigmoid(-x), neither by subtraction from 1."""
    e = tl.exp(-tl.abs(x))
    larger = 1.0 / (1.0 + e)
    smaller = e * larger
    return tl.where(x >= 0, larger, smaller), tl.where(x >= 0, smaller, larger)


@triton.jit
def _log_sigmoid(x):
    return tl.minimum(x, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def _forward_kernel(
    x_ptr, value_ptr, state_ptr, first_ptr, out_ptr, time, channels,
    KIND: tl.constexpr, RESETS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Scans time forwards: h_t = decay_t h_{t-1} + value_t, or with minGRU's or minLSTM's gates."""
    # This program's row of the batch and its block of channels.
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = c < channels
    h = tl.load(state_ptr + b * channels + c, mask=real, other=0.0).to(WIDE)
    for t in range(time):
        row = b * time + t
        if RESETS:
            h = tl.where(tl.load(first_ptr + row) != 0, tl.zeros_like(h), h)
        if KIND == LINEAR:
            decay = tl.load(x_ptr + row * channels + c, mask=real, other=0.0).to(WIDE)
            value = tl.load(value_ptr + row * channels + c, mask=real, other=0.0).to(WIDE)
            h = decay * h + value
        else:
            # The update gate's pre-activation k; minLSTM's is log i - log f.
            gates = x_ptr + row * (KIND + 1) * channels + c
            k = tl.load(gates, mask=real, other=0.0).to(WIDE)
            if KIND == MIN_LSTM:
                enter = tl.load(gates + channels, mask=real, other=0.0).to(WIDE)
                k = _log_sigmoid(enter) - _log_sigmoid(k)
            # The candidate g.
            x = tl.load(gates + KIND * channels, mask=real, other=0.0).to(WIDE)
            z, keep = _sigmoids(k)
            g = tl.where(x >= 0, x + 0.5, _sigmoids(x)[0])
            # From the nearer end, so that gates of exactly 0 and 1 copy without rounding.
            h = tl.where(k >= 0, g + keep * (h - g), h + z * (g - h))
        tl.store(out_ptr + row * channels + c, h, mask=real)


@triton.jit
def _backward_kernel(
    x_ptr, state_ptr, first_ptr, out_ptr, d_out_ptr, d_x_ptr, d_value_ptr, d_state_ptr,
    time, channels,
    KIND: tl.constexpr, RESETS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Scans time backwards; `carry` is the gradient that step t + 1 passes to h_t."""
    # This program's row of the batch and its block of channels.
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = c < channels
    carry = tl.zeros((BLOCK,), dtype=WIDE)
    initial = tl.load(state_ptr + b * channels + c, mask=real, other=0.0).to(WIDE)
    for i in range(time):
        t = time - 1 - i
        row = b * time + t
        # h_{t-1}: the initial state at t = 0, zero after a reset.
        before = out_ptr + (row - 1) * channels + c
        later = c * 0 + t > 0
        previous = tl.load(before, mask=real & later, other=0.0).to(WIDE)
        previous = tl.where(later, previous, initial)
        if RESETS:
            first = tl.load(first_ptr + row) != 0
            previous = tl.where(first, tl.zeros_like(previous), previous)
        # The whole gradient of h_t.
        total = carry + tl.load(d_out_ptr + row * channels + c, mask=real, other=0.0).to(WIDE)
        if KIND == LINEAR:
            decay = tl.load(x_ptr + row * channels + c, mask=real, other=0.0).to(WIDE)
            tl.store(d_x_ptr + row * channels + c, total * previous, mask=real)
            tl.store(d_value_ptr + row * channels + c, total, mask=real)
            carry = total * decay
        else:
            # Gates and candidate again, as in the forward scan.
            at = row * (KIND + 1) * channels + c
            k = tl.load(x_ptr + at, mask=real, other=0.0).to(WIDE)
            forget = k
            enter = k
            if KIND == MIN_LSTM:
                enter = tl.load(x_ptr + at + channels, mask=real, other=0.0).to(WIDE)
                k = _log_sigmoid(enter) - _log_sigmoid(forget)
            x = tl.load(x_ptr + at + KIND * channels, mask=real, other=0.0).to(WIDE)
            z, keep = _sigmoids(k)
            s, rest = _sigmoids(x)
            g = tl.where(x >= 0, x + 0.5, s)
            # Gradients of the pre-activations, and of h_{t-1}.
            slope = tl.where(x >= 0, tl.full((BLOCK,), 1.0, WIDE), s * rest)
            d_k = total * (g - previous) * (z * keep)
            if KIND == MIN_LSTM:
                tl.store(d_x_ptr + at, -d_k * _sigmoids(forget)[1], mask=real)
                tl.store(d_x_ptr + at + channels, d_k * _sigmoids(enter)[1], mask=real)
            else:
                tl.store(d_x_ptr + at, d_k, mask=real)
            tl.store(d_x_ptr + at + KIND * channels, total * z * slope, mask=real)
            carry = total * keep
        if RESETS:
            carry = tl.where(first, tl.zeros_like(carry), carry)
    tl.store(d_state_ptr + b * channels + c, carry, mask=real)


def _forward(sequences: list[Tensor], state: Tensor, resets: Tensor | None) -> Tensor:
    time = sequences[0].shape[1]
    states = state.new_empty((state.shape[0], time, state.shape[1]))
    before = [sequences[0], sequences[-1], state]
    _launch(_forward_kernel, before, resets, [states], states)
    return states


def _backward(
    sequence: Tensor, state: Tensor, resets: Tensor | None, states: Tensor, grad: Tensor, count: int
) -> list[Tensor]:
    """Returns `count` gradients shaped like `sequence`, and the initial state's."""
    gradients = [sequence.new_empty(sequence.shape) for _ in range(count)]
    d_state = state.new_zeros(state.shape)
    after = [states, grad.contiguous(), gradients[0], gradients[-1], d_state]
    _launch(_backward_kernel, [sequence, state], resets, after, states)
    return [*gradients, d_state]


def _launch(
    kernel: Any, before: list[Tensor], resets: Tensor | None, after: list[Tensor], states: Tensor
) -> None:
    """Calls a kernel with the tensors before and after the resets in its order of arguments."""
    if not states.numel():
        return
    if not states.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"form 'triton' needs CUDA tensors, got {states.device.type}; "
            "move them, or leave form at 'auto'."
        )
    batch, time, channels = states.shape
    before = [tensor.contiguous() for tensor in before]
    # Without resets any pointer will do.
    flags = states if resets is None else resets.contiguous().view(torch.uint8)
    wide = tl.float64 if states.dtype == torch.float64 else tl.float32
    kernel[batch, triton.cdiv(channels, _BLOCK)](
        *before, flags, *after, time, channels,
        KIND=before[0].shape[2] // channels - 1, RESETS=resets is not None, WIDE=wide, BLOCK=_BLOCK,
    )  # fmt: skip


linear_scan = operation("linear_scan_triton", ("decay", "input"), _forward, _backward, None)
minimal_scan = operation("minimal_scan_triton", ("preactivations",), _forward, _backward, None)
