"""What a minimal-RNN layer costs: its Linear alone, nn.GRU, attention and other packages compared.

`python benchmarks/scan.py` measures forward + backward of a layer (gradients of input, weights):

- ``layers``: every variant on every shape, in interleaved rounds, as a ratio to the Linear alone
- ``memory``: peak memory of one step above its inputs, one process a variant (Linux)
- ``growth``: time and memory against time steps, 64 to 1,000,000
- ``threads``: one thread against several, on an idle machine and with as many busy processes
- ``headline``: minGRU against a GRU that goes step by step through autograd, as Feng et al. 2024
- ``mamba``: the mamba layer against mambapy's

Saves a CSV table for each. Packages of the extra ``bench`` that are not installed are left out, by
name. `--quick` takes small sizes and few rounds, to see that the script works.
"""

import argparse
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from timing import (
    ROOT,
    Measure,
    Row,
    interleaved,
    medians,
    peak_mebibytes,
    printed,
    timed,
    write_csv,
)
from torch import Tensor, nn

from agents.backbones import MIXERS

Shape = tuple[int, int, int]  # batch, time, d
SHAPES = [(64, 20, 128), (64, 60, 128), (64, 512, 128), (16, 1024, 256), (1, 100_000, 128)]
QUICK_SHAPES = [(8, 20, 64), (4, 200, 64)]
# Where a variant stops: beyond, it takes minutes or more memory than a small machine has.
LONGEST = {
    "loop": 4096, "log-space": 100_000, "nn.GRU": 16_384, "nn.LSTM": 100_000, "attention": 4096,
    "mingru-pytorch": 100_000, "mingru-scans": 16_384,
}  # fmt: skip
# `memory` is a column of the tables of the first two.
PARTS = ["layers", "growth", "threads", "headline", "mamba", "memory"]
STEPWISE = "GRU, step by step"
GROWTH = ["minGRU", "minGRU recomputed", "minLSTM", "nn.GRU", "attention"]


class Own(nn.Module):
    """A layer of this project over rows that begin an episode."""

    def __init__(self, name: str, width: int, **settings: Any) -> None:
        super().__init__()
        config_class, mixer_class = MIXERS[name]
        self.mixer = mixer_class(config_class(d_model=width, **settings))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) -> the same."""
        resets = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        return self.mixer(x, self.mixer.initial_state(len(x)), resets)[0]


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
    """Mambapy's layer with the same settings."""
    theirs = importlib.import_module("mambapy.mamba")
    return theirs.MambaBlock(theirs.MambaConfig(d_model=width, n_layers=1))


Builders = dict[str, Callable[[int], nn.Module]]  # of layers, from their width
LAYERS: Builders = {
    "Linear 2d": lambda width: nn.Linear(width, 2 * width),
    "Linear 3d": lambda width: nn.Linear(width, 3 * width),
    "minGRU": partial(Own, "min_gru"),
    "minLSTM": partial(Own, "min_lstm"),
    "minGRU recomputed": partial(Own, "min_gru", recompute=True),
    "minLSTM recomputed": partial(Own, "min_lstm", recompute=True),
    "two-level": partial(Own, "min_gru", scan="two_level"),
    "loop": partial(Own, "min_gru", scan="reference"),
    "log-space": partial(Own, "min_gru", scan="log_space"),
    "nn.GRU": lambda width: First(nn.GRU(width, width, batch_first=True)),
    "nn.LSTM": lambda width: First(nn.LSTM(width, width, batch_first=True)),
    "attention": Attention,
    "mingru-pytorch": lambda width: First(
        importlib.import_module("minGRU_pytorch").minGRU(width, expansion_factor=1.0)
    ),
    "mingru-scans": lambda width: importlib.import_module("mingru").MinGRU(width, width),
}
MAMBA: Builders = {"mamba": partial(Own, "mamba"), "mambapy": mambapy_layer}


def available(builders: Builders) -> Builders:
    """The layers whose packages are here; says which are not."""
    found = {}
    for name, build in builders.items():
        try:
            build(8)
            found[name] = build
        except ImportError as error:
            print(f"left out: {name} ({error}); install the extra 'bench'")
    return found


def make_step(build: Callable[[int], nn.Module], shape: Shape) -> Callable[[], None]:
    """One forward and backward pass of a layer on a fixed random input."""
    torch.manual_seed(0)
    layer = build(shape[2])
    x = torch.randn(shape, requires_grad=True)
    inputs = [x, *layer.parameters()]
    gradient = None

    def step() -> None:
        nonlocal gradient
        y = layer(x)
        if gradient is None:  # made here: before its first call a step holds no more than its input
            gradient = torch.randn_like(y)
        torch.autograd.grad(y, inputs, gradient)

    return step


def times_of(builders: Builders, shape: Shape, rounds: int) -> dict[str, float]:
    """Median seconds of each variant that is measured at this length."""
    short = {n: b for n, b in builders.items() if shape[1] <= LONGEST.get(n, shape[1])}
    steps = {name: make_step(build, shape) for name, build in short.items()}
    return medians(steps, rounds, slow=1.0)


def variant_step(name: str, shape: Shape) -> Callable[[], None]:
    """One step of a variant, after a short one that compiles and imports."""
    make_step(LAYERS[name], (1, 4, shape[2]))()
    return make_step(LAYERS[name], shape)


