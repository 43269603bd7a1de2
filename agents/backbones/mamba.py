"""The Mamba mixer: a selective state space model (Gu & Dao, arXiv 2312.00752, sections 3.2 to 3.5).

Each inner channel has d_state numbers, whose decay and writes depend on the input:
h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t, y_t = C_t h_t + D x_t, where B_t and C_t are linear in x_t
and dt_t is the softplus of a linear map. A short causal convolution comes before, a gate after.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.backbones.convolution import CausalConvolution
from agents.backbones.mixer import BackboneConfig, Mixer
from agents.scan.selective import selective_scan
from common.checks import number

_DT_MIN, _DT_MAX = 0.001, 0.1


@dataclass
class MambaConfig(BackboneConfig):
    """Mamba's own settings; the rank of dt is d_model / 16, rounded up.

    Attributes:
        d_state: Numbers in the state of each inner channel.
        d_conv: Steps that the causal convolution sees.
        expand: Inner channels, in units of d_model.
    """

    name: str = "mamba"
    d_state: int = number(16, at_least=1, at_most=65_536)
    d_conv: int = number(4, at_least=1, at_most=1024)
    expand: int = number(2, at_least=1, at_most=1024)


class Mamba(Mixer):
    """in_proj -> (x, z); x -> convolution -> SiLU -> selective scan; times SiLU(z) -> out_proj."""

    # A_log and D as in the authors' code (state-spaces/mamba), the bias of dt as in its Mamba-2.
    undecayed = ("A_log", "D", "dt_proj.bias")

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        inner, self.d_state = config.expand * config.d_model, config.d_state
        self.dt_rank = math.ceil(config.d_model / 16)
        self.in_proj = nn.Linear(config.d_model, 2 * inner, bias=False)
        self.conv1d = CausalConvolution(inner, config.d_conv)
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * self.d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, self.d_state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, config.d_model, bias=False)
        bound = self.dt_rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        dt = torch.exp(torch.rand(inner) * math.log(_DT_MAX / _DT_MIN) + math.log(_DT_MIN))
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt.expm1().log())  # softplus of it is dt

    def initial_state(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Returns zeros: the convolution's window (batch, d_conv - 1, inner) and the state h.

        h is (batch, d_state, inner).
        """
        h = self.A_log.new_zeros(batch_size, self.d_state, self.A_log.shape[0])
        return self.conv1d.initial_state(batch_size), h

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor], resets: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Maps x (batch, time, d_model) by the parallel scan."""
        window, h = state
        x, z = self.in_proj(x).to(h.dtype).chunk(2, dim=-1)
        x, window = self.conv1d(x, window, resets)
        x = F.silu(x)
        dt, b, c = self._select(x)
        y, h = selective_scan(dt, dt * x, b, c, self._a(), h, resets)
        return self.out_proj((y + self.D * x) * F.silu(z)), (window, h)

    def step(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Maps x (batch, d_model) by one step of the recurrence."""
        window, h = state
        x, z = self.in_proj(x).to(h.dtype).chunk(2, dim=-1)
        x, window = self.conv1d.step(x, window)
        x = F.silu(x)
        dt, b, c = self._select(x)
        # In place where possible: a wide batch spends its time on allocating memory.
        decay = (dt.unsqueeze(1) * self._a()).exp_()
        h = (b.unsqueeze(-1) * (dt * x).unsqueeze(1)).addcmul_(decay, h)
        y = (c.unsqueeze(1) @ h).squeeze(1)
        return self.out_proj((y + self.D * x) * F.silu(z)), (window, h)

    def _a(self) -> Tensor:
        """Returns A (d_state, inner), all below zero."""
        return -self.A_log.t().exp().contiguous()

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps x (..., inner) to dt (..., inner), B and C (..., d_state), in the dtype of x."""
        selected = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt = F.softplus(self.dt_proj(selected[0]).to(x.dtype))
        return dt, selected[1].to(x.dtype), selected[2].to(x.dtype)
