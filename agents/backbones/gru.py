"""The GRU mixer (Cho et al., arXiv 1406.1078), and what it shares with the LSTM.

Training runs PyTorch's own kernels (cuDNN on CUDA, ATen on CPUs). They know no resets, so rows are
cut at the resets and the pieces run as rows of one batch; see `run_pieces`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agents.backbones.mixer import BackboneConfig, Mixer
from agents.backbones.state import State, map_state, run_pieces


@dataclass
class GRUConfig(BackboneConfig):
    """The GRU has no settings of its own: the hidden state has d_model channels."""

    name: str = "gru"


class RecurrentLayer(Mixer):
    """One layer, batch first, of torch.nn.GRU or torch.nn.LSTM, with resets."""

    def __init__(self, rnn: nn.GRU | nn.LSTM) -> None:
        super().__init__()
        self.rnn = rnn

    def initial_state(self, batch_size: int) -> State:
        """Returns zeros (batch, d_model): one tensor for the GRU, the tuple (h, c) for the LSTM."""
        zeros = self.rnn.all_weights[0][0].new_zeros(batch_size, self.rnn.hidden_size)
        return zeros if isinstance(self.rnn, nn.GRU) else (zeros, zeros)

    def forward(self, x: Tensor, state: State, resets: Tensor) -> tuple[Tensor, State]:
        """Maps x (batch, time, d_model) by PyTorch's kernels."""
        # The recurrence keeps the weights' dtype: a state in half precision accumulates errors.
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.rnn.all_weights[0][0].dtype)
            return run_pieces(self._run, self.initial_state, x, state, resets)

    def _run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, end = self.rnn(x, map_state(lambda part: part.unsqueeze(0), state))
        return y, map_state(lambda part: part.squeeze(0), end)


class GRU(RecurrentLayer):
    """h_t = (1 - z) n + z h_{t-1}, n = tanh(W x_t + r U h_{t-1}); r and z see x_t and h_{t-1}.

    As torch.nn.GRU; the output is h_t.
    """

    def __init__(self, config: GRUConfig) -> None:
        super().__init__(nn.GRU(config.d_model, config.d_model, batch_first=True))

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Maps x (batch, d_model) by the cell with the same weights."""
        state = torch.gru_cell(x, state, *self.rnn.all_weights[0])
        return state, state
