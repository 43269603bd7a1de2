"""The critic of a run folder: written, read, and held against the data and the settings."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise_tensors

from agents.checksum import checksum
from agents.critic.learning import Critic, CriticConfig
from common.errors import UserError
from common.files import write_file

CRITIC = "critic.safetensors"


def save_critic(folder: Path, critic: Critic, config: CriticConfig, data_sha256: str) -> None:
    """Writes critic.safetensors into a run folder."""
    tensors = critic.state_dict()
    made = {**asdict(config), "data": data_sha256}
    # One key, as in the policy's file: equal critics give equal files.
    metadata = {"critic": json.dumps({"made": made, "sha256": checksum(tensors)})}
    content = serialise_tensors(tensors, metadata)
    write_file(folder / CRITIC, content, "free some space, then start again with resume=true")


def load_critic(folder: Path, config: CriticConfig, data_sha256: str) -> Critic | None:
    """Reads the critic of a run folder; None if it has none yet.

    Raises:
        UserError: The file is damaged, or the critic is one of other data or other settings.
    """
    if not (folder / CRITIC).exists():
        return None
    critic, made = _read(folder / CRITIC)
    if made != {**asdict(config), "data": data_sha256}:
        raise UserError(
            f"{folder / CRITIC} is the critic of other data or settings than this run's; start the "
            "run again with overwrite=true, or give the data that it was trained on."
        )
    return critic


def critic_of(folder: Path, data_sha256: str) -> Critic:
    """Reads the critic of a trained run, to choose actions.

    Raises:
        UserError: The run has none, or one of other data, or the file is damaged.
    """
    path = folder / CRITIC
    if not path.exists():
        raise UserError(
            f"{folder} has no {CRITIC}, which is to choose between the actions; train a run with "
            "experiment=chosen, or give another target."
        )
    critic, made = _read(path)
    if made["data"] != data_sha256:
        raise UserError(
            f"{path} is the critic of other data than the policy beside it; copy both from one run."
        )
    return critic


def _read(path: Path) -> tuple[Critic, dict[str, Any]]:
    """Returns a critic, and what it was made of."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["critic"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        observation_dim = len(tensors["observation_mean"])
        action_dim = tensors["qs.0.0.weight"].shape[1] - observation_dim
        with torch.device("meta"):  # draws no random numbers, which a resumed run would not
            critic = Critic(len(tensors["qs.0.0.bias"]), observation_dim, action_dim)
        critic.load_state_dict(tensors, assign=True)
        made = metadata["made"]
        made["data"]  # what is asked for later
        if metadata["sha256"] != checksum(tensors):
            raise ValueError("its contents do not match the checksum that was saved with them")
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path} is truncated or damaged ({reason}); start the run again with overwrite=true."
        ) from error
    return critic.requires_grad_(False), made
