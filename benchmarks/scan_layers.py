"""The layers that benchmarks/scan.py compares: this project's, PyTorch's and other packages'."""

import importlib
from collections.abc import Callable

import timing  # noqa: F401 - puts this checkout first on the path
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.scan import linear_scan, minimal_scan
from agents.scan.layer import minimal_layer


class MinimalLayer(nn.Module):
    """A minGRU or minLSTM layer, as the backbones have it."""

    def __init__(self, width: int, gates: int, form: str = "auto", recompute: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(width, gates * width)
        self.form, self.recompute = form, recompute

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) -> the same."""
        state = x.new_zeros(x.shape[0], x.shape[2])
        weights = self.linear.weight, self.linear.bias
        return minimal_layer(x, *weights, state, form=self.form, recompute=self.recompute)


class WholeLayer(nn.Module):
    """One Linear over all steps, then the fused scan of its output: not cut into pieces."""

    def __init__(self, width: int, gates: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, gates * width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) -> the same."""
        return minimal_scan(self.linear(x), x.new_zeros(x.shape[0], x.shape[2]))


class GatedLayer(nn.Module):
    """MinGRU with the gates in PyTorch around somebody's linear scan(decay, input)."""

    def __init__(self, width: int, scan: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.scan = nn.Linear(width, 2 * width), scan

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) -> the same."""
        gate, candidate = self.linear(x).chunk(2, dim=-1)
        candidate = torch.where(candidate >= 0, candidate + 0.5, candidate.sigmoid())
        return self.scan((-gate).sigmoid(), gate.sigmoid() * candidate)


class Attention(nn.Module):
    """Causal attention with 4 heads: query, key and value from one Linear, no output projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) -> the same."""
        heads = [y.unflatten(-1, (4, -1)).transpose(1, 2) for y in self.linear(x).chunk(3, -1)]
        y = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        return y.transpose(1, 2).flatten(2)


class First(nn.Module):
    """The first of a layer's outputs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) -> the same."""
        y = self.layer(x)
        return y[0] if isinstance(y, tuple) else y


class StepwiseGRU(nn.Module):
    """A GRU as a loop over time: the baseline of the paper's headline."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) -> the same."""
        h, states = x.new_zeros(x.shape[0], x.shape[2]), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            states.append(h)
        return torch.stack(states, dim=1)


def mambapy_layer(width: int) -> nn.Module:
    """MinGRU around mambapy's parallel scan, (batch, time, channels, 1)."""
    pscan = importlib.import_module("mambapy.pscan").pscan
    return GatedLayer(width, lambda a, v: pscan(a.unsqueeze(-1), v.unsqueeze(-1)).squeeze(-1))


def accelerated_layer(width: int) -> nn.Module:
    """MinGRU around accelerated-scan's reference, (batch, channels, time)."""
    scan = importlib.import_module("accelerated_scan.ref").scan

    def transposed(decay: Tensor, value: Tensor) -> Tensor:
        a, v = (x.transpose(1, 2).contiguous() for x in (decay, value))
        return scan(a, v).transpose(1, 2)

    return GatedLayer(width, transposed)


def zero_state_scan(decay: Tensor, value: Tensor) -> Tensor:
    """This project's linear scan from a zero state."""
    return linear_scan(decay, value, torch.zeros_like(decay[:, 0]))


VARIANTS: dict[str, Callable[[int], nn.Module]] = {
    "Linear 2d": lambda width: nn.Linear(width, 2 * width),
    "Linear 3d": lambda width: nn.Linear(width, 3 * width),
    "minGRU": lambda width: MinimalLayer(width, 2),
    "minLSTM": lambda width: MinimalLayer(width, 3),
    "minGRU recomputed": lambda width: MinimalLayer(width, 2, recompute=True),
    "minLSTM recomputed": lambda width: MinimalLayer(width, 3, recompute=True),
    "minGRU, one piece": lambda width: WholeLayer(width, 2),
    "minLSTM, one piece": lambda width: WholeLayer(width, 3),
    "linear scan": lambda width: GatedLayer(width, zero_state_scan),
    "two-level": lambda width: MinimalLayer(width, 2, "two_level"),
    "loop": lambda width: MinimalLayer(width, 2, "reference"),
    "log-space": lambda width: MinimalLayer(width, 2, "log_space"),
    "nn.GRU": lambda width: First(nn.GRU(width, width, batch_first=True)),
    "nn.LSTM": lambda width: First(nn.LSTM(width, width, batch_first=True)),
    "attention": Attention,
    "mingru-pytorch": lambda width: First(
        importlib.import_module("minGRU_pytorch").minGRU(width, expansion_factor=1.0)
    ),
    "mingru-scans": lambda width: importlib.import_module("mingru").MinGRU(width, width),
    "mambapy pscan": mambapy_layer,
    "accelerated-scan ref": accelerated_layer,
}


def available() -> dict[str, Callable[[int], nn.Module]]:
    """The variants whose packages are here; says which are not."""
    found = {}
    for name, build in VARIANTS.items():
        try:
            build(8)
            found[name] = build
        except ImportError as error:
            print(f"left out: {name} ({error}); install the extra 'bench'")
    return found
