"""The LSTM mixer (Hochreiter and Schmidhuber 1997; forget gate of Gers et al. 2000)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agents.backbones.gru import RecurrentLayer
from agents.backbones.mixer import BackboneConfig


@dataclass
class LSTMConfig(BackboneConfig):
    """The LSTM has no settings of its own: both parts of the state have d_model channels."""

    name: str = "lstm"


class LSTM(RecurrentLayer):
    """c_t = f c_{t-1} + i tanh(W x_t + U h_{t-1}), h_t = o tanh(c_t); f, i, o see x_t, h_{t-1}.

    As torch.nn.LSTM; the output is h_t, the state (h, c).
    """

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__(nn.LSTM(config.d_model, config.d_model, batch_first=True))

    def step(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Maps x (batch, d_model) by the cell with the same weights."""
        h, c = torch.lstm_cell(x, state, *self.rnn.all_weights[0])
        return h, (h, c)
