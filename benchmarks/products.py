"""The matrix products of a piece of work alone: the floor that its time is compared with.

`recorded` runs the work once, notes the shape of every matrix product that PyTorch makes in it, and
returns a work that makes these products and nothing else. Kernels that multiply inside count by
what they must multiply: attention two products forwards and four backwards, an LSTM of oneDNN its
weights times each step, and twice that backwards.
"""

from collections.abc import Callable
from typing import Any

import torch
from timing import Work
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_MATRICES = {_aten.mm: 0, _aten.bmm: 0, _aten.addmm: 1, _aten.addmm_: 1, _aten.baddbmm: 1}
_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu: (0, 2),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: (1, 4),
}
_LSTM = {_aten.mkldnn_rnn_layer: 1, _aten.mkldnn_rnn_layer_backward: 2}

Product = tuple[Tensor, Tensor, int]  # two matrices and how often they are multiplied


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        packet = func.overloadpacket
        if packet in _MATRICES:
            first = _MATRICES[packet]
            self._add(args[first], args[first + 1])
        elif packet in _ATTENTION:
            first, times = _ATTENTION[packet]
            query, keys = args[first], args[first + 1]
            self._add(query.flatten(0, -3), keys.flatten(0, -3).transpose(1, 2), times)
        elif packet in _LSTM:
            x, weights, recurrent = args[:3]
            rows = x.numel() // x.shape[-1]
            state = x.new_empty(args[5].numel() // recurrent.shape[1], recurrent.shape[1])
            self._add(x.reshape(rows, -1), weights.t(), _LSTM[packet])
            self._add(state, recurrent.t(), rows // len(state) * _LSTM[packet])
        return func(*args, **(kwargs or {}))

    def _add(self, a: Tensor, b: Tensor, times: int = 1) -> None:
        # Random numbers in the same layout: zeros and denormals are multiplied at another speed.
        self.products.append((_like(a), _like(b), times))


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).normal_()


def recorded(work: Callable[[], object]) -> Work:
    """Returns the products of a work as a work; only those made in this thread are seen."""
    with torch.no_grad(), _Recorder() as recorder, torch.enable_grad():
        work()
    products = [
        (a, b, a.new_empty(*a.shape[:-1], b.shape[-1]), times) for a, b, times in recorder.products
    ]

    def run() -> None:
        with torch.no_grad():
            for a, b, out, times in products:
                multiply = torch.bmm if a.dim() == 3 else torch.mm
                for _ in range(times):
                    multiply(a, b, out=out)

    return run
