"""Your own episodes -> a Minari data set, with its environment and reference returns.

    python -m envs.data.store file=walk.npz id=mine/hopper-v0 environment=Hopper-v5
    python -m envs.data.store file=log.npz id=mine/robot-v0 'action_low=[-1,-1]' 'action_high=[1,1]'

The file is what ``numpy.savez`` writes of the flat arrays ``observations``, ``actions``,
``rewards``, ``terminations``, ``truncations`` and, optionally, ``next_observations``; D4RL's
``terminals`` and ``timeouts`` and OGBench's ``terminals`` and ``masks`` are understood too.
`store_episodes` takes the arrays from Python. Then train on it:
``python train.py dataset=minari dataset.id=mine/hopper-v0``.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from gymnasium.envs.registration import EnvSpec
from minari.namespace import create_namespace, list_local_namespaces
from minari.storage import get_dataset_path

from common.arguments import parse_arguments, run_command
from common.checks import MOST_RETURN, check_fields, number
from common.errors import UserError
from common.files import hidden_directory, only_process, put_in_place
from envs.data.episodes import TYPES, Episodes, column, numbers
from envs.data.npz import NAMES, is_known, read_npz, with_gymnasium_names
from envs.data.spaces import fitting_spaces
from envs.simulation.simulators import quiet_model_files
from envs.tasks import Reference, task_of_environment

# HDF5's overhead for each episode: measured 14 to 18.5 kB.
_EPISODE_BYTES = 20_000


def store_episodes(
    dataset_id: str,
    arrays: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
    *,
    environment_id: str | None = None,
    action_low: Sequence[float] | np.ndarray | None = None,
    action_high: Sequence[float] | np.ndarray | None = None,
    reference: Reference | None = None,
    overwrite: bool = False,
    exist_ok: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> Episodes | None:
    """Validates episodes and stores them in Minari's local store, whole or not at all.

    The data set is written into a hidden directory of the store, synced, and renamed. One process
    at a time makes data sets; another that wants the same one waits for it.

    Args:
        dataset_id: Minari id, with a version: ``mine/hopper-v0``.
        arrays: The arrays of `Episodes.from_arrays`, by its names or those of D4RL or OGBench (see
            `with_gymnasium_names`), or a function that makes them, called only if needed. Optional:
            ``next_observations``, of the shape of the observations, the outcomes of the actions
            (else the last observation of each episode is stored twice; training does not use the
            second), and ``seeds``, (episodes,) int, of the resets.
        environment_id: Gymnasium id of the environment of the data, and of the evaluation, or
            ``my_package:My-v0``, which imports my_package first; None for data without one, such
            as the logs of a robot.
        action_low: (action_dim,), lower bounds of the actions; by default the environment's.
        action_high: (action_dim,), upper bounds of the actions; by default the environment's.
        reference: Reference returns; by default D4RL's for its three tasks, else none.
        overwrite: Whether a data set of this id is replaced.
        exist_ok: Whether a data set of this id is left alone, without an error.
        metadata: Further keys of Minari's metadata, such as ``author`` and ``description``.

    Returns:
        The episodes; None if a data set of this id was left alone.

    Raises:
        UserError: The episodes are not valid, an argument is missing or does not fit them, a
            data set of this id exists already, or the store cannot be written.
    """
    store, place = dataset_path(), dataset_path(dataset_id)
    try:
        with only_process(store / ".making.lock", "making a data set"):
            if place.exists() and not overwrite:
                if exist_ok:
                    return None
                raise UserError(
                    f"{dataset_id} exists already in {store}; add overwrite=true to replace it"
                )
            with hidden_directory(store) as hidden:
                given = arrays() if callable(arrays) else arrays
                bounds = action_low, action_high
                episodes, flat, space = _check(dataset_id, given, environment_id, *bounds)
                if reference is None and (task := task_of_environment(environment_id)):
                    reference = task.reference
                scores: dict[str, Any] = {}
                if reference is not None:
                    scores["ref_min_score"] = reference.minimum
                    scores["ref_max_score"] = reference.maximum
                    scores["reference_source"] = reference.source
                _require_room(hidden / "room", episodes, flat)
                with _minari_store(hidden):
                    _write(episodes, flat, space, scores | dict(metadata or {}))
                namespace = dataset_id.rpartition("/")[0]
                if namespace and namespace not in list_local_namespaces():
                    create_namespace(namespace)
                put_in_place(hidden / dataset_id, place, hidden)
                return episodes
    except OSError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(
            f"{dataset_id} cannot be stored below {store} ({reason}); make room or give write "
            "permission there, or set MINARI_DATASETS_PATH to another directory"
        ) from error


def dataset_path(dataset_id: str = "") -> Path:
    """Returns the directory of a data set in Minari's local store, or the store's own.

    Raises:
        UserError: The id is not valid (it could lead out of the store), or the store cannot be
            created.
    """
    if dataset_id:
        try:
            minari.dataset.minari_dataset.parse_dataset_id(dataset_id)
        except (ValueError, TypeError):  # TypeError is what Minari makes of an id without a version
            raise UserError(
                f"'{dataset_id}' is not a Minari id, which is like mine/hopper-v0, version included"
            ) from None
    store = os.environ.get("MINARI_DATASETS_PATH")
    if store is not None and not store.strip():
        raise UserError("MINARI_DATASETS_PATH is empty; set it to a directory, or unset it")
    try:
        return Path(get_dataset_path(dataset_id))
    except OSError as error:
        raise UserError(
            f"the store of data sets {error.filename or store} cannot be made ({error.strerror}); "
            "set MINARI_DATASETS_PATH to a directory of yours"
        ) from error


def _check(
    dataset_id: str,
    given: Mapping[str, Any],
    environment_id: str | None,
    action_low: Any,
    action_high: Any,
) -> tuple[Episodes, dict[str, np.ndarray], gym.spaces.Box]:
    """Returns the episodes, their arrays as they were given, and the space of the observations."""
    if unknown := [name for name in given if not is_known(dataset_id, name)]:
        raise UserError(f"{dataset_id}: there is no array '{unknown[0]}'; the names are {NAMES}")
    arrays = with_gymnasium_names(dataset_id, given)
    arrays = {name: numbers(dataset_id, name, array) for name, array in arrays.items()}
    arrays["rewards"] = column(dataset_id, "rewards", arrays["rewards"])
    observations, actions = arrays["observations"], arrays["actions"]
    space = gym.spaces.Box(-np.inf, np.inf, observations.shape[1:])
    if environment_id is not None:
        dimensions = observations.shape[-1], actions.shape[-1]
        space, bounds = fitting_spaces(dataset_id, dimensions, environment_id)
        action_low = bounds.low if action_low is None else action_low
        action_high = bounds.high if action_high is None else action_high
    if action_low is None or action_high is None:
        least, greatest = actions.min(axis=0).tolist(), actions.max(axis=0).tolist()
        raise UserError(
            f"{dataset_id}: the bounds of the actions are unknown; give action_low and "
            f"action_high, or the environment (the actions go from {least} to {greatest})"
        )
    episodes = Episodes.from_arrays(
        **{name: arrays[name] for name in TYPES},
        action_low=action_low,
        action_high=action_high,
        dataset_id=dataset_id,
        environment_id=environment_id,
    )
    expected = {"next_observations": observations.shape, "seeds": (episodes.n_episodes,)}
    for name, shape in expected.items():
        if name in arrays and arrays[name].shape != shape:
            raise UserError(f"{dataset_id}: {name} has shape {arrays[name].shape}, not {shape}")
    return episodes, arrays, space


def _require_room(path: Path, episodes: Episodes, arrays: dict[str, np.ndarray]) -> None:
    """Reserves the disk space for a moment: HDF5 would crash the process on a full disk."""
    size = sum(arrays[name].nbytes for name in TYPES)
    size += episodes.n_episodes * (_EPISODE_BYTES + arrays["observations"][:1].nbytes)
    block = bytes(1_000_000)
    with path.open("wb") as file:
        for _ in range(-(-size // len(block))):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    path.unlink()


@contextlib.contextmanager
def _minari_store(directory: Path) -> Iterator[None]:
    """Lets Minari write below another directory, which only this variable can name."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(directory)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before


