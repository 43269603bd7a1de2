"""Run folders: what is needed to act and what is needed to go on training.

Everything is written so that a kill at any moment, a full disk or a flipped bit never costs more
than the steps since the last save.

    config.yaml            the resolved configuration of the run
    config.json            the policy's shape, how it acts, and what it was trained on
    model.safetensors      the weights to act with, and a checksum of them
    training_state.pt      all that resuming needs; loads with weights_only=True
    metrics.jsonl          one line a record
    scores.json            the evaluation of the last checkpoint
    scores-*.json          other evaluations of it, named after what was asked for
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise_tensors
from torch import Tensor

from agents.backbones import mixer_entry
from agents.policy import PolicyConfig, ReturnConditionedPolicy
from common.errors import UserError
from common.files import write_file

WEIGHTS = "model.safetensors"
# All that a run writes into its folder, and so all that overwriting it may delete.
RUN_FILES = (
    "config.yaml",
    "config.json",
    WEIGHTS,
    "training_state.pt",
    "metrics.jsonl",
    "scores*.json",
    "events.out.tfevents.*",
    "*.tmp",
)


@dataclass
class RunDescription:
    """What config.json holds besides the policy's shape.

    Attributes:
        rollout: How the policy acts: `carried`, `rolling` or `window`.
        context_length: Steps of the past that `rolling` and `window` keep.
        dataset: The data set's id, environment, reference scores and return statistics.
    """

    rollout: str
    context_length: int
    dataset: dict[str, Any]


# What to do about a run folder that cannot be written.
MEND = "free some space or choose another run_dir, then start again with resume=true"


def check_run_folder(folder: Path, config: str, *, resume: bool, overwrite: bool) -> bool:
    """Makes sure that a run may be made in a folder.

    Args:
        folder: The run folder.
        config: What config.yaml is to hold.
        resume: A folder that holds a run with this very configuration is gone on with.
        overwrite: The run that the folder holds is discarded.

    Returns:
        Whether it holds a run to go on with.

    Raises:
        UserError: The folder holds a run and neither was asked for, or it holds another run
            than the one to be resumed.
    """
    path = folder / "config.yaml"
    if overwrite or not path.is_file():
        return False
    if not resume:
        raise UserError(
            f"{folder} already holds a run: resume=true goes on with it, overwrite=true discards "
            "it, run_dir=PATH puts this one elsewhere."
        )
    _check_same_config(path, config)
    return True


def claim_run_folder(folder: Path, config: str, *, resume: bool, overwrite: bool) -> None:
    """Makes a run folder with its config.yaml, or takes over the one there.

    It is this process's until it ends or claims the folder again, whatever ends it. The arguments
    are those of check_run_folder.

    Raises:
        UserError: The folder may not be used, or cannot be made, or is another process's.
    """
    goes_on = check_run_folder(folder, config, resume=resume, overwrite=overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _lock(folder)
        if goes_on:
            return
        for pattern in RUN_FILES:
            for old in folder.glob(pattern):
                old.unlink()
    except OSError as error:
        raise UserError(
            f"the run folder {folder} cannot be made ({error.strerror}); give another as run_dir."
        ) from error
    write_file(folder / "config.yaml", config.encode(), MEND)


_locks: dict[Path, int] = {}


def _lock(folder: Path) -> None:
    # Not a file of its own: the system forgets the lock when the process ends, even if killed.
    if os.name != "posix":
        return
    import fcntl

    if (held := _locks.pop(folder.resolve(), None)) is not None:
        os.close(held)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise UserError(
            f"another process is training in {folder}; end it, or wait until it has finished."
        ) from error
    except OSError:
        pass  # a file system without locks
    _locks[folder.resolve()] = lock


def _check_same_config(path: Path, config: str) -> None:
    def flat(text: str) -> dict[str, Any]:
        values: Any = OmegaConf.to_container(OmegaConf.create(text))
        parts = {
            key: value if isinstance(value, dict) else {"": value} for key, value in values.items()
        }
        return {
            f"{key}.{inner}".rstrip("."): value
            for key, part in parts.items()
            for inner, value in part.items()
        }

    before, now = flat(path.read_text()), flat(config)
    other = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if other:
        key = other[0]
        raise UserError(
            f"{path.parent} cannot be resumed with another configuration: {key} is "
            f"{before.get(key)} there and {now.get(key)} here; give the same keys as before, or "
            "another run_dir."
        )


def _digest(tensors: dict[str, Tensor], step: str) -> str:
    digest = hashlib.sha256(step.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_description(
    folder: Path, policy: ReturnConditionedPolicy, backbone: Any, description: RunDescription
) -> None:
    """Writes config.json: with model.safetensors, all that is needed to act."""
    content = {
        "observation_dim": policy.observation_dim,
        "action_dim": policy.action_dim,
        "policy": asdict(policy.config),
        "backbone": asdict(backbone),
        **asdict(description),
    }
    text = json.dumps(content, indent=2) + "\n"
    write_file(folder / "config.json", text.encode(), MEND)


def save_policy(folder: Path, policy: ReturnConditionedPolicy, step: int) -> None:
    """Writes model.safetensors: the weights to act with after `step` updates."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in policy.state_dict().items()}
    # One key: safetensors writes several in random order, and equal weights give equal files.
    content = json.dumps({"step": step, "sha256": _digest(tensors, str(step))})
    metadata = {"checkpoint": content}
    write_file(folder / WEIGHTS, serialise_tensors(tensors, metadata), MEND)


