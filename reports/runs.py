"""Run folders, read for a comparison."""

import json
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from common.errors import UserError
from envs.tasks import task_of_environment
from reports.scores import (
    Score,
    read_scores,
)

# Keys that do not change what is learned, and those of which the scores themselves tell more.
IGNORED = (
    *("seed", "run_dir", "device", "trainer.log_every", "trainer.save_every", "rollout"),
    *("dataset.source", "dataset.id", "dataset.path", "dataset.name", "dataset.parts"),
    *("dataset.environment", "evaluation.episodes", "evaluation.every", "evaluation.seed"),
    "evaluation.episodes_in_training",
)
UNKNOWN = "-"  # a fact that a run folder does not tell, or that does not concern the run
ABSENT = "absent"  # the value of a key that a run folder of another version does not have

Value = TypeVar("Value", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Run:
    """One finished run.

    Attributes:
        folder: Where it lies.
        task: The data set, whatever part of it was trained on: ``builtin/hopper/medium-v0``; with
            `` (return)`` behind it if no reference returns are known, so that units never mix.
        backbone: ``min_gru``.
        seed: Of the training.
        config: What it may be named after: key, as ``protocol.name``, to value.
        protocol: How it was scored and on what it was trained, in words: runs that differ in one
            of these are not compared without a mark.
        score: Of the last checkpoint, at the run's own target return (the nearest there is).
        sweep: Scores at several target returns, in their order; nothing else of them differs from
            `score`, unless there are fewer episodes.
        others: Other evaluations of the last checkpoint: what differs, in words, to the score.
        curve: Updates and score of each evaluation in training.
        curve_episodes: Episodes of each of those.
        data_best: Return of the best episode that was trained on.
        defaults: Of the keys of `config`, as far as they are known.
    """

    folder: Path
    task: str
    backbone: str
    seed: int
    config: dict[str, Hashable]
    protocol: dict[str, str]
    score: Score
    sweep: list[Score]
    others: dict[str, Score]
    curve: list[tuple[int, float]]
    curve_episodes: int
    data_best: float
    defaults: dict[str, Hashable] = field(default_factory=dict)

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


def find_run_folders(folders: Iterable[Path]) -> list[Path]:
    """Returns the run folders at and below some folders, finished or not, each once.

    Raises:
        UserError: One is not a folder, or there is no run in it.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            reason = "is not a folder" if folder.exists() else "does not exist"
            raise UserError(f"{folder} {reason}; give run folders, or folders of them: runs/")
        inside = {
            path.parent
            for name in ("config.yaml", "scores.json")
            for path in folder.rglob(name)
            if not path.parent.name.startswith(".")
        }
        if not inside:
            raise UserError(
                f"{folder} holds no runs: there is no config.yaml in it or below; give the folder "
                "that train.py wrote to."
            )
        found |= {path.resolve(): path for path in sorted(inside)}
    return list(found.values())


def read_run(folder: Path) -> Run:
    """Reads one run folder.

    Raises:
        UserError: It is unfinished, damaged or of another version.
    """
    if not (folder / "scores.json").is_file():
        raise UserError(
            f"{folder} is unfinished, it has no scores.json: go on with the same command and "
            f"resume=true, or score what was saved with python eval.py run={folder}."
        )
    try:
        scores = read_scores(folder / "scores.json")
        config = dict(flatten(_read_yaml(folder / "config.yaml")))
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))["dataset"]
        own_target = _own_target(config, described)
        score = min(scores, key=lambda score: abs(score.target_return - own_target))
        for path in sorted(folder.glob("scores-*.json")):
            scores += read_scores(path)
        sweep, others = _sort_out(scores, score)
        normalized = score.normalized_score_mean is not None
        reached = "last" if score.checkpoint_step == config["steps"] else score.checkpoint_step
        return Run(
            folder=folder,
            task=score.dataset_id.partition(" (")[0] + ("" if normalized else " (return)"),
            backbone=config["backbone.name"],
            seed=config["seed"],
            config={
                **{key: value for key, value in config.items() if key not in IGNORED},
                "rollout": score.rollout,
                "scored_at_update": reached,
            },
            protocol=_protocol(score, described, config),
            score=score,
            sweep=sweep,
            others=others,
            curve=_read_curve(folder / "metrics.jsonl", normalized),
            curve_episodes=config["evaluation.episodes_in_training"],
            data_best=described["return_max"],
        )
    except UserError as error:
        raise UserError(str(error)) from error
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} is not a whole run folder: {Path(error.filename).name} is missing beside "
            "scores.json; copy the folder again from its source, or train again."
        ) from error
    except (KeyError, TypeError, ValueError, OSError, YAMLError, OmegaConfBaseException) as error:
        what = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{folder} is damaged or of another version of this project "
            f"({what.splitlines()[0]}): train it again."
        ) from error


def _own_target(config: dict[str, Any], described: dict[str, Any]) -> float:
    """The return that a run's policy is asked for; see `target_return` in train.py."""
    given = config["evaluation.target_return"]
    if given is not None:
        return float(given)
    task = task_of_environment(described["environment_id"])
    if config.get("evaluation.target") == "published" and task is not None:
        return task.target_return
    return float(described["return_top10"])


def _sort_out(scores: list[Score], own: Score) -> tuple[list[Score], dict[str, Score]]:
    """Tells target returns from other conditions, see `Run`, and leaves out older weights."""
    sweep: dict[float, Score] = {own.target_return: own}
    others: dict[str, Score] = {}
    for score in scores:
        if score.checkpoint_step != own.checkpoint_step:
            continue
        changed = {
            name: f"{name.removesuffix('_id')} {getattr(score, name)}"
            for name in ("environment_id", "engine", "rollout", "episodes", "seed")
            if getattr(score, name) != getattr(own, name)
        }
        if score.conditions != own.conditions:
            changed["conditions"] = score.conditions
        if not changed.keys() - {"episodes"}:
            known = sweep.setdefault(score.target_return, score)
            if known is not own and score.episodes > known.episodes:
                sweep[score.target_return] = score
            continue
        if score.target_return != own.target_return:
            changed["target"] = f"target return {score.target_return:,.0f}"
        others[", ".join(changed.values())] = score
    return [sweep[target] for target in sorted(sweep)], others


def _read_yaml(path: Path) -> Any:
    with open(path, encoding="utf-8") as file:
        return OmegaConf.to_container(OmegaConf.load(file))


def _protocol(score: Score, described: dict[str, Any], config: dict[str, Any]) -> dict[str, str]:
    reference = UNKNOWN
    if score.reference_min is not None and score.reference_max is not None:
        reference = f"{score.reference_min:,.1f} and {score.reference_max:,.1f}"
    return {
        "data set": score.dataset_id,
        "data": f"{described['episodes']:,} episodes, {described['steps']:,} steps, mean return "
        f"{described['return_mean']:,.1f}",
        "data hash": described.get("sha256", UNKNOWN)[:12],
        "environment": score.environment_id,
        "engine": score.engine,
        "MuJoCo": score.mujoco_version,
        "Gymnasium": score.gymnasium_version,
        "returns of score 0 and 100": reference,
        "episodes": str(score.episodes),
        "seed of the start states": str(score.seed),
        "target return": f"{score.target_return:,.0f}"
        if config.get("policy.return_to_go", True)
        else UNKNOWN,  # the policy does not see it
        "updates": f"{score.checkpoint_step:,}",
    }


def _read_curve(path: Path, normalized: bool) -> list[tuple[int, float]]:
    key = "eval/normalized_score_mean" if normalized else "eval/return_mean"
    if not path.is_file():
        return []
    # A killed run leaves a line without an end.
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [(record["step"], record[key]) for record in records if key in record]


def flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields nested keys and their values: ``protocol.name``, ``windowed``."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value) if isinstance(value, list) else value


def usual(values: Sequence[Value]) -> Value:
    """Returns the most frequent value; of several, the one that comes first."""
    return Counter(values).most_common(1)[0][0]


def unusual(protocols: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Returns the facts in which each protocol departs from the usual, to what is usual."""
    common = {}
    for fact in protocols[0]:
        known = [protocol[fact] for protocol in protocols if protocol[fact] != UNKNOWN]
        common[fact] = usual(known) if known else UNKNOWN
    return [
        {fact: common[fact] for fact in common if protocol[fact] not in (common[fact], UNKNOWN)}
        for protocol in protocols
    ]
