"""Collects episodes of behaviour policies in MuJoCo, and stores them as Minari data sets.

    python -m envs.collect dataset=hopper-medium steps=200000 seed=0

makes a built-in data set anew: of any size, from the same seed the same data on the same machine.
"""

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import minari
import mujoco
import numpy as np
from minari.namespace import create_namespace, list_local_namespaces
from minari.storage import get_dataset_path
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from envs.arguments import ArgumentError, parse_arguments
from envs.behavior import Behavior, BehaviorError
from envs.behaviors import RECIPES, Recipe, find_recipe
from envs.episodes import DatasetError
from envs.simulators import Simulators, quiet_model_files

N_ENVIRONMENTS = 32

# What HDF5 needs for an episode beside its arrays: measured 14 to 18.5 kB.
_EPISODE_BYTES = 20_000

_BLOCK_BYTES = 1_000_000

# Minari does not look into hidden directories of its store.
_HIDDEN = ".making-"


@dataclass(frozen=True, eq=False)
class Episode:
    """One episode, with the observation after its last step.

    Attributes:
        seed: What the environment's reset got.
        observations: (steps + 1, observation_dim) float32.
        actions: (steps, action_dim) float32.
        rewards: (steps,) float64.
        terminated: Whether the last step terminated the episode; if not, it was truncated.
        truncated: Whether the last step truncated the episode.
    """

    seed: int
    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool
    truncated: bool


def run_episodes(
    simulators: Simulators,
    behavior: Behavior,
    *,
    seed: tuple[int, ...],
    steps: int = 0,
    episodes: int = 1,
    sampled: bool = True,
    on_steps: Callable[[int], None] = lambda count: None,
) -> list[Episode]:
    """Runs whole episodes of a behaviour policy: the first ones that make up what is asked for.

    Episode i has its own random numbers, drawn from (seed, i), for its start and its actions, so it
    is the same whatever runs beside it. Kept are the episodes 0, 1, ... until there are enough:
    keeping those that *finish* first would favour short ones.

    Args:
        simulators: Environments with a time limit; how many does not change the result.
        behavior: The policy.
        seed: Entropy that all random numbers come from.
        steps: Least number of steps in all.
        episodes: Least number of episodes.
        sampled: Whether actions are sampled; if not, each is the mean action.
        on_steps: Called with the number of steps that will be kept, as far as known, now and then.

    Returns:
        The episodes in the order of their index.
    """
    assert simulators.horizon is not None, "an episode without a time limit may never end"
    n, horizon = simulators.n, simulators.horizon
    observations = np.empty((n, horizon + 1, simulators.observation_dim), np.float32)
    actions = np.empty((n, horizon, simulators.action_dim), np.float32)
    noise = np.empty((n, horizon, simulators.action_dim), np.float32)
    rewards = np.empty((n, horizon), np.float64)
    reset_seeds = np.empty(n, np.int64)
    elapsed = np.zeros(n, np.int64)
    assigned = np.full(n, -1)  # the episode that each environment runs, -1 for none
    lengths: list[int] = []  # of every episode begun, as far as it has come
    finished: dict[int, Episode] = {}

    while True:
        # Episodes only grow, so the number of those that are needed can only fall.
        cumulative = np.cumsum(lengths)
        needed = sys.maxsize
        if sum(lengths) >= steps:
            needed = max(episodes, int(np.searchsorted(cumulative, steps)) + 1)
        assigned[assigned >= needed] = -1
        idle = np.flatnonzero(assigned < 0)[: max(0, needed - len(lengths))]
        if len(idle):
            for environment in idle:
                sequence = np.random.SeedSequence([*seed, len(lengths)])
                reset_seeds[environment] = sequence.generate_state(1)[0]
                generator = np.random.default_rng(sequence)
                generator.standard_normal(dtype=np.float32, out=noise[environment])
                assigned[environment] = len(lengths)
                lengths.append(0)
            observations[idle, 0] = simulators.reset(idle, reset_seeds[idle])
            elapsed[idle] = 0
        index = np.flatnonzero(assigned >= 0)
        if not len(index):
            on_steps(sum(lengths[:needed]))
            return [finished[i] for i in range(needed)]

        now = elapsed[index]
        action = behavior.act(observations[index, now], noise[index, now] if sampled else None)
        actions[index, now] = action
        observation, reward, terminations, truncations = simulators.step(index, action)
        observations[index, now + 1] = observation
        rewards[index, now] = reward
        elapsed[index] = now + 1
        for row, environment in enumerate(index):
            episode, length = int(assigned[environment]), int(elapsed[environment])
            lengths[episode] = length
            if terminations[row] or truncations[row]:
                finished[episode] = Episode(
                    int(reset_seeds[environment]),
                    observations[environment, : length + 1].copy(),
                    actions[environment, :length].copy(),
                    rewards[environment, :length].copy(),
                    bool(terminations[row]),
                    bool(truncations[row]),
                )
                assigned[environment] = -1
        on_steps(sum(lengths))


