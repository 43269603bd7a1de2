"""Your own trajectories -> a Minari data set, with its environment and reference scores.

    python -m envs.data.store file=walk.npz id=mine/hopper-v0 environment=Hopper-v5

The file is what ``numpy.savez`` writes of the flat arrays ``observations``, ``actions``,
``rewards``, ``terminations`` and ``truncations`` (and ``next_observations``, where you have them);
see envs/data/trajectories.py. From Python, `store_trajectories` takes episodes of any origin.
Then ``python train.py dataset=minari dataset.id=mine/hopper-v0``.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from minari.namespace import create_namespace, list_local_namespaces
from minari.storage import get_dataset_path

from common.arguments import parse_arguments, run_command
from common.checks import check_fields
from common.errors import UserError
from common.files import hidden_directory, only_process, put_in_place
from envs.data.episodes import (
    Episodes,
)
from envs.data.spaces import environment_spaces, require_dimensions
from envs.data.trajectories import Trajectory, trajectories_from_npz
from envs.simulation.simulators import quiet_model_files
from envs.tasks import Reference, task_of_environment

# What HDF5 needs for an episode beside its arrays: measured 14 to 18.5 kB.
_EPISODE_BYTES = 20_000

_BLOCK_BYTES = 1_000_000


def store_trajectories(
    dataset_id: str,
    trajectories: Sequence[Trajectory] | Callable[[], Sequence[Trajectory]],
    *,
    environment_id: str | None = None,
    action_low: Sequence[float] | np.ndarray | None = None,
    action_high: Sequence[float] | np.ndarray | None = None,
    reference: Reference | None = None,
    overwrite: bool = False,
    exist_ok: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Checks episodes and stores them in Minari's local store, whole or not at all.

    The data set is written in a hidden directory of the store, synced, and renamed into place. One
    process at a time makes data sets; another that wants the same waits, and then finds it there.

    >>> store_trajectories(
    ...     "mine/hopper-v0",
    ...     [Trajectory(observations, actions, rewards, terminated=True, truncated=False)],
    ...     environment_id="Hopper-v5",
    ... )  # doctest: +SKIP

    Args:
        dataset_id: Minari id, with a version: ``mine/hopper-v0``.
        trajectories: The episodes, or a function that makes them, called if there is need.
        environment_id: Gymnasium id of the environment that they come from, and that a policy is
            evaluated in.
        action_low: (action_dim,), lower bounds of the actions; by default the environment's.
        action_high: (action_dim,), upper bounds of the actions; by default the environment's.
        reference: Reference returns; by default D4RL's for its three tasks, else none.
        overwrite: Whether a data set of this id is replaced.
        exist_ok: Whether a data set of this id is left alone, without an error.
        metadata: Further keys of Minari's metadata: ``algorithm_name``, ``author`` (a set),
            ``code_permalink``, ``description``, ``requirements``.

    Raises:
        UserError: The episodes are not valid, an argument is missing or does not fit them, a
            data set of this id exists already, or the store cannot be written.
    """
    _check_id(dataset_id)
    with _explained(dataset_id):
        store, place = get_dataset_path(), get_dataset_path(dataset_id)
        with only_process(store / ".making.lock", "making a data set"):
            if place.exists() and not overwrite:
                if exist_ok:
                    return
                raise UserError(
                    f"{dataset_id} exists already in {store}; add overwrite=true to replace it"
                )
            with hidden_directory(store) as hidden:
                made = list(trajectories() if callable(trajectories) else trajectories)
                spaces = _check(dataset_id, made, environment_id, action_low, action_high)
                if reference is None and (task := task_of_environment(environment_id)):
                    reference = task.reference
                scores = {} if reference is None else _scores(reference)
                _require_room(hidden, made)
                with _minari_store(hidden):
                    _write(dataset_id, made, environment_id, spaces, {**scores, **(metadata or {})})
                namespace = dataset_id.rpartition("/")[0]
                if namespace and namespace not in list_local_namespaces():
                    create_namespace(namespace)
                put_in_place(hidden / dataset_id, place, hidden)


def _check_id(dataset_id: str) -> None:
    try:
        minari.dataset.minari_dataset.parse_dataset_id(dataset_id)
    except (ValueError, TypeError):  # TypeError is what Minari makes of an id without a version
        raise UserError(
            f"'{dataset_id}' is not a Minari id, which is like mine/hopper-v0, version included"
        ) from None


