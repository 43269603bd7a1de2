"""The behaviour policies that ship with the project, and the data sets made from them."""

import json
from dataclasses import dataclass
from pathlib import Path

from envs.behaviors.policy import Behavior, load_behavior
from envs.tasks import TASKS, Task

DIRECTORY = Path(__file__).parent

# Least number of steps in a built-in data set.
DEFAULT_STEPS = 200_000

QUALITIES = ("medium", "medium-replay", "medium-expert", "expert")


@dataclass(frozen=True)
class Snapshots:
    """The snapshots of one task's training that its data sets come from: TASK/recipe.json.

    Attributes:
        version: Version of the data sets made from them.
        replay: Training steps of a snapshot -> training steps that it stands for in medium-replay.
        medium: Training steps of the medium policy.
        expert: Training steps of the expert.
    """

    version: int
    replay: dict[int, int]
    medium: int
    expert: int

    def steps(self) -> list[int]:
        """Returns the training steps of every snapshot, in order."""
        return sorted({*self.replay, self.medium, self.expert})

    def save(self, path: Path) -> None:
        """Writes recipe.json."""
        path.write_text(json.dumps(self.__dict__, indent=2) + "\n")


def load_snapshots(path: Path) -> Snapshots:
    """Reads recipe.json."""
    values = json.loads(path.read_text())
    replay = {int(step): share for step, share in values.pop("replay").items()}
    return Snapshots(replay=replay, **values)


@dataclass(frozen=True)
class Recipe:
    """What a built-in data set is made of, after D4RL (arXiv 2004.07219, section 5).

    Attributes:
        dataset_id: Minari id, such as ``builtin/hopper/medium-v1``.
        task: The task.
        quality: One of QUALITIES.
        snapshots: Training steps of the behaviour policies.
        shares: Of each policy in the steps of the data set, relative to the sum of all.
    """

    dataset_id: str
    task: Task
    quality: str
    snapshots: tuple[int, ...]
    shares: tuple[int, ...]

    def behaviors(self) -> list[Behavior]:
        """Loads the behaviour policies, in the order of `snapshots`."""
        return [load_behavior(snapshot_path(self.task.name, step)) for step in self.snapshots]


def snapshot_path(task_name: str, training_steps: int, directory: Path = DIRECTORY) -> Path:
    """Returns where the behaviour policy after that many training steps is kept."""
    return directory / task_name / f"step_{training_steps:07d}.safetensors"


def _recipe(task: Task, quality: str) -> Recipe:
    chosen = SNAPSHOTS[task.name]
    shares = {
        "medium": {chosen.medium: 1},
        "medium-replay": chosen.replay,
        "medium-expert": {chosen.medium: 1, chosen.expert: 1},
        "expert": {chosen.expert: 1},
    }[quality]
    dataset_id = f"builtin/{task.name}/{quality}-v{chosen.version}"
    return Recipe(dataset_id, task, quality, tuple(shares), tuple(shares.values()))


# Task -> its snapshots, which `python -m envs.behaviors.choose` chooses.
SNAPSHOTS = {
    name: load_snapshots(DIRECTORY / name / "recipe.json")
    for name in TASKS
    if (DIRECTORY / name).is_dir()
}

# Data set id -> recipe.
RECIPES = {
    recipe.dataset_id: recipe
    for recipe in (_recipe(TASKS[name], quality) for name in SNAPSHOTS for quality in QUALITIES)
}


def find_recipe(name: str) -> Recipe | None:
    """Returns the recipe of a built-in data set by its id or short name; None if there is none.

    >>> find_recipe("hopper-medium").task.name
    'hopper'
    """
    for recipe in RECIPES.values():
        if name in (recipe.dataset_id, f"{recipe.task.name}-{recipe.quality}"):
            return recipe
    return None
