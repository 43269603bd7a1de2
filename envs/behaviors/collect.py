"""Collects episodes of behaviour policies in MuJoCo, and stores them as Minari data sets.

    python -m envs.behaviors.collect dataset=hopper-medium steps=200000 seed=0

makes a built-in data set anew: of any size, from the same seed the same data on the same machine.
"""

import math
from dataclasses import dataclass

import gymnasium as gym
import minari
import numpy as np

from common.arguments import parse_arguments, run_command
from common.checks import MOST_STEPS, check_fields, number, seed
from common.errors import UserError
from common.terminal import steps_bar
from envs.behaviors import DEFAULT_STEPS, RECIPES, Recipe, find_recipe
from envs.behaviors.episodes import Trajectory, run_episodes
from envs.data.store import dataset_path, store_episodes
from envs.simulation.physics import mujoco


def flat_arrays(trajectories: list[Trajectory]) -> dict[str, np.ndarray]:
    """Returns the arrays that `store_episodes` takes."""
    ends = np.cumsum([len(t.rewards) for t in trajectories]) - 1
    flags = np.zeros((2, ends[-1] + 1), bool)
    flags[0, ends] = [t.terminated for t in trajectories]
    flags[1, ends] = ~flags[0, ends]
    return {
        "observations": np.concatenate([t.observations[:-1] for t in trajectories]),
        "actions": np.concatenate([t.actions for t in trajectories]),
        "rewards": np.concatenate([t.rewards for t in trajectories]),
        "terminations": flags[0],
        "truncations": flags[1],
        "next_observations": np.concatenate([t.observations[1:] for t in trajectories]),
        "seeds": np.array([t.seed for t in trajectories]),
    }


def collect(recipe: Recipe, steps: int, seed: int) -> list[Trajectory]:
    """Collects the episodes of a built-in data set, policy by policy, with a progress bar.

    Each policy runs its share of the steps, and every episode to its end.
    """
    shares = [math.ceil(steps * share / sum(recipe.shares)) for share in recipe.shares]
    result: list[Trajectory] = []
    with steps_bar(f"{recipe.task.name}-{recipe.quality}", sum(shares)) as show:
        for part, (behavior, share) in enumerate(zip(recipe.behaviors(), shares, strict=True)):

            def show_share(count: int, part: int = part, share: int = share) -> None:
                show(sum(shares[:part]) + min(count, share))

            result += run_episodes(
                recipe.task.environment_id,
                behavior,
                seed=(seed, part),
                steps=share,
                on_steps=show_share,
            )
    return result


def make_dataset(recipe: Recipe, steps: int, seed: int, *, overwrite: bool = False) -> None:
    """Collects a built-in data set and stores it in Minari's local store, whole or not at all.

    From the same seed comes the same data set on the same machine. One that is there already is
    left alone without `overwrite`.

    Raises:
        UserError: The store cannot be written.
    """
    task, behaviors = recipe.task, recipe.behaviors()
    algorithms = "/".join(sorted({behavior.metadata["algorithm"] for behavior in behaviors}))
    parts = (
        f"{share / sum(recipe.shares):.0%} after {step:,}"
        for step, share in zip(recipe.snapshots, recipe.shares, strict=True)
    )
    description = (
        f"At least {steps} steps of {task.environment_id} with sampled actions of {algorithms} "
        f"snapshots, by training steps: {', '.join(parts)} "
        f"(MuJoCo {mujoco.__version__}, Gymnasium {gym.__version__}, seed {seed}). "
        f"Reference scores: {task.reference.source}."
    )
    store_episodes(
        recipe.dataset_id,
        lambda: flat_arrays(collect(recipe, steps, seed)),
        environment_id=task.environment_id,
        overwrite=overwrite,
        exist_ok=True,
        metadata={
            "algorithm_name": algorithms,
            "author": {"Decision minRNN"},
            "description": description,
            "requirements": [
                f"{module.__name__}>={module.__version__.split('.')[0]}" for module in (gym, mujoco)
            ],
            "collected_steps": steps,
            "collected_seed": seed,
        },
    )


@dataclass
class CollectConfig:
    """Arguments of this command.

    Attributes:
        dataset: Id or short name of a built-in data set.
        steps: Least number of steps; every episode is run to its end.
        seed: Seed of every random number.
        overwrite: Whether an existing data set of this name is replaced.
    """

    dataset: str
    steps: int = number(DEFAULT_STEPS, at_least=1, at_most=MOST_STEPS)
    seed: int = seed()
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


def main(arguments: list[str]) -> None:
    """Makes one built-in data set from the command line."""
    config = parse_arguments(CollectConfig, arguments)
    recipe = find_recipe(config.dataset)
    if recipe is None:
        raise UserError(
            f"there is no built-in data set '{config.dataset}'; there are: {', '.join(RECIPES)}"
        )
    if dataset_path(recipe.dataset_id).exists() and not config.overwrite:
        raise UserError(
            f"{recipe.dataset_id} exists already in {dataset_path()}; "
            "add overwrite=true to replace it"
        )
    make_dataset(recipe, config.steps, config.seed, overwrite=config.overwrite)
    returns = [episode.rewards.sum() for episode in minari.load_dataset(recipe.dataset_id)]
    print(
        f"{recipe.dataset_id}: {len(returns)} episodes, mean return {np.mean(returns):.1f} "
        f"(standard deviation {np.std(returns):.1f}), in {dataset_path(recipe.dataset_id)}"
    )


if __name__ == "__main__":
    run_command(main, interrupted="interrupted; nothing was stored")
