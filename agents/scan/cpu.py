"""The fused forms for CPUs: the kernels of `kernels.py` as PyTorch operations.

One pass over memory computes gates, candidate and recurrence; the backward pass is one reverse scan
that recomputes the gates, so only the pre-activations and the states are saved. A small pool of
threads, as many as `torch.get_num_threads()`, shares the work. It is not OpenMP, because a second
OpenMP pool would compete with PyTorch's for the cores and does not survive a fork.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from agents.scan import kernels
from agents.scan.operations import operation

T = TypeVar("T")

logger = logging.getLogger(__name__)

# With fewer states than this, waking a thread takes longer than the scan, on a busy machine much
# longer. PyTorch's own threads share the matrix products in any case.
_SHARED_FROM = 400_000
# Channels are split in multiples of this: one cache line of float32.
_LANES = 16

# The threads of this process that run kernels; each starts when it is first needed.
_MOST_THREADS = 256
_pool = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="scan")
_compiled: set[tuple[str, torch.dtype]] = set()


def _forget_pool() -> None:
    """Makes a forked child, which has none of its parent's threads, start its own."""
    global _pool
    _pool = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="scan")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def submit(work: Callable[..., T], *arguments: Any) -> Future[T]:
    """Starts a call on one of the threads that run kernels."""
    return _pool.submit(work, *arguments)


def share_rows(work: Callable[[slice], T], batch: int, states: int) -> list[T]:
    """Splits the rows of a batch among as many threads as PyTorch would use.

    Each thread computes its matrix products alone and waits for the others only at the end, while
    PyTorch's threads wait for each other at every product, which is slow on a busy machine. No
    thread is woken for few states. Returns what `work` returned, in the order of the rows; the
    split depends on the arguments and the number of threads alone, so sums repeat to the bit.
    """
    threads = torch.get_num_threads()
    if threads == 1 or batch < threads or states < _SHARED_FROM:
        return [work(slice(0, batch))]

    def alone(rows: slice) -> T:
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        with torch.no_grad():
            return work(rows)

    cuts = [batch * i // threads for i in range(threads + 1)]
    own, *others = (slice(*cut) for cut in pairwise(cuts))
    shares = [submit(alone, rows) for rows in others]
    try:
        result = alone(own)
    finally:  # no thread may still write into the caller's tensors
        wait(shares)
        # The setting belongs to this thread and to threads that have not read it yet.
        torch.set_num_threads(threads)
    return [result, *(share.result() for share in shares)]


def _pieces(batch: int, channels: int, threads: int) -> list[tuple[int, int, int, int]]:
    """Cuts the batch into a few pieces for each thread, and channels where the batch is too small.

    The cut depends on these three numbers alone, so that results repeat to the bit.
    """
    rows = min(batch, 4 * threads)
    columns = 1 if batch >= threads else min(-(-threads // batch), -(-channels // _LANES))
    width = -(-channels // (columns * _LANES)) * _LANES
    return [
        (batch * r // rows, batch * (r + 1) // rows, c, min(c + width, channels))
        for r in range(rows)
        for c in range(0, channels, width)
    ]


def run_kernel(kernel: Any, tensors: list[Tensor], states: Tensor) -> None:
    """Calls `kernel` on `tensors`, in pieces of the batch and the channels of `states`."""
    batch, time, channels = states.shape
    arrays = [tensor.detach().numpy() for tensor in tensors]
    signature = (kernel.__name__, states.dtype)
    if signature not in _compiled:  # before several threads call it
        with announced("the scan kernels"):
            kernel(*arrays, 0, 0, 0, 0)
        _compiled.add(signature)
    threads = torch.get_num_threads()
    if threads == 1 or batch * time * channels < _SHARED_FROM:
        kernel(*arrays, 0, batch, 0, channels)
        return
    pieces = _pieces(batch, channels, threads)
    queue = iter(pieces)

    def work() -> None:
        for piece in queue:  # the GIL gives each piece to one thread
            kernel(*arrays, *piece)

    helpers = [submit(work) for _ in range(min(threads, len(pieces)) - 1)]
    work()
    for helper in helpers:
        if not helper.cancel():  # a thread that did not start in time is not waited for
            helper.result()


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Logs that `what` is being compiled if that takes over a second."""
    message = f"Compiling {what} for this CPU; later runs find the machine code on disk."
    notice = threading.Timer(1.0, logger.info, (message,))
    notice.daemon = True
    notice.start()
    try:
        yield
    finally:
        notice.cancel()


def _ready(tensors: list[Tensor]) -> list[Tensor]:
    """Returns contiguous tensors of the last one's dtype, or of float32 where that is shorter."""
    dtype = torch.promote_types(tensors[-1].dtype, torch.float32)
    return [tensor.to(dtype).contiguous() for tensor in tensors]


def resets_or_none(resets: Tensor | None) -> Tensor:
    """Returns resets as the kernels expect them: contiguous, and empty for none."""
    return torch.empty((0, 0), dtype=torch.bool) if resets is None else resets.contiguous()


def _forward(sequences: list[Tensor], state: Tensor, resets: Tensor | None) -> Tensor:
    inputs = _ready([*sequences, state])
    states = inputs[-1].new_empty(*sequences[0].shape[:2], state.shape[1])
    if states.numel():
        kernel = kernels.FORWARD[sequences[0].shape[2] // state.shape[1]]
        run_kernel(kernel, [*inputs, resets_or_none(resets), states], states)
    return states.to(state.dtype)


def _backward(
    sequence: Tensor, state: Tensor, resets: Tensor | None, states: Tensor, grad: Tensor, count: int
) -> list[Tensor]:
    """Returns `count` gradients shaped like `sequence`, and the initial state's."""
    first, out, d_out, initial = _ready([sequence, states, grad, state])
    gradients = [first.new_empty(first.shape) for _ in range(count)]
    d_state = initial.new_zeros(initial.shape)
    if states.numel():
        kernel = kernels.BACKWARD[sequence.shape[2] // state.shape[1]]
        inputs = [first, initial, resets_or_none(resets), out, d_out]
        run_kernel(kernel, [*inputs, *gradients, d_state], out)
    return [*(g.to(sequence.dtype) for g in gradients), d_state.to(state.dtype)]


linear_scan = operation("linear_scan", ("decay", "input"), _forward, _backward, "cpu")
minimal_scan = operation("minimal_scan", ("preactivations",), _forward, _backward, "cpu")
