"""What a comparison needs to know of a run: its score, how it was made, and what makes it equal."""

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from common.errors import UserError
from envs.tasks import DatasetInfo, from_plain
from reports.records import Record, naming_damage, read_record
from reports.scores import Score

# Keys that do not change what is learned, and those of which the scores themselves tell more.
IGNORED = (
    *("seed", "run_dir", "device", "trainer.log_every", "trainer.save_every", "rollout"),
    *("dataset.source", "dataset.id", "dataset.path", "dataset.name", "dataset.parts"),
    *("dataset.environment", "evaluation.episodes", "evaluation.every", "evaluation.seed"),
    "evaluation.episodes_in_training",
)
UNKNOWN = "-"  # a fact that a run does not tell, or that does not concern it

Value = TypeVar("Value", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Run:
    """One finished run.

    Attributes:
        record: What it left behind.
        task: Data set without the part that was trained on: ``builtin/hopper/medium-v0``, followed
            by `` (return)`` if no reference returns are known, so that units never mix.
        config: The settings that tell two runs apart.
        facts: How it was scored and on what it was trained, in words: a difference is noted.
        score: Score of the last checkpoint by the run's own evaluation.
        sweep: Scores at several target returns, in their order; otherwise like `score`.
        others: Other evaluations of the last checkpoint: what differs, in words, to the score.
        curve: Update and score of each evaluation in training, of `curve_episodes` episodes each.
        data_best: Return of the best episode of the data.
    """

    record: Record
    task: str
    backbone: str
    seed: int
    config: dict[str, Hashable]
    facts: dict[str, str]
    score: Score
    sweep: list[Score]
    others: dict[str, Score]
    curve: list[tuple[int, float]]
    curve_episodes: int
    data_best: float

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.record.folder

    @property
    def last(self) -> float:
        """The score of the last checkpoint."""
        return self.score.value

    @property
    def normalized(self) -> bool:
        """Whether the scores are normalised ones; returns if not."""
        return self.score.normalized_score_mean is not None

    @property
    def best(self) -> float | None:
        """The best score of an evaluation in training, if there was one."""
        return max((value for _, value in self.curve), default=None)


def read_run(folder: Path) -> Run:
    """Reads one run folder; see `read_record` for the errors."""
    return make_run(read_record(folder))


def make_run(record: Record) -> Run:
    """Derives from a record what a comparison needs.

    Raises:
        UserError: Its files are damaged or of another version.
    """
    with naming_damage(str(record.folder)):
        return _make_run(record)


def _make_run(record: Record) -> Run:
    config, data = record.config, from_plain(DatasetInfo, record.data)
    score = record.scores[0]
    every = [*record.scores, *(score for more in record.evaluations.values() for score in more)]
    sweep, others = _sort_out(every, score)
    normalized = score.normalized_score_mean is not None
    reached = "last" if score.checkpoint_step == config["steps"] else score.checkpoint_step
    shown = {
        key: str(value) if isinstance(value, list | dict) else value
        for key, value in config.items()
        if key not in IGNORED
    }
    key = "eval/normalized_score_mean" if normalized else "eval/return_mean"
    curve = [(int(row["step"]), float(row[key])) for row in record.curve if key in row]
    if not all(map(math.isfinite, itertools.chain(*curve))):
        raise ValueError("a score in metrics.jsonl is not finite")
    return Run(
        record=record,
        task=score.dataset_id.partition(" (")[0] + ("" if normalized else " (return)"),
        backbone=str(config["backbone.name"]),
        seed=int(config["seed"]),
        config={**shown, "rollout": score.evaluation.rollout, "scored_at_update": reached},
        facts=_facts(score, data, config),
        score=score,
        sweep=sweep,
        others=others,
        curve=curve,
        curve_episodes=int(config["evaluation.episodes_in_training"]),
        data_best=data.return_max,
    )


def _sort_out(scores: list[Score], own: Score) -> tuple[list[Score], dict[str, Score]]:
    """Tells target returns from other conditions, see `Run`, and leaves out older weights."""
    sweep: dict[float, Score] = {own.target_return: own}
    others: dict[str, Score] = {}
    for score in scores:
        if score.checkpoint_step != own.checkpoint_step:
            continue
        different = score.evaluation.differences(own.evaluation)
        target = different.pop("target_returns", None)
        if not different.keys() - {"episodes"}:
            known = sweep.setdefault(score.target_return, score)
            if known is not own and score.evaluation.episodes > known.evaluation.episodes:
                sweep[score.target_return] = score
            continue
        words = [f"{name.removesuffix('_id')} {value}" for name, value in different.items()]
        if target is not None:
            words.append(f"target return {score.target_return:,.0f}")
        others[", ".join(words)] = score
    return [sweep[target] for target in sorted(sweep)], others


def _facts(score: Score, data: DatasetInfo, config: dict[str, Any]) -> dict[str, str]:
    reference, evaluation = score.reference, score.evaluation
    return {
        "part of the data": score.dataset_id.partition(" (")[2].rstrip(")") or "all",
        "data": f"{data.episodes:,} episodes, {data.steps:,} steps, mean return "
        f"{data.return_mean:,.1f}",
        "data hash": data.sha256[:12],
        "environment": evaluation.environment_id,
        "engine": evaluation.engine,
        "version of the engine": score.engine_version,
        "MuJoCo": score.mujoco_version or UNKNOWN,
        "returns of score 0 and 100": f"{reference.minimum:,.1f} and {reference.maximum:,.1f}"
        if reference
        else UNKNOWN,
        "episodes": str(evaluation.episodes),
        "seed of the start states": str(evaluation.seed),
        "target return": f"{score.target_return:,.0f}"
        if config["policy.return_to_go"]
        else UNKNOWN,  # the policy does not see it
        "updates": f"{score.checkpoint_step:,}",
    }


def usual(values: Sequence[Value]) -> Value:
    """Returns the most frequent value; of several, the one that comes first."""
    return Counter(values).most_common(1)[0][0]


def unusual(facts: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Returns for each run the facts in which it departs from the usual, to what is usual."""
    common = {}
    for fact in facts[0]:
        known = [run[fact] for run in facts if run[fact] != UNKNOWN]
        common[fact] = usual(known) if known else UNKNOWN
    return [
        {fact: common[fact] for fact in common if run[fact] not in (common[fact], UNKNOWN)}
        for run in facts
    ]


def make_runs(records: Sequence[Record]) -> tuple[list[Run], list[UserError]]:
    """Returns the runs that can be compared, and an error for each other one."""
    runs, problems = [], []
    for record in records:
        try:
            runs.append(make_run(record))
        except UserError as error:
            problems.append(error)
    return runs, problems
