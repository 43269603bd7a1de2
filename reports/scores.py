"""Scores: the result of an evaluation, its table and its file."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from common.errors import UserError
from common.files import write_file
from envs.tasks import (
    DatasetInfo,
    Evaluation,
    Reference,
    RolloutResult,
    from_plain,
    task_of_environment,
)


@dataclass(frozen=True)
class Score:
    """Result of an evaluation at one target return.

    Spreads (``_std``) are standard deviations over the episodes, divided by their number. Without
    a reference the normalised scores, 0 to 100, are None.

    Attributes:
        dataset_id: Data that the policy was trained on.
        evaluation: What was played; its environment id has a version, its target return is one.
        engine_version: Version of Gymnasium or EnvPool.
        mujoco_version: None if unknown, or if another engine ran.
        checkpoint_step: Updates that the policy was trained for.
        episode_returns: In the order of the start states.
        success_rate: Share of episodes with a success, 0 to 1; None if the environment reports
            none.
        hidden: Indices of the observations that the policy does not see.
    """

    dataset_id: str
    reference: Reference | None
    evaluation: Evaluation
    engine_version: str
    mujoco_version: str | None
    checkpoint_step: int
    episode_returns: list[float]
    episode_lengths: list[int]
    return_mean: float
    return_std: float
    normalized_score_mean: float | None
    normalized_score_std: float | None
    length_mean: float
    success_rate: float | None = None
    hidden: tuple[int, ...] = ()

    @property
    def hidden_observations(self) -> str:
        """What the policy does not see, in words; may be empty."""
        task = task_of_environment(self.evaluation.environment_id)
        if task is not None and self.hidden == tuple(task.velocities):
            return "velocities"
        return ", ".join(map(str, self.hidden))

    @property
    def target_return(self) -> float:
        """The return that the policy was asked for."""
        return self.evaluation.target_returns[0]

    @property
    def value(self) -> float:
        """The mean of the normalised scores, or of the returns where there are none."""
        if self.normalized_score_mean is None:
            return self.return_mean
        return self.normalized_score_mean

    @property
    def episode_values(self) -> np.ndarray:
        """What `value` is the mean of, (episodes,)."""
        returns = np.asarray(self.episode_returns)
        return returns if self.reference is None else self.reference.score(returns)

    def scalars(self) -> dict[str, float]:
        """Returns what a training log records of it, under ``eval/*``."""
        names = ["return_mean", "return_std", "length_mean", "target_return"]
        names += ["normalized_score_mean", "normalized_score_std", "success_rate"]
        values = {f"eval/{name}": getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


def make_scores(
    result: RolloutResult,
    evaluation: Evaluation,
    dataset: DatasetInfo,
    checkpoint_step: int,
    hidden: Sequence[int] = (),
) -> list[Score]:
    """Makes the scores of one rollout, one for each target return.

    `dataset` is what the policy was trained on, for `checkpoint_step` updates; `hidden` are the
    observations that it does not see.
    """
    scores = []
    for row, target in enumerate(evaluation.target_returns):
        returns, lengths = result.episode_returns[row], result.episode_lengths[row]
        normalized = None if dataset.reference is None else dataset.reference.score(returns)
        score = Score(
            dataset_id=dataset.id,
            reference=dataset.reference,
            evaluation=replace(
                evaluation, target_returns=(target,), environment_id=result.environment_id
            ),
            engine_version=result.engine_version,
            mujoco_version=result.mujoco_version,
            checkpoint_step=checkpoint_step,
            episode_returns=returns.tolist(),
            episode_lengths=lengths.tolist(),
            return_mean=float(returns.mean()),
            return_std=float(returns.std()),
            normalized_score_mean=None if normalized is None else float(normalized.mean()),
            normalized_score_std=None if normalized is None else float(normalized.std()),
            length_mean=float(lengths.mean()),
            success_rate=None if result.successes is None else float(result.successes[row].mean()),
            hidden=tuple(hidden),
        )
        scores.append(score)
    return scores


def print_scores(scores: list[Score], dataset: DatasetInfo, console: Console) -> None:
    """Prints one table: a row for each target return, then the data's own returns."""
    first = scores[0]
    scored, successes = first.reference is not None, first.success_rate is not None
    table = Table(title=f"{first.dataset_id}, update {first.checkpoint_step:,}")
    table.add_column("target return", no_wrap=True)
    table.add_column("rollout", no_wrap=True)
    numbers = ["return", *["normalised score"] * scored, *["success"] * successes, "length"]
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)

    for score in scores:
        asked = f"{score.target_return:,.0f}{score.evaluation.way}"
        cells = [asked, score.evaluation.rollout]
        cells.append(f"{score.return_mean:,.1f} ± {score.return_std:,.1f}")
        if scored:
            cells.append(f"{score.normalized_score_mean:.1f} ± {score.normalized_score_std:.1f}")
        if score.success_rate is not None:
            cells.append(f"{100 * score.success_rate:.0f} %")
        table.add_row(*cells, f"{score.length_mean:,.1f}")
    table.add_section()
    for name, value in (
        ("data, mean", dataset.return_mean),
        ("data, top 10 %", dataset.return_top10),
    ):
        cells = [name, "", f"{value:,.1f}"]
        if first.reference is not None:
            cells.append(f"{first.reference.score(value):.1f}")
        table.add_row(*cells)
    console.print(table, highlight=False)
    for line in _caption(first):
        console.print(line, highlight=False, markup=False)


def _caption(score: Score) -> list[str]:
    asked, reference = score.evaluation, score.reference
    engine = "EnvPool" if asked.engine == "envpool" else "Gymnasium"
    mujoco = f", MuJoCo {score.mujoco_version}" if score.mujoco_version else ""
    lines = [
        f"{asked.environment_id}, {engine} {score.engine_version}{mujoco}; mean ± standard"
        f" deviation over {asked.episodes} episode{'s' * (asked.episodes != 1)}, seed {asked.seed}."
    ]
    if score.hidden_observations:
        lines.append(f"Observations that the policy does not see: {score.hidden_observations}.")
    if asked.conditions:
        lines.append(f"Conditions: {asked.conditions}.")
    if reference is None:
        return [*lines, "No reference returns are known for this environment: raw returns only."]
    lines.append(
        f"Score 0 is a return of {reference.minimum:,.1f}, 100 is {reference.maximum:,.1f};"
        f" source: {reference.source}."
    )
    version = str(asked.environment_id).rpartition("-")[2]
    if re.search(r"\bv2\b", reference.source) and version != "v2":
        lines.append(
            f"This environment is {version}: scores compare with those of v2 only approximately."
        )
    return lines


def scores_file(evaluation: Evaluation, own: Evaluation) -> str:
    """Returns the name of the file for the scores of an evaluation.

    It is scores.json for the run's own evaluation; any other is named after what differs.

    >>> own = Evaluation("Hopper-v5", "carried", 20, (3600.0,))
    >>> scores_file(replace(own, episodes=50, target_returns=(1800.0, 900.0)), own)
    'scores-target_return-1800-900-episodes-50.json'
    """
    words = ["scores"]
    different = evaluation.differences(own)
    if "environment_id" in different:  # then these are its own
        different.pop("environment_kwargs", None)
    keys = {"environment_id": "environment", "target_returns": "target_return"}
    for name, value in different.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [
            keys.get(name, name),
            *(f"{v:g}" if isinstance(v, float) else str(v) for v in values),
        ]
    return file_stem("-".join(words)) + ".json"


def file_stem(words: str) -> str:
    """Returns words as the stem of a file's name; of a long one a hash keeps the difference."""
    stem = re.sub(r"[^\w.]+", "-", words)
    digest = hashlib.sha256(stem.encode()).hexdigest()[:8]
    return stem if len(stem) <= 150 else f"{stem[:100]}-{digest}"


def write_scores(path: str | Path, scores: list[Score]) -> None:
    """Writes a file of scores, whole or not at all.

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
        scores = [from_plain(Score, row) for row in (rows if isinstance(rows, list) else [rows])]
    except OSError as error:
        raise UserError(f"The scores '{path}' cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError, UserError) as error:
        raise UserError(
            f"The scores '{path}' are damaged or of another version ({error}); run eval.py again."
        ) from error
    if not scores:
        raise UserError(f"The scores '{path}' are an empty list; run eval.py again.")
    return scores
