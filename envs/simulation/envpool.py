"""EnvPool as the engine of rollouts: the same environments in C++ (the extra ``envpool``).

EnvPool steps the tasks of Gymnasium with the same MuJoCo models; from the same state, a step gives
the same observation and reward up to rounding. Its start states come from another generator, so an
episode of the same index and seed starts elsewhere: returns agree in distribution, not one by one.
"""

import importlib
import os
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from common.checks import require_extra
from common.errors import UserError

# What the horizon of an environment without a time limit is set to: EnvPool always has one.
_NO_LIMIT = 2**31 - 1


class EnvPoolSimulators:
    """The interface of `envs.simulation.simulators.Simulators` on EnvPool.

    EnvPool fixes the seed of an environment when it makes it. So there is one environment for each
    episode, and a slot that begins an episode switches to the environment with its seed.

    Args:
        environment_id: Gymnasium id that EnvPool knows too.
        n: Number of slots.
        seeds: (episodes,) int, every seed that `reset` will be given, as often as it will be.
        horizon: Steps after which an episode is truncated; None is the environment's own limit.
        options: Further settings of the environment, such as ``reset_noise_scale``.
    """

    mujoco_version = None  # EnvPool brings a MuJoCo of its own and does not tell its version
    reports_success = False  # nor does it tell of a success

    def __init__(
        self,
        environment_id: str,
        n: int,
        seeds: Sequence[int] | np.ndarray,
        *,
        horizon: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        require_extra("envpool", "engine=envpool", "envpool")
        envpool: Any = importlib.import_module("envpool")
        if environment_id not in envpool.list_all_envs():
            raise UserError(
                f"EnvPool {envpool.__version__} has no environment '{environment_id}'; use "
                "engine=gymnasium."
            )
        limit = horizon or gym.spec(environment_id).max_episode_steps or _NO_LIMIT
        self.n = n
        self.environment_id = environment_id
        self.version = envpool.__version__
        self._waiting: dict[int, list[int]] = {}
        for environment, seed in enumerate(seeds):
            self._waiting.setdefault(int(seed), []).append(environment)
        # EnvPool's seeds are signed 32-bit integers.
        wrapped = np.asarray(seeds, np.uint32).view(np.int32)
        try:
            self._pool = envpool.make_gymnasium(
                environment_id,
                num_envs=len(wrapped),
                seed=[int(seed) for seed in wrapped],
                num_threads=os.cpu_count() or 1,
                **{"max_episode_steps": limit, **(options or {})},
            )
        except (TypeError, ValueError, AssertionError) as error:
            raise UserError(
                f"EnvPool {envpool.__version__} cannot make {environment_id} with {options} "
                f"({error}); use engine=gymnasium."
            ) from error
        space = self._pool.action_space
        self.observation_dim = self._pool.observation_space.shape[0]
        self.action_dim = space.shape[0]
        self.action_low = space.low.astype(np.float32)
        self.action_high = space.high.astype(np.float32)
        self.success = np.zeros(n, bool)
        self._slots = np.zeros(n, np.int64)  # which environment each slot plays

    def reset(self, index: np.ndarray, seeds: Sequence[int] | np.ndarray) -> np.ndarray:
        """Starts the episode of each seed in a slot: (k, observation_dim) float32."""
        self._slots[index] = chosen = np.array([self._waiting[int(seed)].pop() for seed in seeds])
        observations, info = self._pool.reset(chosen.astype(np.int32))
        return observations[self._order(chosen, info)].astype(np.float32)

    def step(
        self, index: np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Takes one step in each slot of `index`; as `Simulators.step`."""
        chosen = self._slots[index]
        observations, rewards, terminations, truncations, info = self._pool.step(
            actions.astype(np.float64), chosen.astype(np.int32)
        )
        order = self._order(chosen, info)
        rewards = rewards[order].astype(np.float64)
        observations = observations[order].astype(np.float32)
        return observations, rewards, terminations[order], truncations[order]

    @staticmethod
    def _order(chosen: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """Returns where each environment of `chosen` stands in results, which come unordered."""
        came = np.argsort(info["env_id"])
        return came[np.argsort(np.argsort(chosen))]

    def close(self) -> None:
        """Ends the threads."""
        self._pool.close()