def load_policy(folder: Path) -> tuple[ReturnConditionedPolicy, RunDescription, int]:
    """Rebuilds a policy from a run folder.

    Returns:
        The policy in evaluation mode, what it was trained on and how it acts, and the updates
        that it was trained for.

    Raises:
        UserError: The folder holds no checkpoint, or a damaged one.
    """
    config_path, weights_path = folder / "config.json", folder / WEIGHTS
    for path in (config_path, weights_path):
        if not path.is_file():
            raise UserError(
                f"{folder} holds no checkpoint: {path.name} is missing; give the run folder that "
                "train.py printed (it appears there with the first save)."
            )
    policy, description = build_policy(folder)
    tensors, step = _read_weights(weights_path)
    try:
        policy.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(
            f"{weights_path} does not fit the policy that {config_path.name} beside it describes; "
            "one of the two files comes from another run."
        ) from error
    return policy.eval(), description, step


def build_policy(folder: Path) -> tuple[ReturnConditionedPolicy, RunDescription]:
    """Builds the policy that config.json describes, its weights not loaded.

    Raises:
        UserError: The file cannot be read, or does not describe a policy.
    """
    config_path = folder / "config.json"
    try:
        content = json.loads(config_path.read_text())
        config_class, _ = mixer_entry(content["backbone"]["name"])
        policy = ReturnConditionedPolicy(
            PolicyConfig(**content["policy"]),
            config_class(**content["backbone"]),
            observation_dim=content["observation_dim"],
            action_dim=content["action_dim"],
        )
        description = RunDescription(
            content["rollout"], content["context_length"], content["dataset"]
        )
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(
            f"{config_path} does not describe a policy ({error}); the file is damaged or of "
            "another version of this project: train again."
        ) from error
    return policy.eval(), description


def _read_weights(path: Path) -> tuple[dict[str, Tensor], int]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["checkpoint"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        intact = metadata["sha256"] == _digest(tensors, str(metadata["step"]))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} is truncated or damaged ({error}); copy it again from its source or train "
            "again."
        ) from error
    if not intact:
        raise UserError(
            f"{path} is damaged: its contents do not match the checksum that was saved with them; "
            "copy it again from its source or train again."
        )
    return tensors, metadata["step"]


def save_training_state(folder: Path, state: dict[str, Any]) -> None:
    """Writes training_state.pt: tensors and plain values only."""
    write_file(folder / "training_state.pt", lambda file: torch.save(state, file), MEND)


def load_training_state(folder: Path) -> dict[str, Any] | None:
    """Reads training_state.pt; None if nothing has been saved yet.

    Raises:
        UserError: It is damaged.
    """
    path = folder / "training_state.pt"
    if not path.exists():
        return None
    try:
        # torch.load itself does not look at the archive's checksums.
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise zipfile.BadZipFile(f"checksum of {broken}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, RuntimeError, OSError, EOFError, ValueError) as error:
        raise UserError(
            f"{path} is truncated or damaged ({error}); the run cannot be resumed from it: start "
            "it again with overwrite=true."
        ) from error
