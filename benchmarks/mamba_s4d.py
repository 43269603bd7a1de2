"""What mamba and s4d layers cost, compared with mambapy's layer and S4D's Fourier transforms.

`python benchmarks/mamba_s4d.py` measures one training update of one layer, d_model 128: forward,
backward (gradients of input and weights) and AdamW, float32, one thread. Interleaved rounds in one
process, in CPU time, so that other work on the machine disturbs little. The table gives the median,
and the median of the ratios of each round to the first variant of its group.

- ``mamba`` and ``mambapy`` (extra ``bench``): the same layer with the same settings
- ``s4d``, its FFTs alone (the convolution of inputs and kernel, both of them given), these
  with the layer's output (GELU, Linear, GLU), and the whole layer with one convolution over the row
"""

import argparse
import importlib.util
import math
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from timing import interleaved, timed
from torch import Tensor, nn

from agents.backbones.mamba import Mamba, MambaConfig
from agents.backbones.mixer import Mixer
from agents.backbones.s4d import S4D, S4DConfig

SHAPES = [(64, 20, 128), (2, 1000, 128)]


class FromZero(nn.Module):
    """A mixer over rows that begin an episode."""

    def __init__(self, mixer: Mixer) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, d_model) -> the same."""
        resets = torch.zeros(x.shape[:2], dtype=torch.bool)
        resets[:, 0] = True
        return self.mixer(x, self.mixer.initial_state(len(x)), resets)[0]


class Convolution(nn.Module):
    """The Fourier transforms of S4D, with a kernel that is given."""

    def __init__(self, time: int, d_model: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(d_model, time) / math.sqrt(time))

    def forward(self, u: Tensor, kernel: Tensor | None = None) -> Tensor:
        """(batch, d_model, time) -> the same."""
        size = 2 * u.shape[-1]
        kernel = self.kernel if kernel is None else kernel
        spectrum = torch.fft.rfft(u, n=size) * torch.fft.rfft(kernel, n=size)
        return torch.fft.irfft(spectrum, n=size)[..., : u.shape[-1]]


class FourierS4D(nn.Module):
    """S4D's layer around one convolution over the whole row; `kernel` whether it is computed."""

    def __init__(self, time: int, d_model: int, kernel: bool) -> None:
        super().__init__()
        self.layer = S4D(S4DConfig(d_model=d_model))
        self.convolution = Convolution(time, d_model)
        self.compute_kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, d_model) -> the same."""
        u, kernel = x.mT, None
        if self.compute_kernel:
            layer = self.layer
            a = torch.complex(-layer.log_A_real.exp(), layer.A_imag)
            dt_a = layer.log_dt.exp().unsqueeze(-1) * a
            readout = 2 * torch.view_as_complex(layer.C) * dt_a.expm1() / a
            powers = (dt_a.unsqueeze(-1) * torch.arange(x.shape[1])).exp()
            kernel = (readout.unsqueeze(1) @ powers).squeeze(1).real
        y = F.gelu(self.convolution(u, kernel) + self.layer.D.unsqueeze(-1) * u)
        return F.glu(self.layer.output(y.mT))


def update(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """Returns one training update as a call."""
    optimizer = torch.optim.AdamW(model.parameters())
    x = x.clone().requires_grad_()
    target = torch.randn_like(x)

    def run() -> None:
        optimizer.zero_grad()
        x.grad = None
        model(x).backward(target)
        optimizer.step()

    return run


def measure(variants: dict[str, Callable[[], None]], rounds: int) -> None:
    """Prints the medians of interleaved rounds."""
    measures = {name: timed(run, clock=time.process_time) for name, run in variants.items()}
    seconds = interleaved(measures, rounds, warm_up=2)
    first = next(iter(seconds.values()))
    for name, own in seconds.items():
        ratio = median(b / a for a, b in zip(first, own, strict=True))
        print(f"| {name} | {median(own) * 1e3:.1f} | {ratio:.2f} |", flush=True)


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    peers = importlib.util.find_spec("mambapy") is not None
    if not peers:
        print('mambapy is left out: pip install -e ".[bench]"')
    for batch, steps, d_model in SHAPES:
        print(f"\n| {batch} x {steps} x {d_model} | CPU ms | ratio |\n|---|---|---|")
        x = torch.randn(batch, steps, d_model)
        variants = {"mamba": update(FromZero(Mamba(MambaConfig(d_model=d_model))), x)}
        if peers:
            mamba = importlib.import_module("mambapy.mamba")
            config = mamba.MambaConfig(d_model=d_model, n_layers=1)
            variants["mambapy"] = update(mamba.MambaBlock(config), x)
        measure(variants, rounds)
        variants = {
            "s4d": update(FromZero(S4D(S4DConfig(d_model=d_model))), x),
            "its FFTs alone": update(Convolution(steps, d_model), x.mT.contiguous()),
            "FFTs and output": update(FourierS4D(steps, d_model, kernel=False), x),
            "FFTs, output and kernel": update(FourierS4D(steps, d_model, kernel=True), x),
        }
        measure(variants, rounds)


if __name__ == "__main__":
    main()
