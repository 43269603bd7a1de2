"""A whole minGRU or minLSTM layer, the Linear and its scan, in pieces that stay in the CPU's cache.

The scan reads what the matrix product wrote a moment ago, and the product of the gradients reads
what the reverse scan wrote, instead of both going through memory. With ``recompute`` the
pre-activations are not kept for the backward pass but multiplied again: one float a step and
channel stays alive, the state, in place of three (minGRU) or four (minLSTM).
"""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from agents.scan import min_gru_scan, min_lstm_scan

cpu: ModuleType | None
try:
    from agents.scan import cpu
except ImportError:  # no numba
    cpu = None

_ROWS = 2048  # steps of a piece: with 128 channels, two megabytes of pre-activations


def min_gru_layer(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor,
    resets: Tensor | None = None,
    *,
    form: str = "auto",
    recompute: bool = False,
) -> Tensor:
    """`min_gru_scan` of ``F.linear(x, weight, bias)``.

    Args:
        x: (batch, time, features).
        weight: (2 * channels, features).
        bias: (2 * channels,) or None.
        initial_state: (batch, channels).
        resets: (batch, time) bool or None.
        form: as for `min_gru_scan`; all but "auto" and "cpu" multiply once for all steps.
        recompute: multiply again in the backward pass instead of keeping the pre-activations.

    Returns:
        The states, (batch, time, channels).

    Raises:
        ValueError: as `min_gru_scan`.
    """
    return _layer(2, x, weight, bias, initial_state, resets, form, recompute)


def min_lstm_layer(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor,
    resets: Tensor | None = None,
    *,
    form: str = "auto",
    recompute: bool = False,
) -> Tensor:
    """`min_lstm_scan` of ``F.linear(x, weight, bias)``: as `min_gru_layer`, with 3 * channels."""
    return _layer(3, x, weight, bias, initial_state, resets, form, recompute)


def _layer(
    gates: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    resets: Tensor | None,
    form: str,
    recompute: bool,
) -> Tensor:
    bias_like = weight.new_zeros(weight.shape[0]) if bias is None else bias
    plain = (
        cpu is None
        or form not in ("auto", "cpu")
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or any(y.device.type != "cpu" for y in (x, weight, state))
        or any(y.dtype != torch.float32 for y in (x, weight, bias_like, state))
        or x.dim() != 3
        or weight.shape != (gates * state.shape[-1], x.shape[-1])
        or state.shape[:-1] != x.shape[:1]
        or x.numel() == 0
        or (resets is not None and (resets.dtype, resets.shape) != (torch.bool, x.shape[:2]))
    )
    if plain:  # what is wrong with the input is said there
        scan = min_gru_scan if gates == 2 else min_lstm_scan
        return scan(F.linear(x, weight, bias), state, resets, form=form)
    states: Tensor = _Layer.apply(gates, recompute, x, weight, bias_like, state, resets)
    return states


def _pieces(rows: slice, time: int) -> Iterator[tuple[slice, slice]]:
    """Whole sequences, or stretches of a single one: in both cases a piece is contiguous."""
    count = max(1, _ROWS // time)
    length = min(time, _ROWS)
    for b in range(rows.start, rows.stop, count):
        for t in range(0, time, length):
            yield slice(b, min(b + count, rows.stop)), slice(t, min(t + length, time))


def _before(states: Tensor, state: Tensor, b: slice, t: slice) -> Tensor:
    return state[b] if t.start == 0 else states[b, t.start - 1]


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        gates: int,
        recompute: bool,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        state: Tensor,
        resets: Tensor | None,
    ) -> Tensor:
        assert cpu is not None
        x, state = x.contiguous(), state.contiguous()
        batch, time, _ = x.shape
        states = x.new_empty(batch, time, state.shape[1])
        keep = not recompute and any(ctx.needs_input_grad)
        kept = x.new_empty(batch, time, weight.shape[0]) if keep else None
        kernel = cpu.kernels.min_gru_forward if gates == 2 else cpu.kernels.min_lstm_forward

        def scan(rows: slice) -> None:
            scratch = None if keep else x.new_empty(_ROWS * weight.shape[0])
            for b, t in _pieces(rows, time):
                p = _multiply(x[b, t], weight, bias, kept[b, t] if kept is not None else scratch)
                piece_resets = cpu._resets(None if resets is None else resets[b, t])
                tensors = [p, _before(states, state, b, t), piece_resets, states[b, t]]
                cpu._run(kernel, tensors, states[b, t])

        cpu.share_rows(scan, batch, states.numel())
        ctx.save_for_backward(x, weight, bias, state, resets, states, kept)
        ctx.gates = gates
        return states

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        assert cpu is not None
        # On only under create_graph=True. PyTorch's once_differentiable lets that pass where grad
        # itself needs no gradient, and then drops the second derivative in silence.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the layer in pieces has no second derivative; pass form='two_level' or "
                "form='reference', which have derivatives of any order."
            )
        x, weight, bias, state, resets, states, kept = ctx.saved_tensors
        grad = grad.contiguous()
        batch, time, features = x.shape
        kernel = cpu.kernels.min_gru_backward if ctx.gates == 2 else cpu.kernels.min_lstm_backward
        d_x = torch.empty_like(x) if ctx.needs_input_grad[2] else None
        d_state = torch.zeros_like(state)

        def scan(rows: slice) -> tuple[Tensor, Tensor]:
            d_weight, d_bias = torch.zeros_like(weight), torch.zeros_like(bias)
            scratch = x.new_empty(_ROWS * weight.shape[0]) if kept is None else None
            buffer = x.new_empty(_ROWS * weight.shape[0])
            for b, t in reversed(list(_pieces(rows, time))):
                p = kept[b, t] if kept is not None else _multiply(x[b, t], weight, bias, scratch)
                piece = grad[b, t]
                if t.stop < time:  # what the later stretches of this sequence hand back
                    piece = piece.clone()
                    piece[:, -1] += d_state[b]
                d_p = buffer[: p.numel()].view(p.shape)
                piece_resets = cpu._resets(None if resets is None else resets[b, t])
                previous = _before(states, state, b, t)
                tensors = [p, previous, piece_resets, states[b, t], piece, d_p, d_state[b]]
                cpu._run(kernel, tensors, states[b, t])
                flat = d_p.view(-1, weight.shape[0])
                if d_x is not None:
                    torch.mm(flat, weight, out=d_x[b, t].view(-1, features))
                d_weight.addmm_(flat.t(), x[b, t].view(-1, features))
                d_bias += flat.sum(0)
            return d_weight, d_bias

        (d_weight, d_bias), *others = cpu.share_rows(scan, batch, states.numel())
        for more_weight, more_bias in others:
            # By NumPy, on this thread: PyTorch would wake its own ones for this sum, and they spin
            # for milliseconds beside those of the next layer.
            d_weight.numpy()[:] += more_weight.numpy()
            d_bias.numpy()[:] += more_bias.numpy()
        return None, None, d_x, d_weight, d_bias, d_state, None


def _multiply(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor | None) -> Tensor:
    """F.linear into ``out``, which is either of the right shape or room for a piece."""
    assert out is not None
    p = out if out.dim() == 3 else out[: x[..., 0].numel() * weight.shape[0]]
    flat = p.view(-1, weight.shape[0])
    torch.addmm(bias, x.view(-1, x.shape[-1]), weight.t(), out=flat)
    return p.view(*x.shape[:2], weight.shape[0])