@contextlib.contextmanager
def _explained(dataset_id: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        store = os.environ.get("MINARI_DATASETS_PATH", "~/.minari/datasets")
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(
            f"{dataset_id} cannot be stored below {store} ({reason}); make room or give write "
            "permission there, or set MINARI_DATASETS_PATH to another directory"
        ) from error


def _check(
    dataset_id: str,
    trajectories: Sequence[Trajectory],
    environment_id: str | None,
    action_low: Any,
    action_high: Any,
) -> tuple[gym.spaces.Box, gym.spaces.Box]:
    """Returns the spaces of the observations and actions, having checked that these fit."""
    spaces = None
    if environment_id is not None:
        spaces = environment_spaces(environment_id)
        action_low = spaces[1].low if action_low is None else action_low
        action_high = spaces[1].high if action_high is None else action_high
    if action_low is None or action_high is None:
        raise UserError(
            f"{dataset_id}: the bounds of the actions are unknown; give action_low and "
            "action_high, or the environment"
        )
    for i, trajectory in enumerate(trajectories):
        if len(trajectory.observations) != len(trajectory.rewards) + 1:
            raise UserError(
                f"{dataset_id}: episode {i} has {len(trajectory.observations)} observations for "
                f"{len(trajectory.rewards)} rewards; one more than there are rewards is needed"
            )
        if spaces is not None:
            dimensions = trajectory.observations.shape[-1], trajectory.actions.shape[-1]
            require_dimensions(dataset_id, str(environment_id), spaces, dimensions)
    no_flags = [np.zeros(len(t.rewards), bool) for t in trajectories]
    episodes = Episodes.from_lists(
        [t.observations[:-1] for t in trajectories],
        [t.actions for t in trajectories],
        [t.rewards for t in trajectories],
        no_flags,
        no_flags,
        action_low=np.asarray(action_low),
        action_high=np.asarray(action_high),
        dataset_id=dataset_id,
        environment_id=str(environment_id),
    )
    observations = gym.spaces.Box(-np.inf, np.inf, episodes.observations.shape[1:])
    actions = gym.spaces.Box(episodes.action_low, episodes.action_high)
    return spaces[0] if spaces is not None else observations, actions


def _scores(reference: Reference) -> dict[str, Any]:
    return {
        "ref_min_score": reference.minimum,
        "ref_max_score": reference.maximum,
        "reference_source": reference.source,
    }


def _require_room(directory: Path, trajectories: Sequence[Trajectory]) -> None:
    """Fills the disk for a moment: HDF5 would crash the process on a disk that is full."""
    arrays = [a for t in trajectories for a in (t.observations, t.actions, t.rewards)]
    size = sum(array.nbytes + 2 * len(array) for array in arrays)
    size += len(trajectories) * _EPISODE_BYTES
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


def _write(
    dataset_id: str,
    trajectories: Sequence[Trajectory],
    environment_id: str | None,
    spaces: tuple[gym.spaces.Box, gym.spaces.Box],
    metadata: dict[str, Any],
) -> None:
    buffers = []
    for trajectory in trajectories:
        ends = np.zeros((2, len(trajectory.rewards)), bool)
        ends[:, -1] = trajectory.terminated, trajectory.truncated
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                seed=trajectory.seed,
                observations=trajectory.observations,
                actions=trajectory.actions,
                rewards=trajectory.rewards,
                terminations=ends[0],
                truncations=ends[1],
            )
        )
    with warnings.catch_warnings(), quiet_model_files():
        # Minari asks for an e-mail address and a link to the code, Gymnasium for newer versions.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        dataset = minari.create_dataset_from_buffers(
            dataset_id,
            buffers,
            env=environment_id,
            eval_env=environment_id,
            observation_space=spaces[0],
            action_space=spaces[1],
            data_format="hdf5",
        )
    dataset.storage.update_metadata(metadata)


@dataclass
class StoreConfig:
    """Arguments of this command.

    Attributes:
        file: An .npz file of flat arrays.
        id: Minari id of the new data set, version included.
        environment: Gymnasium id.
        reference_min: Return that scores 0; by default D4RL's for its three tasks, else none.
        reference_max: Return that scores 100; by default D4RL's for its three tasks, else none.
        reference_source: Where that pair comes from.
        overwrite: Whether a data set of this id is replaced.
    """

    file: str
    id: str
    environment: str
    reference_min: float | None = None
    reference_max: float | None = None
    reference_source: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


def _reference(config: StoreConfig) -> Reference | None:
    pair = config.reference_min, config.reference_max
    if pair == (None, None):
        return None
    if None in pair:
        raise UserError(f"{config.id}: give both of reference_min and reference_max, or none")
    minimum, maximum = float(pair[0] or 0), float(pair[1] or 0)
    if not -np.inf < minimum < maximum < np.inf:
        raise UserError(
            f"{config.id}: reference_min is {minimum} and reference_max is {maximum}; the first "
            "scores 0, the second 100, so both must be finite and the second the larger one"
        )
    return Reference(minimum, maximum, config.reference_source or "not stated")


def main(arguments: list[str]) -> None:
    """Stores one .npz file from the command line.

    Raises:
        UserError: An argument is wrong.
        UserError: The file or an argument cannot be used, or the data set cannot be stored.
    """
    config = parse_arguments(StoreConfig, arguments)
    reference = _reference(config)
    trajectories = trajectories_from_npz(Path(config.file))
    store_trajectories(
        config.id,
        trajectories,
        environment_id=config.environment,
        reference=reference,
        overwrite=config.overwrite,
    )
    steps = sum(len(trajectory.rewards) for trajectory in trajectories)
    print(
        f"{config.id}: {len(trajectories)} episodes, {steps:,} steps, in "
        f"{get_dataset_path(config.id)}; train on it: "
        f"python train.py dataset=minari dataset.id={config.id}"
    )


if __name__ == "__main__":
    run_command(main, interrupted="interrupted; nothing was stored")
