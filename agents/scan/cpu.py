"""The fused forms for CPUs: the kernels of `kernels.py` as PyTorch operations.

One pass over memory computes gates, candidate and recurrence; the backward pass is one reverse scan
that computes the gates again, so only the pre-activations and the states are saved. The work is
dealt out to a small pool of threads that follows `torch.get_num_threads()`. No OpenMP: a second
pool beside PyTorch's would fight it for the cores, and does not survive a fork.
"""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from agents.scan import kernels
from agents.scan.operations import register

T = TypeVar("T")

_log = logging.getLogger(__name__)

# Below this many states waking a thread of ours is not worth it: it takes longer than the scan, and
# on a busy machine much longer. PyTorch's own share the products, whatever is done here.
_SHARED_FROM = 400_000
# Channels are split in multiples of this: a cache line of float32, a whole vector.
_LANES = 16

_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_pool_lock = threading.Lock()
_compiled: set[tuple[str, torch.dtype]] = set()


def _forget_pool() -> None:
    """A forked child has none of its parent's threads: let it start its own."""
    global _pool, _pool_size, _pool_lock
    _pool, _pool_size, _pool_lock = None, 0, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def thread_pool(count: int) -> ThreadPoolExecutor:
    """The threads of this process that run kernels: at least ``count`` of them."""
    global _pool, _pool_size
    with _pool_lock:
        if _pool is None or _pool_size < count:
            if _pool is not None:
                _pool.shutdown(wait=False)
            _pool, _pool_size = ThreadPoolExecutor(count, thread_name_prefix="scan"), count
        return _pool


def share_rows(work: Callable[[slice], T], batch: int, states: int) -> list[T]:
    """Deals the rows of a batch out to as many threads as PyTorch would use.

    Each thread does its matrix products alone, so none waits for another before the end: no slower
    than one thread on a machine that is busy, where PyTorch's threads wait for each other at every
    product.

    Args:
        work: called with a range of rows, without a graph.
        batch: number of rows.
        states: number of states in them, to judge what is worth waking a thread for.

    Returns:
        What the calls returned, in the order of the rows: the cut depends on nothing else, so
        that sums over it repeat to the bit.
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
    pool = thread_pool(threads - 1)
    shares = [pool.submit(alone, rows) for rows in others]
    try:
        result = alone(own)
    finally:  # nobody may still write into what the caller owns
        wait(shares)
        # Holds for the thread that sets it, and for those that have not asked for it yet.
        torch.set_num_threads(threads)
    return [result, *(share.result() for share in shares)]


def _pieces(batch: int, channels: int, threads: int) -> list[tuple[int, int, int, int]]:
    """Cut the batch into a few pieces a thread; cut channels only where the batch is too small.

    The cut depends on nothing but these three numbers, so that results repeat to the bit.
    """
    rows = min(batch, 4 * threads)
    columns = 1 if batch >= threads else min(-(-threads // batch), -(-channels // _LANES))
    width = -(-channels // (columns * _LANES)) * _LANES
    return [
        (batch * r // rows, batch * (r + 1) // rows, c, min(c + width, channels))
        for r in range(rows)
        for c in range(0, channels, width)
    ]


def _run(kernel: Any, tensors: list[Tensor], states: Tensor) -> None:
    """Call ``kernel`` on ``tensors``, cut over batch and channels of ``states``."""
    batch, time, channels = states.shape
    arrays = [tensor.detach().numpy() for tensor in tensors]
    signature = (kernel.__name__, states.dtype)
    if signature not in _compiled:  # compile here, before several threads ask for it
        _compile(kernel, arrays)
        _compiled.add(signature)
    threads = torch.get_num_threads()
    if threads == 1 or batch * time * channels < _SHARED_FROM:
        kernel(*arrays, 0, batch, 0, channels)
        return
    queue = deque(_pieces(batch, channels, threads))

    def work() -> None:
        while queue:
            try:
                piece = queue.popleft()
            except IndexError:  # another thread took the last one
                return
            kernel(*arrays, *piece)

    pool = thread_pool(threads - 1)
    helpers = [pool.submit(work) for _ in range(min(threads, len(queue)) - 1)]
    work()
    for helper in helpers:
        if not helper.cancel():  # a thread that never got to run is not waited for
            helper.result()


def _compile(kernel: Any, arrays: list[Any]) -> None:
    """Build the kernel for these dtypes by an empty call; say so if it takes over a second."""
    message = "Compiling the scan kernels for this CPU; later runs find them on disk."
    notice = threading.Timer(1.0, _log.info, (message,))
    notice.daemon = True
    notice.start()
    try:
        kernel(*arrays, 0, 0, 0, 0)
    finally:
        notice.cancel()


def _working_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _ready(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [tensor.to(dtype).contiguous() for tensor in tensors]


def _resets(resets: Tensor | None) -> Tensor:
    return torch.empty((0, 0), dtype=torch.bool) if resets is None else resets.contiguous()


def _forward(kernel: Any, sequences: list[Tensor], state: Tensor, resets: Tensor | None) -> Tensor:
    dtype = _working_dtype(state)
    states = state.new_empty((*sequences[0].shape[:2], state.shape[1]), dtype=dtype)
    if states.numel():
        inputs = _ready([*sequences, state], dtype)
        _run(kernel, [*inputs, _resets(resets), states], states)
    return states.to(state.dtype)


def _backward(
    kernel: Any,
    sequence: Tensor,
    state: Tensor,
    resets: Tensor | None,
    states: Tensor,
    grad: Tensor,
    count: int = 1,
) -> list[Tensor]:
    """``count`` gradients shaped like ``sequence``, and the initial state's."""
    dtype = _working_dtype(state)
    gradients = [torch.empty(sequence.shape, dtype=dtype) for _ in range(count)]
    d_state = torch.zeros(state.shape, dtype=dtype)
    if states.numel():
        first, *others = _ready([sequence, state, states, grad], dtype)
        inputs = [first, others[0], _resets(resets), *others[1:]]
        _run(kernel, [*inputs, *gradients, d_state], others[1])
    return [*(g.to(sequence.dtype) for g in gradients), d_state.to(state.dtype)]


