"""What a training batch costs here and in other projects.

    python benchmarks/data.py

Batches of 102 windows of 20 steps (Hopper's dimensions) from 1,000,000 synthetic steps, timed in
interleaved rounds: this project's three samplers; a Python call for each sample, as in Decision
Transformer's and CORL's loaders (written anew here, without worker processes); and d3rlpy's
`sample_trajectory_batch`, if d3rlpy is installed. Then the share that sampling has in an update of
the default policy, for each protocol. Prints both tables, and writes benchmarks/results/data.csv.

    python benchmarks/data.py --reading

compares the reading of a Minari set of 1,000,000 steps (HalfCheetah's dimensions) with that of the
same arrays by h5py, and with opening the cached copy.

    python benchmarks/data.py --on-disk 1000000 50000000

writes D4RL files of so many steps (62 bytes each, three times with the cached copy and a part), and
shows time and memory of loading and training on them, for the first and for a later run (Linux).
What these two print is written to benchmarks/results/data_reading.md and data_on_disk.md.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from timing import RESULTS, Row, Work, machine, markdown, medians, memory, printed, timed, write_csv

from agents.backbones import mixer_entry
from agents.policy import PolicyConfig, ReturnConditionedPolicy
from agents.trainer import Trainer, TrainerConfig
from envs.data.batches import BATCHES, ProtocolConfig, make_batches
from envs.data.cache import cache_root
from envs.data.combine import hold_out
from envs.data.episodes import Episodes
from envs.data.sources.d4rl import load_d4rl
from envs.data.sources.minari import load_minari
from envs.data.store import store_episodes

CONTEXT = {"windowed": 20, "streamed": 64, "whole_episodes": 20}


def synthetic(n_episodes: int, seed: int = 0) -> Episodes:
    """Episodes of 300 to 1,700 steps, 1,000 in the mean, of standard normal observations."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(300, 1701, n_episodes)
    steps = int(lengths.sum())
    terminations = np.zeros(steps, bool)
    terminations[np.cumsum(lengths) - 1] = True
    return Episodes(
        observations=generator.standard_normal((steps, 11), np.float32),
        actions=generator.uniform(-1, 1, (steps, 3)).astype(np.float32),
        rewards=generator.standard_normal(steps, np.float32),
        terminations=terminations,
        truncations=np.zeros(steps, bool),
        lengths=lengths,
        action_low=np.full(3, -1.0),
        action_high=np.full(3, 1.0),
        dataset_id="synthetic",
        environment_id="Hopper-v5",
    )


class PerSample:
    """A Python call for each sample: draw an episode, a start in it, slice, pad, stack."""

    def __init__(self, episodes: Episodes, rows: int, length: int) -> None:
        names = ("observations", "actions", "returns_to_go")
        self.episodes = [
            {n: getattr(episodes, n)[b:e] for n in names} | {"timesteps": np.arange(e - b)}
            for b, e in episodes.borders
        ]
        self.probabilities = episodes.lengths / episodes.n_steps
        self.rows, self.length = rows, length
        self.generator = np.random.default_rng(0)

    def sample(self) -> dict[str, np.ndarray]:
        """Returns one padded window and its mask."""
        episode = self.episodes[self.generator.choice(len(self.episodes), p=self.probabilities)]
        start = self.generator.integers(len(episode["timesteps"]))
        window = {n: values[start : start + self.length] for n, values in episode.items()}
        count = len(window["timesteps"])
        window["mask"] = np.ones(count, bool)
        missing = self.length - count
        return {
            n: np.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1))
            for n, values in window.items()
        }

    def next(self) -> dict[str, torch.Tensor]:
        """Returns a batch."""
        samples = [self.sample() for _ in range(self.rows)]
        return {n: torch.as_tensor(np.stack([s[n] for s in samples])) for n in samples[0]}


def d3rlpy_batches(episodes: Episodes, rows: int, length: int) -> Callable[[], object] | None:
    """Returns d3rlpy's way to a batch; None if it is not installed."""
    try:
        from d3rlpy.constants import ActionSpace
        from d3rlpy.dataset import MDPDataset
    except ImportError as error:
        print(f"d3rlpy is left out: {error}")
        return None
    columns = [episodes.rewards[:, None], episodes.terminations.astype(np.float32)[:, None]]
    arrays = [episodes.observations, episodes.actions, *columns]
    options = {"action_space": ActionSpace.CONTINUOUS, "action_size": episodes.actions.shape[1]}
    dataset = MDPDataset(*arrays, **options)
    return lambda: dataset.sample_trajectory_batch(rows, length)


def trainer_of(episodes: Episodes, protocol: ProtocolConfig, folder: Path) -> Trainer:
    """Returns a trainer of the default policy."""
    config = mixer_entry("min_gru")[0]()
    policy = ReturnConditionedPolicy(PolicyConfig(), config, observation_dim=11, action_dim=3)
    batches = make_batches(episodes, protocol, seed=0, device=torch.device("cpu"))
    return Trainer(policy, batches, TrainerConfig(), steps=100_000, folder=folder)


