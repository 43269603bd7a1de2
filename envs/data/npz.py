"""Flat arrays as others save them: .npz files with D4RL's, OGBench's or Gymnasium's names."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.checks import nearest
from common.errors import UserError
from common.memory import require_memory
from envs.data.damage import damage_explained
from envs.data.episodes import TYPES, flags

NAMES = (*TYPES, "terminals", "timeouts", "masks", "next_observations", "seeds")
HINTS = {
    "rewards": "; if the data have none, give zeros and train with policy.return_to_go=false",
    "terminations": "; D4RL's terminals and timeouts or OGBench's terminals and masks will do too",
}
COMPACT = "valids"  # of OGBench's compact form, in which the last step of an episode is no step


def read_npz(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Reads the arrays of NAMES of an .npz file, and the names of those that are left out.

    Raises:
        UserError: It is not such a file, holds pickles, or does not fit into memory.
    """
    advice = "write it with numpy.savez, of arrays of plain numbers"
    with damage_explained(f"{path} cannot be read as an .npz file", advice):
        with zipfile.ZipFile(path) as archive:
            sizes = {i.filename.removesuffix(".npy"): i.file_size for i in archive.infolist()}
        names = [name for name in sizes if is_known(str(path), name)]
        size = sum(sizes[name] for name in names)
        require_memory(size, str(path), "store it in several parts")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names}
    return arrays, sorted(sizes.keys() - arrays.keys())


def is_known(where: str, name: str) -> bool:
    """Whether an array is one of NAMES; raises UserError for a name that was meant to be one."""
    if name == COMPACT:
        raise UserError(
            f"{where} is in OGBench's compact form, which has '{COMPACT}'; save what OGBench "
            "loads with compact_dataset=False"
        )
    if name not in NAMES and (near := nearest(name, list(NAMES), cutoff=0.85)):
        raise UserError(f"{where}: there is no array '{name}'{near}; the names are {NAMES}")
    return name in NAMES


def with_gymnasium_names(where: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arrays with `terminations` and `truncations`, made of what is there instead.

    D4RL's ``terminals`` are terminations and its ``timeouts`` truncations. OGBench's ``terminals``
    mark the last step of each episode, and ``masks`` are 0 where the task is done: a last step is a
    termination if its mask is 0, else a truncation. ``terminals`` alone are terminations.

    Raises:
        UserError: An array that is needed is missing, or two contradict each other.
    """
    named = dict(arrays)
    there = f"there are: {', '.join(arrays)}"
    own = [name for name in ("terminations", "truncations") if name in named]
    ends = {
        name: flags(where, name, named.pop(name))
        for name in ("terminals", "timeouts", "masks")
        if name in named
    }
    if ends and own:
        raise UserError(
            f"{where}: both '{own[0]}' and '{next(iter(ends))}' say where episodes end; keep "
            "terminations and truncations (Gymnasium), terminals and timeouts (D4RL), or terminals "
            "and masks (OGBench)"
        )
    if ends and "terminals" not in ends:
        raise UserError(f"{where}: '{next(iter(ends))}' needs the array 'terminals'; {there}")
    if ends:
        terminals = ends["terminals"]
        for name, array in ends.items():
            if len(array) != len(terminals):
                raise UserError(
                    f"{where}: there are {len(array)} {name} for {len(terminals)} terminals; each "
                    "step needs one of each"
                )
        done = ~ends.get("masks", ~terminals)
        if "timeouts" in ends and (wrong := np.flatnonzero(done != terminals)).size:
            raise UserError(
                f"{where}: masks[{wrong[0]}] and terminals[{wrong[0]}] contradict each other; "
                "beside timeouts, as in D4RL, masks are 1 - terminals"
            )
        named["terminations"] = terminals & done
        named["truncations"] = ends.get("timeouts", terminals & ~done)
    if missing := [name for name in TYPES if name not in named]:
        raise UserError(
            f"{where}: the array '{missing[0]}' is missing; {there}{HINTS.get(missing[0], '')}"
        )
    return named
