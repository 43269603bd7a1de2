"""Minari data sets -> Episodes."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
from minari.dataset.minari_storage import MinariStorage

from common.errors import UserError
from envs.data.cache import Reading, load_cached
from envs.data.damage import damage_explained, first_line, whole
from envs.data.episodes import Episodes
from envs.data.spaces import fitting_spaces
from envs.data.store import dataset_path
from envs.simulation.simulators import require_vectors
from envs.tasks import Reference, task_of_environment

FLAGS = ("rewards", "terminations", "truncations")


def is_local(dataset_id: str) -> bool:
    """Whether Minari's local store has this data set."""
    return (dataset_path(dataset_id) / "data").exists()


def load_minari(dataset_id: str, environment_id: str | None = None) -> Episodes:
    """Reads a Minari data set of boxes; downloads it if need be.

    A Dict of boxes is concatenated in the order of the space (Gymnasium sorts by name); boxes of
    more dimensions are flattened in row-major order. The environment is the data set's own for
    evaluation, or else the one in which it was recorded. The reference returns are those of the
    metadata, or else D4RL's for the environment, or else none.

    Raises:
        UserError: There is no such data set, it cannot be read, or is of another kind.
    """
    dataset = _open(dataset_id)
    require_vectors(dataset_id, dataset.observation_space, dataset.action_space)
    observations = gym.spaces.flatten_space(dataset.observation_space)
    actions = gym.spaces.flatten_space(dataset.action_space)
    if environment_id is not None:
        dimensions = observations.shape[0], actions.shape[0]
        fitting_spaces(dataset_id, dimensions, environment_id)
    environment_id, environment_kwargs = _environment(dataset, environment_id)
    attributes: dict[str, Any] = {
        "action_low": actions.low,
        "action_high": actions.high,
        "dataset_id": dataset_id,
        "environment_id": environment_id,
        "environment_kwargs": environment_kwargs,
        "reference": _reference(dataset, environment_id),
    }
    data = Path(dataset.spec.data_path)
    files = sorted(path for path in data.rglob("*") if path.is_file())
    return load_cached(files, attributes, lambda: _read(dataset))


def _open(dataset_id: str) -> minari.MinariDataset:
    directory = dataset_path(dataset_id)
    if not is_local(dataset_id):
        try:
            return minari.load_dataset(dataset_id, download=True)
        except Exception as error:  # the download clients share no base class
            found = ", ".join(minari.list_local_datasets()) or "none"
            raise UserError(
                f"the Minari data set '{dataset_id}' is not in the local store and could not be "
                f"downloaded ({first_line(error)}); local data sets: {found}"
            ) from error
    advice = "delete that directory and make or download the data set again, or update Minari if"
    with damage_explained(
        f"{dataset_id} cannot be read from {directory}", f"{advice} a newer one wrote it"
    ):
        storage = MinariStorage.read(directory / "data")
        size = sum(path.stat().st_size for path in directory.rglob("*"))
        if storage.total_episodes > size:  # Minari would enumerate them in memory
            raise ValueError(f"{storage.total_episodes:,} episodes are claimed in {size:,} bytes")
        return minari.MinariDataset(storage)


def environment_of_set(dataset_id: str) -> str | None:
    """Returns the environment that the metadata of a data set name; downloads it if need be."""
    return _environment(_open(dataset_id), None)[0]


def _environment(
    dataset: minari.MinariDataset, asked_for: str | None
) -> tuple[str | None, dict[str, Any]]:
    """Returns the environment to evaluate in, and its keyword arguments.

    Refuses an environment of the data set's choice that would import a module.
    """
    spec = dataset._eval_env_spec or dataset.env_spec  # Minari has no public name for the first
    recorded_in = None if spec is None else str(spec.id)
    if asked_for is not None:
        same = recorded_in in (asked_for, asked_for.rpartition(":")[2])
        return asked_for, dict(spec.kwargs) if spec and same else {}
    if recorded_in is not None and ":" in recorded_in:
        raise UserError(
            f"{dataset.spec.dataset_id} names the environment {recorded_in}, and to make that is "
            f"to import a module; if you trust it, give dataset.environment={recorded_in}"
        )
    return recorded_in, {} if spec is None else dict(spec.kwargs)


