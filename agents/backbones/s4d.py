"""The S4D mixer: a diagonal state space model for each channel (Gu et al., arXiv 2206.11893).

x'(t) = A x(t) + B u(t), y(t) = 2 Re(C x(t)) + D u(t), where A is complex and diagonal, in conjugate
pairs of which one half is stored, and B = 1. With a zero-order hold over steps of dt:
x_t = exp(dt A) x_{t-1} + (exp(dt A) - 1) / A u_t. A GELU and a Linear with a gated linear unit
follow, as in the authors' minimal S4D.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from agents.backbones.mixer import BackboneConfig, Mixer
from common.checks import choice, number
from common.errors import UserError

# Most steps in a chunk. Run time is flat from 32 to 64 and grows beyond with the Toeplitz product.
_CHUNK = 64
_DT_MIN, _DT_MAX = 0.001, 0.1


@dataclass
class S4DConfig(BackboneConfig):
    """S4D's own settings.

    Attributes:
        d_state: N, the real size of each channel's state: N / 2 complex numbers.
        init: Initial imaginary parts of A: `lin`, pi n (S4D-Lin), or `inv`,
            N / pi (N / (2 n + 1) - 1) (S4D-Inv); the real parts begin at -1/2.
    """

    name: str = "s4d"
    d_state: int = number(64, at_least=2, at_most=65_536)
    init: str = choice("lin", ("lin", "inv"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.d_state % 2:
            raise UserError(
                f"backbone.d_state is {self.d_state}; it must be even, for half of it is the "
                "number of conjugate pairs."
            )


class S4D(Mixer):
    """The linear recurrence in chunks of time, each a convolution by matrix products.

    Within a chunk the outputs are a triangular Toeplitz product of the inputs; two more products
    read the state at its start and write the one at its end, so only the states between chunks are
    computed. Unlike an FFT over the whole row this takes any state and any resets, needs the kernel
    of one chunk only, and a later step cannot change the rounding of an earlier one.
    """

    # As in the authors' code (state-spaces/s4, s4d.py): A and dt.
    undecayed = ("log_dt", "log_A_real", "A_imag")

    def __init__(self, config: S4DConfig) -> None:
        super().__init__()
        channels, pairs = config.d_model, config.d_state // 2
        log_range = math.log(_DT_MAX / _DT_MIN)
        self.log_dt = nn.Parameter(torch.rand(channels) * log_range + math.log(_DT_MIN))
        n = torch.arange(pairs)
        size = config.d_state
        frequencies = (
            math.pi * n if config.init == "lin" else size / math.pi * (size / (2 * n + 1) - 1)
        )
        self.log_A_real = nn.Parameter(torch.full((channels, pairs), math.log(0.5)))
        self.A_imag = nn.Parameter(frequencies.repeat(channels, 1))
        # Complex normal numbers of variance 1, stored as real and imaginary part.
        self.C = nn.Parameter(torch.randn(channels, pairs, 2) / math.sqrt(2))
        self.D = nn.Parameter(torch.randn(channels))
        self.output = nn.Linear(channels, 2 * channels)

    def initial_state(self, batch_size: int) -> Tensor:
        """Returns zeros (batch, d_model, d_state / 2, 2): real and imaginary parts."""
        return self.C.new_zeros(batch_size, *self.C.shape)

    def _discretize(self) -> tuple[Tensor, Tensor]:
        """Returns the decay exp(dt A) and twice C (exp(dt A) - 1) / A, (d_model, d_state / 2).

        The input's factor (exp(dt A) - 1) / A is applied where the state is read, so that the
        state is x_t = exp(dt A) x_{t-1} + u_t. The 2 stands for the conjugate half of the pairs.
        """
        a = torch.complex(-self.log_A_real.exp(), self.A_imag)
        dt_a = self.log_dt.exp().unsqueeze(-1) * a
        return dt_a.exp(), 2 * torch.view_as_complex(self.C) * dt_a.expm1() / a

    def forward(self, x: Tensor, state: Tensor, resets: Tensor) -> tuple[Tensor, Tensor]:
        """Maps x (batch, time, d_model) chunk by chunk."""
        time = x.shape[1]
        # Complex numbers have no 16-bit form: the recurrence stays in the parameters' precision.
        with torch.autocast(x.device.type, enabled=False):
            u = x.to(state.dtype).permute(2, 0, 1).contiguous()
            y, state = _recurrence(u, state, resets, *self._discretize())
            y = F.gelu(y + self.D.view(-1, 1, 1) * u)
        y = F.glu(self.output(y.flatten(1).t()))
        return y.unflatten(0, (-1, time)), state

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Maps x (batch, d_model) by one step of the recurrence."""
        u = x.to(state.dtype)
        decay, readout = self._discretize()
        # In place where possible: a wide batch spends its time on allocating memory.
        after = (decay * torch.view_as_complex(state)).add_(u.unsqueeze(-1))
        parts = torch.view_as_real(after)
        y = (parts.flatten(2).unsqueeze(2) @ _conjugate_parts(readout).unsqueeze(-1)).flatten(1)
        y = F.gelu(y + self.D * u)
        return F.glu(self.output(y)), parts


