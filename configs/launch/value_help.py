"""The critic of a run that has value help: trained once, kept in the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console

from agents.critic.file import load_critic, save_critic
from agents.critic.learning import Critic, Transitions, step_weights, train_critic
from agents.distributed import Ranks
from agents.trainer import stop_requests
from configs.launch import command
from configs.launch.data import Data
from configs.schema import TrainConfig


class ValueHelp(NamedTuple):
    """What a run has of its critic.

    `step_weights` are those of each step of the data, (rows,) each; None if both weights of the
    configuration are 0: then the critic only chooses between actions, and the policy is trained
    without it.
    """

    critic: Critic
    step_weights: dict[str, np.ndarray] | None


def make_value_help(
    config: TrainConfig, data: Data, folder: Path, ranks: Ranks, console: Console
) -> ValueHelp | None:
    """Trains the critic of a run, or reads it where that is done; None if none is asked for."""
    if not config.critic.updates:
        return None
    episodes, sha256 = data.episodes, data.info.sha256
    steps = Transitions(*(getattr(episodes, name) for name in Transitions._fields))

    def make() -> bool:
        if load_critic(folder, config.critic, sha256) is not None:
            return True
        with stop_requests() as stop:
            critic = train_critic(
                config.critic,
                steps,
                torch.as_tensor(episodes.observation_mean).to(ranks.device),
                torch.as_tensor(episodes.observation_std).to(ranks.device),
                seed=config.seed,
                stopped=stop.is_set,
                console=console,
            )
        if critic is not None:
            save_critic(folder, critic, config.critic, sha256)
        return critic is not None

    if not ranks.from_first(make):
        raise command.Stopped(
            "Stopped before the critic was trained, which is not saved on the way; resume=true "
            "begins it again."
        )
    critic = load_critic(folder, config.critic, sha256)
    assert critic is not None
    critic.to(ranks.device)
    teaches = config.critic.advantage_weight or config.critic.q_weight
    return ValueHelp(critic, step_weights(critic, steps, config.critic) if teaches else None)