def _reference(dataset: minari.MinariDataset, environment_id: str | None) -> Reference | None:
    """Returns the reference returns of the metadata, or else those of the environment."""
    metadata = dataset.storage.metadata
    minimum, maximum = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    task = task_of_environment(environment_id)
    known = None if task is None else task.reference
    if minimum is None or maximum is None:
        return known
    if known is not None and (minimum, maximum) == (known.minimum, known.maximum):
        return known
    name = dataset.spec.dataset_id
    try:
        source = str(metadata.get("reference_source", f"metadata of {name}"))
        return Reference(float(minimum), float(maximum), source)
    except (UserError, TypeError, ValueError):
        raise UserError(
            f"{name}: its metadata hold ref_min_score {minimum!r} and ref_max_score {maximum!r}; "
            "both must be finite numbers, and the second the larger one: mend them in "
            f"{dataset.spec.data_path}/metadata.json"
        ) from None


def _read(dataset: minari.MinariDataset) -> Reading:
    with _damage_explained(dataset):
        if dataset.storage.FORMAT == "hdf5":  # the metadata of the episodes may be wrong
            lengths = [len(episode["rewards"]) for episode in _episodes(dataset)]
        else:
            lengths = [
                m["total_steps"]
                for m in dataset.storage.get_episode_metadata(dataset.episode_indices)
            ]
    observation_dim = gym.spaces.flatdim(dataset.observation_space)
    action_dim = gym.spaces.flatdim(dataset.action_space)
    return Reading(np.asarray(lengths, np.int64), observation_dim, action_dim, _rows(dataset))


def _rows(dataset: minari.MinariDataset) -> Iterator[dict[str, np.ndarray]]:
    spaces = {"observations": dataset.observation_space, "actions": dataset.action_space}
    with _damage_explained(dataset):
        for i, episode in enumerate(_episodes(dataset)):
            rows = {name: whole(episode[name]) for name in FLAGS}
            rows |= {name: _flatten(space, episode[name]) for name, space in spaces.items()}
            steps = len(rows["rewards"])
            for name, extra in (("observations", 1), ("actions", 0)):
                if len(rows[name]) != steps + extra:
                    raise UserError(
                        f"{dataset.spec.dataset_id}: episode {i} has {len(rows[name])} {name} for "
                        f"{steps} rewards; Minari keeps one more observation than there are rewards"
                    )
            rows["observations"] = rows["observations"][:-1]
            yield rows


def _episodes(dataset: minari.MinariDataset) -> Iterator[Any]:
    """Yields mappings of names to arrays; reads HDF5 without Minari, which decodes all infos."""
    if dataset.storage.FORMAT != "hdf5":
        yield from dataset.storage.get_episodes(dataset.episode_indices)
        return
    with h5py.File(Path(dataset.spec.data_path) / "main_data.hdf5", "r") as file:
        for i in dataset.episode_indices:
            yield file[f"episode_{i}"]


def _flatten(space: gym.Space, values: Any) -> np.ndarray:
    """Returns (steps, dim): gymnasium.spaces.flatten of all stored steps at once."""
    if isinstance(space, gym.spaces.Dict):
        return np.concatenate(
            [_flatten(part, values[key]) for key, part in space.spaces.items()], axis=1
        )
    array = whole(values)
    return array.reshape(len(array), gym.spaces.flatdim(space))


def _damage_explained(dataset: minari.MinariDataset) -> contextlib.AbstractContextManager[None]:
    return damage_explained(
        f"{dataset.spec.dataset_id} is damaged in {dataset.spec.data_path}",
        "delete that directory, and make or download the data set again",
    )
