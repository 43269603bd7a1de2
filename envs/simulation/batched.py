"""Hopper, HalfCheetah and Walker2d for many episodes at once, with little Python in each step.

A step of Gymnasium's environment spends half of its time outside MuJoCo. Here MuJoCo steps each
simulation, and observations, rewards and terminations are computed for all of them in NumPy.
"""

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from envs.simulation.simulators import Simulators


@dataclass(frozen=True)
class Rules:
    """What Gymnasium's v5 environment makes of the state of the simulation.

    Attributes:
        control_cost: Weight of the squared actions in the reward.
        healthy_z: Heights of the torso between which the episode goes on; None if it cannot fall.
        healthy_angle: Angles of the torso in radians, likewise.
        healthy_state: Bound of every other position and every velocity, likewise.
        velocity_clip: Largest velocity in an observation.
    """

    control_cost: float
    healthy_z: tuple[float, float] | None = None
    healthy_angle: tuple[float, float] = (-np.inf, np.inf)
    healthy_state: float = np.inf
    velocity_clip: float = np.inf


# Gymnasium's defaults: gymnasium/envs/mujoco/{hopper_v5,half_cheetah_v5,walker2d_v5}.py.
RULES = {
    "Hopper-v5": Rules(1e-3, (0.7, np.inf), (-0.2, 0.2), healthy_state=100.0, velocity_clip=10.0),
    "HalfCheetah-v5": Rules(0.1),
    "Walker2d-v5": Rules(1e-3, (0.8, 2.0), (-1.0, 1.0), velocity_clip=10.0),
}


class BatchedSimulators(Simulators):
    """`Simulators` for the environments in RULES with their default arguments: the same, faster.

    Observations, rewards and ends of episodes are those of Gymnasium to the bit. The environments'
    own `step` is not called, so wrappers around them see only resets.

    Args:
        environment_id: One of RULES.
        n: Number of environments.
        workers: Threads that step; by default one or two, as the machine allows.
    """

    def __init__(self, environment_id: str, n: int, *, workers: int | None = None) -> None:
        super().__init__(environment_id, n, workers=workers)
        self._rules = RULES[environment_id]
        simulations: list[Any] = [environment.unwrapped for environment in self.environments]
        self._frame_skip, self._dt = simulations[0].frame_skip, simulations[0].dt
        self._models = [simulation.model for simulation in simulations]
        self._data = [simulation.data for simulation in simulations]
        # Views into MuJoCo's memory: making them anew at each step would cost more than a copy.
        self._controls = [data.ctrl for data in self._data]
        self._qpos = [data.qpos for data in self._data]
        self._qvel = [data.qvel for data in self._data]

    def step(
        self, index: np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Takes one step in each environment of `index`; see `Simulators.step`.

        Raises:
            ValueError: The actions have another dimension than the environment's.
            RuntimeError: An environment in `index` has ended its episode, or has not begun one.
        """
        self._require_running(index)
        count = len(index)
        if actions.shape != (count, self.action_dim):
            raise ValueError(f"actions have shape {actions.shape}, not {(count, self.action_dim)}")
        # The physics; MuJoCo releases Python's lock.
        environments = index.tolist()
        before = np.array([self._qpos[environment][0] for environment in environments])

        def step_one(row: int) -> None:
            environment = environments[row]
            self._controls[environment][:] = actions[row]
            mujoco.mj_step(
                self._models[environment], self._data[environment], nstep=self._frame_skip
            )

        self._for_each(count, step_one)
        qpos = np.array([self._qpos[environment] for environment in environments])
        qvel = np.array([self._qvel[environment] for environment in environments])
        # The observation: no horizontal position, clipped velocities.
        rules = self._rules
        velocities = np.clip(qvel, -rules.velocity_clip, rules.velocity_clip)
        observations = np.concatenate((qpos[:, 1:], velocities), axis=1).astype(np.float32)
        # The reward: in this order and precision, as in Gymnasium.
        rewards = (qpos[:, 0] - before) / self._dt
        terminations = np.zeros(count, bool)
        if rules.healthy_z is not None:
            terminations = ~self._healthy(qpos, qvel)
            rewards = rewards + ~terminations * 1.0
        rewards = rewards - rules.control_cost * np.sum(np.square(actions), axis=1)
        return observations, rewards, terminations, self._count_step(index, terminations)

    def _healthy(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        rules = self._rules
        assert rules.healthy_z is not None
        z, angle = qpos[:, 1], qpos[:, 2]
        state = np.concatenate((qpos[:, 2:], qvel), axis=1)
        healthy: np.ndarray = (
            (rules.healthy_z[0] < z)
            & (z < rules.healthy_z[1])
            & (rules.healthy_angle[0] < angle)
            & (angle < rules.healthy_angle[1])
            & (np.abs(state) < rules.healthy_state).all(axis=1)
        )
        return healthy


def make_simulators(environment_id: str, n: int, *, workers: int | None = None) -> Simulators:
    """Returns the fastest simulators of an environment with its default arguments."""
    if environment_id in RULES:
        return BatchedSimulators(environment_id, n, workers=workers)
    return Simulators(environment_id, n, workers=workers)
