"""The gradient of a batch, whose rows the threads of PyTorch share.

PyTorch lets its threads share each operation, of which an update has hundreds, and they wait for
each other at every one. Here each takes some of the rows forwards and backwards alone, and the
gradients are added at the end: one wait an update (benchmarks/threads.py).
"""

from concurrent.futures import wait
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from agents.backbones import BUILT_IN, MIXERS
from agents.backbones.dropout import Dropout
from agents.backbones.state import map_state
from agents.policy import Q, ReturnConditionedPolicy, TrainingState
from agents.scan.cpu import submit

_LEAST = 128  # steps of a share: fewer are not worth a thread
Gradients = tuple[Tensor | None, ...]


def can_share(policy: ReturnConditionedPolicy) -> bool:
    """Whether threads can share a batch of this policy.

    Dropout draws its masks one after the other, so with several threads they would not repeat; and
    a mixer from outside this project may not bear more than one.
    """
    known = {MIXERS[name][1] for name in BUILT_IN}
    drops = any(part.p for part in policy.modules() if isinstance(part, Dropout))
    return not drops and all(type(block.mixer) in known for block in policy.backbone.blocks)


def backward(
    policy: ReturnConditionedPolicy,
    batch: dict[str, Tensor],
    state: TrainingState | None,
    dtype: torch.dtype = torch.float32,
    q: Q | None = None,
) -> tuple[Tensor, TrainingState]:
    """Leaves the gradient of the loss in the parameters; returns the loss and the last state.

    The rows are cut by their number and that of the threads alone, and the gradients are added in
    the order of the rows: with as many threads, equal batches have equal gradients, to the bit.

    Args:
        policy: One for which `can_share` is true.
        batch: The keyword arguments of `ReturnConditionedPolicy.loss`, on the CPU.
        state: The state before the batch; None for the initial one.
        dtype: That of the automatic mixed precision; float32 for none.
        q: That of the loss, if it has one.
    """
    parameters = list(policy.parameters())
    rows, steps = batch["mask"].shape
    threads = torch.get_num_threads()
    count = max(1, min(threads, rows, rows * steps // _LEAST))
    edges = [rows * i // count for i in range(count + 1)]
    total = batch["mask"].sum().clamp(min=1)

    def share(begin: int, end: int) -> tuple[Tensor, TrainingState, Gradients]:
        if torch.get_num_threads() != 1 and count > 1:
            torch.set_num_threads(1)
        part: dict[str, Any] = {name: values[begin:end] for name, values in batch.items()}
        if state is not None:
            part["state"] = TrainingState(*map_state(lambda tensor: tensor[begin:end], state))
        with torch.enable_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss, after = policy.loss(**part, q=q)
        loss = loss * (part["mask"].sum() / total)
        return loss.detach(), after, torch.autograd.grad(loss, parameters, allow_unused=True)

    first, *others = pairwise(edges)
    running = [submit(share, *rows) for rows in others]
    try:
        found = [share(*first)]
    finally:  # no thread may still compute when the weights change
        wait(running)
        if count > 1:
            torch.set_num_threads(threads)
    found += [done.result() for done in running]

    # Add in the order of the rows; a parameter that no share needed has no gradient.
    losses, states, gradients = zip(*found, strict=True)
    for parameter, *parts in zip(parameters, *gradients, strict=True):
        needed = [part for part in parts if part is not None]
        parameter.grad = needed[0] if needed else None
        for part in needed[1:]:
            parameter.grad += part
    carried = map_state(lambda *parts: torch.cat(parts), *states)
    return torch.stack(losses).sum(), TrainingState(*carried)
