"""What a run ends with whose data name no environment: its error on held-out episodes."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from common.errors import UserError
from common.files import write_file
from envs.tasks import from_plain

HELD_OUT = "held_out.json"


@dataclass(frozen=True)
class HeldOut:
    """How well a policy predicts the actions of episodes that it was not trained on.

    The lists have a number for each dimension of the action, in its units; an error is the mean
    absolute one.

    Attributes:
        dataset_id: Data that the policy was trained on.
        checkpoint_step: Updates that it was trained for.
        episodes: Held-out episodes.
        steps: Their steps.
        loss: Mean squared error of the actions.
        error: Of the policy, which sees the data's observations, returns-to-go and past actions.
        mean_action_error: Of the mean action of the training data.
        previous_action_error: Of the data's previous action; of the mean one at a first step.
    """

    dataset_id: str
    checkpoint_step: int
    episodes: int
    steps: int
    loss: float
    action_low: list[float]
    action_high: list[float]
    error: list[float]
    mean_action_error: list[float]
    previous_action_error: list[float]


def write_held_out(folder: Path, held_out: HeldOut) -> None:
    """Writes held_out.json, whole or not at all."""
    text = json.dumps(asdict(held_out), indent=1, allow_nan=False) + "\n"
    write_file(folder / HELD_OUT, text.encode())


def read_held_out(folder: Path) -> HeldOut:
    """Reads held_out.json of a run folder.

    Raises:
        UserError: There is no such file, or it is damaged.
    """
    try:
        return from_plain(HeldOut, json.loads((folder / HELD_OUT).read_text(encoding="utf-8")))
    except (OSError, ValueError, UserError) as error:
        raise UserError(
            f"{folder / HELD_OUT} cannot be read ({error}); start the run again with resume=true."
        ) from error


def print_held_out(held_out: HeldOut, console: Console) -> None:
    """Prints a row for each dimension of the action, and why there is no return."""
    table = Table(title=f"{held_out.dataset_id}, update {held_out.checkpoint_step:,}")
    table.add_column("action", no_wrap=True)
    for name in ("range", "error", "mean action", "previous action"):
        table.add_column(name, justify="right", no_wrap=True)
    low, high = np.array(held_out.action_low), np.array(held_out.action_high)
    errors = np.array([held_out.error, held_out.mean_action_error, held_out.previous_action_error])
    shares = 100 * errors / np.maximum(high - low, np.finfo(np.float32).tiny)
    for i in range(len(low)):
        cells = [
            f"{error:.3g} ({share:.1f} %)"
            for error, share in zip(errors[:, i], shares[:, i], strict=True)
        ]
        table.add_row(str(i), f"{low[i]:g} to {high[i]:g}", *cells)
    table.add_section()
    table.add_row("mean", "", *(f"{share:.1f} %" for share in shares.mean(axis=1)))
    console.print(table, highlight=False)
    for line in (
        f"Held-out loss (mean squared error of the actions): {held_out.loss:.4g}.",
        f"Error: mean absolute, on {held_out.episodes:,} held-out episodes, {held_out.steps:,} "
        "steps, and in per cent of the action's range; beside it that of two guesses: the mean "
        "action of the training data, and the data's previous action.",
        f"There is no return, because {held_out.dataset_id} names no environment to play the "
        "policy in; dataset.environment=ID names one by its Gymnasium id.",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
