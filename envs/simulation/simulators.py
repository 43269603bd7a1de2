"""Many environments, stepped together, without automatic resets."""

import contextlib
import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.wrappers import FlattenObservation, OrderEnforcing, PassiveEnvChecker, TimeLimit

# The wrappers of gymnasium.make whose work is done here, once for all environments.
_REPLACED_WRAPPERS = (TimeLimit, OrderEnforcing, PassiveEnvChecker)

# MuJoCo steps outside Python's lock, the rest of an environment's step (a good third) holds it:
# more than two threads gain nothing.
_MOST_WORKERS = 2


@contextlib.contextmanager
def quiet_model_files() -> Iterator[None]:
    """Silences what MuJoCo says of Gymnasium's own model files while environments are made.

    HalfCheetah's uses a deprecated attribute, and MuJoCo tells of it on standard error and in a
    file in the working directory, once for each environment. Other messages become warnings.
    """

    def warn(message: str) -> None:
        if "deprecated" not in message:
            warnings.warn(message, stacklevel=2)

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(warn)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def with_flat_observations(environment: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Lays the boxes of a Dict, or of more than one dimension, end to end, as sources of data do.

    Environments of any other kind are returned as they are.
    """
    space = environment.observation_space
    if isinstance(space, gym.spaces.Dict) or (
        isinstance(space, gym.spaces.Box) and len(space.shape) != 1
    ):
        return FlattenObservation(environment)
    return environment


class Simulators:
    """`n` environments of one kind; any subset of them can be reset or stepped.

    Observations, rewards and ends of an episode are those of ``gymnasium.make(environment_id)``,
    its time limit included, and depend neither on `n` nor on `workers`. An environment whose
    episode has ended costs nothing: leave it out of `index`.

    Args:
        environment_id: Gymnasium id; observations are boxes or a Dict of boxes, laid end to end,
            actions a one-dimensional box.
        n: Number of environments.
        workers: Threads that step; by default one or two, as the machine allows.
        horizon: Steps after which an episode is truncated; None is the environment's own limit.
        options: Passed to ``gymnasium.make``.

    Attributes:
        n: Number of environments.
        physics: Version of MuJoCo.
        horizon: Steps after which an episode is truncated; None without a time limit.
        observation_dim: Length of an observation.
        action_dim: Length of an action.
        action_low: (action_dim,) float32, lower bounds of the actions.
        action_high: (action_dim,) float32, upper bounds of the actions.
        environments: The environments themselves, without the outer wrappers of gymnasium.make.
    """

    def __init__(
        self,
        environment_id: str,
        n: int,
        *,
        workers: int | None = None,
        horizon: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        if n < 1:
            raise ValueError(f"n is {n}; at least one environment is needed")
        self.environments: list[gym.Env[Any, Any]] = []
        with quiet_model_files(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # v4, asked for on purpose
            for _ in range(n):
                environment = gym.make(environment_id, disable_env_checker=True, **(options or {}))
                while isinstance(environment, _REPLACED_WRAPPERS):
                    environment = environment.env
                self.environments.append(with_flat_observations(environment))
        observation_space = self.environments[0].observation_space
        action_space = self.environments[0].action_space
        for space in (observation_space, action_space):
            if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
                raise ValueError(f"{environment_id} has the space {space}, not a flat Box")
        self.n = n
        self.physics = mujoco.__version__
        self.horizon: int | None = horizon or gym.spec(environment_id).max_episode_steps
        self.observation_dim = observation_space.shape[0]
        self.action_dim = action_space.shape[0]
        self.action_low = action_space.low.astype(np.float32)
        self.action_high = action_space.high.astype(np.float32)
        self._elapsed = np.zeros(n, np.int64)
        self._running = np.zeros(n, bool)
        self._workers = workers or min(_MOST_WORKERS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(self._workers) if self._workers > 1 else None

    def reset(self, index: np.ndarray, seeds: Sequence[int] | np.ndarray) -> np.ndarray:
        """Starts a new episode in each environment of `index`.

        Args:
            index: (k,) int, environments, each at most once.
            seeds: (k,) int, what ``reset(seed=...)`` of each gets.

        Returns:
            (k, observation_dim) float32, the first observations.
        """
        observations = np.empty((len(index), self.observation_dim), np.float32)

        def reset_one(row: int) -> None:
            observations[row] = self.environments[index[row]].reset(seed=int(seeds[row]))[0]

        self._for_each(len(index), reset_one)
        self._elapsed[index] = 0
        self._running[index] = True
        return observations

    def step(
        self, index: np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Takes one step in each environment of `index`.

        Args:
            index: (k,) int, environments, each at most once.
            actions: (k, action_dim) float32.

        Returns:
            observations (k, observation_dim) float32, rewards (k,) float64, terminations (k,) bool
            and truncations (k,) bool.

        Raises:
            RuntimeError: An environment in `index` has ended its episode, or has not begun one.
        """
        self._require_running(index)
        count = len(index)
        observations = np.empty((count, self.observation_dim), np.float32)
        rewards = np.empty(count, np.float64)
        terminations = np.empty(count, bool)
        truncations = np.empty(count, bool)

        def step_one(row: int) -> None:
            observation, reward, terminated, truncated, _ = self.environments[index[row]].step(
                actions[row]
            )
            observations[row] = observation
            rewards[row] = reward
            terminations[row] = terminated
            truncations[row] = truncated

        self._for_each(count, step_one)
        truncations |= self._count_step(index, terminations | truncations)
        return observations, rewards, terminations, truncations

    def _require_running(self, index: np.ndarray) -> None:
        if not self._running[index].all():
            ended = index[~self._running[index]]
            raise RuntimeError(f"environments {ended.tolist()} must be reset before the next step")

    def _count_step(self, index: np.ndarray, ended: np.ndarray) -> np.ndarray:
        """Counts a step of each environment; returns (k,) bool, those that reach the horizon."""
        self._elapsed[index] += 1
        timed_out = np.zeros(len(index), bool)
        if self.horizon is not None:
            timed_out = self._elapsed[index] >= self.horizon
        self._running[index] = ~(ended | timed_out)
        return timed_out

    def _for_each(self, count: int, function: Callable[[int], None]) -> None:
        def run(begin: int, end: int) -> None:
            for row in range(begin, end):
                function(row)

        if self._pool is None or count == 1:
            run(0, count)
            return
        borders = np.linspace(0, count, self._workers + 1).astype(int)
        jobs = [self._pool.submit(run, *pair) for pair in itertools.pairwise(borders)]
        for job in jobs:
            job.result()

    def close(self) -> None:
        """Ends the threads and closes every environment."""
        if self._pool is not None:
            self._pool.shutdown()
        for environment in self.environments:
            environment.close()

    def __enter__(self) -> "Simulators":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
