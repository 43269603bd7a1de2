"""Whole episodes of behaviour policies in Hopper, HalfCheetah and Walker2d.

Observations, rewards and ends are those of Gymnasium's environments to the bit; of these only
`reset` is called.
"""

import itertools
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import gymnasium as gym
import numpy as np

from common.errors import UserError
from envs.behaviors.kernel import RULES, run_episode
from envs.behaviors.policy import Behavior
from envs.simulation.simulators import quiet_model_files


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One episode, with the observation after its last step.

    Attributes:
        observations: (steps + 1, observation_dim) float32.
        actions: (steps, action_dim) float32.
        rewards: (steps,) float64.
        terminated: Whether the last step terminated the episode; if not, the time limit ended it.
        seed: What the environment's reset got.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool
    seed: int


def run_episodes(
    environment_id: str,
    behavior: Behavior,
    *,
    seed: tuple[int, ...],
    steps: int = 0,
    episodes: int = 1,
    sampled: bool = True,
    workers: int | None = None,
    on_steps: Callable[[int], None] = lambda count: None,
) -> list[Trajectory]:
    """Runs the episodes 0, 1, ... of a behaviour policy up to the first that completes the numbers.

    Episode i draws its random numbers, for its reset and its actions, from (seed, i), so it does
    not depend on the others. Taking the episodes that *finish* first would favour short ones.

    Args:
        environment_id: One of RULES.
        behavior: The policy.
        seed: Entropy that all random numbers come from.
        steps: Least number of steps in all.
        episodes: Least number of episodes.
        sampled: Whether actions are sampled; if not, each is the mean action.
        workers: Threads, by default one for each processor; they do not change the result.
        on_steps: Called after each episode with the number of steps so far.

    Raises:
        UserError: The policy is one of another environment.
    """
    workers = workers or os.cpu_count() or 1
    idle: SimpleQueue[Any] = SimpleQueue()
    with quiet_model_files():
        for _ in range(workers):
            environment = gym.make(environment_id, disable_env_checker=True).unwrapped
            idle.put(environment)
    # Compiled code checks no index.
    of_policy = len(behavior.layers[0][0]), len(behavior.layers[2][1])
    shapes = environment.observation_space.shape, environment.action_space.shape
    if shapes != ((of_policy[0],), (of_policy[1],)):
        raise UserError(
            f"the behaviour policy has {of_policy[0]} observations and {of_policy[1]} actions, but "
            f"{environment_id} has {shapes[0][0]} and {shapes[1][0]}; give one trained in it"
        )

    def run(i: int) -> Trajectory:
        environment = idle.get()
        try:
            sequence = np.random.SeedSequence([*seed, i])
            return _run_episode(environment_id, environment, behavior, sequence, sampled)
        finally:
            idle.put(environment)

    result: list[Trajectory] = []
    total = 0
    jobs: deque[Future[Trajectory]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for i in itertools.count():
                jobs.append(pool.submit(run, i))
                if len(jobs) < 2 * workers:  # no thread waits for this one
                    continue
                result.append(jobs.popleft().result())
                total += len(result[-1].rewards)
                on_steps(total)
                if total >= steps and len(result) >= episodes:
                    break
        finally:
            pool.shutdown(cancel_futures=True)
    while not idle.empty():
        idle.get().close()
    return result


def _run_episode(
    environment_id: str,
    environment: Any,
    behavior: Behavior,
    sequence: np.random.SeedSequence,
    sampled: bool,
) -> Trajectory:
    horizon = gym.spec(environment_id).max_episode_steps
    assert horizon is not None
    rules, data = RULES[environment_id], environment.data
    reset_seed = int(sequence.generate_state(1)[0])
    noise = np.zeros((horizon, environment.action_space.shape[0]), np.float32)
    if sampled:
        np.random.default_rng(sequence).standard_normal(dtype=np.float32, out=noise)
    observations = np.empty((horizon + 1, environment.observation_space.shape[0]), np.float32)
    observations[0] = environment.reset(seed=reset_seed)[0]
    actions, x = np.empty_like(noise), np.empty(horizon + 1)
    length, terminated = run_episode(
        *(environment.model._address, data._address, data.qpos, data.qvel, data.ctrl),
        *(environment.frame_skip, rules, behavior.layers, noise, observations, actions, x),
    )
    actions = actions[:length].copy()
    # In this order and precision, as in Gymnasium.
    rewards = np.diff(x[: length + 1]) / environment.dt
    rewards[: length - terminated] += rules.healthy_reward
    rewards -= rules.control_cost * np.sum(np.square(actions), axis=1)
    return Trajectory(observations[: length + 1].copy(), actions, rewards, terminated, reset_seed)