def _recurrence(
    u: Tensor, state: Tensor, resets: Tensor, decay: Tensor, readout: Tensor
) -> tuple[Tensor, Tensor]:
    """Computes Re(readout . x_t) with x_t = decay x_{t-1} + u_t, x_{t-1} = 0 where resets.

    u and the outputs are (d_model, batch, time), the state x_{-1} (batch, d_model, d_state / 2, 2),
    decay and readout complex (d_model, d_state / 2).
    """
    channels, batch, time = u.shape
    pairs = decay.shape[1]
    chunks = -(-time // _CHUNK)
    length = -(-time // chunks)
    padding = chunks * length - time
    powers = _powers(decay, length)
    # The kernel over one chunk. The table is (d_model, d_state, length), real and imaginary parts
    # alternating.
    table = torch.view_as_real(powers).mT.reshape(channels, -1, length)
    kernel = (_conjugate_parts(readout).unsqueeze(1) @ table).squeeze(1)
    # Row i: the contribution of the input i steps before the chunk's end to each output.
    toeplitz = F.pad(kernel, (length - 1, 0)).unfold(-1, length, 1).contiguous()

    # The states between chunks. Episodes are counted within each chunk: number 0 continues from
    # the chunk before, and only the last one contributes to the state at the chunk's end.
    episode = F.pad(resets, (0, padding)).view(batch, chunks, length).cumsum(-1)
    goes_on = episode[..., -1:] == 0
    backward = F.pad(u, (0, padding)).view(channels, batch, chunks, length).flip(-1)
    episode_of_end = episode == episode[..., -1:]
    undivided = bool(episode_of_end.all())  # each chunk is of one episode
    reaching = backward if undivided else backward * episode_of_end.flip(-1)
    ends = reaching[:, :, :-1].flatten(1, 2) @ table.mT
    starts: Tensor = _Carry.apply(
        powers[..., -1] * decay,
        torch.view_as_complex(state).transpose(0, 1),
        torch.view_as_complex(ends.view(channels, batch, chunks - 1, pairs, 2)),
        goes_on[:, :-1],
    )
    # The last state: the last chunk ends where its padding begins.
    steps = length - padding
    end = reaching[:, :, -1, padding:] @ table[..., :steps].mT
    kept = (powers[..., steps - 1] * decay).unsqueeze(1) * starts[:, :, -1] * goes_on[:, -1]
    end = end.view(channels, batch, pairs, 2) + torch.view_as_real(kept)

    # The outputs: what the state at the chunk's start adds, then the inputs of the same chunk.
    y = torch.zeros_like(backward)
    if bool((episode == 0).any()):
        seen = _conjugate_parts((readout * decay)[:, None, None] * starts)
        y = (seen.flatten(1, 2) @ table).view_as(y) * (episode == 0)
    if undivided:
        y = y + (backward.flatten(1, 2) @ toeplitz).view_as(y)
        return y.flatten(2)[..., :time], end.transpose(0, 1)
    # One product for each episode number that occurs in any chunk.
    episode = episode - episode[..., :1]
    for k in range(int(episode.max()) + 1):
        own = episode == k
        y = y + ((backward * own.flip(-1)).flatten(1, 2) @ toeplitz).view_as(y) * own
    return y.flatten(2)[..., :time], end.transpose(0, 1)


class _Carry(torch.autograd.Function):
    """Chains the chunks: the states at their starts, from their ends as if begun from zero.

    starts_0 is given and starts_{c+1} = decay starts_c + ends_c, without the first term where
    goes_on_c is false. decay, over a whole chunk, is (d_model, d_state / 2), goes_on (batch,
    chunks - 1, 1), starts (d_model, batch, chunks, d_state / 2), of which ends has chunks - 1.
    """

    @staticmethod
    def forward(ctx: Any, decay: Tensor, first: Tensor, ends: Tensor, goes_on: Tensor) -> Tensor:
        decays = decay[:, None, None] * goes_on
        starts = torch.cat([first.unsqueeze(2), ends], dim=2)
        for c in range(ends.shape[2]):
            starts[:, :, c + 1].addcmul_(decays[:, :, c], starts[:, :, c])
        ctx.save_for_backward(decay, goes_on, starts)
        return starts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        decay, goes_on, starts = ctx.saved_tensors
        decays = decay.conj()[:, None, None] * goes_on
        grad = grad.clone()
        for c in range(grad.shape[2] - 2, -1, -1):
            grad[:, :, c].addcmul_(decays[:, :, c], grad[:, :, c + 1])
        later = grad[:, :, 1:]
        d_decay = (later * goes_on * starts[:, :, :-1].conj()).sum((1, 2))
        return d_decay, grad[:, :, 0], later, None


def _conjugate_parts(z: Tensor) -> Tensor:
    """Returns (..., 2 n) whose product with the parts of w (..., n) is Re(z w)."""
    return torch.view_as_real(z.conj().resolve_conj()).flatten(-2)


def _powers(base: Tensor, count: int) -> Tensor:
    """Returns base^0 .. base^(count - 1) in a new last axis, by doubling."""
    factor = base.unsqueeze(-1)
    powers = torch.ones_like(factor)
    while powers.shape[-1] < count:
        powers = torch.cat([powers, powers * factor], dim=-1)
        factor = factor * factor
    return powers[..., :count]
