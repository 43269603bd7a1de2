"""What a minimal-RNN layer costs beside its Linear alone, nn.GRU, attention and other packages.

`python benchmarks/scan.py` measures forward + backward of a layer (gradients of input, weights):

- ``layers``: every variant on every shape, in interleaved rounds, as a ratio to the Linear alone
- ``memory``: peak memory of one step above what stood before it, one process a variant (Linux)
- ``growth``: time and memory against time steps, 64 to 1,000,000
- ``threads``: one thread against several, on an idle machine and beside as many busy processes
- ``headline``: minGRU against a GRU that goes step by step through autograd, as Feng et al. 2024

Tables (Markdown and CSV) and a plot go to benchmarks/results. Packages of the extra ``bench`` that
are missing are left out, by name. `--quick` makes small sizes and few rounds, to see that it works.
"""

import argparse
import csv
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.scan_layers import VARIANTS, StepwiseGRU, available

RESULTS = Path(__file__).resolve().parent / "results"
SHAPES = [(64, 20, 128), (64, 60, 128), (64, 512, 128), (16, 1024, 256), (1, 100_000, 128)]
QUICK_SHAPES = [(8, 20, 64), (4, 200, 64)]
# Where a variant stops: beyond, it takes minutes or more memory than a small machine has.
LONGEST = {
    "loop": 4096, "log-space": 100_000, "nn.GRU": 16_384, "nn.LSTM": 100_000, "attention": 4096,
    "mingru-pytorch": 100_000, "mingru-scans": 16_384,
}  # fmt: skip
TABLES = ["layers", "growth", "threads", "headline"]
PARTS = [*TABLES, "memory"]  # a column of the first two
GROWTH = ["minGRU", "minGRU recomputed", "minLSTM", "nn.GRU", "attention"]


def make_step(build: Callable[[int], nn.Module], shape: tuple[int, int, int]) -> Callable[[], None]:
    """One forward and backward pass of a layer on a fixed random input."""
    torch.manual_seed(0)
    layer = build(shape[2])
    x = torch.randn(shape, requires_grad=True)
    with torch.no_grad():
        gradient = torch.randn_like(layer(x))
    inputs = [x, *layer.parameters()]

    def step() -> None:
        torch.autograd.grad(layer(x), inputs, gradient)

    return step


