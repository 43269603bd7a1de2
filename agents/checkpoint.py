"""Run folders: every file is written whole, so a kill or a full disk costs no save.

config.yaml         the resolved configuration; its first line marks the folder as a run's
config.json         the policy's shape, its data and its evaluation
model.safetensors   the weights to act with (EMA), with a checksum; needs config.json only
critic.safetensors  the critic, with value help; made before the policy, and never again
training_state.pt   all that resuming needs; loads with weights_only=True
metrics.jsonl, events.out.tfevents.*   the records, as JSON lines and for TensorBoard
scores.json, scores-*.json             the run's own evaluation, and others
tracker.json        the run's id at each tracker that was asked for
held_out.json       in place of scores.json where the data name no environment
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise_tensors
from torch import Tensor
from yaml import YAMLError  # type: ignore[import-untyped]

from agents.backbones import backbone_names, mixer_entry
from agents.checksum import checksum
from agents.critic.file import CRITIC
from agents.policy import PolicyConfig, ReturnConditionedPolicy
from common.checks import nearest
from common.errors import UserError
from common.files import leftovers, write_file

WEIGHTS = "model.safetensors"
STATE = "training_state.pt"
# What training writes, in the order in which overwriting removes it: an interrupted removal leaves
# a run that is neither finished nor resumed from the discarded state.
RESULTS = ("scores.json", "held_out.json")
TRACKED = "tracker.json"
FILES = (*RESULTS, STATE, WEIGHTS, CRITIC, "metrics.jsonl", TRACKED, "config.json", "config.yaml")
# Only a folder whose config.yaml begins with this line is a run: elsewhere nothing is replaced.
MARK = "# A run folder of Decision minRNN, written by train.py."
LOCK = ".decision-minrnn.lock"
# What to do about a run folder that cannot be written.
MEND = "free some space or choose another run_dir, then start again with resume=true"
# What a file whose contents are not as expected raises while it is taken apart.
_WRONG = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError)


@dataclass(frozen=True)
class RunDescription:
    """What config.json holds besides the policy's shape; plain values.

    Attributes:
        dataset: The data: `envs.tasks.DatasetInfo` as plain values.
        evaluation: The run's own evaluation: `envs.tasks.Evaluation` as plain values.
    """

    dataset: dict[str, Any]
    evaluation: dict[str, Any]


# -- the folder -------------------------------------------------------------------------------


def check_run_folder(folder: Path, config: str, *, resume: bool, overwrite: bool) -> bool:
    """Makes sure that a run may be made in a folder; changes nothing.

    Args:
        folder: The run folder.
        config: The configuration in YAML.
        resume: Whether to resume a run of this very configuration, if the folder holds one.
        overwrite: Whether to discard the run that the folder holds.

    Returns:
        Whether there is a run to resume.

    Raises:
        UserError: The folder holds another run, or a file that is not of a run.
    """
    path = folder / "config.yaml"
    try:
        if not path.is_file() or not path.read_bytes().startswith(MARK.encode()):
            for name in FILES:
                if (folder / name).exists():
                    raise UserError(
                        f"{folder / name} is in the way: the folder is no run that train.py made, "
                        "and the file would be replaced; move it, or give another run_dir."
                    )
            return False
    except OSError as error:
        raise _unusable(folder, error) from error
    if overwrite:
        return False
    if not resume:
        raise UserError(
            f"{folder} already holds a run: resume=true resumes it, overwrite=true discards it, "
            "run_dir=PATH puts this one elsewhere."
        )
    before, now = _flat(path, path.read_bytes()), _flat(path, config.encode())
    for key in {**before, **now}:
        if before.get(key) != now.get(key):
            raise UserError(
                f"{folder} cannot be resumed with another configuration: {key} is "
                f"{before.get(key)} there and {now.get(key)} here; give the same keys as before, "
                "or another run_dir."
            )
    return True


def _flat(path: Path, content: bytes) -> dict[str, Any]:
    """Returns a configuration with keys such as `trainer.warmup`."""
    try:
        values: Any = OmegaConf.to_container(OmegaConf.create(content.decode()))
        parts = {k: v if isinstance(v, dict) else {"": v} for k, v in values.items()}
    except (YAMLError, OmegaConfBaseException, *_WRONG) as error:
        raise UserError(
            f"{path} is damaged ({_reason(error)}), so the run cannot be resumed: copy it again, "
            "or start the run again with overwrite=true."
        ) from error
    return {f"{k}.{i}".rstrip("."): v for k, part in parts.items() for i, v in part.items()}


_locks: dict[Path, FileLock] = {}


def claim_run_folder(folder: Path, config: str, *, resume: bool, overwrite: bool) -> None:
    """Makes a run folder with its config.yaml, or takes over the one there.

    It belongs to this process until the process ends; the arguments are those of
    `check_run_folder`, which is called again once the lock is held.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locks.setdefault(folder.resolve(), FileLock(folder.resolve() / LOCK))
        if not lock.is_locked:
            lock.acquire(timeout=0)
        resumes = check_run_folder(folder, config, resume=resume, overwrite=overwrite)
        for left_by_a_killed_process in [p for name in FILES for p in leftovers(folder / name)]:
            left_by_a_killed_process.unlink()
        if not resumes and (folder / "config.yaml").exists():  # of the run that is discarded
            others = [path for path in folder.glob("scores-*.json") if _is_evaluation(path)]
            others += folder.glob("events.out.tfevents.*")
            for path in [*(folder / name for name in FILES[:-1]), *others]:
                path.unlink(missing_ok=True)
    except Timeout as error:
        raise UserError(
            f"another process is training in {folder}; end it, or wait until it has finished."
        ) from error
    except OSError as error:
        raise _unusable(folder, error) from error
    if not resumes:
        write_file(folder / "config.yaml", f"{MARK}\n{config}".encode(), MEND)


