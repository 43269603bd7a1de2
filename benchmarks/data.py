"""What a training batch costs here and in other projects.

    python benchmarks/data.py

Batches of 102 windows of 20 steps (Hopper's dimensions) from 1,000,000 synthetic steps: this
project's three samplers; a Python call for each sample, as in Decision Transformer's and CORL's
loaders (written anew here, without worker processes); and d3rlpy's `sample_trajectory_batch`, if
d3rlpy is installed. Then the share that sampling has in an update of the default policy. Saves
data.csv.

    python benchmarks/data.py --reading 1000000

compares the reading of a Minari set of so many steps (HalfCheetah's dimensions) with that of the
same arrays by h5py, and with opening the cached copy. Saves data_reading.csv.

    python benchmarks/data.py --on-disk 1000000 50000000

writes D4RL files of so many steps (62 bytes each, three times with the cached copy and a part), and
measures time and memory of loading and training on them, in the first and in a later run (Linux).
Saves data_on_disk.csv.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from timing import (
    Row,
    Work,
    in_fresh_process,
    make_parser,
    medians,
    memory,
    printed,
    timed,
    write_csv,
)

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


def reading(steps: int, rounds: int) -> Iterator[Row]:
    """Stores a Minari set, and measures how long reading it takes."""
    generator = np.random.default_rng(0)
    arrays = {
        "observations": generator.standard_normal((steps, 17)),
        "actions": generator.uniform(-1, 1, (steps, 6)).astype(np.float32),
        "rewards": generator.standard_normal(steps),
        "terminations": np.zeros(steps, bool),
        "truncations": np.arange(1, steps + 1) % 1000 == 0,
    }
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder
        store_episodes("speed/cheetah-v0", arrays, environment_id="HalfCheetah-v5")

        def with_h5py() -> None:
            with h5py.File(Path(folder, "speed/cheetah-v0/data/main_data.hdf5")) as file:
                for i in range(steps // 1000):
                    for name in arrays:
                        file[f"episode_{i}/{name}"][()]

        load = timed(lambda: load_minari("speed/cheetah-v0"))
        for _ in range(rounds):
            shutil.rmtree(cache_root(), ignore_errors=True)
            raw, first, later = timed(with_h5py)(), load(), load()
            yield {
                "h5py, s": f"{raw:.2f}", "first, s": f"{first:.2f}",
                "times h5py": f"{first / raw:.2f}", "later, s": f"{later:.3f}",
            }  # fmt: skip


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


def train_on_disk(path: Path) -> list[Row]:
    """Loads a file, makes batches and updates; time and resident memory of each."""
    rows: list[Row] = []

    def row(what: str, work: Callable[[], Any], calls: int = 1) -> Any:
        kept: dict[str, Any] = {}
        seconds = timed(lambda: kept.update(made=work()), calls)()
        own, mapped, highest = (memory(n) / 2**30 for n in ("RssAnon", "RssFile", "VmHWM"))
        rows.append(
            {
                "what": what, "s": f"{seconds:.4f}", "own memory, GiB": f"{own:.2f}",
                "mapped files, GiB": f"{mapped:.2f}", "highest sum, GiB": f"{highest:.2f}",
            }
        )  # fmt: skip
        return kept["made"]

    episodes = row("open", lambda: load_d4rl(path))
    row("observation statistics", lambda: episodes.observation_std)
    row("hash", lambda: episodes.sha256)
    row("returns-to-go", lambda: episodes.returns_to_go)
    trainer = row("sampler", lambda: trainer_of(episodes, ProtocolConfig(), path.parent))
    row("a batch, of 3,000", trainer.batches.next, 3000)
    row("an update, of 50", trainer.update, 50)
    row("half of it held out", lambda: hold_out(episodes, 0.5, seed=0))
    return rows


def on_disk(sizes: list[int]) -> Iterator[Row]:
    """Runs `train_on_disk` twice for each number of steps, in a process each."""
    os.environ.pop("MINARI_DATASETS_PATH", None)
    for steps in sizes:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_CACHE_HOME"] = folder
            path = Path(folder) / "hopper-synthetic.hdf5"
            write_d4rl(path, steps)
            for run in ("first", "later"):
                for row in in_fresh_process(train_on_disk, path):
                    yield {"steps": steps, "run": run, **row}


def sampling(episodes: Episodes, rounds: int) -> Iterator[Row]:
    """The time of a batch, then its share in an update."""
    protocols = {name: ProtocolConfig(name, context_length=CONTEXT[name]) for name in BATCHES}
    device = torch.device("cpu")
    ours = {n: make_batches(episodes, p, seed=0, device=device) for n, p in protocols.items()}
    rows, length = protocols["windowed"].rows, protocols["windowed"].context_length
    works: dict[str, Work] = {name: batches.next for name, batches in ours.items()}
    works["one call a sample"] = PerSample(episodes, rows, length).next
    d3rlpy = d3rlpy_batches(episodes, rows, length)
    if d3rlpy is not None:
        works["d3rlpy"] = d3rlpy
    times = medians(works, rounds, calls=5)
    for name, value in times.items():
        row = {"what": "sampling", "name": name, "ms": f"{1000 * value:.4f}"}
        yield row | {"x_windowed": round(value / times["windowed"], 1)}
    for name, protocol in protocols.items():
        with tempfile.TemporaryDirectory() as folder:
            trainer = trainer_of(episodes, protocol, Path(folder))
            parts = {"update": trainer.update, "sampling": trainer.batches.next}
            update, batch = medians(parts, max(1, rounds // 4), calls=5).values()
        row = {"what": "update", "name": name, "ms": f"{1000 * update:.4f}"}
        yield row | {"sampling_share": f"{batch / update:.4f}"}


def main() -> None:
    """Measures, prints and writes."""
    parser = make_parser(__doc__, rounds=20, threads=torch.get_num_threads())
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--reading", type=int, metavar="STEPS")
    parser.add_argument("--on-disk", type=int, nargs="+", metavar="STEPS")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.reading is not None:
        name, rows = "data_reading.csv", reading(arguments.reading, 3)
    elif arguments.on_disk is not None:
        name, rows = "data_on_disk.csv", on_disk(arguments.on_disk)
    else:
        name, rows = "data.csv", sampling(synthetic(arguments.episodes), arguments.rounds)
    write_csv(arguments.out / name, printed(rows))


if __name__ == "__main__":
    main()