def _write(
    episodes: Episodes,
    arrays: dict[str, np.ndarray],
    space: gym.spaces.Box,
    metadata: dict[str, Any],
) -> None:
    """Writes the arrays with Minari, in the types in which they were given."""
    observations, seeds = arrays["observations"], arrays.get("seeds")
    following = arrays.get("next_observations", observations)
    buffers = (
        minari.data_collector.EpisodeBuffer(
            seed=None if seeds is None else int(seeds[i]),
            observations=np.concatenate([observations[begin:end], following[end - 1 : end]]),
            actions=arrays["actions"][begin:end],
            rewards=arrays["rewards"][begin:end],
            terminations=episodes.terminations[begin:end],
            truncations=episodes.truncations[begin:end],
        )
        for i, (begin, end) in enumerate(episodes.borders)
    )
    environment = _specification(episodes.environment_id)
    with warnings.catch_warnings(), quiet_model_files():
        # Minari asks for an e-mail address and a link to the code.
        warnings.simplefilter("ignore", UserWarning)
        dataset = minari.create_dataset_from_buffers(
            episodes.dataset_id,
            buffers,
            env=environment,
            eval_env=environment,
            observation_space=space,
            action_space=gym.spaces.Box(episodes.action_low, episodes.action_high),
            data_format="hdf5",
        )
    dataset.storage.update_metadata(metadata)


