"""The latency of a policy in a control loop at a fixed rate, as on a robot.

    python benchmarks/latency.py --run pretrained/hopper --form numpy
    python benchmarks/latency.py --run pretrained/hopper --form compiled

Every 20 ms (--hz 50) the loop wakes, hands the policy an observation and gets an action: in real
time, 100,000 steps in 33 minutes, so that what else runs on the machine is part of the figures. An
action is in time if it is there before the next tick. `numpy` is the exported policy.npz with
min_rnn.py, in a process that does not import torch; `compiled` is agents.load_actor. Adds a row to
latency.csv.
"""

import argparse
import csv
import gc
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def load(form: str, run: Path) -> tuple[Any, int]:
    """Returns what acts, and the number of observations; `numpy` exports the run first."""
    if form == "compiled":
        sys.path.insert(0, str(ROOT))
        from agents import load_actor

        actor = load_actor(run)
        return actor, actor.observation_dim
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder, "policy.npz")
        export = [sys.executable, "-m", "agents.export", f"run={run.resolve()}", f"to={to}"]
        subprocess.run(export, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        spec = importlib.util.spec_from_file_location("min_rnn", to.with_name("min_rnn.py"))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        policy = module.Policy(to)
    assert "torch" not in sys.modules
    return policy, len(policy.weights["observation_mean"])


def measure(act: Callable[[np.ndarray], object], width: int, hz: float, steps: int) -> np.ndarray:
    """Returns (steps, 2) seconds after each tick: when the loop woke, when the action was there."""
    observations = np.random.default_rng(0).normal(size=(1000, width)).astype(np.float32)
    for observation in observations[:200]:
        act(observation)
    gc.collect()
    gc.disable()  # as a control loop does
    times = np.empty((steps, 2))
    start = time.perf_counter() + 0.1
    for i in range(steps):
        tick = start + i / hz
        time.sleep(max(0.0, tick - time.perf_counter()))
        times[i, 0] = time.perf_counter() - tick
        act(observations[i % 1000])
        times[i, 1] = time.perf_counter() - tick
    return times


def main() -> None:
    """Measures one form, prints its row and adds it to the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="run folder")
    parser.add_argument("--form", choices=("numpy", "compiled"), default="numpy")
    parser.add_argument("--hz", type=float, default=50.0)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    given = parser.parse_args()
    actor, width = load(given.form, given.run)
    times = measure(lambda o: actor.act(o, 1.0), width, given.hz, given.steps)
    act = times[:, 1] - times[:, 0]
    row = {
        "form": given.form,
        "hz": given.hz,
        "steps": given.steps,
        "act, median us": round(1e6 * np.median(act)),
        "act, 99.9 % us": round(1e6 * np.quantile(act, 0.999)),
        "act, worst us": round(1e6 * act.max()),
        "late to wake, worst us": round(1e6 * times[:, 0].max()),
        "after the tick, worst us": round(1e6 * times[:, 1].max()),
        "missed ticks": int((times[:, 1] > 1 / given.hz).sum()),
        "load": round(os.getloadavg()[1], 1) if hasattr(os, "getloadavg") else "",
        "machine": platform.platform(),
    }
    for name, value in row.items():
        print(f"{name}: {value}")
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "latency.csv"
    there = path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if not there:
            writer.writeheader()
        writer.writerow(row)
    print(f"saved {path}")


if __name__ == "__main__":
    main()
