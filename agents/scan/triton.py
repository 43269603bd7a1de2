# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False
"""The fused forms for CUDA: one program scans one block of channels of one piece of a sequence.

The state stays in registers from step to step, in float32 at least. The backward pass recomputes
gates and candidate, as in the kernels for CPUs. With TRITON_INTERPRET=1 in the environment the same
code runs, slowly, on CPU tensors.

Where a batch has too few rows and channels to fill the device, long sequences are cut into pieces,
which are scanned in parallel twice: once from zero, for the last state and the product of the
decays of each; then, these chained, from the state before the piece.
"""

import os
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from agents.scan.operations import operation

# KIND is the number of gates.
LINEAR, MIN_GRU, MIN_LSTM = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_BLOCK = 64  # channels of a program: few, so that even a small batch fills the device
# A sequence is cut while there are fewer programs than this, into pieces no shorter than that, and
# only if there are so many of them that scanning twice pays.
_PROGRAMS, _SHORTEST, _FEWEST = 512, 256, 8


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
    x_ptr, value_ptr, state_ptr, first_ptr, out_ptr, product_ptr, time, length, channels,
    KIND: tl.constexpr, RESETS: tl.constexpr, ENDS: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Scans time forwards: h_t = decay_t h_{t-1} + value_t, or with minGRU's or minLSTM's gates.

    With ENDS only the last state of the piece and the product of its decays are stored.
    """
    # This program's row of the batch, its block of channels and its piece of time.
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = c < channels
    start = tl.program_id(2) * length
    of_piece = (b * tl.num_programs(2) + tl.program_id(2)) * channels + c
    h = tl.load(state_ptr + of_piece, mask=real, other=0.0).to(WIDE)
    product = tl.full((BLOCK,), 1.0, WIDE)
    for t in range(start, tl.minimum(start + length, time)):
        row = b * time + t
        if RESETS:
            h = tl.where(tl.load(first_ptr + row) != 0, tl.zeros_like(h), h)
        if KIND == LINEAR:
            decay = tl.load(x_ptr + row * channels + c, mask=real, other=0.0).to(WIDE)
            value = tl.load(value_ptr + row * channels + c, mask=real, other=0.0).to(WIDE)
            h = decay * h + value
            if ENDS:
                product *= decay
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
            if ENDS:
                product *= keep
        if not ENDS:
            tl.store(out_ptr + row * channels + c, h, mask=real)
    if ENDS:
        tl.store(out_ptr + of_piece, h, mask=real)
        tl.store(product_ptr + of_piece, product, mask=real)


@triton.jit
def _backward_kernel(
    x_ptr, state_ptr, carry_ptr, first_ptr, out_ptr, d_out_ptr, d_x_ptr, d_value_ptr, d_state_ptr,
    product_ptr, time, length, channels,
    KIND: tl.constexpr, RESETS: tl.constexpr, ENDS: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Scans time backwards; `carry` is the gradient that step t + 1 passes to h_t.

    With ENDS only the carry that leaves the piece and the product of its decays are stored.
    """
    # This program's row of the batch, its block of channels and its piece of time.
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = c < channels
    start = tl.program_id(2) * length
    stop = tl.minimum(start + length, time)
    of_piece = (b * tl.num_programs(2) + tl.program_id(2)) * channels + c
    carry = tl.load(carry_ptr + of_piece, mask=real, other=0.0).to(WIDE)
    product = tl.full((BLOCK,), 1.0, WIDE)
    initial = tl.load(state_ptr + b * channels + c, mask=real, other=0.0).to(WIDE)
    for i in range(stop - start):
        t = stop - 1 - i
        row = b * time + t
        # The whole gradient of h_t, and h_{t-1}: the initial state at t = 0, zero after a reset.
        total = carry + tl.load(d_out_ptr + row * channels + c, mask=real, other=0.0).to(WIDE)
        before = out_ptr + (row - 1) * channels + c
        later = c * 0 + t > 0
        previous = tl.load(before, mask=real & later, other=0.0).to(WIDE)
        previous = tl.where(later, previous, initial)
        if RESETS:
            first = tl.load(first_ptr + row) != 0
            previous = tl.where(first, tl.zeros_like(previous), previous)
        if KIND == LINEAR:
            keep = tl.load(x_ptr + row * channels + c, mask=real, other=0.0).to(WIDE)
            if not ENDS:
                tl.store(d_x_ptr + row * channels + c, total * previous, mask=real)
                tl.store(d_value_ptr + row * channels + c, total, mask=real)
        else:
            # Gates and candidate again, as in the forward scan.
            at = row * (KIND + 1) * channels + c
            k = tl.load(x_ptr + at, mask=real, other=0.0).to(WIDE)
            forget = k
            enter = k
            if KIND == MIN_LSTM:
                enter = tl.load(x_ptr + at + channels, mask=real, other=0.0).to(WIDE)
                k = _log_sigmoid(enter) - _log_sigmoid(forget)
            z, keep = _sigmoids(k)
            if not ENDS:
                x = tl.load(x_ptr + at + KIND * channels, mask=real, other=0.0).to(WIDE)
                s, rest = _sigmoids(x)
                g = tl.where(x >= 0, x + 0.5, s)
                # Gradients of the pre-activations.
                slope = tl.where(x >= 0, tl.full((BLOCK,), 1.0, WIDE), s * rest)
                d_k = total * (g - previous) * (z * keep)
                if KIND == MIN_LSTM:
                    tl.store(d_x_ptr + at, -d_k * _sigmoids(forget)[1], mask=real)
                    tl.store(d_x_ptr + at + channels, d_k * _sigmoids(enter)[1], mask=real)
                else:
                    tl.store(d_x_ptr + at, d_k, mask=real)
                tl.store(d_x_ptr + at + KIND * channels, total * z * slope, mask=real)
        # The gradient of h_{t-1}.
        carry = total * keep
        if RESETS:
            carry = tl.where(first, tl.zeros_like(carry), carry)
        if ENDS:
            product *= keep
    if ENDS:
        tl.store(d_state_ptr + of_piece, carry, mask=real)
        tl.store(product_ptr + of_piece, product, mask=real)
    elif start == 0:
        tl.store(d_state_ptr + b * channels + c, carry, mask=real)


