# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False
"""The fused forms for CUDA: one program scans one block of channels of one sequence.

The state stays in registers from step to step, in float32 at least; gates and candidate are
computed on the way, and again on the way back, as in the kernels for CPUs. With TRITON_INTERPRET=1
in the environment the same code runs, slowly, on CPU tensors.
"""

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from agents.scan.operations import register

LINEAR, MIN_GRU, MIN_LSTM = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_BLOCK = 64  # channels of a program: few, so that a batch of a few sequences fills the device


@triton.jit
def _sigmoids(x):
    """sigmoid(x) and sigmoid(-x), neither by subtraction from 1."""
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
            gates = x_ptr + row * (KIND + 1) * channels + c
            k = tl.load(gates, mask=real, other=0.0).to(WIDE)
            if KIND == MIN_LSTM:
                enter = tl.load(gates + channels, mask=real, other=0.0).to(WIDE)
                k = _log_sigmoid(enter) - _log_sigmoid(k)
            x = tl.load(gates + KIND * channels, mask=real, other=0.0).to(WIDE)
            z, keep = _sigmoids(k)
            g = tl.where(x >= 0, x + 0.5, _sigmoids(x)[0])
            # from the nearer end, so that gates of exactly 0 and 1 copy without rounding
            h = tl.where(k >= 0, g + keep * (h - g), h + z * (g - h))
        tl.store(out_ptr + row * channels + c, h, mask=real)


@triton.jit
def _backward_kernel(
    x_ptr, state_ptr, first_ptr, out_ptr, d_out_ptr, d_x_ptr, d_value_ptr, d_state_ptr,
    time, channels,
    KIND: tl.constexpr, RESETS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = c < channels
    carry = tl.zeros((BLOCK,), dtype=WIDE)
    initial = tl.load(state_ptr + b * channels + c, mask=real, other=0.0).to(WIDE)
    for i in range(time):
        t = time - 1 - i
        row = b * time + t
        before = out_ptr + (row - 1) * channels + c
        later = c * 0 + t > 0
        previous = tl.load(before, mask=real & later, other=0.0).to(WIDE)
        previous = tl.where(later, previous, initial)
        if RESETS:
            first = tl.load(first_ptr + row) != 0
            previous = tl.where(first, tl.zeros_like(previous), previous)
        total = carry + tl.load(d_out_ptr + row * channels + c, mask=real, other=0.0).to(WIDE)
        if KIND == LINEAR:
            decay = tl.load(x_ptr + row * channels + c, mask=real, other=0.0).to(WIDE)
            tl.store(d_x_ptr + row * channels + c, total * previous, mask=real)
            tl.store(d_value_ptr + row * channels + c, total, mask=real)
            carry = total * decay
        else:
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


def _launch(kernel: Any, kind: Any, state: Tensor, resets: Tensor | None, args: Any) -> None:
    """``args``: the tensors before and after the resets in the kernel's order, and the time."""
    if not state.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"form 'triton' needs CUDA tensors, got {state.device.type}; "
            "move them, or leave form at 'auto'."
        )
    before, after, time = args
    batch, channels = state.shape
    flags = state if resets is None else resets.contiguous().view(torch.uint8)
    wide = tl.float64 if state.dtype == torch.float64 else tl.float32
    grid = (batch, triton.cdiv(channels, _BLOCK))
    kernel[grid](
        *before, flags, *after, time, channels,
        KIND=kind, RESETS=resets is not None, WIDE=wide, BLOCK=_BLOCK,
    )  # fmt: skip


def _forward(kind: Any, sequences: list[Tensor], state: Tensor, resets: Tensor | None) -> Tensor:
    time = sequences[0].shape[1]
    states = state.new_empty((state.shape[0], time, state.shape[1]))
    if states.numel():
        first, last, start = (x.contiguous() for x in (sequences[0], sequences[-1], state))
        _launch(_forward_kernel, kind, state, resets, ((first, last, start), (states,), time))
    return states


def _backward(
    kind: Any,
    sequence: Tensor,
    state: Tensor,
    resets: Tensor | None,
    states: Tensor,
    grad: Tensor,
    count: int = 1,
) -> tuple[Tensor, ...]:
    gradients = [sequence.new_empty(sequence.shape) for _ in range(count)]
    d_state = state.new_zeros(state.shape)
    if states.numel():
        before = (sequence.contiguous(), state.contiguous())
        after = (states, grad.contiguous(), gradients[0], gradients[-1], d_state)
        _launch(_backward_kernel, kind, state, resets, (before, after, states.shape[1]))
    return (*gradients, d_state)


@torch.library.custom_op("decision_minrnn::linear_scan_triton", mutates_args=())
def linear_scan(
    decay: Tensor, input: Tensor, initial_state: Tensor, resets: Tensor | None
) -> Tensor:
    """The fused operation behind `agents.scan.linear_scan`."""
    return _forward(LINEAR, [decay, input], initial_state, resets)


@torch.library.custom_op("decision_minrnn::linear_scan_triton_backward", mutates_args=())
def _linear_scan_backward(
    decay: Tensor, initial_state: Tensor, resets: Tensor | None, states: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    d_decay, d_input, d_state = _backward(
        LINEAR, decay, initial_state, resets, states, grad, count=2
    )
    return d_decay, d_input, d_state


@torch.library.custom_op("decision_minrnn::min_gru_scan_triton", mutates_args=())
def min_gru_scan(preactivations: Tensor, initial_state: Tensor, resets: Tensor | None) -> Tensor:
    """The fused operation behind `agents.scan.min_gru_scan`."""
    return _forward(MIN_GRU, [preactivations], initial_state, resets)


@torch.library.custom_op("decision_minrnn::min_gru_scan_triton_backward", mutates_args=())
def _min_gru_scan_backward(
    preactivations: Tensor,
    initial_state: Tensor,
    resets: Tensor | None,
    states: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor]:
    gradient, d_state = _backward(MIN_GRU, preactivations, initial_state, resets, states, grad)
    return gradient, d_state


@torch.library.custom_op("decision_minrnn::min_lstm_scan_triton", mutates_args=())
def min_lstm_scan(preactivations: Tensor, initial_state: Tensor, resets: Tensor | None) -> Tensor:
    """The fused operation behind `agents.scan.min_lstm_scan`."""
    return _forward(MIN_LSTM, [preactivations], initial_state, resets)


@torch.library.custom_op("decision_minrnn::min_lstm_scan_triton_backward", mutates_args=())
def _min_lstm_scan_backward(
    preactivations: Tensor,
    initial_state: Tensor,
    resets: Tensor | None,
    states: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor]:
    gradient, d_state = _backward(MIN_LSTM, preactivations, initial_state, resets, states, grad)
    return gradient, d_state


register(linear_scan, _linear_scan_backward, 2)
register(min_gru_scan, _min_gru_scan_backward, 1)
register(min_lstm_scan, _min_lstm_scan_backward, 1)
