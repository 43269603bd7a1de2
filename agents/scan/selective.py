"""The selective scan of Mamba (Gu & Dao, arXiv 2312.00752, section 3.2): values, not states.

Each channel has d_state states, so the states are d_state times as large as the inputs. They are
never all in memory: on CPUs a kernel keeps those of one step (see `selective_kernels.py`), on other
devices time is cut into chunks.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from agents.scan import cpu, linear_scan
from agents.scan.operations import NO_SECOND_DERIVATIVE
from agents.scan.selective_kernels import STRETCH, selective_backward, selective_forward

# Numbers in the states of one chunk, where there is no kernel.
_CHUNK = 2**20


def selective_scan(
    dt: Tensor, dt_x: Tensor, b: Tensor, c: Tensor, a: Tensor, h: Tensor, resets: Tensor,
    *, form: str = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns y_t = C_t h_t with h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t.

    Args:
        dt: (batch, time, inner), above zero.
        dt_x: dt times x, (batch, time, inner).
        b: (batch, time, d_state).
        c: (batch, time, d_state).
        a: (d_state, inner), below zero.
        h: (batch, d_state, inner), before the first step.
        resets: (batch, time) bool; where true, the previous state counts as zero.
        form: `chunks` in plain PyTorch; `auto` takes the kernel where it can run.

    Returns:
        y (batch, time, inner), and h after the last step.
    """
    tensors = (dt, dt_x, b, c, a, h)
    fused = (
        form == "auto"
        and not torch.compiler.is_compiling()
        and all(t.device.type == "cpu" for t in tensors)
        and h.dtype in (torch.float32, torch.float64)
        and all(t.dtype == h.dtype for t in tensors)
        and dt.numel() > 0
    )
    with torch.autocast(h.device.type, enabled=False):
        if fused:
            y, h = _Selective.apply(*tensors, resets)
            return y, h
        return _in_chunks(*tensors, resets)


class _Selective(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        *sequences, a, h, resets = (tensor.contiguous() for tensor in inputs)
        h = h.clone()
        y = torch.empty_like(sequences[0])
        stretches = -(-y.shape[1] // STRETCH)
        befores = h.new_empty(len(h), stretches, *a.shape)
        tensors = [*sequences, a, resets, h, befores, y]
        cpu.run_kernel(selective_forward, tensors, _work(y, a))
        ctx.save_for_backward(*sequences, a, resets, befores)
        return y, h

    @staticmethod
    def backward(ctx: Any, d_y: Tensor, d_h: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # under create_graph=True
            raise RuntimeError(NO_SECOND_DERIVATIVE)
        dt, dt_x, b, c, a, resets, befores = ctx.saved_tensors
        d_dt, d_dt_x = torch.zeros_like(dt), torch.zeros_like(dt_x)
        d_b, d_c = torch.empty_like(b), torch.empty_like(c)
        d_a = a.new_zeros(len(dt), *a.shape)
        d_h = d_h.clone(memory_format=torch.contiguous_format)
        gradients = [d_dt, d_dt_x, d_b, d_c, d_a, d_h]
        tensors = [dt, dt_x, b, c, a, resets, befores, d_y.contiguous(), *gradients]
        cpu.run_kernel(selective_backward, tensors, _work(d_y, a))
        return d_dt, d_dt_x, d_b, d_c, d_a.sum(0), d_h, None


def _work(y: Tensor, a: Tensor) -> Tensor:
    """Returns a view as large as all states, without memory; its one channel cannot be split."""
    return y.new_empty(1).expand(y.shape[0], y.shape[1] * a.numel(), 1)


def _in_chunks(
    dt: Tensor, dt_x: Tensor, b: Tensor, c: Tensor, a: Tensor, h: Tensor, resets: Tensor
) -> tuple[Tensor, Tensor]:
    """Scans chunk by chunk; the gradient recomputes a chunk's states from its inputs."""
    length = max(1, _CHUNK // h.numel())
    outputs = []
    sequences = (sequence.split(length, dim=1) for sequence in (dt, dt_x, b, c, resets))
    for chunk in zip(*sequences, strict=True):
        y, h = checkpoint(_scan_chunk, *chunk, a, h, use_reentrant=False, preserve_rng_state=False)
        outputs.append(y)
    return torch.cat(outputs, dim=1), h


def _scan_chunk(
    dt: Tensor, dt_x: Tensor, b: Tensor, c: Tensor, resets: Tensor, a: Tensor, h: Tensor
) -> tuple[Tensor, Tensor]:
    # (batch, time, d_state, inner): long contiguous rows for the scan.
    decay = (dt.unsqueeze(2) * a).exp_()
    value = b.unsqueeze(-1) * dt_x.unsqueeze(2)
    states = linear_scan(decay.flatten(2), value.flatten(2), h.flatten(1), resets)
    states = states.view_as(decay)
    # A copy of the last state, because a view would keep all of them in memory.
    return (c.unsqueeze(2) @ states).squeeze(2), states[:, -1].clone()