def _specification(environment_id: str | None) -> EnvSpec | None:
    """Returns what Minari stores of an environment that has been made.

    A copy of Gymnasium's, which forgets the module to import, and may hold a class that no file
    can hold.
    """
    if environment_id is None:
        return None
    found = copy(gym.spec(environment_id.rpartition(":")[2]))
    found.id = environment_id
    if callable(made_by := found.entry_point):
        found.entry_point = f"{made_by.__module__}:{made_by.__qualname__}"
    return found


@dataclass
class StoreConfig:
    """Arguments of this command.

    Attributes:
        file: An .npz file of flat arrays.
        id: Minari id of the new data set, version included.
        environment: Gymnasium id, or `my_package:My-v0`, which imports my_package first; null for
            data without one, such as the logs of a robot.
        action_low: Lower bounds of the actions; by default the environment's.
        action_high: Upper bounds of the actions; by default the environment's.
        reference_min: Return that scores 0; by default D4RL's for its three tasks, else none.
        reference_max: Return that scores 100; by default D4RL's for its three tasks, else none.
        reference_source: Where the two returns come from.
        overwrite: Whether a data set of this id is replaced.
    """

    file: str
    id: str
    environment: str | None = None
    action_low: list[float] | None = number(None, at_least=-1e30, at_most=1e30)
    action_high: list[float] | None = number(None, at_least=-1e30, at_most=1e30)
    reference_min: float | None = number(None, at_least=-MOST_RETURN, at_most=MOST_RETURN)
    reference_max: float | None = number(None, at_least=-MOST_RETURN, at_most=MOST_RETURN)
    reference_source: str = "not stated"
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


def main(arguments: list[str]) -> None:
    """Stores one .npz file from the command line."""
    config = parse_arguments(StoreConfig, arguments)
    minimum, maximum = config.reference_min, config.reference_max
    if (minimum is None) != (maximum is None):
        raise UserError(f"{config.id}: give both of reference_min and reference_max, or none")
    reference = None
    if minimum is not None and maximum is not None:
        reference = Reference(minimum, maximum, config.reference_source)
    arrays, left_out = read_npz(Path(config.file))
    if left_out:
        print(f"note: arrays that training does not use are left out: {', '.join(left_out)}")
    episodes = store_episodes(
        config.id,
        arrays,
        environment_id=config.environment,
        action_low=config.action_low,
        action_high=config.action_high,
        reference=reference,
        overwrite=config.overwrite,
    )
    assert episodes is not None
    print(
        f"{config.id}: {episodes.n_episodes} episodes, {episodes.n_steps:,} steps, in "
        f"{dataset_path(config.id)}; train on it: "
        f"python train.py dataset=minari dataset.id={config.id}"
    )


if __name__ == "__main__":
    run_command(main, interrupted="interrupted; nothing was stored")
