"""A finished run: its scores, its settings, and how it was trained and scored."""

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from envs.tasks import DatasetInfo
from reports.scores import Score

# Settings that do not change what is learned, and those that the scores themselves describe.
IGNORED = (
    *("seed", "run_dir", "device", "trainer.log_every", "trainer.save_every", "rollout"),
    *("dataset.source", "dataset.id", "dataset.path", "dataset.name", "dataset.parts"),
    *("dataset.environment", "evaluation.episodes", "evaluation.every", "evaluation.seed"),
    *("evaluation.episodes_in_training", "training_seconds"),
)
# What an evaluation asks for, and how often.
ASKED = {"target_returns", "held", "chosen", "episodes"}
UNKNOWN = "-"  # a fact that is not recorded, or does not apply


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes:
        name: Its folder, below the one that was searched: ``hopper-medium/min_gru-seed0``.
        folder: Its folder; for a row of a table, where the folder would be.
        config: config.yaml, its keys joined: ``protocol.name`` to ``windowed``; and
            ``training_seconds``, if they are known.
        data: The data that it was trained on.
        scores: scores.json; the first is the score of the last checkpoint by the run's own
            evaluation.
        evaluations: Further files of scores: stem to scores.
        log: Records of metrics.jsonl: the updates with an evaluation, and the last.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    data: DatasetInfo
    scores: list[Score]
    evaluations: dict[str, list[Score]]
    log: list[dict[str, Any]]

    @property
    def score(self) -> Score:
        """The score of the last checkpoint by the run's own evaluation."""
        return self.scores[0]

    @property
    def normalized(self) -> bool:
        """Whether the scores are normalised ones; returns if not."""
        return self.score.normalized_score_mean is not None

    @property
    def task(self) -> str:
        """The data set without the part that was trained on: ``builtin/hopper/medium-v1``.

        Followed by `` (return)`` if no reference returns are known, so that units never mix.
        """
        return self.score.dataset_id.partition(" (")[0] + ("" if self.normalized else " (return)")

    @cached_property
    def settings(self) -> dict[str, Hashable]:
        """The settings in which runs of different rows differ."""
        updates = self.score.checkpoint_step
        return {
            key: str(value) if isinstance(value, list | dict) else value
            for key, value in self.config.items()
            if key not in IGNORED
        } | {
            "rollout": self.score.evaluation.rollout,
            "scored_at_update": "last" if updates == self.config["steps"] else updates,
        }

    @cached_property
    def facts(self) -> dict[str, str]:
        """How it was scored and on what it was trained, in words: differences are noted."""
        score, data, evaluation = self.score, self.data, self.score.evaluation
        ends, asked, way = UNKNOWN, UNKNOWN, UNKNOWN
        if score.reference is not None:
            ends = f"{score.reference.minimum:,.1f} and {score.reference.maximum:,.1f}"
        if self.config["policy.return_to_go"]:  # otherwise the policy does not see the target
            asked = f"{score.target_return:,.0f}"
            way = evaluation.way.removeprefix(", ") or "counted down"
        critic = self.config.get("critic.updates") or 0  # an earlier version knows none
        return {
            "part of the data": score.dataset_id.partition(" (")[2].rstrip(")") or "all",
            "data": f"{data.episodes:,} episodes, {data.steps:,} steps, mean return "
            f"{data.return_mean:,.1f}",
            "data hash": data.sha256[:12],
            "environment": evaluation.environment_id or UNKNOWN,
            "engine": evaluation.engine,
            "version of the engine": score.engine_version,
            "MuJoCo": score.mujoco_version or UNKNOWN,
            "returns of score 0 and 100": ends,
            "episodes": str(evaluation.episodes),
            "seed of the start states": str(evaluation.seed),
            "target return": asked,
            "the target is": way,
            "updates": f"{score.checkpoint_step:,}",
            "value help": f"a critic of {critic:,} updates" if critic else "none",
            "hidden observations": score.hidden_observations or "none",
            "conditions": evaluation.conditions or "none",
        }

    @property
    def curve(self) -> dict[int, float]:
        """Update to score of each evaluation in training."""
        key = f"eval/{'normalized_score_mean' if self.normalized else 'return_mean'}"
        return {row["step"]: row[key] for row in self.log if key in row}

    @property
    def best(self) -> float | None:
        """The best score of an evaluation in training, if there was one."""
        return max(self.curve.values(), default=None)

    @cached_property
    def sweep(self) -> list[Score]:
        """The scores at several target returns, in their order; at least `score`."""
        targets: dict[tuple[float, str], list[Score]] = {}
        for score, changed in self._evaluated:
            if not changed.keys() - ASKED:
                target = score.target_return, score.evaluation.way
                targets.setdefault(target, []).append(score)
        # Of several at one target: the run's own, or else the one of most episodes.
        return [
            max(targets[target], key=lambda s: (s is self.score, s.evaluation.episodes))
            for target in sorted(targets)
        ]

    @property
    def fewest_in_sweep(self) -> int:
        """The number of episodes that every target of `sweep` has."""
        return min(len(score.episode_returns) for score in self.sweep)

    @cached_property
    def others(self) -> dict[str, Score]:
        """Other evaluations of the last checkpoint: what differs, in words, to the score."""
        found = {}
        for score, changed in self._evaluated:
            if changed.keys() - ASKED:
                target = changed.pop("target_returns", None)
                words = [f"{name.removesuffix('_id')} {value}" for name, value in changed.items()]
                words += [f"target return {score.target_return:,.0f}"] * (target is not None)
                found[", ".join(words)] = score
        return found

    @property
    def _evaluated(self) -> list[tuple[Score, dict[str, Any]]]:
        """Every score of the last checkpoint, with the values that its evaluation changes."""
        return [
            (score, score.evaluation.differences(self.score.evaluation))
            for score in chain(self.scores, *self.evaluations.values())
            if score.checkpoint_step == self.score.checkpoint_step
        ]
