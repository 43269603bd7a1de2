"""Measures behaviour policies, and writes their returns as a table.

    python -m envs.behaviors.measure directory=envs/behaviors

measures every ``TASK/step_NNNNNNN.safetensors`` in a directory and writes its ``returns.csv``.
"""

import csv
import io
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from common.arguments import parse_arguments, run_command
from common.checks import check_fields, number, seed
from common.errors import UserError
from common.files import write_file
from envs.behaviors import SNAPSHOTS
from envs.behaviors.episodes import run_episodes
from envs.behaviors.policy import load_behavior
from envs.tasks import TASKS, Task


@dataclass(frozen=True)
class Measurement:
    """The returns of one behaviour policy; a row of returns.csv.

    Attributes:
        task: Name of the task.
        training_steps: Environment steps of training.
        episodes: Number of episodes with sampled actions, and again with mean actions.
        sampled_return: Mean return of sampled actions, with which data are collected.
        sampled_std: Standard deviation of the return over episodes.
        sampled_length: Mean length of an episode.
        normalized_score: Of sampled_return, 0 to 100.
        mean_action_return: Mean return of the mean action.
        mean_action_std: Standard deviation of that over episodes.
        mean_action_length: Mean length of those episodes.
        sampled_whole: Share of the episodes with sampled actions that reach the time limit, 0 to 1.
    """

    task: str
    training_steps: int
    episodes: int
    sampled_return: float
    sampled_std: float
    sampled_length: float
    normalized_score: float
    mean_action_return: float
    mean_action_std: float
    mean_action_length: float
    sampled_whole: float

    def __str__(self) -> str:
        return (
            f"{self.task} {self.training_steps:>8,} steps: return {self.sampled_return:.0f} +- "
            f"{self.sampled_std:.0f}, normalised score {self.normalized_score:.1f}, length "
            f"{self.sampled_length:.0f}, {self.sampled_whole:.0%} of the episodes whole "
            f"(mean action: {self.mean_action_return:.0f} +- {self.mean_action_std:.0f})"
        )


def measure(task: Task, path: Path, training_steps: int, episodes: int, seed: int) -> Measurement:
    """Runs so many episodes with sampled actions, and again with mean actions.

    Raises:
        UserError: The file holds no behaviour policy.
    """
    behavior = load_behavior(path)
    statistics: dict[str, float] = {}
    for kind in ("mean_action", "sampled"):
        trajectories = run_episodes(
            task.environment_id,
            behavior,
            seed=(seed,),
            episodes=episodes,
            sampled=kind == "sampled",
        )
        returns = [trajectory.rewards.sum() for trajectory in trajectories]
        length = np.mean([len(trajectory.rewards) for trajectory in trajectories])
        for name, value in (
            ("return", np.mean(returns)),
            ("std", np.std(returns)),
            ("length", length),
        ):
            statistics[f"{kind}_{name}"] = round(float(value), 1)
    whole = float(np.mean([not trajectory.terminated for trajectory in trajectories]))
    return Measurement(
        task.name,
        training_steps,
        episodes,
        normalized_score=round(task.reference.score(statistics["sampled_return"]), 1),
        sampled_whole=round(whole, 3),
        **statistics,
    )


def write_returns(path: Path, measurements: list[Measurement]) -> None:
    """Writes returns.csv, a row for each measurement."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(Measurement)])
    writer.writeheader()
    writer.writerows(asdict(measurement) for measurement in measurements)
    write_file(path, text.getvalue().encode())


@dataclass
class MeasureConfig:
    """Arguments of this command.

    Attributes:
        directory: Holds TASK/step_NNNNNNN.safetensors; returns.csv is written there.
        episodes: Episodes of each kind for each policy.
        seed: Seed of every random number.
    """

    directory: str
    episodes: int = number(30, at_least=1, at_most=1_000_000)
    seed: int = seed(1)

    def __post_init__(self) -> None:
        check_fields(self)


def main(arguments: list[str]) -> None:
    """Measures every policy in a directory."""
    config = parse_arguments(MeasureConfig, arguments)
    directory = Path(config.directory)
    measurements = []
    for task in (TASKS[name] for name in SNAPSHOTS):
        for path in sorted((directory / task.name).glob("step_*.safetensors")):
            training_steps = int(path.stem.removeprefix("step_"))
            measurements.append(measure(task, path, training_steps, config.episodes, config.seed))
            print(measurements[-1], flush=True)
    if not measurements:
        raise UserError(
            f"directory={directory}: there is no TASK/step_NNNNNNN.safetensors below it, with "
            f"TASK one of {', '.join(SNAPSHOTS)}"
        )
    write_returns(directory / "returns.csv", measurements)


if __name__ == "__main__":
    run_command(main)
