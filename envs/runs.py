"""Run folders, read for a comparison, and a name for what distinguishes each.

A run is named after its backbone and after those keys of its configuration that tell it from the
other runs of that backbone, as far as it departs from their common centre: ``min_gru``,
``min_gru protocol.name=streamed``. Runs that differ in anything but the seed never share a name.
"""

import json
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from envs.scores import Score, ScoreError, read_scores
from envs.tasks import task_of_environment

# Keys that do not change what is learned, and those of which the scores themselves tell more.
IGNORED = (
    *("seed", "run_dir", "device", "trainer.log_every", "trainer.save_every", "rollout"),
    *("dataset.source", "dataset.id", "dataset.path", "dataset.name", "dataset.parts"),
    *("dataset.environment", "evaluation.episodes", "evaluation.every", "evaluation.seed"),
    "evaluation.episodes_in_training",
)
ABSENT = "absent"  # the value of a key that a run folder of another version does not have

Value = TypeVar("Value", bound=Hashable)


class RunFolderError(ValueError):
    """A run folder that cannot be compared; the message is one sentence."""


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
        sweep: All scores of the folder, one for each target return.
        curve: Updates and score of each evaluation in training.
        curve_episodes: Episodes of each of those.
        data_best: Return of the best episode that was trained on.
    """

    folder: Path
    task: str
    backbone: str
    seed: int
    config: dict[str, Hashable]
    protocol: dict[str, str]
    score: Score
    sweep: list[Score]
    curve: list[tuple[int, float]]
    curve_episodes: int
    data_best: float

    @property
    def last(self) -> float:
        """The score of the last checkpoint."""
        if self.score.normalized_score_mean is None:
            return self.score.return_mean
        return self.score.normalized_score_mean

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
        RunFolderError: One is not a folder, or there is no run in it.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            reason = "is not a folder" if folder.exists() else "does not exist"
            raise RunFolderError(f"{folder} {reason}; give run folders, or folders of them: runs/")
        inside = {
            path.parent
            for name in ("config.yaml", "scores.json")
            for path in folder.rglob(name)
            if not path.parent.name.startswith(".")
        }
        if not inside:
            raise RunFolderError(
                f"{folder} holds no runs: there is no config.yaml in it or below; give the folder "
                "that train.py wrote to."
            )
        found |= {path.resolve(): path for path in sorted(inside)}
    return list(found.values())


def read_run(folder: Path) -> Run:
    """Reads one run folder.

    Raises:
        RunFolderError: It is unfinished, damaged or of another version.
    """
    if not (folder / "scores.json").is_file():
        raise RunFolderError(
            f"{folder} is unfinished, it has no scores.json: go on with the same command and "
            f"resume=true, or score what was saved with python eval.py run={folder}."
        )
    try:
        sweep = read_scores(folder / "scores.json")
        config = dict(flatten(_read_yaml(folder / "config.yaml")))
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))["dataset"]
        own_target = _own_target(config, described)
        score = min(sweep, key=lambda score: abs(score.target_return - own_target))
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
            protocol=_protocol(score, described),
            score=score,
            sweep=sorted(sweep, key=lambda score: score.target_return),
            curve=_read_curve(folder / "metrics.jsonl", normalized),
            curve_episodes=config["evaluation.episodes_in_training"],
            data_best=described["return_max"],
        )
    except ScoreError as error:
        raise RunFolderError(str(error)) from error
    except FileNotFoundError as error:
        raise RunFolderError(
            f"{folder} is not a whole run folder: {Path(error.filename).name} is missing beside "
            "scores.json; copy the folder again from its source, or train again."
        ) from error
    except (KeyError, TypeError, ValueError, OSError, YAMLError, OmegaConfBaseException) as error:
        what = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
        raise RunFolderError(
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


def _read_yaml(path: Path) -> Any:
    with open(path, encoding="utf-8") as file:
        return OmegaConf.to_container(OmegaConf.load(file))


def _protocol(score: Score, described: dict[str, Any]) -> dict[str, str]:
    reference = "unknown"
    if score.reference_min is not None and score.reference_max is not None:
        reference = f"{score.reference_min:,.1f} and {score.reference_max:,.1f}"
    return {
        "data set": score.dataset_id,
        "data": f"{described['episodes']:,} episodes, {described['steps']:,} steps, mean return "
        f"{described['return_mean']:,.1f}",
        "environment": score.environment_id,
        "engine": score.engine,
        "MuJoCo": score.mujoco_version,
        "Gymnasium": score.gymnasium_version,
        "returns of score 0 and 100": reference,
        "episodes": str(score.episodes),
        "seed of the start states": str(score.seed),
        "target return": f"{score.target_return:,.0f}",
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


@dataclass(frozen=True)
class Name:
    """What a run is called in a comparison.

    Attributes:
        text: ``min_gru protocol.name=streamed``.
        backbone: ``min_gru``.
        central: It is the configuration from which the others of its backbone depart.
    """

    text: str
    backbone: str
    central: bool


def name_runs(runs: Sequence[Run]) -> list[Name]:
    """Names each run after its backbone and what tells it from the others of that backbone.

    Within one task, two runs have the same name only if nothing but their seed differs. Of keys
    that change together, one is named. A configuration that departs in the fewest keys from all
    the other runs is the centre, and has the backbone's name alone; if two are equally central,
    names say every value.
    """
    facts = _facts(runs)
    names: dict[int, Name] = {}
    for backbone in dict.fromkeys(run.backbone for run in runs):
        own = [i for i, run in enumerate(runs) if run.backbone == backbone]
        keys = _telling_keys([facts[i] for i in own], [runs[i].task for i in own])
        values = [tuple(facts[i].get(key, ABSENT) for key in keys) for i in own]
        distance = {
            value: sum(a != b for other in values for a, b in zip(value, other, strict=True))
            for value in values
        }
        centre = min(distance, key=distance.__getitem__)
        unique = list(distance.values()).count(distance[centre]) == 1
        for i, value in zip(own, values, strict=True):
            departures = [
                f"{key}={_text(now)}"
                for key, now, then in zip(keys, value, centre, strict=True)
                if now != then or not unique
            ]
            names[i] = Name(" ".join([backbone, *departures]), backbone, value == centre)
    return [names[i] for i in range(len(runs))]


def _facts(runs: Sequence[Run]) -> list[dict[str, Hashable]]:
    """Returns what may name each run: its configuration, and its protocol where it is unusual."""
    facts: list[dict[str, Hashable]] = [dict(run.config) for run in runs]
    for task in dict.fromkeys(run.task for run in runs):
        same = [i for i, run in enumerate(runs) if run.task == task]
        for key in runs[same[0]].protocol:
            if key != "updates":  # `steps` and `scored_at_update` say it
                common = usual([runs[i].protocol[key] for i in same])
                for i in same:
                    value = runs[i].protocol[key]
                    facts[i][key.replace(" ", "_")] = "usual" if value == common else value
    return facts


def _telling_keys(facts: Sequence[dict[str, Hashable]], tasks: Sequence[str]) -> list[str]:
    """Returns few keys that tell apart all that differs within a task, the most telling first."""
    candidates = list(dict.fromkeys(key for fact in facts for key in fact))
    chosen: list[str] = []

    def groups(keys: list[str]) -> list[tuple[Hashable, ...]]:
        return [
            (task, *(fact.get(key, ABSENT) for key in keys))
            for fact, task in zip(facts, tasks, strict=True)
        ]

    def pairs_together(keys: list[str]) -> int:
        return sum(count**2 for count in Counter(groups(keys)).values())

    while True:
        together = pairs_together(chosen)
        key = min(candidates, key=lambda key: pairs_together([*chosen, key]))
        if pairs_together([*chosen, key]) == together:
            return [key for key in candidates if key in chosen]
        chosen.append(key)


def _text(value: Hashable) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(value)