def _unusable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"the run folder {folder} cannot be made or read ({error.strerror}); give another run_dir."
    )


def _is_evaluation(path: Path) -> bool:
    """Whether eval.py wrote a file: a list of scores, each of a checkpoint."""
    try:
        return all("checkpoint_step" in row for row in json.loads(path.read_bytes()))
    except (ValueError, TypeError):
        return False


# -- the policy -------------------------------------------------------------------------------


def save_description(
    folder: Path, policy: ReturnConditionedPolicy, backbone: Any, description: RunDescription
) -> None:
    """Writes config.json."""
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
    metadata = {"checkpoint": json.dumps({"step": step, "sha256": checksum(tensors, str(step))})}
    write_file(folder / WEIGHTS, serialise_tensors(tensors, metadata), MEND)


def load_description(folder: Path) -> RunDescription:
    """Reads config.json alone."""
    return _read_config(folder / "config.json")[1]


def scored_as(folder: Path, description: RunDescription) -> dict[str, Any]:
    """Returns how a run acted when it was scored, by the names of `Evaluation`.

    Returns:
        Its `rollout` and `context_length`, and whether its target was `held` or `chosen`.
    """
    try:
        how = {key: description.evaluation[key] for key in ("rollout", "context_length")}
        ways = ("held", "chosen")  # an earlier version of this project does not say
        return how | {way: bool(description.evaluation.get(way)) for way in ways}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder / 'config.json'} does not say how the policy acts: its evaluation has no "
            "rollout or no context_length; copy it again from its source, or train again."
        ) from error