@torch.library.custom_op("decision_minrnn::linear_scan", mutates_args=(), device_types="cpu")
def linear_scan(
    decay: Tensor, input: Tensor, initial_state: Tensor, resets: Tensor | None
) -> Tensor:
    """The fused operation behind `agents.scan.linear_scan`."""
    return _forward(kernels.linear_forward, [decay, input], initial_state, resets)


@torch.library.custom_op(
    "decision_minrnn::linear_scan_backward", mutates_args=(), device_types="cpu"
)
def _linear_scan_backward(
    decay: Tensor, initial_state: Tensor, resets: Tensor | None, states: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    d_decay, d_input, d_state = _backward(
        kernels.linear_backward, decay, initial_state, resets, states, grad, count=2
    )
    return d_decay, d_input, d_state


@torch.library.custom_op("decision_minrnn::min_gru_scan", mutates_args=(), device_types="cpu")
def min_gru_scan(preactivations: Tensor, initial_state: Tensor, resets: Tensor | None) -> Tensor:
    """The fused operation behind `agents.scan.min_gru_scan`."""
    return _forward(kernels.min_gru_forward, [preactivations], initial_state, resets)


@torch.library.custom_op(
    "decision_minrnn::min_gru_scan_backward", mutates_args=(), device_types="cpu"
)
def _min_gru_scan_backward(
    preactivations: Tensor,
    initial_state: Tensor,
    resets: Tensor | None,
    states: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor]:
    kernel = kernels.min_gru_backward
    gradient, d_state = _backward(kernel, preactivations, initial_state, resets, states, grad)
    return gradient, d_state


@torch.library.custom_op("decision_minrnn::min_lstm_scan", mutates_args=(), device_types="cpu")
def min_lstm_scan(preactivations: Tensor, initial_state: Tensor, resets: Tensor | None) -> Tensor:
    """The fused operation behind `agents.scan.min_lstm_scan`."""
    return _forward(kernels.min_lstm_forward, [preactivations], initial_state, resets)


@torch.library.custom_op(
    "decision_minrnn::min_lstm_scan_backward", mutates_args=(), device_types="cpu"
)
def _min_lstm_scan_backward(
    preactivations: Tensor,
    initial_state: Tensor,
    resets: Tensor | None,
    states: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor]:
    kernel = kernels.min_lstm_backward
    gradient, d_state = _backward(kernel, preactivations, initial_state, resets, states, grad)
    return gradient, d_state


register(linear_scan, _linear_scan_backward, 2)
register(min_gru_scan, _min_gru_scan_backward, 1)
register(min_lstm_scan, _min_lstm_scan_backward, 1)
