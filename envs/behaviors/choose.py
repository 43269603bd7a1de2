"""Chooses the snapshots of a training that the data sets of its task are made from.

    python -m envs.behaviors.choose training=runs/behaviors/hopper-tqc-seed0

replaces envs/behaviors/TASK by the chosen snapshots, `recipe.json` and the training's
`returns.csv`, and draws `learning_curves.png`. The rule, with `episodes` sampled episodes for each
candidate:

- expert: of the last third of the snapshots, the 5 with the highest returns in returns.csv; the
  best of those with at least 95 % whole episodes, or if there are none, the one with the most.
- medium: the earliest snapshot with a third to a half of the expert's return; if there is none,
  the nearest to that.
- medium-replay: at most 8 snapshots up to medium, evenly spaced; each stands for the training
  steps since the one before.
"""

import csv
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.arguments import parse_arguments, run_command
from common.checks import check_fields, number, require_extra, seed
from common.errors import UserError
from common.files import hidden_directory, only_process, put_in_place
from envs.behaviors import DIRECTORY, SNAPSHOTS, Snapshots, load_snapshots
from envs.behaviors.measure import Measurement, measure
from envs.tasks import TASKS

CANDIDATES = 5
REPLAY = 8
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
        seed: Seed of the measurements.
    """

    training: str
    directory: str = str(DIRECTORY)
    version: int = number(1, at_least=0, at_most=1000)
    episodes: int = number(100, at_least=1, at_most=1_000_000)
    seed: int = seed(1)

    def __post_init__(self) -> None:
        check_fields(self)


def read_curve(path: Path) -> tuple[str, dict[int, float]]:
    """Returns the task in a returns.csv and the sampled return of each snapshot, by its steps.

    Raises:
        UserError: The table is missing or is not one of envs.behaviors.train.
    """
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
    if task not in SNAPSHOTS:
        raise UserError(f"{path} names the task {task}, which is none of {', '.join(SNAPSHOTS)}.")
    return task, curve


def _snapshot(training: Path, step: int) -> Path:
    return training / f"step_{step:07d}.safetensors"


def outside(share: float) -> float:
    """Returns how far a share of the expert's return is from the range of a medium policy."""
    return max(MEDIUM[0] - share, share - MEDIUM[1], 0.0)


def choose(
    curve: dict[int, float], measured: Callable[[int], Measurement], version: int = 1
) -> Snapshots:
    """Applies the rule of this module.

    Args:
        curve: Training steps -> return, as in returns.csv.
        measured: Measures the snapshot after so many training steps.
        version: Version of the data sets.

    Raises:
        UserError: The expert is the first snapshot, or its return is not positive.
    """
    steps = sorted(curve)
    last = sorted(steps[len(steps) * 2 // 3 :], key=lambda step: -curve[step])[:CANDIDATES]
    expert = max(
        map(measured, last),
        key=lambda m: (min(m.sampled_whole, WHOLE), m.sampled_return, m.sampled_whole),
    )
    earlier = [step for step in steps if step < expert.training_steps]
    if not earlier or expert.sampled_return <= 0:
        raise UserError(
            f"the expert is the snapshot after {expert.training_steps:,} steps with a return of "
            f"{expert.sampled_return:.0f}; it must be positive, and an earlier snapshot is needed "
            "for medium: train longer or with a smaller every."
        )
    likely = sorted(earlier, key=lambda step: (outside(curve[step] / expert.sampled_return), step))[
        :CANDIDATES
    ]
    medium = min(
        sorted(likely),
        key=lambda step: outside(measured(step).sampled_return / expert.sampled_return),
    )
    until = [step for step in earlier if step <= medium]
    count = min(REPLAY, len(until))
    kept = [until[(i + 1) * len(until) // count - 1] for i in range(count)]
    shares = np.diff([0, *kept]).tolist()
    return Snapshots(version, dict(zip(kept, shares, strict=True)), medium, expert.training_steps)


def draw(directory: Path) -> None:
    """Draws the learning curve of every task with a returns.csv, the chosen snapshots marked."""
    from matplotlib.figure import Figure

    names = [name for name in SNAPSHOTS if (directory / name / "returns.csv").exists()]
    figure = Figure(figsize=(4 * len(names), 3.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        _, curve = read_curve(directory / name / "returns.csv")
        chosen = load_snapshots(directory / name / "recipe.json")
        axes.plot(np.array(list(curve)) / 1000, list(curve.values()), color="gray", linewidth=1)
        for label, steps in (
            ("medium-replay", list(chosen.replay)),
            ("medium", [chosen.medium]),
            ("expert", [chosen.expert]),
        ):
            axes.plot(np.array(steps) / 1000, [curve[step] for step in steps], "o", label=label)
        axes.set(xlabel="thousand environment steps", ylabel="return, sampled actions", title=name)
        axes.legend()
    figure.savefig(directory / "learning_curves.png", dpi=120)


def main(arguments: list[str]) -> None:
    """Chooses, copies and draws."""
    config = parse_arguments(ChooseConfig, arguments)
    training, directory = Path(config.training), Path(config.directory)
    require_extra("matplotlib", "the picture of the learning curves", "plots")
    name, curve = read_curve(training / "returns.csv")
    missing = [str(_snapshot(training, s)) for s in curve if not _snapshot(training, s).exists()]
    if missing:
        raise UserError(
            f"{training}/returns.csv names snapshots that are missing: {', '.join(missing)}; "
            "restore them or remove their rows."
        )
    if not directory.is_dir():
        raise UserError(f"directory={directory} is not a directory; make it first.")
    known: dict[int, Measurement] = {}

    def measured(step: int) -> Measurement:
        if step not in known:
            known[step] = measure(
                TASKS[name], _snapshot(training, step), step, config.episodes, config.seed
            )
            print(known[step], flush=True)
        return known[step]

    chosen = choose(curve, measured, config.version)
    with (
        only_process(directory / ".choosing.lock", "choosing"),
        hidden_directory(directory) as hidden,
    ):
        made = hidden / name
        made.mkdir()
        for step in chosen.steps():
            shutil.copy(_snapshot(training, step), made)
        shutil.copy(training / "returns.csv", made)
        chosen.save(made / "recipe.json")
        put_in_place(made, directory / name, hidden)
    draw(directory)
    expert, medium = known[chosen.expert], known[chosen.medium]
    share = medium.sampled_return / expert.sampled_return
    print(
        f"{name}: expert {chosen.expert:,}; medium {chosen.medium:,}, {share:.2f} of the expert's "
        f"return; replay {', '.join(f'{step:,}' for step in chosen.replay)}; in {directory / name}"
    )
    if expert.sampled_whole < WHOLE:
        print(f"note: only {expert.sampled_whole:.0%} of the expert's episodes are whole, not 95 %")
    if outside(share) > 0:
        print(
            "note: no snapshot that was measured has a third to a half of the expert's return; "
            f"the nearest, with {share:.2f}, is medium"
        )


if __name__ == "__main__":
    run_command(main)
