"""Trajectories of your own: from flat arrays, from an .npz file."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One episode, with the observation after its last step.

    Attributes:
        observations: (steps + 1, observation_dim).
        actions: (steps, action_dim).
        rewards: (steps,).
        terminated: Whether the last step terminated the episode.
        truncated: Whether the last step truncated the episode: a time limit, say.
        seed: What the environment's reset got, if known.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool
    truncated: bool
    seed: int | None = None


def trajectories_from_arrays(
    observations: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    terminations: np.ndarray,
    truncations: np.ndarray,
    next_observations: np.ndarray | None = None,
) -> list[Trajectory]:
    """Cuts flat arrays, with a row for each step, into episodes.

    Args:
        observations: (steps, observation_dim), in which the actions were taken.
        actions: (steps, action_dim).
        rewards: (steps,) or (steps, 1).
        terminations: (steps,) or (steps, 1), true where a step terminated its episode.
        truncations: (steps,) or (steps, 1), true where a step was its episode's last for another
            reason. An episode ends where either is true; the last row must end one.
        next_observations: (steps, observation_dim), what came of the actions. Without them, the
            last observation of each episode stands twice in the data set; training does not see
            the second one.

    Raises:
        UserError: The lengths disagree, or the last episode has no end.
    """
    rewards = one_number_per_step("rewards", rewards)
    terminations = one_flag_per_step("terminations", terminations)
    truncations = one_flag_per_step("truncations", truncations)
    arrays = {
        "observations": observations,
        "actions": actions,
        "terminations": terminations,
        "truncations": truncations,
        "next_observations": observations if next_observations is None else next_observations,
    }
    for name, array in arrays.items():
        if len(array) != len(rewards):
            raise UserError(
                f"there are {len(array)} {name} for {len(rewards)} rewards; "
                "each step needs one of each"
            )
    if not len(rewards):
        raise UserError("there is no step; at least one episode of one step is needed")
    ends = terminations | truncations
    if not ends[-1]:
        raise UserError(
            f"the last episode has no end: neither terminations[{len(ends) - 1}] nor "
            f"truncations[{len(ends) - 1}] is true; mark its last step as truncated, or remove it"
        )
    result = []
    borders = [0, *(np.flatnonzero(ends) + 1).tolist()]
    for begin, end in itertools.pairwise(borders):
        last = arrays["next_observations"][end - 1 : end]
        result.append(
            Trajectory(
                observations=np.concatenate([observations[begin:end], last]),
                actions=actions[begin:end],
                rewards=rewards[begin:end],
                terminated=bool(terminations[end - 1]),
                truncated=bool(truncations[end - 1]),
            )
        )
    return result


def one_number_per_step(name: str, array: np.ndarray) -> np.ndarray:
    """Returns an array (steps,) of one that is (steps,) or (steps, 1).

    Raises:
        UserError: It is neither.
    """
    array = np.asarray(array)
    if array.ndim == 2 and array.shape[1] == 1:
        return array[:, 0]
    if array.ndim != 1:
        raise UserError(f"{name} has shape {array.shape}, not (steps,) or (steps, 1)")
    return array


def one_flag_per_step(name: str, array: np.ndarray) -> np.ndarray:
    """Returns an array (steps,) of bool of one that is (steps,) or (steps, 1), of 0 and 1.

    Raises:
        UserError: It is neither, or holds other numbers: NaN would count as true.
    """
    array = one_number_per_step(name, array)
    wrong = np.flatnonzero((array != 0) & (array != 1))
    if len(wrong):
        raise UserError(f"{name}[{wrong[0]}] = {array[wrong[0]]}; it must be 0 or 1, or bool")
    return array.astype(bool)


def trajectories_from_npz(path: Path) -> list[Trajectory]:
    """Reads the flat arrays of an .npz file; see `trajectories_from_arrays`.

    Raises:
        UserError: It is not such a file, an array is missing, or the arrays are no episodes.
    """
    needed = ("observations", "actions", "rewards", "terminations", "truncations")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in needed if name not in file]
            if missing:
                raise UserError(
                    f"{path} has no array '{missing[0]}'; it has {', '.join(file) or 'none'}, "
                    f"and needs {', '.join(needed)}"
                )
            optional = ("next_observations",) if "next_observations" in file else ()
            arrays = {name: file[name] for name in (*needed, *optional)}
    except UserError:
        raise
    except (OSError, AttributeError, EOFError, TypeError) as error:
        # numpy loads a single array, .npy, too, and gives it no names.
        raise UserError(f"{path} is not an .npz file that can be read ({error})") from error
    except Exception as error:  # a damaged archive has an error of zipfile, zlib or numpy
        raise UserError(
            f"{path} cannot be read ({str(error).splitlines()[0]}); write it again with "
            "numpy.savez, of arrays of plain numbers"
        ) from error
    try:
        return trajectories_from_arrays(**arrays)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
