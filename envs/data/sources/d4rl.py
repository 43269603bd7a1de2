"""D4RL's HDF5 files -> Episodes, read with h5py alone.

The files hold flat arrays with a row for each step (Fu et al., arXiv 2004.07219). The v2 data were
recorded in Gym's v2 environments, which no longer run; their rewards, and Walker2d's foot friction,
are those of v4, not v5, so v4 is the default for evaluation.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from common.errors import UserError
from envs.data.cache import Reading, load_cached
from envs.data.damage import damage_explained, require_stored, whole
from envs.data.episodes import Episodes, column, flags
from envs.data.sources.download import download
from envs.data.spaces import environment_spaces, fitting_spaces
from envs.tasks import TASKS, task_of_environment

EVALUATION_VERSION = "v4"

# d4rl/gym_mujoco/__init__.py of Farama-Foundation/D4RL.
URL = "http://rail.eecs.berkeley.edu/datasets/offline_rl/gym_mujoco_v2/"
# Without Ant, whose observations here no environment gives (see envs.tasks).
_TASKS = [TASKS[name] for name in ("hopper", "halfcheetah", "walker2d")]
NAMES = tuple(
    f"{task.name}-{quality}-v2"
    for task in _TASKS
    for quality in ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert")
)

# Steps after which an episode is truncated in a file without timeouts.
HORIZON = 1000

_ROWS_AT_ONCE = 100_000


def load_d4rl(path: Path, environment_id: str | None = None) -> Episodes:
    """Reads a D4RL file.

    Episodes end at ``terminals`` and ``timeouts``; without the latter they are truncated after 1000
    steps. An unfinished episode at the end of the file is dropped, with a warning. By default the
    environment is v4 of the task with which the file's name begins.

    Raises:
        UserError: The file cannot be read, is incomplete, does not hold valid episodes, or its
            environment is unknown.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; give the path of a D4RL HDF5 file")
    if environment_id is None:
        environment_id = environment_of_file(path)
    actions = environment_spaces(environment_id)[1]
    task = task_of_environment(environment_id)
    attributes: dict[str, Any] = {
        "action_low": actions.low,
        "action_high": actions.high,
        "dataset_id": f"d4rl/{path.stem.replace('_', '-')}",
        "environment_id": environment_id,
        "reference": task.reference if task else None,
    }

    def read() -> Reading:
        reading = _read(path)
        fitting_spaces(str(path), (reading.observation_dim, reading.action_dim), environment_id)
        return reading

    return load_cached([path], attributes, read)


def download_d4rl(name: str) -> Path:
    """Returns the file of a D4RL set by its name, such as ``hopper-medium-v2``.

    Downloads it if it is not in D4RL's own directory, ``$D4RL_DATASET_DIR`` or
    ``~/.d4rl/datasets``.

    Raises:
        UserError: There is no such set, or it cannot be downloaded.
    """
    if name not in NAMES:
        raise UserError(f"there is no D4RL set '{name}'; there are: {', '.join(NAMES)}")
    task, _, quality = name.removesuffix("-v2").partition("-")
    file_name = f"{task}_{quality.replace('-', '_')}-v2.hdf5"
    directory = os.environ.get("D4RL_DATASET_DIR") or Path.home() / ".d4rl" / "datasets"
    path = Path(directory) / file_name
    if not path.exists():
        download(URL + file_name, path)
        if not h5py.is_hdf5(path):  # a page that asks for a login, say
            path.unlink()
            raise UserError(f"what {URL + file_name} sent is not an HDF5 file; it was removed")
    return path


def environment_of_file(path: Path) -> str:
    """Returns v4 of the task that the name of a file begins with."""
    stem = path.stem.lower().replace("_", "").replace("-", "")
    for task in _TASKS:
        if stem.startswith(task.name):
            return f"{task.environment_id.rsplit('-v', 1)[0]}-{EVALUATION_VERSION}"
    names = ", ".join(task.name for task in _TASKS)
    raise UserError(
        f"the name of {path.name} does not begin with {names}, so its environment is unknown; give "
        "one, such as dataset.environment=Hopper-v4"
    )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    with damage_explained(f"{path} is damaged or cut short", "download or copy it again"):
        if not h5py.is_hdf5(path):
            path.open("rb").close()  # raises what prevents reading it, such as permissions
            raise UserError(f"{path} is not an HDF5 file; give the path of a D4RL HDF5 file")
        with h5py.File(path, "r") as file:
            yield file


def _read(path: Path) -> Reading:
    with _opened(path) as file:
        needed = ("observations", "actions", "rewards", "terminals")
        for name in needed:
            if not isinstance(file.get(name), h5py.Dataset):
                raise UserError(
                    f"{path} has no array '{name}'; it has {', '.join(file) or 'nothing'}"
                )
        arrays = {name: file[name] for name in (*needed, "timeouts") if name in file}
        steps = len(file["rewards"])
        if not steps:
            raise UserError(f"{path} is empty; at least one episode of one step is needed")
        for name, array in arrays.items():
            require_stored(array)
            if len(array) != steps:
                raise UserError(
                    f"{path} has {len(array)} {name} for {steps} rewards; each step needs one of "
                    "each"
                )
            if name in ("observations", "actions") and array.ndim != 2:
                raise UserError(f"{path}: {name} has shape {array.shape}, not (steps, dimensions)")
        dimensions = file["observations"].shape[1], file["actions"].shape[1]
        where = str(path)
        terminals = flags(where, "terminals", whole(file["terminals"]))
        if "timeouts" in file:
            truncations = flags(where, "timeouts", whole(file["timeouts"]))
        else:
            truncations = _truncations(terminals)
    ends = np.flatnonzero(terminals | truncations) + 1
    if not len(ends):
        raise UserError(
            f"{path}: none of its {steps} steps ends an episode, by terminals, timeouts or length"
        )
    tail = (
        f"{path.name}: the last {steps - ends[-1]:,} of {steps:,} steps are dropped, as their "
        "episode has no end"
    )
    return Reading(
        np.diff(ends, prepend=0),
        *dimensions,
        rows=_rows(path, terminals[: ends[-1]], truncations[: ends[-1]]),
        note=tail if ends[-1] < steps else "",
    )


def _truncations(terminals: np.ndarray) -> np.ndarray:
    """Returns (steps,) bool, true every HORIZON steps of an episode that is not terminated then."""
    cut = np.zeros_like(terminals)
    borders = [0, *(np.flatnonzero(terminals) + 1).tolist(), len(terminals)]
    for begin, end in itertools.pairwise(borders):
        cut[begin + HORIZON - 1 : end : HORIZON] = True
    return cut & ~terminals


def _rows(
    path: Path, terminals: np.ndarray, truncations: np.ndarray
) -> Iterator[dict[str, np.ndarray]]:
    with _opened(path) as file:
        for begin in range(0, len(terminals), _ROWS_AT_ONCE):
            rows = slice(begin, min(begin + _ROWS_AT_ONCE, len(terminals)))
            yield {
                "observations": file["observations"][rows],
                "actions": file["actions"][rows],
                "rewards": column(str(path), "rewards", file["rewards"][rows]),
                "terminations": terminals[rows],
                "truncations": truncations[rows],
            }
