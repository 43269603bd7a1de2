"""An update of the default policy on one thread and on two, on a quiet machine and on a busy one.

    python benchmarks/threads.py

Each sample is a process of its own, because OpenMP reads its settings once: 3 seconds of updates,
of which the median counts. `usual` is PyTorch as it comes; `ours` imports common.threads first, and
shares the rows of a batch among the threads (agents/gradients.py), as train.py does. `several runs`
are as many processes at once of one thread each, with the time of an update over their number: what
the cores have to give, and what a sweep gets. On the busy machine as many other processes compute
as there are cores. Medians of interleaved rounds. Saves threads.csv.
"""

import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any

from timing import ROOT, Measure, Row, interleaved, make_parser, printed, write_csv

SECONDS = 3.0


def updates(threads: int, precision: str, waiting: str) -> float:
    """Returns the median seconds of an update in this process."""
    import torch

    from agents.backbones import mixer_entry
    from agents.gradients import backward
    from agents.policy import PolicyConfig, ReturnConditionedPolicy

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    backbone = mixer_entry("min_gru")[0]()
    policy = ReturnConditionedPolicy(PolicyConfig(), backbone, observation_dim=11, action_dim=3)
    optimizer = torch.optim.AdamW(policy.parameters(), fused=True)
    rows, steps = 20, 64
    batch: dict[str, Any] = {
        "observations": torch.randn(rows, steps, 11),
        "actions": torch.rand(rows, steps, 3),
        "returns_to_go": torch.randn(rows, steps),
        "timesteps": torch.zeros(rows, steps, dtype=torch.long),
        "resets": torch.rand(rows, steps) < 0.01,
        "mask": torch.ones(rows, steps, dtype=torch.bool),
    }
    samples: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(samples) < 5 or time.perf_counter() < end:
        begin = time.perf_counter()
        if waiting == "ours":
            backward(policy, batch, None, getattr(torch, precision))
        else:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                loss, _ = policy.loss(**batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        samples.append(time.perf_counter() - begin)
    return median(samples[2:])


def in_a_process(threads: int, waiting: str, precision: str, busy: bool) -> float:
    """Returns what `updates` returns in a new process, beside others if `busy`."""
    code = f"from threads import updates; print(updates({threads}, {precision!r}, {waiting!r}))"
    if waiting == "ours":
        code = f"import common.threads; {code}"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP", "GOMP"))}
    with ExitStack() as stack:
        for _ in range((os.cpu_count() or 1) * busy):
            other = multiprocessing.Process(target=compute, daemon=True)
            other.start()
            stack.callback(other.kill)
        found = subprocess.run(
            [sys.executable, "-c", code],
            env=environment | {"PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            check=True,
        )
    return float(found.stdout)


def sample(threads: int, waiting: str, precision: str, busy: bool) -> float:
    """Returns the seconds of an update; of several runs, the mean over their number."""
    if waiting != "several runs":
        return in_a_process(threads, waiting, precision, busy)
    with ThreadPoolExecutor(threads) as pool:
        alone = [pool.submit(in_a_process, 1, "usual", precision, busy) for _ in range(threads)]
    return sum(run.result() for run in alone) / threads**2


def compute() -> None:
    """Keeps a core busy."""
    while True:
        pass


def main() -> None:
    """Measures in rounds, prints and saves."""
    arguments = make_parser(__doc__, rounds=3, threads=2).parse_args()
    most = arguments.threads
    kinds = [
        (threads, waiting, precision, busy)
        for busy in (False, True)
        for precision in ("float32", "bfloat16")
        for threads, waiting in (
            *((1, "usual"), (most, "usual"), (most, "ours")),
            *([(most, "several runs")] if not busy else []),
        )
    ]
    measures: dict[str, Measure] = {
        f"{'busy' if busy else 'quiet'}, {precision}, {threads} threads, {waiting}": partial(
            sample, threads, waiting, precision, busy
        )
        for threads, waiting, precision, busy in kinds
    }
    samples = interleaved(measures, arguments.rounds, warm_up=0)
    rows: list[Row] = []
    for name, (threads, waiting, precision, busy) in zip(measures, kinds, strict=True):
        machine = "busy" if busy else "quiet"
        one = median(samples[f"{machine}, {precision}, 1 threads, usual"])
        rows.append(
            {
                "machine": machine,
                "precision": precision,
                "threads": threads,
                "waiting": waiting,
                "ms of an update": f"{1e3 * median(samples[name]):.1f}",
                "x one thread": f"{median(samples[name]) / one:.2f}",
            }
        )
    write_csv(arguments.out / "threads.csv", printed(rows))


if __name__ == "__main__":
    main()
