"""What people would use instead: d3rlpy's IQL and TD3+BC, on the same data, scored alike.

    python -m venv ../peers && ../peers/bin/pip install d3rlpy==2.8.1 gymnasium==1.0.0
    python benchmarks/peers.py --python ../peers/bin/python --jobs 2
    python compare.py benchmarks/results/locomotion benchmarks/results/peers

d3rlpy pins another Gymnasium, so it trains in an environment of its own (peers_d3rlpy.py, with the
settings of its own reproductions) and hands back its policy, which plays the 100 episodes here,
from the same start states as every other row. Rows and training times are kept in
benchmarks/results/peers; a run that has a row of as many updates is not trained again. One thread
each.
"""

import argparse
import os
import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from locomotion import NINE
from rich.console import Console
from timing import ROOT

from common.errors import UserError, exits
from configs.launch import command
from configs.launch.data import Data, read_data
from configs.schema import register
from envs.simulation.rollout import rollout
from reports.run_files import read_runs, write_tables
from reports.runs import Run
from reports.scores import make_scores

ALGORITHMS = ("iql", "td3_plus_bc")
TRAINER = Path(__file__).with_name("peers_d3rlpy.py")


class Peer:
    """A policy without a memory, as TorchScript."""

    def __init__(self, path: Path) -> None:
        self._policy = torch.jit.load(path)

    def initial_state(self, batch_size: int, target_return: torch.Tensor) -> None:
        """There is none."""

    def act(self, observation: torch.Tensor, *_: Any) -> tuple[torch.Tensor, None]:
        """Returns the actions, (batch, action_dim)."""
        return self._policy(observation), None


def load_data(dataset: str, keys: list[str]) -> Data:
    """Reads the data and the evaluation that `python train.py dataset=...` has."""
    ((_, config),) = command.check([f"dataset={dataset}", *keys], "train")
    return read_data(config, Console(quiet=True))


def write_data(data: Data, path: Path) -> None:
    """Writes the steps end to end, with the names that D4RL gives them."""
    episodes = data.episodes
    ends = np.array([end for _, end in episodes.borders]) - 1
    timeouts = np.zeros(episodes.n_steps, np.float32)
    timeouts[ends] = ~episodes.terminated
    np.savez(
        path,
        observations=episodes.observations,
        actions=episodes.actions,
        rewards=np.asarray(episodes.rewards, np.float32),
        terminals=episodes.terminations.astype(np.float32),
        timeouts=timeouts,
    )


def train(python: str, data: Data, algorithm: str, updates: int, seed: int, name: str) -> Run:
    """Trains one policy and scores it; returns its row."""
    with tempfile.TemporaryDirectory() as scratch:
        file, policy = Path(scratch, "data.npz"), Path(scratch, "policy.pt")
        write_data(data, file)
        words = [python, str(TRAINER), str(file), algorithm, str(updates), str(seed), str(policy)]
        done = subprocess.run(words, capture_output=True, text=True)
        found = re.search(r"^seconds ([\d.]+)$", done.stdout, re.MULTILINE)
        if done.returncode or found is None:
            raise UserError(f"{algorithm} failed: {(done.stderr.splitlines() or ['?'])[-1]}")
        result = rollout(Peer(policy), data.evaluation)
    config = {
        "backbone.name": algorithm,
        "seed": seed,
        "steps": updates,
        "policy.return_to_go": False,
        "critic.updates": updates,
        "evaluation.episodes_in_training": 0,
        "training_seconds": float(found[1]),
    }
    scores = make_scores(result, data.evaluation, data.info, updates)
    return Run(name, Path(name), config, data.info, scores, {}, [])


def main() -> None:
    """Trains what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", required=True, help="of an environment that has d3rlpy")
    parser.add_argument("--datasets", nargs="+", default=NINE)
    parser.add_argument("--algorithms", nargs="+", default=ALGORITHMS, choices=ALGORITHMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=20_000, help="of 256 transitions each")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on one thread")
    parser.add_argument("--overrides", nargs="+", default=[], help="keys of train.py for the data")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "peers")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    if min(given.jobs, given.updates) < 1:
        raise UserError(
            f"--jobs and --updates must be 1 or more; they are {given.jobs} and {given.updates}."
        )
    try:
        subprocess.run([given.python, "-c", "import d3rlpy"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        raise UserError(
            f"--python {given.python} cannot import d3rlpy; make an environment for it as the head "
            "of benchmarks/peers.py says, and give its Python."
        ) from None

    # What is known already.
    known: dict[str, Run] = {}
    if (given.out / "runs.csv").exists():
        runs, problems = read_runs([given.out])
        if problems:
            raise problems[0]
        known = {run.name: run for run in runs}
    register()
    data = {dataset: load_data(dataset, given.overrides) for dataset in given.datasets}
    lock = Lock()

    def one(seed: int, dataset: str, algorithm: str) -> None:
        name = f"{dataset}/{algorithm}-seed{seed}"
        if name in known and known[name].score.checkpoint_step == given.updates:
            return
        run = train(given.python, data[dataset], algorithm, given.updates, seed, name)
        seconds = run.config["training_seconds"]
        print(f"{name}: {run.score.value:.1f} after {seconds:.0f} s", flush=True)
        with lock:
            known[name] = run
            write_tables(given.out, known.values())

    with ThreadPoolExecutor(given.jobs) as pool:
        jobs = product(given.seeds, given.datasets, given.algorithms)
        list(pool.map(lambda job: one(*job), jobs))


if __name__ == "__main__":
    with exits():
        main()
