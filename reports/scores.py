"""Scores: what an evaluation found, its table, its file, and the scores that others published."""

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy as np
from rich.console import Console
from rich.table import Table

from common.errors import UserError
from common.files import write_file
from envs.simulation.rollout import (
    RolloutResult,
)


@dataclass(frozen=True)
class Score:
    """All that one evaluation yields: a policy, one target return, one way of acting.

    Spreads are standard deviations over the episodes (divided by their number). Without a
    reference pair, the reference and the normalised scores are None.

    Attributes:
        dataset_id: Data that the policy was trained on.
        environment_id: Gymnasium id of the environment that it was scored in.
        mujoco_version: Version of the physics engine.
        gymnasium_version: Version of Gymnasium.
        reference_min: Return that scores 0.
        reference_max: Return that scores 100.
        reference_source: Where the reference pair comes from.
        target_return: The return that the policy was asked for.
        rollout: How it acted: ``carried``, ``rolling`` or ``window``.
        episodes: Number of episodes.
        seed: Seed of the start states.
        checkpoint_step: Updates that the policy was trained for.
        episode_returns: Return of each episode, in the order of the start states.
        episode_lengths: Steps of each episode.
        return_mean: Mean of the returns.
        return_std: Spread of the returns.
        normalized_score_mean: Mean of the normalised scores, 0 to 100.
        normalized_score_std: Spread of the normalised scores.
        length_mean: Mean of the lengths.
        engine: What stepped the environments: ``gymnasium`` or ``envpool``.
        conditions: How they were made harder, in words; empty where they were not.
    """

    dataset_id: str
    environment_id: str
    mujoco_version: str
    gymnasium_version: str
    reference_min: float | None
    reference_max: float | None
    reference_source: str | None
    target_return: float
    rollout: str
    episodes: int
    seed: int
    checkpoint_step: int
    episode_returns: list[float]
    episode_lengths: list[int]
    return_mean: float
    return_std: float
    normalized_score_mean: float | None
    normalized_score_std: float | None
    length_mean: float
    # Files from before there were these two do not have them.
    engine: str = "gymnasium"
    conditions: str = ""

    @property
    def value(self) -> float:
        """The mean of the normalised scores, or of the returns where there are none."""
        if self.normalized_score_mean is None:
            return self.return_mean
        return self.normalized_score_mean

    def scalars(self) -> dict[str, float]:
        """Returns what a training log records of it, under ``eval/*``."""
        names = ["return_mean", "return_std", "length_mean", "target_return"]
        if self.normalized_score_mean is not None:
            names += ["normalized_score_mean", "normalized_score_std"]
        return {f"eval/{name}": getattr(self, name) for name in names}


class Described(Protocol):
    """What a run folder tells of a policy.

    Attributes:
        rollout: How the policy acts: ``carried``, ``rolling`` or ``window``.
        dataset: Its data: ``id`` and, if known, ``reference_min``, ``reference_max`` and
            ``reference_source``.
    """

    rollout: str
    dataset: dict[str, Any]


def normalized_score(
    returns: np.ndarray | float, reference_min: float, reference_max: float
) -> np.ndarray:
    """Scales returns so that the random policy scores 0 and the expert 100.

    ``100 * (return - reference_min) / (reference_max - reference_min)``, as D4RL
    (arXiv 2004.07219, section 4). Of the same shape as ``returns``.

    Raises:
        UserError: The reference pair is not in order.
    """
    if not reference_max > reference_min:
        raise UserError(
            f"The reference return of an expert is {reference_max}, but must be above that of a"
            f" random policy, {reference_min}; mend them in the data set's metadata."
        )
    return 100 * (np.asarray(returns) - reference_min) / (reference_max - reference_min)


def make_score(
    result: RolloutResult,
    described: Described,
    target_return: float,
    checkpoint_step: int,
    conditions: str = "",
) -> Score:
    """Makes the score of one rollout.

    Args:
        result: The episodes.
        described: How the policy acts and what it was trained on.
        target_return: The return that it was asked for.
        checkpoint_step: Updates that it was trained for.
        conditions: How the environment was made harder, in words.
    """
    dataset: Mapping[str, Any] = described.dataset
    minimum, maximum = dataset.get("reference_min"), dataset.get("reference_max")
    normalized = None
    if minimum is not None and maximum is not None:
        normalized = normalized_score(result.episode_returns, minimum, maximum)
    return Score(
        dataset_id=dataset["id"],
        environment_id=result.environment_id,
        mujoco_version=result.mujoco_version,
        gymnasium_version=gymnasium.__version__,
        reference_min=minimum,
        reference_max=maximum,
        reference_source=dataset.get("reference_source"),
        target_return=float(target_return),
        rollout=described.rollout,
        episodes=len(result.episode_returns),
        seed=result.seed,
        checkpoint_step=checkpoint_step,
        episode_returns=result.episode_returns.tolist(),
        episode_lengths=result.episode_lengths.tolist(),
        return_mean=float(result.episode_returns.mean()),
        return_std=float(result.episode_returns.std()),
        normalized_score_mean=None if normalized is None else float(normalized.mean()),
        normalized_score_std=None if normalized is None else float(normalized.std()),
        length_mean=float(result.episode_lengths.mean()),
        engine=result.engine,
        conditions=conditions,
    )


