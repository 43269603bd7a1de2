"""What a minimal-RNN layer costs: its Linear alone, nn.GRU, attention and other packages compared.

`python benchmarks/scan.py` measures forward + backward of a layer (gradients of input, weights):

- ``layers``: every variant on every shape, in interleaved rounds, as a ratio to the Linear alone
- ``memory``: peak memory of one step above its inputs, one process a variant (Linux)
- ``growth``: time and memory against time steps, 64 to 1,000,000
- ``threads``: one thread against several, on an idle machine and with as many busy processes
- ``headline``: minGRU against a GRU that goes step by step through autograd, as Feng et al. 2024

Saves a CSV table for each. Packages of the extra ``bench`` that are not installed are left out, by
name. `--quick` takes small sizes and few rounds, to see that the script works.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch
from scan_layers import VARIANTS, StepwiseGRU, available
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
from torch import nn

Shape = tuple[int, int, int]  # batch, time, d
SHAPES = [(64, 20, 128), (64, 60, 128), (64, 512, 128), (16, 1024, 256), (1, 100_000, 128)]
QUICK_SHAPES = [(8, 20, 64), (4, 200, 64)]
# Where a variant stops: beyond, it takes minutes or more memory than a small machine has.
LONGEST = {
    "loop": 4096, "log-space": 100_000, "nn.GRU": 16_384, "nn.LSTM": 100_000, "attention": 4096,
    "mingru-pytorch": 100_000, "mingru-scans": 16_384,
}  # fmt: skip
PARTS = ["layers", "growth", "threads", "headline", "memory"]  # memory: a column of the first two
STEPWISE = "GRU, step by step"
GROWTH = ["minGRU", "minGRU recomputed", "minLSTM", "nn.GRU", "attention"]


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


def times_of(
    builders: dict[str, Callable[[int], nn.Module]], shape: Shape, rounds: int
) -> dict[str, float]:
    """Median seconds of each variant that is measured at this length."""
    short = {n: b for n, b in builders.items() if shape[1] <= LONGEST.get(n, shape[1])}
    steps = {name: make_step(build, shape) for name, build in short.items()}
    return medians(steps, rounds, slow=1.0)


def variant_step(name: str, shape: Shape) -> Callable[[], None]:
    """One step of a variant, after a short one that compiles and imports."""
    make_step(VARIANTS[name], (1, 4, shape[2]))()
    return make_step(VARIANTS[name], shape)


def layers(quick: bool, threads: int, memory: bool) -> Iterator[Row]:
    """The table of all variants and shapes."""
    for shape in QUICK_SHAPES if quick else SHAPES:
        rounds = 3 if quick else 60 if shape[1] <= 60 else 7
        times = times_of(available(), shape, rounds)
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
        builders, shape = {name: VARIANTS[name] for name in GROWTH}, (1, length, 64)
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
        builders = {n: VARIANTS[n] for n in ("minGRU", "nn.GRU")} | {STEPWISE: StepwiseGRU}
        times = times_of(builders, (16, length, 128), 3)
        for name, value in times.items():
            yield {
                "threads": threads, "time": length, "layer": name, "ms": round(1e3 * value, 2),
                "x minGRU": round(value / times["minGRU"], 2),
                "paper (T4 GPU)": paper.get(length, "") if name == STEPWISE else "",
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
                    step = make_step(VARIANTS[name], shape)
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
        }
        for part in (part for part in measured if part in parts):
            tables.setdefault(part, []).extend(printed(measured[part]))
    if "threads" in parts and max(arguments.threads) > 1:
        tables["threads"] = printed(speedup(quick, max(arguments.threads)))
    for part, rows in tables.items():
        write_csv(arguments.out / f"scan_{'quick_' * quick}{part}.csv", rows)


if __name__ == "__main__":
    main()