def _forward(sequences: list[Tensor], state: Tensor, resets: Tensor | None) -> Tensor:
    states = state.new_empty((*sequences[0].shape[:2], state.shape[1]))
    inputs = [sequences[0], sequences[-1]]
    starts = state.unsqueeze(1)  # the state before each piece, (batch, pieces, channels)
    length = _length(*states.shape)
    if length < states.shape[1]:
        zeros = _of_pieces(states, length)
        products, ends = torch.empty_like(zeros), torch.empty_like(zeros)
        _launch(_forward_kernel, [*inputs, zeros], resets, [ends, products], states, length, True)
        chained = _forward([products, ends], state.to(ends), _has_reset(resets, length))
        starts = torch.cat([starts.to(ends), chained[:, :-1]], dim=1)
    _launch(_forward_kernel, [*inputs, starts], resets, [states, states], states, length)
    return states


def _backward(
    sequence: Tensor, state: Tensor, resets: Tensor | None, states: Tensor, grad: Tensor, count: int
) -> list[Tensor]:
    """Returns `count` gradients shaped like `sequence`, and the initial state's."""
    gradients = [sequence.new_empty(sequence.shape) for _ in range(count)]
    d_state = state.new_zeros(state.shape)
    after = [states, grad.contiguous(), gradients[0], gradients[-1]]
    length = _length(*states.shape)
    zeros = _of_pieces(states, length)
    carries = zeros  # what comes from the later pieces, (batch, pieces, channels)
    if length < states.shape[1]:
        products, ends = torch.empty_like(zeros), torch.empty_like(zeros)
        before, after_ends = [sequence, state, zeros], [*after, ends, products]
        _launch(_backward_kernel, before, resets, after_ends, states, length, True)
        cut = _has_reset(resets, length)
        backwards = [products.flip(1), ends.flip(1)]
        chained = _forward(backwards, zeros[:, 0], None if cut is None else cut.flip(1))
        carries = torch.cat([chained.flip(1)[:, 1:], zeros[:, :1]], dim=1)
    before, after_all = [sequence, state, carries], [*after, d_state, d_state]
    _launch(_backward_kernel, before, resets, after_all, states, length)
    return [*gradients, d_state]


def _length(batch: int, time: int, channels: int) -> int:
    """Returns the steps of a piece: all of them, unless programs are few and the sequence long."""
    programs = max(1, batch * triton.cdiv(channels, _BLOCK))
    pieces = min(time // _SHORTEST, _PROGRAMS // programs)
    return triton.cdiv(time, pieces) if pieces >= _FEWEST else time


def _of_pieces(states: Tensor, length: int) -> Tensor:
    """Returns zeros (batch, pieces, channels) of the type in which the kernels accumulate."""
    batch, time, channels = states.shape
    pieces = triton.cdiv(time, length) if time else 1
    wide = torch.promote_types(states.dtype, torch.float32)
    return states.new_zeros((batch, pieces, channels), dtype=wide)


def _has_reset(resets: Tensor | None, length: int) -> Tensor | None:
    """Returns which pieces have a reset, (batch, pieces).

    Nothing passes through those, neither a state nor, where its product of 0 would not stop it, a
    NaN.
    """
    if resets is None:
        return None
    batch, time = resets.shape
    return F.pad(resets, (0, -time % length)).view(batch, -1, length).any(dim=-1)


def _launch(
    kernel: Any, before: list[Tensor], resets: Tensor | None, after: list[Tensor], states: Tensor,
    length: int, ends: bool = False,
) -> None:  # fmt: skip
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
    kernel[batch, triton.cdiv(channels, _BLOCK), triton.cdiv(time, length)](
        *before, flags, *after, time, length, channels,
        KIND=before[0].shape[2] // channels - 1, RESETS=resets is not None, ENDS=ends, WIDE=wide,
        BLOCK=_BLOCK,
    )  # fmt: skip


linear_scan = operation("linear_scan_triton", ("decay", "input"), _forward, _backward, None)
minimal_scan = operation("minimal_scan_triton", ("preactivations",), _forward, _backward, None)