def layers(quick: bool, threads: int, memory: bool) -> Iterator[Row]:
    """The table of all variants and shapes."""
    for shape in QUICK_SHAPES if quick else SHAPES:
        rounds = 3 if quick else 60 if shape[1] <= 60 else 7
        times = times_of(available(LAYERS), shape, rounds)
        for name, value in times.items():
            three = name == "attention" or name.startswith("minLSTM")
            floor = times["Linear 3d" if three else "Linear 2d"]
            yield {
                "threads": threads, "batch": shape[0], "time": shape[1], "d": shape[2],
                "layer": name, "ms": round(1e3 * value, 3),
                "x its Linear": round(value / floor, 2),
                "peak MiB": peak_mebibytes(variant_step, name, shape) if memory else "",
            }  # fmt: skip


def growth(quick: bool, threads: int, memory: bool) -> Iterator[Row]:
    """Time and memory against the number of steps, one sequence, d 64."""
    lengths = [64, 256, 1024] if quick else [64, 512, 4096, 16_384, 100_000, 1_000_000]
    for length in lengths:
        builders, shape = {name: LAYERS[name] for name in GROWTH}, (1, length, 64)
        times = times_of(builders, shape, 3 if length > 4096 else 9)
        for name, value in times.items():
            yield {
                "threads": threads, "time": length, "layer": name, "ms": round(1e3 * value, 3),
                "us a step": round(1e6 * value / length, 3),
                "peak MiB": peak_mebibytes(variant_step, name, shape) if memory else "",
            }  # fmt: skip


def headline(quick: bool, threads: int) -> Iterator[Row]:
    """MinGRU against GRUs, batch 16, d 128; the paper's factors are for a T4 and the plain loop."""
    paper = {512: 175, 4096: 1324}
    for length in [64] if quick else [512, 4096]:
        builders = {n: LAYERS[n] for n in ("minGRU", "nn.GRU")} | {STEPWISE: StepwiseGRU}
        times = times_of(builders, (16, length, 128), 3)
        for name, value in times.items():
            yield {
                "threads": threads, "time": length, "layer": name, "ms": round(1e3 * value, 2),
                "x minGRU": round(value / times["minGRU"], 2),
                "paper (T4 GPU)": paper.get(length, "") if name == STEPWISE else "",
            }  # fmt: skip


def mamba(quick: bool, threads: int) -> Iterator[Row]:
    """The mamba layer against mambapy's: 64 windows of 20 steps, and rows of whole episodes."""
    for shape in QUICK_SHAPES if quick else [(64, 20, 128), (2, 1000, 128)]:
        times = times_of(available(MAMBA), shape, 3 if quick else 21)
        for name, value in times.items():
            yield {
                "threads": threads, "batch": shape[0], "time": shape[1], "d": shape[2],
                "layer": name, "ms": round(1e3 * value, 2),
                "x mamba": round(value / times["mamba"], 2),
            }  # fmt: skip


def with_threads(step: Callable[[], None], threads: int) -> Measure:
    """Seconds of a step with so many threads, which an earlier call has woken."""

    def measure() -> float:
        torch.set_num_threads(threads)
        step()
        return timed(step)()

    return measure


def speedup(quick: bool, threads: int) -> Iterator[Row]:
    """One thread against several in one process, alone and with a busy process on every core."""
    for load in (0, threads):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(load)]
        try:
            for shape in QUICK_SHAPES if quick else SHAPES[:-1]:
                rounds = 3 if quick else 40 if shape[1] <= 60 else 11
                for name in ("Linear 2d", "minGRU", "minLSTM"):
                    step = make_step(LAYERS[name], shape)
                    measures = {str(n): with_threads(step, n) for n in (1, threads)}
                    one, several = map(median, interleaved(measures, rounds).values())
                    yield {
                        "busy processes": load, "batch": shape[0], "time": shape[1],
                        "d": shape[2], "layer": name, "ms, 1 thread": round(1e3 * one, 2),
                        f"ms, {threads} threads": round(1e3 * several, 2),
                        "x faster": round(one / several, 2),
                    }  # fmt: skip
        finally:
            for process in busy:
                process.kill()
                process.wait()


def main() -> None:
    """Parse the command line, measure, print and save."""
    parser = argparse.ArgumentParser(description="Benchmark the minimal-RNN layers on the CPU.")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--quick", action="store_true", help="small sizes, saved as scan_quick")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    quick, parts = arguments.quick, arguments.parts
    tables: dict[str, list[Row]] = {}
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        # memory hardly depends on the threads: once is enough
        memory = "memory" in parts and threads == arguments.threads[0]
        measured = {
            "layers": layers(quick, threads, memory),
            "growth": growth(quick, threads, memory),
            "headline": headline(quick, threads),
            "mamba": mamba(quick, threads),
        }
        for part in (part for part in measured if part in parts):
            tables.setdefault(part, []).extend(printed(measured[part]))
    if "threads" in parts and max(arguments.threads) > 1:
        tables["threads"] = printed(speedup(quick, max(arguments.threads)))
    for part, rows in tables.items():
        write_csv(arguments.out / f"scan_{'quick_' * quick}{part}.csv", rows)


if __name__ == "__main__":
    main()
