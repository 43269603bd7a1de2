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

# What the horizon of an environment without a time limit is set to: EnvPool always has one.
_NO_LIMIT = 2**31 - 1


class EnvPoolSimulators:
    """The interface of `envs.simulation.simulators.Simulators` on EnvPool.

    EnvPool fixes an environment's seed when it makes it. So there is one environment for each seed
    that will be asked for, and a slot that begins an episode moves on to that seed's environment.

    Args:
        environment_id: Gymnasium id that EnvPool knows too.
        n: Number of slots.
        seeds: (episodes,) int, every seed that `reset` will be given, as often as it will be.
        horizon: Steps after which an episode is truncated; None is the environment's own limit.
        options: Further settings of the environment, such as ``reset_noise_scale``.

    Attributes:
        physics: What ran: EnvPool and its version, which brings its own MuJoCo.

    Raises:
        ValueError: EnvPool is not installed, or does not have this environment.
    """

    def __init__(
        self,
        environment_id: str,
        n: int,
        seeds: Sequence[int] | np.ndarray,
        *,
        horizon: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        try:
            envpool: Any = importlib.import_module("envpool")
        except ImportError as error:
            raise ValueError(
                "engine 'envpool' needs the extra 'envpool', which cannot be imported "
                f'({error}): pip install -e ".[envpool]", or use engine=gymnasium.'
            ) from error
        if environment_id not in envpool.list_all_envs():
            raise ValueError(
                f"EnvPool {envpool.__version__} has no environment '{environment_id}'; use "
                "engine=gymnasium."
            )
        limit = horizon or gym.spec(environment_id).max_episode_steps or _NO_LIMIT
        self.n = n
        self.physics = f"of EnvPool {envpool.__version__}"
        self._waiting: dict[int, list[int]] = {}
        for environment, seed in enumerate(seeds):
            self._waiting.setdefault(int(seed), []).append(environment)
        # EnvPool's seeds are 32 bits with a sign.
        wrapped = np.asarray(seeds, np.uint32).view(np.int32)
        self._pool = envpool.make_gymnasium(
            environment_id,
            num_envs=len(wrapped),
            seed=[int(seed) for seed in wrapped],
            num_threads=os.cpu_count() or 1,
            max_episode_steps=limit,
            **(options or {}),
        )
        self._slots = np.zeros(n, np.int64)  # which environment each slot plays

    def reset(self, index: np.ndarray, seeds: Sequence[int] | np.ndarray) -> np.ndarray:
        """Starts the episode of each seed in a slot: (k, observation_dim) float32."""
        chosen = np.array([self._waiting[int(seed)].pop() for seed in seeds])
        self._slots[index] = chosen
        observations, info = self._pool.reset(chosen.astype(np.int32))
        return self._in_order(chosen, info, observations).astype(np.float32)

    def step(
        self, index: np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Takes one step in each slot of `index`; as `Simulators.step`."""
        chosen = self._slots[index]
        observations, rewards, terminations, truncations, info = self._pool.step(
            actions.astype(np.float64), chosen.astype(np.int32)
        )
        return (
            self._in_order(chosen, info, observations).astype(np.float32),
            self._in_order(chosen, info, rewards).astype(np.float64),
            self._in_order(chosen, info, terminations),
            self._in_order(chosen, info, truncations),
        )

    @staticmethod
    def _in_order(chosen: np.ndarray, info: dict[str, Any], values: np.ndarray) -> np.ndarray:
        """Brings results, which come in the order in which the threads finished, into ours."""
        came = np.argsort(info["env_id"])
        return values[came[np.argsort(np.argsort(chosen))]]

    def close(self) -> None:
        """Ends the threads."""
        self._pool.close()
