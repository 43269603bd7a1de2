"""The GRU mixer (Cho et al., arXiv 1406.1078), and what it shares with the LSTM.

On CPUs a step of the training is a matrix product and a kernel of ours, which knows resets, and the
gradient of the weights is one product over all steps; PyTorch's GRU adds it up step by step.
Elsewhere, and in other precisions, PyTorch's own kernels run (cuDNN on CUDA). They know no resets,
so rows are cut at the resets and the pieces run as rows of one batch; see `run_pieces`.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.backbones.mixer import BackboneConfig, Mixer
from agents.backbones.recurrent_kernels import gru_backward, gru_forward
from agents.backbones.state import State, map_state, restart, run_pieces
from agents.scan.cpu import announced


@dataclass
class GRUConfig(BackboneConfig):
    """The GRU has no settings of its own: the hidden state has d_model channels."""

    name: str = "gru"


class RecurrentLayer(Mixer):
    """One layer, batch first, of torch.nn.GRU or torch.nn.LSTM, with resets."""

    resets_only = False  # whether our kernels run only where a row is reset on its way

    def __init__(self, rnn: nn.GRU | nn.LSTM) -> None:
        super().__init__()
        self.rnn = rnn

    def initial_state(self, batch_size: int) -> State:
        """Returns zeros (batch, d_model): one tensor for the GRU, the tuple (h, c) for the LSTM."""
        zeros = self.rnn.all_weights[0][0].new_zeros(batch_size, self.rnn.hidden_size)
        return zeros if isinstance(self.rnn, nn.GRU) else (zeros, zeros)

    def forward(self, x: Tensor, state: State, resets: Tensor) -> tuple[Tensor, State]:
        """Maps x (batch, time, d_model); on CPUs by our kernels, elsewhere by PyTorch's."""
        weight, recurrent, bias, recurrent_bias = self.rnn.all_weights[0]
        ours = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)
        ours = ours and not (self.resets_only and not resets[:, 1:].any())
        if not ours or torch.compiler.is_compiling():
            return self.by_pytorch(x, state, resets)
        # The recurrence keeps the weights' dtype: a state in half precision accumulates errors.
        with torch.autocast("cpu", enabled=False):
            inputs = F.linear(x.to(weight.dtype).transpose(0, 1), weight, bias)
            return self._recur(inputs, state, resets.contiguous(), recurrent, recurrent_bias)

    def by_pytorch(self, x: Tensor, state: State, resets: Tensor) -> tuple[Tensor, State]:
        """Maps x (batch, time, d_model) by PyTorch's kernels, in pieces without resets."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.rnn.all_weights[0][0].dtype)
            return run_pieces(self._run, self.initial_state, x, state, resets)

    def _recur(
        self, inputs: Tensor, state: State, resets: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, State]:
        """Returns the outputs and the last state, from what x adds to the gates, time first."""
        raise NotImplementedError

    def _run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, end = self.rnn(x, map_state(lambda part: part.unsqueeze(0), state))
        return y, map_state(lambda part: part.squeeze(0), end)


class GRU(RecurrentLayer):
    """h_t = (1 - z) n + z h_{t-1}, n = tanh(W x_t + r U h_{t-1}); r and z see x_t and h_{t-1}.

    As torch.nn.GRU; the output is h_t.
    """

    def __init__(self, config: GRUConfig) -> None:
        super().__init__(nn.GRU(config.d_model, config.d_model, batch_first=True))

    def _recur(
        self, inputs: Tensor, state: Tensor, resets: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        states: Tensor = _Recurrence.apply(inputs, state, resets, weight, bias)
        return states.transpose(0, 1), states[-1]

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Maps x (batch, d_model) by the cell with the same weights."""
        state = torch.gru_cell(x, state, *self.rnn.all_weights[0])
        return state, state


class _Recurrence(torch.autograd.Function):
    """Maps what x adds to the gates (time, batch, 3 channels) to states (time, batch, channels)."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, state: Tensor, resets: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        time, (batch, width) = len(inputs), state.shape
        states = inputs.new_empty(time, batch, width)
        before = inputs.new_empty(time + 1, batch, width)
        before[0] = restart(state, state.new_zeros(1, width), resets[:, 0])
        gates = inputs.new_empty(time, batch, 4 * width)
        recurrent = inputs.new_empty(batch, 3 * width)
        parts = (inputs.contiguous(), recurrent, resets, gates, before, states)
        arrays = [x.detach().numpy() for x in parts]
        first = not gru_forward.signatures  # is compiled in its first call
        with announced("the kernels of the GRU") if first else nullcontext():
            for t, begin in enumerate(before[:-1]):
                torch.addmm(bias, begin, weight.t(), out=recurrent)
                gru_forward(t, *arrays)
        ctx.save_for_backward(resets, weight, gates, before)
        return states

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("the GRU has no second derivative on CPUs.")
        resets, weight, gates, before = ctx.saved_tensors
        d_inputs = before.new_empty(*grad.shape[:2], len(weight))
        d_recurrent = torch.empty_like(d_inputs)
        d_state = torch.zeros_like(before[0])
        parts = (gates, before, resets, grad.contiguous(), d_state, d_inputs, d_recurrent)
        arrays = [x.numpy() for x in parts]
        for t in reversed(range(len(grad))):
            gru_backward(t, *arrays)
            d_state.addmm_(d_recurrent[t], weight)
        d_state = restart(d_state, torch.zeros_like(d_state), resets[:, 0])
        # The weights: one product over all steps.
        flat = d_recurrent.flatten(0, 1)
        return d_inputs, d_state, None, flat.t() @ before[:-1].flatten(0, 1), flat.sum(0)
