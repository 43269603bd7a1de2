"""Collects episodes of behaviour policies in MuJoCo, and stores them as Minari data sets.

    python -m envs.behaviors.collect dataset=hopper-medium steps=200000 seed=0

makes a built-in data set anew: of any size, from the same seed the same data on the same machine.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import gymnasium as gym
import minari
import mujoco
import numpy as np

from common.arguments import parse_arguments, run_command
from common.checks import MOST_STEPS, check_fields, number, seed
from common.errors import UserError
from common.terminal import steps_bar
from envs.behaviors import RECIPES, Recipe, find_recipe
from envs.behaviors.policy import (
    Behavior,
)
from envs.data.store import dataset_path, store_episodes
from envs.simulation.simulators import Simulators

N_ENVIRONMENTS = 32


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One episode, with the observation after its last step.

    Attributes:
        observations: (steps + 1, observation_dim).
        actions: (steps, action_dim).
        rewards: (steps,).
        terminated: Whether the last step terminated the episode.
        truncated: Whether the time limit ended the episode.
        seed: What the environment's reset got.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool
    truncated: bool
    seed: int


def flat_arrays(trajectories: list[Trajectory]) -> dict[str, np.ndarray]:
    """Returns the arrays that `store_episodes` takes."""
    ends = np.cumsum([len(t.rewards) for t in trajectories]) - 1
    flags = np.zeros((2, ends[-1] + 1), bool)
    flags[0, ends] = [t.terminated for t in trajectories]
    flags[1, ends] = [t.truncated for t in trajectories]
    return {
        "observations": np.concatenate([t.observations[:-1] for t in trajectories]),
        "actions": np.concatenate([t.actions for t in trajectories]),
        "rewards": np.concatenate([t.rewards for t in trajectories]),
        "terminations": flags[0],
        "truncations": flags[1],
        "next_observations": np.concatenate([t.observations[1:] for t in trajectories]),
        "seeds": np.array([t.seed for t in trajectories]),
    }


def run_episodes(
    simulators: Simulators,
    behavior: Behavior,
    *,
    seed: tuple[int, ...],
    steps: int = 0,
    episodes: int = 1,
    sampled: bool = True,
    on_steps: Callable[[int], None] = lambda count: None,
) -> list[Trajectory]:
    """Runs whole episodes of a behaviour policy: the first ones that make up what is asked for.

    Episode i has its own random numbers, drawn from (seed, i), for its start and its actions, so it
    is the same whatever runs beside it. Kept are the episodes 0, 1, ... until there are enough:
    keeping those that *finish* first would favour short ones.

    Args:
        simulators: Environments with a time limit; how many does not change the result.
        behavior: The policy.
        seed: Entropy that all random numbers come from.
        steps: Least number of steps in all.
        episodes: Least number of episodes.
        sampled: Whether actions are sampled; if not, each is the mean action.
        on_steps: Called with the number of steps that will be kept, as far as known, now and then.

    Returns:
        The episodes in the order of their index.
    """
    assert simulators.horizon is not None, "an episode without a time limit may never end"
    n, horizon = simulators.n, simulators.horizon
    observations = np.empty((n, horizon + 1, simulators.observation_dim), np.float32)
    actions = np.empty((n, horizon, simulators.action_dim), np.float32)
    noise = np.empty((n, horizon, simulators.action_dim), np.float32)
    rewards = np.empty((n, horizon), np.float64)
    reset_seeds = np.empty(n, np.int64)
    elapsed = np.zeros(n, np.int64)
    assigned = np.full(n, -1)  # the episode that each environment runs, -1 for none
    lengths: list[int] = []  # of every episode begun, as far as it has come
    finished: dict[int, Trajectory] = {}

    while True:
        # Episodes only grow, so the number of those that are needed can only fall.
        cumulative = np.cumsum(lengths)
        needed = sys.maxsize
        if sum(lengths) >= steps:
            needed = max(episodes, int(np.searchsorted(cumulative, steps)) + 1)
        assigned[assigned >= needed] = -1
        idle = np.flatnonzero(assigned < 0)[: max(0, needed - len(lengths))]
        if len(idle):
            for environment in idle:
                sequence = np.random.SeedSequence([*seed, len(lengths)])
                reset_seeds[environment] = sequence.generate_state(1)[0]
                generator = np.random.default_rng(sequence)
                generator.standard_normal(dtype=np.float32, out=noise[environment])
                assigned[environment] = len(lengths)
                lengths.append(0)
            observations[idle, 0] = simulators.reset(idle, reset_seeds[idle])
            elapsed[idle] = 0
        index = np.flatnonzero(assigned >= 0)
        if not len(index):
            on_steps(sum(lengths[:needed]))
            return [finished[i] for i in range(needed)]

        now = elapsed[index]
        action = behavior.act(observations[index, now], noise[index, now] if sampled else None)
        actions[index, now] = action
        observation, reward, terminations, truncations = simulators.step(index, action)
        observations[index, now + 1] = observation
        rewards[index, now] = reward
        elapsed[index] = now + 1
        for row, environment in enumerate(index):
            episode, length = int(assigned[environment]), int(elapsed[environment])
            lengths[episode] = length
            if terminations[row] or truncations[row]:
                finished[episode] = Trajectory(
                    observations[environment, : length + 1].copy(),
                    actions[environment, :length].copy(),
                    rewards[environment, :length].copy(),
                    terminated=bool(terminations[row]),
                    truncated=bool(truncations[row]),
                    seed=int(reset_seeds[environment]),
                )
                assigned[environment] = -1
        on_steps(sum(lengths))


def collect(recipe: Recipe, steps: int, seed: int) -> list[Trajectory]:
    """Collects the episodes of a built-in data set, with a progress bar.

    Args:
        recipe: What the data set is made of; each of its policies runs an equal share of the steps.
        steps: Least number of steps; every episode is run to its end.
        seed: From the same seed come the same episodes on the same machine.

    Returns:
        The episodes, policy by policy.
    """
    behaviors = recipe.behaviors()
    share = -(-steps // len(behaviors))
    result: list[Trajectory] = []
    with (
        Simulators(recipe.task.environment_id, N_ENVIRONMENTS) as simulators,
        steps_bar(f"{recipe.task.name}-{recipe.quality}", share * len(behaviors)) as show,
    ):
        for part, behavior in enumerate(behaviors):

            def show_share(count: int, part: int = part) -> None:
                show(share * part + min(count, share))

            result += run_episodes(
                simulators, behavior, seed=(seed, part), steps=share, on_steps=show_share
            )
    return result


def make_dataset(recipe: Recipe, steps: int, seed: int, *, overwrite: bool = False) -> None:
    """Collects a built-in data set and stores it in Minari's local store, whole or not at all.

    Args:
        recipe: What the data set is made of.
        steps: Least number of steps.
        seed: From the same seed comes the same data set on the same machine.
        overwrite: Whether a data set of this id is made anew; if not, it is left alone.

    Raises:
        UserError: The number of steps is not positive, or the store cannot be written.
    """
    if steps < 1:
        raise UserError(f"steps={steps}: a data set needs at least one step")
    task = recipe.task
    description = (
        f"At least {steps} steps of {task.environment_id} with sampled actions of SAC policies "
        f"after {', '.join(f'{step:,}' for step in recipe.snapshots)} training steps, in equal "
        f"shares (MuJoCo {mujoco.__version__}, Gymnasium {gym.__version__}, seed {seed}). "
        f"Reference scores: {task.reference.source}."
    )
    store_episodes(
        recipe.dataset_id,
        lambda: flat_arrays(collect(recipe, steps, seed)),
        environment_id=task.environment_id,
        overwrite=overwrite,
        exist_ok=True,
        metadata={
            "algorithm_name": "SAC",
            "author": {"Decision minRNN"},
            "description": description,
            "requirements": [f"gymnasium>={_major(gym)}", f"mujoco>={_major(mujoco)}"],
            "collected_steps": steps,
            "collected_seed": seed,
        },
    )


def _major(module: object) -> str:
    return str(module.__version__).split(".")[0]  # type: ignore[attr-defined]


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
    steps: int = number(200_000, at_least=1, at_most=MOST_STEPS)
    seed: int = seed()
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


def main(arguments: list[str]) -> None:
    """Makes one built-in data set from the command line.

    Raises:
        UserError: An argument is wrong.
        UserError: The data set is unknown, exists already, or cannot be stored.
    """
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
