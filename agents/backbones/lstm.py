"""The LSTM mixer (Hochreiter and Schmidhuber 1997; forget gate of Gers et al. 2000)."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agents.backbones.gru import RecurrentLayer
from agents.backbones.mixer import BackboneConfig
from agents.backbones.recurrent_kernels import lstm_backward, lstm_forward
from agents.backbones.state import restart
from agents.scan.cpu import announced


@dataclass
class LSTMConfig(BackboneConfig):
    """The LSTM has no settings of its own: both parts of the state have d_model channels."""

    name: str = "lstm"


class LSTM(RecurrentLayer):
    """c_t = f c_{t-1} + i tanh(W x_t + U h_{t-1}), h_t = o tanh(c_t); f, i, o see x_t, h_{t-1}.

    As torch.nn.LSTM; the output is h_t, the state (h, c).
    """

    resets_only = True  # without resets oneDNN's kernel is faster

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__(nn.LSTM(config.d_model, config.d_model, batch_first=True))

    def _recur(
        self,
        inputs: Tensor,
        state: tuple[Tensor, Tensor],
        resets: Tensor,
        weight: Tensor,
        bias: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        states, cell = _Recurrence.apply(inputs, *state, resets, weight, bias)
        return states.transpose(0, 1), (states[-1], cell)

    def step(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Maps x (batch, d_model) by the cell with the same weights."""
        h, c = torch.lstm_cell(x, state, *self.rnn.all_weights[0])
        return h, (h, c)


class _Recurrence(torch.autograd.Function):
    """Maps what x adds to the gates to states (time, batch, channels) and the last c."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, state: Tensor, cell: Tensor, resets: Tensor, weight: Tensor,
        bias: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        time, (batch, width) = len(inputs), state.shape
        states = inputs.new_empty(time, batch, width)
        before, cells = (inputs.new_empty(time + 1, batch, width) for _ in range(2))
        before[0], cells[0] = restart((state, cell), 2 * (state.new_zeros(1, width),), resets[:, 0])
        gates = inputs.new_empty(time, batch, 5 * width)
        recurrent = inputs.new_empty(batch, 4 * width)
        parts = (inputs.contiguous(), recurrent, resets, gates, before, states, cells)
        arrays = [x.detach().numpy() for x in parts]
        first = not lstm_forward.signatures  # is compiled in its first call
        with announced("the kernels of the LSTM") if first else nullcontext():
            for t, begin in enumerate(before[:-1]):
                torch.addmm(bias, begin, weight.t(), out=recurrent)
                lstm_forward(t, *arrays)
        ctx.save_for_backward(resets, weight, gates, before, cells)
        return states, cells[-1].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_cell: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("the LSTM has no second derivative on CPUs.")
        resets, weight, gates, before, cells = ctx.saved_tensors
        d_gates = before.new_empty(*grad.shape[:2], len(weight))
        d_state, d_cell = torch.zeros_like(before[0]), grad_cell.clone()
        parts = (gates, cells, resets, grad.contiguous(), d_state, d_cell, d_gates)
        arrays = [x.numpy() for x in parts]
        for t in reversed(range(len(grad))):
            lstm_backward(t, *arrays)
            d_state.addmm_(d_gates[t], weight)
        zeros = torch.zeros_like(d_state)
        d_state, d_cell = restart((d_state, d_cell), (zeros, zeros), resets[:, 0])
        # The weights: one product over all steps.
        flat = d_gates.flatten(0, 1)
        d_weight = flat.t() @ before[:-1].flatten(0, 1)
        return d_gates, d_state, d_cell, None, d_weight, flat.sum(0)
