"""The GRU mixer (Cho et al., arXiv 1406.1078), and what it shares with the LSTM.

Training runs torch's own kernels (cuDNN on CUDA, ATen on CPUs). They know nothing of episodes, so
rows are cut where one begins, and the pieces run side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter

import torch
from torch import Tensor, nn

from agents.backbones.state import check_state
from agents.block import BackboneConfig, Mixer, State, map_state, zeros_like_weight


@dataclass
class GRUConfig(BackboneConfig):
    """The GRU has no settings of its own: the hidden state has d_model channels."""

    name: str = "gru"


class RecurrentLayer(Mixer):
    """One layer of torch.nn.GRU or torch.nn.LSTM, started afresh wherever an episode begins.

    Args:
        name: The backbone's name, for errors.
        rnn: One layer, batch first, as wide outside as inside.
        parts: Tensors of its state, each (batch, d_model).
    """

    def __init__(self, name: str, rnn: nn.GRU | nn.LSTM, parts: int) -> None:
        super().__init__()
        self.name = name
        self.rnn = rnn
        self.parts = parts

    def initial_state(self, batch_size: int) -> State:
        """Returns zeros (batch, d_model): one tensor for the GRU, the tuple (h, c) for the LSTM."""
        zeros = zeros_like_weight(self.rnn.all_weights[0][0], batch_size, self.rnn.hidden_size)
        return zeros if self.parts == 1 else (zeros,) * self.parts

    def _before(self, state: State, is_first: Tensor) -> State:
        """Returns the state before a step, zero in the rows (batch,) where an episode begins."""
        check_state(self.name, state, *[(len(is_first), self.rnn.hidden_size)] * self.parts)
        return map_state(lambda part: part.masked_fill(is_first.unsqueeze(1), 0.0), state)

    def forward(self, x: Tensor, state: State, is_first: Tensor) -> tuple[Tensor, State]:
        """Maps x (batch, time, d_model) by torch's kernels; see Mixer."""
        state = self._before(state, is_first[:, 0])
        # The recurrence stays in the weights' type: a state in half precision adds up its errors.
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.rnn.all_weights[0][0].dtype)
            if is_first[:, 1:].any():
                return self._run_pieces(x, state, is_first)
            return self._run(x, state)

    def _run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, end = self.rnn(x, map_state(lambda part: part.unsqueeze(0), state))
        return y, map_state(lambda part: part.squeeze(0), end)

    def _run_pieces(self, x: Tensor, state: State, is_first: Tensor) -> tuple[Tensor, State]:
        """Runs the pieces between resets side by side; only each row's first has its state.

        Pieces are sorted, the longest first. Until the shortest ends all run in one call, then
        the others in one up to the end of the next: as many calls as there are lengths, without
        padding. (torch's packed sequences do the same step by step, and on CPUs the time of their
        backward pass grows with the square of the length.)
        """
        batch, time, channels = x.shape
        begins = is_first.clone()
        begins[:, 0] = True
        start = begins.flatten().nonzero().squeeze(1)
        length = torch.diff(start, append=start.new_tensor([batch * time]))
        length, order = length.sort(descending=True)
        start = start[order].unsqueeze(1)
        rank = order.argsort()  # where each piece stands in the sorted order
        pieces = begins.sum(1)
        last = pieces.cumsum(0) - 1
        first = last - pieces + 1

        edges = [0, *length.unique().tolist()]
        running = (length.unsqueeze(1) > length.new_tensor(edges[:-1])).sum(0).tolist()
        calls = list(zip(running, pairwise(edges), strict=True))
        index = torch.cat(
            [(start[:n] + torch.arange(a, b, device=x.device)).flatten() for n, (a, b) in calls]
        )
        data = x.flatten(0, 1)[index].split([n * (b - a) for n, (a, b) in calls])
        blank = x.new_zeros(len(start), channels)
        state = map_state(lambda part: blank.index_copy(0, rank[first], part), state)
        outputs, ends = [], []
        for (n, (a, b)), steps in zip(calls, data, strict=True):
            ends.append(map_state(itemgetter(slice(n, None)), state))
            state = map_state(itemgetter(slice(n)), state)
            y, state = self._run(steps.view(n, b - a, channels), state)
            outputs.append(y.flatten(0, 1))
        ends.append(state)

        output = torch.cat(outputs)
        y = torch.empty_like(output).index_copy(0, index, output).view(batch, time, channels)
        return y, map_state(lambda part: part[rank[last]], _join(ends[::-1]))


def _join(states: list[State]) -> State:
    if isinstance(states[0], Tensor):
        return torch.cat(states)
    return tuple(torch.cat(parts) for parts in zip(*states, strict=True))


class GRU(RecurrentLayer):
    """h_t = (1 - z) n + z h_{t-1}, n = tanh(W x_t + r U h_{t-1}); r and z see x_t and h_{t-1}.

    As torch.nn.GRU; the output is h_t.
    """

    def __init__(self, config: GRUConfig) -> None:
        super().__init__("gru", nn.GRU(config.d_model, config.d_model, batch_first=True), parts=1)

    def step(self, x: Tensor, state: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
        """Maps x (batch, d_model) by the cell with the same weights; see Mixer."""
        state = torch.gru_cell(x, self._before(state, is_first), *self.rnn.all_weights[0])
        return state, state
