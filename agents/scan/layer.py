"""A whole minGRU or minLSTM layer, the Linear and its scan, in pieces that stay in the CPU's cache.

The scan reads the output of the matrix product from the cache, and the gradients' product that of
the reverse scan, instead of through memory. With `recompute` the backward pass multiplies the
pre-activations again instead of keeping them: one float for each step and channel stays in memory,
the state, in place of three (minGRU) or four (minLSTM).
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from agents.scan import check, cpu, minimal_scan
from agents.scan.kernels import BACKWARD, FORWARD
from agents.scan.operations import NO_SECOND_DERIVATIVE

_ROWS = 2048  # steps of a piece: with 128 channels, two megabytes of pre-activations


def minimal_layer(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    initial_state: Tensor,
    resets: Tensor | None = None,
    *,
    form: str = "auto",
    recompute: bool = False,
) -> Tensor:
    """Returns `minimal_scan` of `F.linear(x, weight, bias)`, the states (batch, time, channels).

    Args:
        x: (batch, time, features).
        weight: (2 * channels, features) for minGRU, (3 * channels, features) for minLSTM.
        bias: (2 * channels,) or (3 * channels,).
        initial_state: (batch, channels).
        resets: (batch, time) bool or None.
        form: As for `minimal_scan`; all but `auto` and `cpu` multiply once for all steps.
        recompute: Multiply again in the backward pass instead of keeping the pre-activations.
    """
    tensors = (x, weight, bias, initial_state)
    fused = (
        form in ("auto", "cpu")
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and all(y.device.type == "cpu" and y.dtype == torch.float32 for y in tensors)
        and x.numel() > 0
    )
    if not fused:
        return minimal_scan(F.linear(x, weight, bias), initial_state, resets, form=form)
    preactivations = x.new_empty(1).expand(*x.shape[:-1], len(weight))  # only their shape
    check("preactivations", preactivations, initial_state, resets, gates=(2, 3))
    states: Tensor = _Layer.apply(recompute, x, weight, bias, initial_state, resets)
    return states


def _pieces(rows: slice, time: int) -> Iterator[tuple[slice, slice]]:
    """Yields the rows and steps of each piece: whole sequences, or a stretch of a single one."""
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
        ctx: Any, recompute: bool, x: Tensor, weight: Tensor, bias: Tensor, state: Tensor,
        resets: Tensor | None,
    ) -> Tensor:  # fmt: skip
        x, state = x.contiguous(), state.contiguous()
        batch, time, _ = x.shape
        states = x.new_empty(batch, time, state.shape[1])
        keep = not recompute and any(ctx.needs_input_grad)
        kept = x.new_empty(batch, time, weight.shape[0]) if keep else None
        kernel = FORWARD[len(weight) // state.shape[1]]

        def scan(rows: slice) -> None:
            scratch = None if keep else x.new_empty(_ROWS * weight.shape[0])
            for b, t in _pieces(rows, time):
                p = _multiply(x[b, t], weight, bias, kept[b, t] if kept is not None else scratch)
                piece_resets = cpu.resets_or_none(None if resets is None else resets[b, t])
                tensors = [p, _before(states, state, b, t), piece_resets, states[b, t]]
                cpu.run_kernel(kernel, tensors, states[b, t])

        cpu.share_rows(scan, batch, states.numel())
        ctx.save_for_backward(x, weight, bias, state, resets, states, kept)
        return states

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Enabled only under create_graph=True. PyTorch's once_differentiable does not notice that
        # where grad itself needs no gradient, and then drops the second derivative silently.
        if torch.is_grad_enabled():
            raise RuntimeError(NO_SECOND_DERIVATIVE)
        x, weight, bias, state, resets, states, kept = ctx.saved_tensors
        grad = grad.contiguous()
        batch, time, features = x.shape
        kernel = BACKWARD[len(weight) // state.shape[1]]
        d_x = torch.empty_like(x) if ctx.needs_input_grad[1] else None
        d_state = torch.zeros_like(state)

        def scan(rows: slice) -> tuple[Tensor, Tensor]:
            d_weight, d_bias = torch.zeros_like(weight), torch.zeros_like(bias)
            scratch = x.new_empty(_ROWS * weight.shape[0]) if kept is None else None
            buffer = x.new_empty(_ROWS * weight.shape[0])
            for b, t in reversed(list(_pieces(rows, time))):
                p = kept[b, t] if kept is not None else _multiply(x[b, t], weight, bias, scratch)
                piece = grad[b, t]
                if t.stop < time:  # the gradient from the later stretches of this sequence
                    piece = piece.clone()
                    piece[:, -1] += d_state[b]
                d_p = buffer[: p.numel()].view(p.shape)
                piece_resets = cpu.resets_or_none(None if resets is None else resets[b, t])
                previous = _before(states, state, b, t)
                tensors = [p, previous, piece_resets, states[b, t], piece, d_p, d_state[b]]
                cpu.run_kernel(kernel, tensors, states[b, t])
                flat = d_p.view(-1, weight.shape[0])
                if d_x is not None:
                    torch.mm(flat, weight, out=d_x[b, t].view(-1, features))
                d_weight.addmm_(flat.t(), x[b, t].view(-1, features))
                d_bias += flat.sum(0)
            return d_weight, d_bias

        (d_weight, d_bias), *others = cpu.share_rows(scan, batch, states.numel())
        for more_weight, more_bias in others:
            # By NumPy, on this thread: PyTorch would wake its own threads for this sum, which then
            # spin for milliseconds and compete with those of the next layer.
            d_weight.numpy()[:] += more_weight.numpy()
            d_bias.numpy()[:] += more_bias.numpy()
        return None, d_x, d_weight, d_bias, d_state, None


def _multiply(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor | None) -> Tensor:
    """Returns F.linear in `out`, which has the right shape or is a flat buffer with enough room."""
    assert out is not None
    p = out if out.dim() == 3 else out[: x[..., 0].numel() * weight.shape[0]]
    flat = p.view(-1, weight.shape[0])
    torch.addmm(bias, x.view(-1, x.shape[-1]), weight.t(), out=flat)
    return p.view(*x.shape[:2], weight.shape[0])