def collect(recipe: Recipe, steps: int, seed: int) -> list[Episode]:
    """Collects the episodes of a built-in data set, with a progress bar.

    Args:
        recipe: What the data set is made of; each of its policies runs an equal share of the steps.
        steps: Least number of steps; every episode is run to its end.
        seed: From the same seed come the same episodes on the same machine.

    Returns:
        The episodes, policy by policy.
    """
    behaviors = recipe.behaviors()
    share = -(-steps // len(behaviors))
    result: list[Episode] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeRemainingColumn(),
    )
    with (
        Simulators(recipe.task.environment_id, N_ENVIRONMENTS) as simulators,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        bar = progress.add_task(
            f"{recipe.task.name}-{recipe.quality}", total=share * len(behaviors)
        )
        for part, behavior in enumerate(behaviors):

            def show(count: int, part: int = part) -> None:
                progress.update(bar, completed=share * part + min(count, share))

            result += run_episodes(
                simulators, behavior, seed=(seed, part), steps=share, on_steps=show
            )
    return result


def make_dataset(recipe: Recipe, steps: int, seed: int, *, overwrite: bool = False) -> None:
    """Collects a built-in data set and stores it in Minari's local store, whole or not at all.

    The data set is written in a hidden directory of the store, synced, and renamed into place. One
    process at a time makes data sets; another that wants the same waits, and then finds it there.

    Args:
        recipe: What the data set is made of.
        steps: Least number of steps.
        seed: From the same seed comes the same data set on the same machine.
        overwrite: Whether a data set of this id is made anew; if not, it is left alone.

    Raises:
        DatasetError: The number of steps is not positive, or the store cannot be written.
    """
    if steps < 1:
        raise DatasetError(f"steps={steps}: a data set needs at least one step")
    with _explained(recipe.dataset_id):
        store = get_dataset_path()
        directory = get_dataset_path(recipe.dataset_id)
        with _only_maker(store):
            if directory.exists() and not overwrite:
                return
            for left_by_a_killed_run in store.glob(f"{_HIDDEN}*"):
                shutil.rmtree(left_by_a_killed_run)
            with tempfile.TemporaryDirectory(prefix=_HIDDEN, dir=store) as temporary:
                episodes = collect(recipe, steps, seed)
                _require_room(Path(temporary), episodes)
                with _minari_store(Path(temporary)):
                    _write(recipe, episodes, steps, seed)
                    made = get_dataset_path(recipe.dataset_id)
                for path in made.rglob("*"):
                    if path.is_file():
                        _sync(path)
                _create_namespace(recipe)
                if directory.exists():
                    directory.rename(Path(temporary) / "replaced")
                made.rename(directory)
                _sync(directory.parent)


@contextlib.contextmanager
def _explained(dataset_id: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        store = os.environ.get("MINARI_DATASETS_PATH", "~/.minari/datasets")
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise DatasetError(
            f"{dataset_id} cannot be stored below {store} ({reason}); make room or give write "
            "permission there, or set MINARI_DATASETS_PATH to another directory"
        ) from error


def _require_room(directory: Path, episodes: list[Episode]) -> None:
    """Fills the disk for a moment: HDF5 would crash the process on a disk that is full."""
    arrays = [a for e in episodes for a in (e.observations, e.actions, e.rewards)]
    size = sum(array.nbytes + 2 * len(array) for array in arrays) + len(episodes) * _EPISODE_BYTES
    path = directory / "room"
    try:
        with path.open("wb") as file:
            for _ in range(-(-size // _BLOCK_BYTES)):
                file.write(bytes(_BLOCK_BYTES))
            file.flush()
            os.fsync(file.fileno())
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _only_maker(store: Path) -> Iterator[None]:
    """Holds a lock that the system takes back even from a killed process."""
    with (store / ".making.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            Console(stderr=True).print("Waiting for another process that is making a data set")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _minari_store(directory: Path) -> Iterator[None]:
    """Minari knows its store only by this variable."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(directory)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before


def _create_namespace(recipe: Recipe) -> None:
    namespace = recipe.dataset_id.rpartition("/")[0]
    if namespace not in list_local_namespaces():
        create_namespace(namespace)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(recipe: Recipe, episodes: list[Episode], steps: int, seed: int) -> None:
    buffers = []
    for episode in episodes:
        ends = np.zeros((2, len(episode.rewards)), bool)
        ends[:, -1] = episode.terminated, episode.truncated
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                seed=episode.seed,
                observations=episode.observations,
                actions=episode.actions,
                rewards=episode.rewards,
                terminations=ends[0],
                truncations=ends[1],
            )
        )
    task = recipe.task
    description = (
        f"At least {steps} steps of {task.environment_id} with sampled actions of SAC policies "
        f"after {', '.join(f'{step:,}' for step in recipe.snapshots)} training steps, in equal "
        f"shares (MuJoCo {mujoco.__version__}, Gymnasium {gym.__version__}, seed {seed}). "
        f"Reference scores: {task.reference_source}."
    )
    with warnings.catch_warnings(), quiet_model_files():
        # Minari asks for an e-mail address and a link to the code; neither is the user's business.
        warnings.simplefilter("ignore", UserWarning)
        dataset = minari.create_dataset_from_buffers(
            recipe.dataset_id,
            buffers,
            env=task.environment_id,
            eval_env=task.environment_id,
            algorithm_name="SAC",
            author="Decision minRNN",
            ref_min_score=task.reference_min,
            ref_max_score=task.reference_max,
            description=description,
            data_format="hdf5",
            requirements=[f"gymnasium>={_major(gym)}", f"mujoco>={_major(mujoco)}"],
        )
    dataset.storage.update_metadata({"collected_steps": steps, "collected_seed": seed})


def _major(module: object) -> str:
    return str(module.__version__).split(".")[0]  # type: ignore[attr-defined]


@dataclass
class CollectConfig:
    """Arguments of this command.

    Attributes:
        dataset: Id or short name of a built-in data set.
        steps: Least number of steps; every episode is run to its end.
        seed: Seed of every random number.
        overwrite: Whether an existing data set of this name is replaced.
    """

    dataset: str
    steps: int = 200_000
    seed: int = 0
    overwrite: bool = False


def main(arguments: list[str]) -> None:
    """Makes one built-in data set from the command line.

    Raises:
        ArgumentError: An argument is wrong.
        DatasetError: The data set is unknown, exists already, or cannot be stored.
    """
    config = parse_arguments(CollectConfig, arguments)
    recipe = find_recipe(config.dataset)
    if recipe is None:
        raise DatasetError(
            f"there is no built-in data set '{config.dataset}'; there are: {', '.join(RECIPES)}"
        )
    if get_dataset_path(recipe.dataset_id).exists() and not config.overwrite:
        raise DatasetError(
            f"{recipe.dataset_id} exists already in {get_dataset_path()}; "
            "add overwrite=true to replace it"
        )
    make_dataset(recipe, config.steps, config.seed, overwrite=config.overwrite)
    returns = [episode.rewards.sum() for episode in minari.load_dataset(recipe.dataset_id)]
    print(
        f"{recipe.dataset_id}: {len(returns)} episodes, mean return {np.mean(returns):.1f} "
        f"(standard deviation {np.std(returns):.1f}), in {get_dataset_path(recipe.dataset_id)}"
    )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ArgumentError, BehaviorError, DatasetError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was stored")
