"""The Aaren mixer: attention as an RNN (Feng et al., arXiv 2405.13956, section 3).

Softmax attention with a learned query, independent of the input, is a recurrence: each step adds
one key and value to running sums. Aaren replaces self-attention in a Transformer's layer and has
the same projections, plus the query token (the paper counts 3,152,896 parameters against 3,152,384
at d_model 512).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.backbones.attention import HeadsConfig
from agents.backbones.mixer import Mixer
from agents.backbones.state import run_pieces
from agents.scan import linear_scan

_EMPTY = float("-inf")  # the maximum over no scores


@dataclass
class AarenConfig(HeadsConfig):
    """Aaren's settings; each head has its own query."""

    name: str = "aaren"


def _running_maximum(scores: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the largest score so far at each step, (batch, time, n_head), and at the last."""
    maxima = torch.maximum(scores.cummax(dim=1).values, before.unsqueeze(1))
    return maxima, maxima[:, -1]


class Aaren(Mixer):
    """o_t = sum_i exp(s_i) v_i / sum_i exp(s_i) over the episode's steps i <= t, s_i = q . k_i.

    The state of each head is the triple (m, c, u) of section 3.1: the largest score so far, the sum
    of exp(s_i - m) v_i, and the sum of exp(s_i - m).
    """

    def __init__(self, config: AarenConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.d_head = config.d_model // config.n_head
        self.query_token = nn.Parameter(torch.randn(config.d_model))
        self.query = nn.Linear(config.d_model, config.d_model)
        self.key = nn.Linear(config.d_model, config.d_model)
        self.value = nn.Linear(config.d_model, config.d_model)
        self.output = nn.Linear(config.d_model, config.d_model)

    def initial_state(self, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns m (batch, n_head), c (batch, n_head, d_head), u (batch, n_head) of no step."""
        maximum = self._no_maximum(batch_size)
        zeros = torch.zeros_like(maximum)
        return maximum, zeros.unsqueeze(-1).repeat(1, 1, self.d_head), zeros

    def _no_maximum(self, batch_size: int) -> Tensor:
        return self.query_token.new_full((batch_size, self.n_head), _EMPTY)

    def _scores_and_values(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Maps x (..., d_model) to scores (..., n_head) and values (..., n_head, d_head)."""
        query = self.query(self.query_token).view(self.n_head, 1, self.d_head)
        query = query / self.d_head**0.5
        # The query is the same at every step, so it is multiplied with the keys' weights first:
        # q . (W x + b) = (q W) x + q . b needs no keys.
        weight = query @ self.key.weight.view(self.n_head, self.d_head, -1)
        bias = query @ self.key.bias.view(self.n_head, self.d_head, 1)
        scores = F.linear(x, weight.squeeze(1), bias.view(-1))
        values = self.value(x).unflatten(-1, (self.n_head, self.d_head))
        return scores.to(dtype), values.to(dtype)

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor, Tensor], resets: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Maps x (batch, time, d_model) by scans over m, c and u."""
        maximum, numerator, denominator = state
        scores, values = self._scores_and_values(x, numerator.dtype)
        # c / u does not depend on m, which only keeps the exponentials in range: no gradient.
        maxima, _ = run_pieces(
            _running_maximum, self._no_maximum, scores.detach(), maximum.detach(), resets
        )
        before = torch.cat([maximum.unsqueeze(1), maxima[:, :-1]], dim=1)
        # Masked before the exponential, where a larger score of another episode could overflow.
        decay = (before - maxima).masked_fill(resets.unsqueeze(-1), _EMPTY).exp()
        weights = (scores - maxima).exp()
        denominators = linear_scan(decay, weights, denominator)
        numerators = linear_scan(
            decay.unsqueeze(-1).expand_as(values).flatten(2),
            (weights.unsqueeze(-1) * values).flatten(2),
            numerator.flatten(1),
        ).view_as(values)
        mixed = self.output((numerators / denominators.unsqueeze(-1)).flatten(2))
        return mixed, (maxima[:, -1], numerators[:, -1], denominators[:, -1])

    def step(
        self, x: Tensor, state: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Maps x (batch, d_model) by one step of the recurrence."""
        before, numerator, denominator = state
        scores, values = self._scores_and_values(x, numerator.dtype)
        maximum = torch.maximum(before, scores).detach()
        decay, weight = (before - maximum).exp(), (scores - maximum).exp()
        denominator = decay * denominator + weight
        numerator = decay.unsqueeze(-1) * numerator + weight.unsqueeze(-1) * values
        mixed = self.output((numerator / denominator.unsqueeze(-1)).flatten(1))
        return mixed, (maximum, numerator, denominator)