def print_scores(
    scores: list[Score],
    *,
    dataset_return_mean: float | None,
    dataset_return_top10: float | None,
    console: Console | None = None,
) -> None:
    """Prints one table: a row for each target return or way of acting, then the data's own.

    Args:
        scores: Of one run: the same data and environment in each.
        dataset_return_mean: Mean return of the data, for context; None leaves it out.
        dataset_return_top10: Mean return of the data's top 10 % of episodes; None as before.
        console: Where to print; by default the standard output.
    """
    console = console or Console()
    first = scores[0]
    minimum, maximum = first.reference_min, first.reference_max
    scored = minimum is not None and maximum is not None
    table = Table(title=f"{first.dataset_id}, update {first.checkpoint_step:,}")
    table.add_column("target return", no_wrap=True)
    table.add_column("rollout", no_wrap=True)
    for name in ("return", "normalised score", "length") if scored else ("return", "length"):
        table.add_column(name, justify="right", no_wrap=True)

    for score in scores:
        cells = [f"{score.target_return:,.0f}", score.rollout]
        cells.append(f"{score.return_mean:,.1f} ± {score.return_std:,.1f}")
        if scored:
            cells.append(f"{score.normalized_score_mean:.1f} ± {score.normalized_score_std:.1f}")
        table.add_row(*cells, f"{score.length_mean:,.1f}")
    table.add_section()
    for name, value in (
        ("data, mean", dataset_return_mean),
        ("data, top 10 %", dataset_return_top10),
    ):
        if value is not None:
            cells = [name, "", f"{value:,.1f}"]
            if minimum is not None and maximum is not None:
                cells.append(f"{normalized_score(value, minimum, maximum):.1f}")
            table.add_row(*cells, "")
    console.print(table, highlight=False)
    for line in _caption(first):
        console.print(line, highlight=False, markup=False)


def _caption(score: Score) -> list[str]:
    engine = "" if score.engine == "gymnasium" else f"stepped by {score.engine}, "
    lines = [
        f"{score.environment_id}, {engine}MuJoCo {score.mujoco_version}, Gymnasium"
        f" {score.gymnasium_version}; mean ± standard deviation over {score.episodes}"
        f" episode{'s' * (score.episodes != 1)}, seed {score.seed}."
    ]
    if score.conditions:
        lines.append(f"Harder than in training: {score.conditions}.")
    if score.reference_min is None or score.reference_max is None:
        return [*lines, "No reference returns are known for this environment: raw returns only."]
    lines.append(
        f"Score 0 is a return of {score.reference_min:,.1f}, 100 is {score.reference_max:,.1f};"
        f" source: {score.reference_source or 'not stated'}."
    )
    version = score.environment_id.rpartition("-")[2]
    if re.search(r"\bv2\b", score.reference_source or "") and version != "v2":
        lines.append(
            f"This environment is {version}: scores compare with those of v2 only approximately."
        )
    return lines


def write_scores(path: str | Path, scores: list[Score]) -> None:
    """Writes scores.json: under a temporary name, synced, then renamed.

    Raises:
        UserError: The file cannot be written; an older one is then still whole.
    """
    text = json.dumps([asdict(score) for score in scores], indent=1, allow_nan=False) + "\n"
    write_file(Path(path), text.encode())


def read_scores(path: str | Path) -> list[Score]:
    """Reads what ``write_scores`` wrote.

    Raises:
        UserError: There is no such file, or it does not hold scores.
    """
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"The scores '{path}' cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(
            f"The scores '{path}' are not JSON ({error}); run eval.py again."
        ) from error
    known = {field.name for field in fields(Score)}
    required = {field.name for field in fields(Score) if field.default is MISSING}
    scores = []
    for row in rows if isinstance(rows, list) else [rows]:
        keys = set(row) if isinstance(row, dict) else set()
        if wrong := (required - keys) | (keys - known):
            raise UserError(
                f"The scores '{path}' do not have the expected keys, by these that are missing or"
                f" unknown: {', '.join(sorted(wrong))}; run eval.py again."
            )
        scores.append(Score(**row))
    return scores


@dataclass(frozen=True)
class PublishedScore:
    """What a paper or a repository reports for one method.

    Attributes:
        method: Name of the method.
        paper: Where the figures stand.
        protocol: Seeds, and whether the last or the best of training is meant.
        normalized_scores: Data set, as ``hopper-medium``, to normalised score, 0 to 100.
        average: Mean of them, as published.
        evidence: How far the figures were checked.
    """

    method: str
    paper: str
    protocol: str
    normalized_scores: dict[str, float]
    average: float
    evidence: str


def read_published() -> list[PublishedScore]:
    """Reads the published scores that ship with the project (published.csv)."""
    texts = ("method", "paper", "protocol", "evidence")
    with open(Path(__file__).with_name("published.csv"), encoding="utf-8", newline="") as file:
        return [
            PublishedScore(
                **{name: row[name] for name in texts},
                average=float(row["average"]),
                normalized_scores={
                    name: float(value)
                    for name, value in row.items()
                    if name not in (*texts, "average")
                },
            )
            for row in csv.DictReader(file)
        ]
