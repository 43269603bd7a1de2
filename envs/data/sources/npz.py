"""Your own arrays in an .npz file, as ``numpy.savez`` writes it."""

import zipfile
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.memory import require_memory
from envs.data.episodes import TYPES

# Not needed: what came after the last action of each episode, which training does not see.
OPTIONAL = ("next_observations",)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Reads the flat arrays of an .npz file: those of `Episodes.from_arrays`.

    Raises:
        UserError: It is not such a file, or an array is missing.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
        wanted = [f"{name}.npy" for name in (*TYPES, *OPTIONAL)]
        size = sum(sizes.get(name, 0) for name in wanted)
        require_memory(size, str(path), "store it in several parts")
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in TYPES if name not in file]
            if missing:
                raise UserError(
                    f"{path} has no array '{missing[0]}'; it has {', '.join(file) or 'none'}, "
                    f"and needs {', '.join(TYPES)}"
                )
            return {name: file[name] for name in (*TYPES, *OPTIONAL) if name in file}
    except UserError:
        raise
    except Exception as error:  # damage has errors of zipfile, zlib and numpy
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} cannot be read as an .npz file ({reason}); write it with numpy.savez, of "
            "arrays of plain numbers"
        ) from error
