"""Collects episodes of behaviour policies in MuJoCo, and stores them as Minari data sets.

    python -m envs.behaviors.collect dataset=hopper-medium steps=200000 seed=0

makes a built-in data set anew: of any size, from the same seed the same data on the same machine.
"""

import math
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
from envs.behaviors import DEFAULT_STEPS, RECIPES, Recipe, find_recipe
from envs.behaviors.policy import Behavior
from envs.data.store import dataset_path, store_episodes
from envs.simulation.batched import make_simulators
from envs.simulation.simulators import Simulators

N_ENVIRONMENTS = 32

# Steps of all environments from one call of a progress bar to the next.
_ROUNDS_BETWEEN_REPORTS = 20


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
    """Runs whole episodes of a behaviour policy until there are enough episodes and steps.

    Episode i draws its own random numbers, for its reset and its actions, from (seed, i), so it is
    the same whatever runs beside it. Returned are the episodes 0, 1, ... up to the first that
    completes the numbers: taking those that *finish* first would favour short ones.

    Args:
        simulators: Environments with a time limit; how many does not change the result.
        behavior: The policy.
        seed: Entropy that all random numbers come from.
        steps: Least number of steps in all.
        episodes: Least number of episodes.
        sampled: Whether actions are sampled; if not, each is the mean action.
        on_steps: Called now and then with the number of steps made so far.
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
    lengths = np.zeros(n, np.int64)  # of every episode begun, so far; more room is made below
    begun = total = rounds = 0
    finished: dict[int, Trajectory] = {}

    while True:
        # How many episodes are needed. Episodes only grow, so this number can only fall.
        needed = sys.maxsize
        if total >= steps:
            cumulative = np.cumsum(lengths[:begun])
            needed = max(episodes, int(np.searchsorted(cumulative, steps)) + 1)
            assigned[assigned >= needed] = -1

        # Begin episodes in the environments that are idle.
        idle = np.flatnonzero(assigned < 0)[: max(0, needed - begun)]
        if len(idle):
            for environment in idle:
                sequence = np.random.SeedSequence([*seed, begun])
                reset_seeds[environment] = sequence.generate_state(1)[0]
                generator = np.random.default_rng(sequence)
                generator.standard_normal(dtype=np.float32, out=noise[environment])
                assigned[environment] = begun
                begun += 1
            if begun > len(lengths):
                lengths = np.concatenate((lengths, np.zeros_like(lengths)))
            observations[idle, 0] = simulators.reset(idle, reset_seeds[idle])
            elapsed[idle] = 0
        index = np.flatnonzero(assigned >= 0)
        if not len(index):
            on_steps(total)
            return [finished[i] for i in range(needed)]

        # One step of each.
        now = elapsed[index]
        action = behavior.act(observations[index, now], noise[index, now] if sampled else None)
        observation, reward, terminations, truncations = simulators.step(index, action)
        actions[index, now] = action
        observations[index, now + 1] = observation
        rewards[index, now] = reward
        elapsed[index] = lengths[assigned[index]] = now + 1
        total += len(index)

        # Copy out the episodes that ended.
        for row in np.flatnonzero(terminations | truncations):
            environment = index[row]
            length = elapsed[environment]
            finished[int(assigned[environment])] = Trajectory(
                observations[environment, : length + 1].copy(),
                actions[environment, :length].copy(),
                rewards[environment, :length].copy(),
                terminated=bool(terminations[row]),
                truncated=bool(truncations[row]),
                seed=int(reset_seeds[environment]),
            )
            assigned[environment] = -1
        rounds += 1
        if rounds % _ROUNDS_BETWEEN_REPORTS == 0:
            on_steps(total)


def collect(recipe: Recipe, steps: int, seed: int) -> list[Trajectory]:
    """Collects the episodes of a built-in data set, policy by policy, with a progress bar.

    Args:
        recipe: What the data set is made of; each of its policies runs its share of the steps.
        steps: Least number of steps; every episode is run to its end.
        seed: From the same seed come the same episodes on the same machine.
    """
    shares = [math.ceil(steps * share / sum(recipe.shares)) for share in recipe.shares]
    result: list[Trajectory] = []
    with (
        make_simulators(recipe.task.environment_id, N_ENVIRONMENTS) as simulators,
        steps_bar(f"{recipe.task.name}-{recipe.quality}", sum(shares)) as show,
    ):
        for part, (behavior, share) in enumerate(zip(recipe.behaviors(), shares, strict=True)):

            def show_share(count: int, part: int = part, share: int = share) -> None:
                show(sum(shares[:part]) + min(count, share))

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
    steps: int = number(DEFAULT_STEPS, at_least=1, at_most=MOST_STEPS)
    seed: int = seed()
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


def main(arguments: list[str]) -> None:
    """Makes one built-in data set from the command line.

    Raises:
        UserError: An argument is wrong, the data set exists already, or it cannot be stored.
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
