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
from envs.behaviors.collect import Trajectory, run_episodes
from envs.behaviors.policy import Behavior, load_behavior
from envs.simulation.batched import make_simulators
from envs.simulation.simulators import Simulators
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


def measure(
    task: Task, simulators: Simulators, behavior: Behavior, training_steps: int, seed: int
) -> Measurement:
    """Runs one episode with sampled and one with mean actions in each simulator."""

    def statistics(episodes: list[Trajectory]) -> tuple[float, float, float]:
        returns = [episode.rewards.sum() for episode in episodes]
        length = np.mean([len(episode.rewards) for episode in episodes])
        return (
            round(float(np.mean(returns)), 1),
            round(float(np.std(returns)), 1),
            round(float(length), 1),
        )

    n = simulators.n
    sampled = run_episodes(simulators, behavior, seed=(seed,), episodes=n)
    mean = run_episodes(simulators, behavior, seed=(seed,), episodes=n, sampled=False)
    of_sampled = statistics(sampled)
    score = round(task.reference.score(of_sampled[0]), 1)
    whole = round(sum(not episode.terminated for episode in sampled) / n, 3)
    return Measurement(
        task.name, training_steps, n, *of_sampled, score, *statistics(mean), sampled_whole=whole
    )


def write_returns(path: Path, measurements: list[Measurement]) -> None:
    """Writes returns.csv, a row for each measurement."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(Measurement)])
    writer.writeheader()
    writer.writerows(asdict(measurement) for measurement in measurements)
    write_file(path, text.getvalue().encode())


def describe(measurement: Measurement) -> str:
    """Returns one line for the user."""
    return (
        f"{measurement.task} {measurement.training_steps:>8,} steps: return "
        f"{measurement.sampled_return:.0f} +- {measurement.sampled_std:.0f}, normalised score "
        f"{measurement.normalized_score:.1f}, length {measurement.sampled_length:.0f}, "
        f"{100 * measurement.sampled_whole:.0f} % of the episodes whole "
        f"(mean action: {measurement.mean_action_return:.0f} +- "
        f"{measurement.mean_action_std:.0f})"
    )


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
    """Measures every policy in a directory.

    Raises:
        UserError: An argument is wrong, the directory holds no policy, or a file is none.
    """
    config = parse_arguments(MeasureConfig, arguments)
    directory = Path(config.directory)
    measurements = []
    for task in TASKS.values():
        paths = sorted((directory / task.name).glob("step_*.safetensors"))
        if not paths:
            continue
        with make_simulators(task.environment_id, config.episodes) as simulators:
            for path in paths:
                training_steps = int(path.stem.removeprefix("step_"))
                behavior = load_behavior(path)
                measurements.append(
                    measure(task, simulators, behavior, training_steps, config.seed)
                )
                print(describe(measurements[-1]), flush=True)
    if not measurements:
        raise UserError(
            f"directory={directory}: there is no TASK/step_NNNNNNN.safetensors below it, with "
            f"TASK one of {', '.join(TASKS)}"
        )
    write_returns(directory / "returns.csv", measurements)


if __name__ == "__main__":
    run_command(main)
