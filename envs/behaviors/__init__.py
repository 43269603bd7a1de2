"""The behaviour policies that ship with the project, and the data sets made from them."""

from dataclasses import dataclass
from pathlib import Path

from envs.behaviors.policy import Behavior, load_behavior
from envs.tasks import TASKS, Task

DIRECTORY = Path(__file__).parent

# Training steps of the snapshots, chosen by the returns in returns.csv: `replay` are those whose
# episodes make up medium-replay; the last of them is `medium`.
REPLAY_STEPS = {
    "hopper": (20_000, 50_000, 80_000, 100_000, 120_000, 150_000),
    "halfcheetah": (20_000, 30_000, 40_000, 50_000, 60_000, 80_000),
    "walker2d": (50_000, 100_000, 150_000, 190_000, 230_000, 260_000),
}
BEST_STEPS = {"hopper": 410_000, "halfcheetah": 350_000, "walker2d": 380_000}

QUALITIES = ("medium", "medium-replay", "medium-expert")


@dataclass(frozen=True)
class Recipe:
    """What a built-in data set is made of, after D4RL (arXiv 2004.07219, section 5).

    Attributes:
        dataset_id: Minari id, such as ``builtin/hopper/medium-v0``.
        task: The task.
        quality: One of QUALITIES.
        snapshots: Training steps of the behaviour policies; each gives an equal share of the steps.
    """

    dataset_id: str
    task: Task
    quality: str
    snapshots: tuple[int, ...]

    def behaviors(self) -> list[Behavior]:
        """Loads the behaviour policies, in the order of `snapshots`."""
        return [load_behavior(snapshot_path(self.task.name, step)) for step in self.snapshots]


def snapshot_path(task_name: str, training_steps: int, directory: Path = DIRECTORY) -> Path:
    """Returns where the behaviour policy after that many training steps is kept."""
    return directory / task_name / f"step_{training_steps:07d}.safetensors"


def _recipe(task: Task, quality: str) -> Recipe:
    replay = REPLAY_STEPS[task.name]
    snapshots = {
        "medium": replay[-1:],
        "medium-replay": replay,
        "medium-expert": (replay[-1], BEST_STEPS[task.name]),
    }[quality]
    return Recipe(f"builtin/{task.name}/{quality}-v0", task, quality, snapshots)


# Data set id -> recipe.
RECIPES = {
    recipe.dataset_id: recipe
    for recipe in (_recipe(TASKS[name], quality) for name in REPLAY_STEPS for quality in QUALITIES)
}


def find_recipe(name: str) -> Recipe | None:
    """Returns the recipe of a built-in data set by its id or short name; None if there is none.

    >>> find_recipe("hopper-medium").dataset_id
    'builtin/hopper/medium-v0'
    """
    for recipe in RECIPES.values():
        if name in (recipe.dataset_id, f"{recipe.task.name}-{recipe.quality}"):
            return recipe
    return None
