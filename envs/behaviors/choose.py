"""Chooses the snapshots of a training that the data sets of its task are made from.

    python -m envs.behaviors.choose training=runs/behaviors/hopper-tqc-seed0

replaces envs/behaviors/TASK by the chosen snapshots, `recipe.json`, the training's `returns.csv`
and a picture of it. Every candidate is measured with `episodes` episodes of sampled actions:

- expert: of the last third of the snapshots, the `candidates` with the highest returns in
  returns.csv; the best of those with at least 95 % whole episodes, or if there are none, the one
  with the most whole episodes.
- medium: the earliest snapshot with a third to a half of the expert's return; if there is none,
  the nearest to that.
- medium-replay: at most `replay` snapshots up to medium, evenly spaced; each stands for the
  training steps since the one before.
"""

import csv
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from common.arguments import parse_arguments, run_command
from common.checks import check_fields, number, seed
from common.errors import UserError
from common.files import hidden_directory, only_process, put_in_place
from envs.behaviors import DIRECTORY, Snapshots
from envs.behaviors.measure import Measurement, describe, measure
from envs.behaviors.policy import load_behavior
from envs.simulation.batched import make_simulators
from envs.tasks import TASKS

WHOLE = 0.95
MEDIUM = (1 / 3, 1 / 2)  # of the expert's return


@dataclass
class ChooseConfig:
    """Arguments of this command.

    Attributes:
        training: Folder of envs.behaviors.train.
        directory: Where TASK/ is replaced.
        version: Version of the data sets made from the snapshots.
        episodes: Episodes that each candidate is measured with.
        candidates: Snapshots that are measured for the expert, and at most for medium.
        replay: Most snapshots in medium-replay.
        seed: Seed of the measurements.
    """

    training: str
    directory: str = str(DIRECTORY)
    version: int = number(1, at_least=0, at_most=1000)
    episodes: int = number(100, at_least=1, at_most=1_000_000)
    candidates: int = number(10, at_least=1, at_most=1000)
    replay: int = number(8, at_least=1, at_most=1000)
    seed: int = seed(1)

    def __post_init__(self) -> None:
        check_fields(self)


def read_curve(training: Path) -> tuple[str, dict[int, float]]:
    """Returns the task of a training and the sampled return of each snapshot, by training steps.

    Raises:
        UserError: returns.csv is missing or is not one of envs.behaviors.train, or a snapshot
            that it names is missing.
    """
    path = training / "returns.csv"
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        curve = {int(row["training_steps"]): float(row["sampled_return"]) for row in rows}
        (task,) = {row["task"] for row in rows}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} is not a table of one training ({error}); give training= a folder of "
            "envs.behaviors.train."
        ) from None
    missing = [step for step in curve if not _snapshot(training, step).exists()]
    if task not in TASKS or missing:
        raise UserError(
            f"{path} names the task {task} and the missing snapshots {missing}; expected are one "
            f"of {', '.join(TASKS)} and a step_NNNNNNN.safetensors for each row."
        )
    return task, curve


def _snapshot(training: Path, step: int) -> Path:
    return training / f"step_{step:07d}.safetensors"


def choose(
    curve: dict[int, float],
    measured: Callable[[int], Measurement],
    *,
    version: int = 1,
    candidates: int = 10,
    replay: int = 8,
) -> Snapshots:
    """Applies the rule of this module.

    Args:
        curve: Training steps -> return, as in returns.csv.
        measured: Measures the snapshot after so many training steps.
        version: Version of the data sets.
        candidates: Snapshots that are measured for the expert, and at most for medium.
        replay: Most snapshots in medium-replay.

    Raises:
        UserError: The expert is the first snapshot, so that none is left for medium.
    """
    steps = sorted(curve)

    # The expert.
    last = sorted(steps[len(steps) * 2 // 3 :], key=lambda step: -curve[step])[:candidates]
    expert = max(
        map(measured, last),
        key=lambda m: (min(m.sampled_whole, WHOLE), m.sampled_return, m.sampled_whole),
    )

    # Medium: measured in the order of time if the table has them in the window, else by distance.
    def distance(fraction: float) -> float:
        return max(MEDIUM[0] - fraction, fraction - MEDIUM[1], 0.0)

    earlier = [step for step in steps if step < expert.training_steps]
    if not earlier:
        raise UserError(
            "the expert is the first snapshot, so none before it can be medium; train longer or "
            "with a smaller every."
        )
    of_expert = {step: curve[step] / expert.sampled_return for step in earlier}
    medium, nearest = earlier[0], float("inf")
    for step in sorted(earlier, key=lambda step: (distance(of_expert[step]), step))[:candidates]:
        away = distance(measured(step).sampled_return / expert.sampled_return)
        if away < nearest:
            medium, nearest = step, away
        if away == 0:
            break

    # The replay buffer up to medium.
    until = [step for step in earlier if step <= medium]
    count = min(replay, len(until))
    rows = np.ceil(np.arange(1, count + 1) * len(until) / count).astype(int) - 1
    kept = [until[row] for row in rows]
    shares = np.diff([0, *kept]).tolist()
    return Snapshots(version, dict(zip(kept, shares, strict=True)), medium, expert.training_steps)


def draw(task: str, curve: dict[int, float], chosen: Snapshots, path: Path) -> None:
    """Draws the learning curve, the chosen snapshots marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(list(curve), list(curve.values()), color="gray", linewidth=1)
    for name, steps in (
        ("medium-replay", list(chosen.replay)),
        ("medium", [chosen.medium]),
        ("expert", [chosen.expert]),
    ):
        axes.plot(steps, [curve[step] for step in steps], "o", label=name)
    axes.set(xlabel="environment steps", ylabel="return, sampled actions", title=task)
    axes.legend()
    figure.savefig(path, dpi=120)


def main(arguments: list[str]) -> None:
    """Chooses, copies and draws.

    Raises:
        UserError: An argument is wrong, see `read_curve` and `choose`, or matplotlib is missing.
    """
    config = parse_arguments(ChooseConfig, arguments)
    training, directory = Path(config.training), Path(config.directory)
    if find_spec("matplotlib") is None:
        raise UserError('the picture needs matplotlib: run pip install -e ".[plots]".')
    name, curve = read_curve(training)
    if not directory.is_dir():
        raise UserError(f"directory={directory} is not a directory; make it first.")
    known: dict[int, Measurement] = {}
    with make_simulators(TASKS[name].environment_id, config.episodes) as simulators:

        def measured(step: int) -> Measurement:
            if step not in known:
                behavior = load_behavior(_snapshot(training, step))
                known[step] = measure(TASKS[name], simulators, behavior, step, config.seed)
                print(describe(known[step]), flush=True)
            return known[step]

        chosen = choose(
            curve,
            measured,
            version=config.version,
            candidates=config.candidates,
            replay=config.replay,
        )
    with (
        only_process(directory / ".choosing.lock", "choosing"),
        hidden_directory(directory) as hidden,
    ):
        made = hidden / name
        made.mkdir()
        for step in chosen.steps():
            shutil.copy(_snapshot(training, step), made)
        shutil.copy(training / "returns.csv", made)
        draw(name, curve, chosen, made / "learning_curve.png")
        chosen.save(made / "recipe.json")
        put_in_place(made, directory / name, hidden)
    share = known[chosen.medium].sampled_return / known[chosen.expert].sampled_return
    print(
        f"{name}: expert {chosen.expert:,}; medium {chosen.medium:,}, {share:.2f} of the expert's "
        f"return; replay {', '.join(f'{step:,}' for step in chosen.replay)}; in {directory / name}"
    )


if __name__ == "__main__":
    run_command(main)
