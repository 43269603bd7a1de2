"""What the benchmarks share: interleaved rounds, steps of an actor, peak memory, tables.

Import it before the project's packages: it puts this checkout first on the path, so that
`python benchmarks/scan.py` measures the code of this checkout and not of another installation.
"""

import argparse
import csv
import itertools
import multiprocessing
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

Work = Callable[[], object]
Measure = Callable[[], float]  # does its work and returns the seconds of a call
Row = dict[str, Any]


def make_parser(description: str, rounds: int, threads: int = 1) -> argparse.ArgumentParser:
    """A parser of the options that the benchmarks share, with their defaults."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="interleaved rounds")
    parser.add_argument("--threads", type=int, default=threads, help="of PyTorch")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the tables"
    )
    return parser


def timed(work: Work, calls: int = 1, clock: Callable[[], float] = time.perf_counter) -> Measure:
    """Returns a measure: the mean seconds of `calls` calls in a row."""

    def measure() -> float:
        start = clock()
        for _ in range(calls):
            work()
        return (clock() - start) / calls

    return measure


def interleaved(
    measures: Mapping[str, Measure], rounds: int, *, warm_up: int = 1, slow: float = float("inf")
) -> dict[str, list[float]]:
    """Measures A B C, B C A, C A B, ..., so that noise and drift of the machine meet all alike.

    Args:
        measures: What is measured, by name.
        rounds: Samples of each.
        warm_up: Further rounds before these whose samples are dropped: they compile and allocate.
        slow: A measure that takes longer (seconds) is taken in the first three rounds only.

    Returns:
        The samples of each measure in seconds, in the order of the rounds.
    """
    names = list(measures)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for done in range(-warm_up, rounds):
        turn = done % max(1, len(names))
        for name in names[turn:] + names[:turn]:
            if done >= 3 and median(samples[name]) > slow:
                continue
            sample = measures[name]()
            if done >= 0:
                samples[name].append(sample)
    return samples


def medians(
    works: Mapping[str, Work], rounds: int, *, calls: int = 1, slow: float = float("inf")
) -> dict[str, float]:
    """Median seconds of a call of each, in interleaved rounds."""
    samples = interleaved({n: timed(w, calls) for n, w in works.items()}, rounds, slow=slow)
    return {name: median(values) for name, values in samples.items()}


def acting_step(actor: Any, batch: int, observation_dim: int) -> Work:
    """A step of an actor that keeps its state from call to call, as in a rollout."""
    observation, reward = torch.randn(batch, observation_dim), torch.rand(batch)
    later = torch.zeros(batch, dtype=torch.bool)
    _, state = actor.act(observation, reward, actor.initial_state(batch, 3000.0), ~later)

    def step() -> None:
        nonlocal state
        _, state = actor.act(observation, reward, state, later)

    return step


def memory(key: str) -> int:
    """A figure of this process in bytes, such as VmRSS or VmHWM (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def in_fresh_process(function: Callable[..., Any], *arguments: object) -> Any:
    """Calls a function of a module in a new process: what was allocated here does not count."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _peak(make: Callable[..., Work], arguments: tuple[object, ...], threads: int) -> float:
    torch.set_num_threads(threads)
    work = make(*arguments)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = memory("VmRSS")
    work()
    return round((memory("VmHWM") - before) / 2**20, 1)


def peak_mebibytes(make: Callable[..., Work], *arguments: object) -> float | str:
    """MiB by which a call of make(*arguments) exceeds what was held before; "" unless on Linux."""
    if platform.system() != "Linux":
        return ""
    return float(in_fresh_process(_peak, make, arguments, torch.get_num_threads()))


def machine() -> str:
    """The versions and the machine that a table belongs to."""
    return f"{platform.platform()}, Python {platform.python_version()}, torch {torch.__version__}"


def printed(rows: Iterable[Row]) -> list[Row]:
    """Prints rows as they come, with a line of names where these change, and returns them."""
    kept: list[Row] = []
    for row in rows:
        if not kept or row.keys() != kept[-1].keys():
            print(*row, sep="\t")
        print(*row.values(), sep="\t", flush=True)
        kept.append(row)
    return kept


def write_csv(path: Path, rows: list[Row]) -> None:
    """Writes a table, a column for each key of any row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(itertools.chain.from_iterable(rows))))
        writer.writeheader()
        writer.writerows(rows)
    print(f"saved {path} ({machine()})")