def reading(rounds: int = 3) -> None:
    """Stores a Minari set, and prints how long reading it takes."""
    generator = np.random.default_rng(0)
    steps = 1_000_000
    arrays = {
        "observations": generator.standard_normal((steps, 17)),
        "actions": generator.uniform(-1, 1, (steps, 6)).astype(np.float32),
        "rewards": generator.standard_normal(steps),
        "terminations": np.zeros(steps, bool),
        "truncations": np.arange(steps) % 1000 == 999,
    }
    names = ("observations", "actions", "rewards", "terminations", "truncations")

    def with_h5py() -> None:
        with h5py.File(path) as file:
            for i in range(1000):
                for name in names:
                    file[f"episode_{i}/{name}"][()]

    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder
        store_episodes("speed/cheetah-v0", arrays, environment_id="HalfCheetah-v5")
        path = Path(folder, "speed/cheetah-v0/data/main_data.hdf5")
        load = timed(lambda: load_minari("speed/cheetah-v0"))
        rows = []
        for _ in range(rounds):
            shutil.rmtree(cache_root(), ignore_errors=True)
            raw, first, later = timed(with_h5py)(), load(), load()
            rows.append(
                {
                    "h5py, s": f"{raw:.2f}", "first, s": f"{first:.2f}",
                    "times h5py": f"{first / raw:.2f}", "later, s": f"{later:.3f}",
                }
            )  # fmt: skip
    report("data_reading.md", markdown(rows))


def write_d4rl(path: Path, steps: int) -> None:
    """Writes a file of 1,000 steps an episode, in pieces; the pieces are the same numbers."""
    generator = np.random.default_rng(0)
    piece = min(steps, 1_000_000)
    arrays = {
        "observations": generator.standard_normal((piece, 11), np.float32),
        "actions": generator.uniform(-1, 1, (piece, 3)).astype(np.float32),
        "rewards": generator.standard_normal(piece, np.float32),
        "terminals": np.arange(piece) % 1000 == 999,
    }
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            data = file.create_dataset(name, (steps, *array.shape[1:]), array.dtype)
            for begin in range(0, steps, piece):
                data[begin : begin + piece] = array[: steps - begin]


def train_on_disk(path: Path) -> None:
    """Loads a file, makes batches and updates, and prints time and resident memory of each."""
    kept: dict[str, Any] = {}

    def row(what: str, work: Work, calls: int = 1) -> None:
        duration = timed(lambda: kept.update({what: work()}), calls)()
        sizes = [memory(key) / 2**30 for key in ("RssAnon", "RssFile", "VmHWM")]
        cells = " | ".join(f"{size:.2f}" for size in sizes)
        print(f"| {what} | {duration:.4f} | {cells} |", flush=True)

    print("| | s | own memory, GiB | mapped files, GiB | highest sum, GiB |")
    print("|---|---:|---:|---:|---:|")
    row("open", lambda: load_d4rl(path))
    episodes = kept["open"]
    row("observation statistics", lambda: episodes.observation_std)
    row("sampler", lambda: trainer_of(episodes, ProtocolConfig(), path.parent))
    trainer = kept["sampler"]
    row("a batch, of 3,000", trainer.batches.next, 3000)
    row("an update, of 50", trainer.update, 50)
    row("half of it held out", lambda: hold_out(episodes, 0.5, seed=0))


def on_disk(sizes: list[int]) -> None:
    """Runs `train_on_disk` twice for each number of steps, in a process each."""
    lines = []
    for steps in sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "hopper-synthetic.hdf5"
            write_d4rl(path, steps)
            environment = os.environ | {"XDG_CACHE_HOME": folder}
            environment.pop("MINARI_DATASETS_PATH", None)
            for run in ("first", "later"):
                command = [sys.executable, __file__, "--read", str(path)]
                done = subprocess.run(
                    command, env=environment, check=True, stdout=subprocess.PIPE, text=True
                )
                lines += [f"{steps:,} steps, {run} run:", "", done.stdout]
    report("data_on_disk.md", "\n".join(lines))


def report(name: str, text: str) -> None:
    """Prints a text, and writes it to a file of benchmarks/results with the machine's versions."""
    text = f"{machine()}\n\n{text.rstrip()}\n"
    print(text)
    (RESULTS / name).write_text(text, encoding="utf-8")


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--reading", action="store_true")
    parser.add_argument("--on-disk", type=int, nargs="+", metavar="STEPS")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read is not None:
        return train_on_disk(arguments.read)
    if arguments.reading:
        return reading()
    if arguments.on_disk is not None:
        return on_disk(arguments.on_disk)
    episodes = synthetic(arguments.episodes)
    protocols = {name: ProtocolConfig(name, context_length=CONTEXT[name]) for name in BATCHES}
    device = torch.device("cpu")
    ours = {n: make_batches(episodes, p, seed=0, device=device) for n, p in protocols.items()}
    rows, length = protocols["windowed"].rows, protocols["windowed"].context_length
    works: dict[str, Work] = {name: batches.next for name, batches in ours.items()}
    works["one call a sample"] = PerSample(episodes, rows, length).next
    d3rlpy = d3rlpy_batches(episodes, rows, length)
    if d3rlpy is not None:
        works["d3rlpy"] = d3rlpy
    sampling = medians(works, arguments.rounds, calls=5)

    print(f"\n{machine()}, {torch.get_num_threads()} threads")
    print(f"{episodes.n_steps:,} steps, batches of about {rows * length:,} steps\n")
    table: list[Row] = []
    for name, value in sampling.items():
        row = {"what": "sampling", "name": name, "ms": f"{1000 * value:.4f}"}
        table.append(row | {"x_windowed": round(value / sampling["windowed"], 1)})
    with tempfile.TemporaryDirectory() as folder:
        for name, protocol in protocols.items():
            trainer = trainer_of(episodes, protocol, Path(folder))
            parts = {"update": trainer.update, "sampling": trainer.batches.next}
            update, batch = medians(parts, max(1, arguments.rounds // 4), calls=5).values()
            row = {"what": "update", "name": name, "ms": f"{1000 * update:.4f}"}
            table.append(row | {"sampling_share": f"{batch / update:.4f}"})
    write_csv("data.csv", printed(table))


if __name__ == "__main__":
    main()
