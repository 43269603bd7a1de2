"""Minari data sets -> Episodes."""

import gymnasium as gym
import minari
import numpy as np
from minari.storage import get_dataset_path

from envs.episodes import DatasetError, Episodes
from envs.tasks import task_of_environment


def is_local(dataset_id: str) -> bool:
    """Whether Minari's local store has this data set."""
    return (get_dataset_path(dataset_id) / "data").exists()


def load_minari(dataset_id: str) -> Episodes:
    """Reads a Minari data set with flat Box observations and actions; downloads it if need be.

    The reference scores are those in the data set's metadata, or else D4RL's for its environment,
    or else none.

    Args:
        dataset_id: Minari id, with its version: ``mujoco/hopper/medium-v0``.

    Raises:
        DatasetError: There is no such data set, it cannot be read, or is of another kind.
    """
    dataset = _open(dataset_id)
    spaces = {"observations": dataset.observation_space, "actions": dataset.action_space}
    for name, space in spaces.items():
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise DatasetError(f"{dataset_id}: the {name} are {space}, not one-dimensional boxes")
    names = ("observations", "actions", "rewards", "terminations", "truncations")
    lists: dict[str, list[np.ndarray]] = {name: [] for name in names}
    try:
        for episode in dataset.iterate_episodes():
            for name in names:
                lists[name].append(np.asarray(getattr(episode, name)))
    except (OSError, KeyError, RuntimeError) as error:
        raise DatasetError(
            f"{dataset_id} is damaged in {dataset.spec.data_path} ({_first_line(error)}); "
            "delete that directory, and make or download the data set again"
        ) from error
    for i, (observations, rewards) in enumerate(
        zip(lists["observations"], lists["rewards"], strict=True)
    ):
        if len(observations) != len(rewards) + 1:
            raise DatasetError(
                f"{dataset_id}: episode {i} has {len(observations)} observations for "
                f"{len(rewards)} rewards; Minari keeps one more than there are rewards"
            )
    environment_id = dataset.env_spec.id if dataset.env_spec is not None else "unknown"
    minimum, maximum, source = _reference(dataset, environment_id)
    return Episodes.from_lists(
        [observations[:-1] for observations in lists["observations"]],
        *(lists[name] for name in names[1:]),
        action_low=dataset.action_space.low,
        action_high=dataset.action_space.high,
        dataset_id=dataset_id,
        environment_id=environment_id,
        reference_min=minimum,
        reference_max=maximum,
        reference_source=source,
    )


def _open(dataset_id: str) -> minari.MinariDataset:
    local = is_local(dataset_id)
    try:
        return minari.load_dataset(dataset_id, download=True)
    except TypeError:  # what Minari makes of an id without a version
        raise DatasetError(
            f"'{dataset_id}' has no version; a Minari id ends in -v0, -v1, ..."
        ) from None
    except Exception as error:  # the storages and download clients share no base class
        if local:
            raise DatasetError(
                f"{dataset_id} cannot be read from {get_dataset_path(dataset_id)}: "
                f"{_first_line(error)}"
            ) from error
        found = ", ".join(minari.list_local_datasets()) or "none"
        raise DatasetError(
            f"the Minari data set '{dataset_id}' is not in the local store and could not be "
            f"downloaded ({_first_line(error)}); local data sets: {found}"
        ) from error


def _reference(
    dataset: minari.MinariDataset, environment_id: str
) -> tuple[float | None, float | None, str | None]:
    metadata = dataset.storage.metadata
    pair = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    task = task_of_environment(environment_id)
    if None not in pair and (task is None or pair != (task.reference_min, task.reference_max)):
        return *pair, f"metadata of {dataset.spec.dataset_id}"
    if task is not None:
        return task.reference_min, task.reference_max, task.reference_source
    return None, None, None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