def load_policy(folder: Path) -> tuple[ReturnConditionedPolicy, RunDescription, int]:
    """Rebuilds a policy from a run folder.

    Returns:
        The policy in evaluation mode, its data and evaluation, and the updates that it was
        trained for.

    Raises:
        UserError: The folder holds no checkpoint, or a damaged one.
    """
    path = folder / WEIGHTS
    for name in ("config.json", WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} holds no checkpoint: {name} is missing; give the run folder that "
                "train.py printed (it appears there with the first save)."
            )
    make, description = _read_config(folder / "config.json")
    tensors, step = _read_weights(path)
    if not _fits(make, tensors):
        raise UserError(
            f"{path} does not fit the policy that config.json beside it describes; one of the two "
            "files is damaged or comes from another run."
        )
    policy = make()
    policy.load_state_dict(tensors)
    for name, parameter in policy.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise UserError(
                f"{path} holds weights that are not finite, in {name}; take another checkpoint or "
                "train again."
            )
    return policy.eval(), description, step


def _read_config(path: Path) -> tuple[partial[ReturnConditionedPolicy], RunDescription]:
    """Returns what makes a policy, its weights not loaded, and its data and evaluation."""
    with _description_explained(path):
        content = json.loads(path.read_bytes())
        name = content["backbone"]["name"]
    # A run folder names its backbone, and never a module: what is imported is for the user to say.
    if name not in (names := backbone_names()):
        raise UserError(
            f"{path} describes a policy whose backbone '{name}' is not known here"
            f"{nearest(str(name), names)}; make it known with backbone.module=MODULE, the module "
            "that registers it, or in Python by importing that module first; or else the file is "
            "damaged, or of another version of this project: train again."
        )
    config_class, _ = mixer_entry(name)
    with _description_explained(path):
        make = partial(
            ReturnConditionedPolicy,
            PolicyConfig(**content["policy"]),
            config_class(**content["backbone"]),
            observation_dim=content["observation_dim"],
            action_dim=content["action_dim"],
        )
        return make, RunDescription(content["dataset"], content["evaluation"])


@contextmanager
def _description_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (*_WRONG, UserError) as error:
        raise UserError(
            f"{path} does not describe a policy ({_reason(error)}); the file is damaged or of "
            "another version of this project: train again."
        ) from error


def _fits(make: partial[ReturnConditionedPolicy], tensors: dict[str, Tensor]) -> bool:
    """Whether tensors have the names and shapes of a policy; allocates none."""
    blocks = {name.split(".")[2] for name in tensors if name.startswith("backbone.blocks.")}
    if len(blocks) != make.args[1].n_layer:
        return False
    try:
        with torch.device("meta"):
            expected = {name: tensor.shape for name, tensor in make().state_dict().items()}
    except (UserError, *_WRONG):
        return False
    return {name: tensor.shape for name, tensor in tensors.items()} == expected


def _read_weights(path: Path) -> tuple[dict[str, Tensor], int]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["checkpoint"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        step, sha256 = metadata["step"], metadata["sha256"]
    except (SafetensorError, *_WRONG) as error:
        raise _damaged(path, str(error)) from error
    if sha256 != checksum(tensors, str(step)):
        raise _damaged(path, "its contents do not match the checksum that was saved with them")
    return tensors, step


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} is truncated or damaged ({reason}); copy it again from its source or train again."
    )


# -- the training state -----------------------------------------------------------------------


def save_training_state(folder: Path, state: dict[str, Any]) -> None:
    """Writes training_state.pt: tensors and plain values only."""
    write_file(folder / STATE, lambda file: torch.save(state, file), MEND)


def load_training_state(folder: Path) -> dict[str, Any] | None:
    """Reads training_state.pt; None if nothing has been saved yet."""
    path = folder / STATE
    if not path.exists():
        return None
    with damage_explained(folder), zipfile.ZipFile(path) as archive:
        # torch.load itself does not look at the archive's checksums.
        if (broken := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"checksum of {broken}")
        return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def damage_explained(folder: Path) -> Iterator[None]:
    """Turns what reading or restoring a damaged training_state.pt raises into a UserError."""
    try:
        yield
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, *_WRONG) as error:
        raise UserError(
            f"{folder / STATE} is truncated or damaged ({_reason(error)}); the run cannot be "
            "resumed from it: start it again with overwrite=true."
        ) from error