def seconds(step: Callable[[], None]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def interleaved(
    builders: dict[str, Callable[[int], nn.Module]], shape: tuple[int, int, int], rounds: int
) -> dict[str, float]:
    """Median seconds of each variant, A B C, B C A, ...: noise and neighbours meet all alike."""
    steps = {
        name: make_step(build, shape)
        for name, build in builders.items()
        if shape[1] <= LONGEST.get(name, shape[1])
    }
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()  # compile, allocate
    for done in range(rounds):
        names = list(steps)
        turn = done % len(names)
        for name in names[turn:] + names[:turn]:
            # a slow variant tells enough in three rounds
            if done < 3 or statistics.median(samples[name]) < 1.0:
                samples[name].append(seconds(steps[name]))
    return {name: statistics.median(values) for name, values in samples.items()}


def peak_memory(name: str, shape: tuple[int, int, int], threads: int) -> int | None:
    """Peak bytes of one step above the inputs, measured in a fresh process; None off Linux."""
    if platform.system() != "Linux":
        return None
    sizes = [str(size) for size in shape]
    command = [sys.executable, __file__, "--peak", name, *sizes, "--threads", str(threads)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(result.stdout.split()[-1])


def print_peak(name: str, shape: tuple[int, int, int]) -> None:
    """Run one step in this process and print by how many bytes its peak exceeds the start."""
    make_step(VARIANTS[name], (1, 4, shape[2]))()  # compile and import first
    step = make_step_without_trial(VARIANTS[name], shape)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = status_bytes("VmRSS")
    step()
    print(status_bytes("VmHWM") - before)


def make_step_without_trial(
    build: Callable[[int], nn.Module], shape: tuple[int, int, int]
) -> Callable[[], None]:
    """As `make_step`, but touching no more than the input before the step runs."""
    layer = build(shape[2])
    x = torch.randn(shape, requires_grad=True)
    inputs = [x, *layer.parameters()]

    def step() -> None:
        y = layer(x)
        torch.autograd.grad(y, inputs, torch.ones_like(y))

    return step


def status_bytes(key: str) -> int:
    """A figure of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


Row = dict[str, object]


def layers(quick: bool, threads: int, memory: bool) -> list[Row]:
    """The table of all variants and shapes."""
    rows: list[Row] = []
    for shape in QUICK_SHAPES if quick else SHAPES:
        rounds = 3 if quick else 60 if shape[1] <= 60 else 7
        times = interleaved(available(), shape, rounds)
        for name, value in times.items():
            three = name == "attention" or name.startswith("minLSTM")
            floor = times["Linear 3d" if three else "Linear 2d"]
            peak = peak_memory(name, shape, threads) if memory else None
            rows.append(
                {
                    "threads": threads, "batch": shape[0], "time": shape[1], "d": shape[2],
                    "layer": name, "ms": round(1e3 * value, 3),
                    "x its Linear": round(value / floor, 2),
                    "peak MiB": "" if peak is None else round(peak / 2**20, 1),
                }
            )  # fmt: skip
            print(*rows[-1].values(), sep="\t", flush=True)
    return rows


def growth(quick: bool, threads: int, memory: bool) -> list[Row]:
    """Time and memory against the number of steps, one sequence, d 64."""
    lengths = [64, 256, 1024] if quick else [64, 512, 4096, 16_384, 100_000, 1_000_000]
    rows: list[Row] = []
    for length in lengths:
        builders = {name: VARIANTS[name] for name in GROWTH}
        times = interleaved(builders, (1, length, 64), 3 if length > 4096 else 9)
        for name, value in times.items():
            peak = peak_memory(name, (1, length, 64), threads) if memory else None
            rows.append(
                {
                    "threads": threads, "time": length, "layer": name, "ms": round(1e3 * value, 3),
                    "us a step": round(1e6 * value / length, 3),
                    "peak MiB": "" if peak is None else round(peak / 2**20, 1),
                }
            )  # fmt: skip
            print(*rows[-1].values(), sep="\t", flush=True)
    return rows


def headline(quick: bool, threads: int) -> list[Row]:
    """MinGRU against GRUs, batch 16, d 128; the paper's factors are for a T4 and the plain loop."""
    paper = {512: 175, 4096: 1324}
    rows: list[Row] = []
    for length in [64] if quick else [512, 4096]:
        builders = {
            "minGRU": VARIANTS["minGRU"],
            "GRU, step by step": StepwiseGRU,
            "nn.GRU": VARIANTS["nn.GRU"],
        }
        times = interleaved(builders, (16, length, 128), 3)
        for name, value in times.items():
            rows.append(
                {
                    "threads": threads, "time": length, "layer": name, "ms": round(1e3 * value, 2),
                    "x minGRU": round(value / times["minGRU"], 2),
                    "paper (T4 GPU)": paper.get(length, "") if "step" in name else "",
                }
            )  # fmt: skip
            print(*rows[-1].values(), sep="\t", flush=True)
    return rows


def speedup(quick: bool, threads: int) -> list[Row]:
    """One thread against several in one process, alone and with a busy process on every core."""
    rows: list[Row] = []
    for load in (0, threads):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(load)]
        try:
            for shape in QUICK_SHAPES if quick else SHAPES[:-1]:
                rounds = 3 if quick else 40 if shape[1] <= 60 else 11
                for name in ("Linear 2d", "minGRU", "minLSTM"):
                    step = make_step(VARIANTS[name], shape)
                    times: dict[int, list[float]] = {1: [], threads: []}
                    for _ in range(rounds):
                        for count, values in times.items():
                            torch.set_num_threads(count)
                            step()  # wakes the threads
                            values.append(seconds(step))
                    one, several = (statistics.median(values) for values in times.values())
                    rows.append(
                        {
                            "busy processes": load, "batch": shape[0], "time": shape[1],
                            "d": shape[2], "layer": name, "ms, 1 thread": round(1e3 * one, 2),
                            f"ms, {threads} threads": round(1e3 * several, 2),
                            "x faster": round(one / several, 2),
                        }
                    )  # fmt: skip
                    print(*rows[-1].values(), sep="\t", flush=True)
        finally:
            for process in busy:
                process.kill()
                process.wait()
    return rows


def markdown(rows: list[Row]) -> str:
    """Rows as a Markdown table."""
    lines = [rows[0].keys(), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def save(tables: dict[str, list[Row]], name: str) -> None:
    """Write each table as CSV, and a Markdown page of these and of those measured before."""
    RESULTS.mkdir(exist_ok=True)
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    page = [f"# {name}", f"`python benchmarks/scan.py`, {versions}, {platform.machine()}."]
    page.append("Forward + backward of one layer, float32, CPU; medians of interleaved rounds.")
    for title in TABLES:
        path = RESULTS / f"{name}_{title}.csv"
        if title in tables:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, tables[title][0].keys())
                writer.writeheader()
                writer.writerows(tables[title])
        if path.exists():
            with path.open(newline="") as file:
                page += [f"## {title}", markdown(list(csv.DictReader(file)))]
    (RESULTS / f"{name}.md").write_text("\n\n".join(page) + "\n")


def plot(tables: dict[str, list[Row]], name: str) -> None:
    """Milliseconds and memory against time, and the layers' ratios to their Linear."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: install matplotlib (extra 'bench')")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    for layer in GROWTH:
        rows = [row for row in tables.get("growth", []) if row["layer"] == layer]
        rows = [row for row in rows if row["threads"] == rows[0]["threads"]]
        for axis, key in zip(axes, ("ms", "peak MiB"), strict=False):
            points = [(row["time"], row[key]) for row in rows if row[key] != ""]
            if points:
                axis.loglog(*zip(*points, strict=True), "o-", label=layer)
            axis.set(xlabel="time steps", ylabel=key, title="one sequence, d 64")
    ratios = {
        f"{row['layer']}, {row['batch']}x{row['time']}x{row['d']}": row["x its Linear"]
        for row in tables.get("layers", [])
        if row["layer"] in (*GROWTH, "log-space") and row["threads"] == 1
    }
    axes[2].barh(list(ratios), [float(str(value)) for value in ratios.values()])
    axes[2].set(xscale="log", xlabel="forward + backward / Linear alone", title="1 thread")
    axes[0].legend()
    figure.savefig(RESULTS / f"{name}.png", dpi=120)


def main() -> None:
    """Parse the command line, measure, print and save."""
    parser = argparse.ArgumentParser(description="Benchmark the minimal-RNN layers on the CPU.")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--quick", action="store_true", help="small sizes, saved as scan_quick")
    parser.add_argument(
        "--parts", nargs="+", default=PARTS, choices=PARTS,
    )  # fmt: skip
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        torch.set_num_threads(arguments.threads[0])
        name, batch, length, width = arguments.peak
        print_peak(name, (int(batch), int(length), int(width)))
        return
    tables: dict[str, list[Row]] = {}
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        # memory hardly depends on the threads: once is enough
        memory = "memory" in arguments.parts and threads == arguments.threads[0]
        if "layers" in arguments.parts:
            tables.setdefault("layers", []).extend(layers(arguments.quick, threads, memory))
        if "growth" in arguments.parts:
            tables.setdefault("growth", []).extend(growth(arguments.quick, threads, memory))
        if "headline" in arguments.parts:
            tables.setdefault("headline", []).extend(headline(arguments.quick, threads))
    if "threads" in arguments.parts and max(arguments.threads) > 1:
        tables["threads"] = speedup(arguments.quick, max(arguments.threads))
    name = "scan_quick" if arguments.quick else "scan"
    save(tables, name)
    if {"layers", "growth"} <= tables.keys():
        plot(tables, name)
    print(f"saved {RESULTS / name}.md and what belongs to it")


if __name__ == "__main__":
    main()
