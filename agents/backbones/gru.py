"""The GRU mixer (Cho et al., arXiv 1406.1078), and what it shares with the LSTM.

Training runs torch's own kernels (cuDNN on CUDA, ATen on CPUs). They know nothing of episodes, so
rows are cut where one begins, and the pieces run side by side; see `run_pieces`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agents.backbones.block import BackboneConfig, Mixer, zeros_like_weight
from agents.backbones.state import State, map_state, restart, run_pieces


@dataclass
class GRUConfig(BackboneConfig):
    """The GRU has no settings of its own: the hidden state has d_model channels."""

    name: str = "gru"


class RecurrentLayer(Mixer):
    """One layer of torch.nn.GRU or torch.nn.LSTM, started afresh wherever an episode begins.

    Args:
        rnn: One layer, batch first, as wide outside as inside.
        parts: Tensors of its state, each (batch, d_model).
    """

    def __init__(self, rnn: nn.GRU | nn.LSTM, parts: int) -> None:
        super().__init__()
        self.rnn = rnn
        self.parts = parts

    def initial_state(self, batch_size: int) -> State:
        """Returns zeros (batch, d_model): one tensor for the GRU, the tuple (h, c) for the LSTM."""
        zeros = zeros_like_weight(self.rnn.all_weights[0][0], batch_size, self.rnn.hidden_size)
        return zeros if self.parts == 1 else (zeros,) * self.parts

    def _before(self, state: State, resets: Tensor) -> State:
        """Returns the state before a step, zero in the rows (batch,) where an episode begins."""
        return restart(state, self.initial_state(len(resets)), resets)

    def forward(self, x: Tensor, state: State, resets: Tensor) -> tuple[Tensor, State]:
        """Maps x (batch, time, d_model) by torch's kernels; see Mixer."""
        # The recurrence stays in the weights' type: a state in half precision adds up its errors.
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
        super().__init__(nn.GRU(config.d_model, config.d_model, batch_first=True), parts=1)

    def step(self, x: Tensor, state: Tensor, resets: Tensor) -> tuple[Tensor, Tensor]:
        """Maps x (batch, d_model) by the cell with the same weights; see Mixer."""
        state = torch.gru_cell(x, self._before(state, resets), *self.rnn.all_weights[0])
        return state, state
