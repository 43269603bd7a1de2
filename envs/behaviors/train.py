"""Trains a new behaviour policy with stable-baselines3's SAC.

    python -m envs.behaviors.train env=hopper steps=150000

saves a snapshot now and then, in the format of envs/behaviors, and measures each.
"""

from dataclasses import MISSING, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import gymnasium as gym

from common.arguments import (
    parse_arguments,
    run_command,
)
from common.checks import MOST_STEPS, check_fields, choice, number, seed
from common.errors import UserError
from envs.behaviors import snapshot_path
from envs.behaviors.measure import Measurement, describe, measure, write_returns
from envs.behaviors.policy import Behavior, load_behavior
from envs.simulation.simulators import Simulators, quiet_model_files
from envs.tasks import TASKS

if TYPE_CHECKING:
    from stable_baselines3 import SAC


@dataclass
class TrainBehaviorConfig:
    """Arguments of this command; SAC's own are stable-baselines3's defaults.

    Attributes:
        env: Name of a task.
        steps: Environment steps of training.
        every: Steps from one snapshot to the next.
        random_steps: Steps with random actions before learning begins.
        episodes: Episodes that each snapshot is measured with.
        directory: Where TASK/step_NNNNNNN.safetensors and returns.csv are written.
        seed: Seed of training and of the measurements.
        device: Device of torch.
    """

    env: str = choice(MISSING, TASKS)
    steps: int = number(500_000, at_least=1, at_most=MOST_STEPS)
    every: int = number(10_000, at_least=1, at_most=MOST_STEPS)
    random_steps: int = number(10_000, at_least=0, at_most=MOST_STEPS)
    episodes: int = number(10, at_least=1, at_most=1_000_000)
    directory: str = "runs/behaviors"
    seed: int = seed()
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_fields(self)


def behavior_of(model: "SAC", environment_id: str) -> Behavior:
    """Returns the actor of a SAC model with two hidden layers, which acts as the model does."""
    actor = model.actor
    layers = {
        "hidden_0": actor.latent_pi[0],
        "hidden_1": actor.latent_pi[2],
        "mean": actor.mu,
        "log_std": actor.log_std,
    }
    weights = {
        f"{name}.{kind}": getattr(layer, kind).detach().cpu().numpy().copy()
        for name, layer in layers.items()
        for kind in ("weight", "bias")
    }
    metadata = {
        "algorithm": "SAC",
        "environment_id": environment_id,
        "training_steps": str(model.num_timesteps),
        "training": "stable-baselines3, default settings",
    }
    return Behavior(weights, metadata)


def train(config: TrainBehaviorConfig) -> list[Measurement]:
    """Trains, saves the snapshots, measures them and writes returns.csv after each.

    Raises:
        UserError: stable-baselines3 is not installed.
    """
    if find_spec("stable_baselines3") is None:
        raise UserError(
            "training a behaviour policy needs stable-baselines3; "
            'install it with: pip install -e ".[behavior]"'
        )
    from stable_baselines3 import SAC

    task = TASKS[config.env]
    directory = Path(config.directory)
    with quiet_model_files():
        environment = gym.make(task.environment_id)
    model = SAC(
        "MlpPolicy",
        environment,
        learning_starts=config.random_steps,
        seed=config.seed,
        device=config.device,
    )
    measurements: list[Measurement] = []
    with Simulators(task.environment_id, config.episodes) as simulators:
        while model.num_timesteps < config.steps:
            model.learn(
                min(config.every, config.steps - model.num_timesteps),
                reset_num_timesteps=False,
            )
            path = snapshot_path(task.name, model.num_timesteps, directory)
            behavior_of(model, task.environment_id).save(path)
            behavior = load_behavior(path)  # what is measured is what the file holds
            measurements.append(
                measure(task, simulators, behavior, model.num_timesteps, config.seed)
            )
            write_returns(directory / "returns.csv", measurements)
            print(describe(measurements[-1]), flush=True)
    environment.close()
    return measurements


if __name__ == "__main__":
    run_command(lambda arguments: train(parse_arguments(TrainBehaviorConfig, arguments)))
