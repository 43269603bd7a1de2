"""The network of a behaviour policy and a whole episode of it, compiled with Numba.

One call runs an episode without Python and without its lock, so that every thread is bound by
MuJoCo. Sums are taken in a fixed order, one observation at a time: an episode depends neither on
other episodes nor on the number of threads.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding
from numba import njit, types

from envs.simulation.physics import mujoco

# Bounds of the log standard deviation in SAC (Haarnoja et al., arXiv 1801.01290; the values are
# those of the authors' code, and of stable-baselines3).
LOG_STD_MIN, LOG_STD_MAX = np.float32(-20.0), np.float32(2.0)

# Compiled code calls MuJoCo's C function: void mj_step(const mjModel* m, mjData* d).
for _library in Path(mujoco.__file__).parent.glob("*mujoco*"):
    if {".so", ".dylib", ".dll"} & set(_library.suffixes):
        binding.load_library_permanently(str(_library))
_mj_step = types.ExternalFunction("mj_step", types.void(types.intp, types.intp))


class Rules(NamedTuple):
    """What Gymnasium's v5 environment makes of the state of the simulation.

    Attributes:
        control_cost: Weight of the squared actions in the reward.
        healthy_reward: Reward of each step that does not terminate the episode.
        z_low: Height of the torso at or below which the episode terminates.
        z_high: Height at or above which it terminates.
        angle: Absolute angle of the torso in radians, likewise.
        state: Absolute value of every other position and every velocity, likewise.
        velocity_clip: Largest velocity in an observation.
    """

    control_cost: float
    healthy_reward: float = 0.0
    z_low: float = -math.inf
    z_high: float = math.inf
    angle: float = math.inf
    state: float = math.inf
    velocity_clip: float = math.inf


# Gymnasium's defaults: gymnasium/envs/mujoco/{hopper_v5,half_cheetah_v5,walker2d_v5}.py.
RULES = {
    "Hopper-v5": Rules(1e-3, 1.0, z_low=0.7, angle=0.2, state=100.0, velocity_clip=10.0),
    "HalfCheetah-v5": Rules(0.1),
    "Walker2d-v5": Rules(1e-3, 1.0, z_low=0.8, z_high=2.0, angle=1.0, velocity_clip=10.0),
}


def _compiled(function: Any) -> Any:
    try:
        return njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # no folder for the cache is writable: compile in each process
        return njit(nogil=True, error_model="numpy")(function)


@njit(error_model="numpy")
def _linear(layer, x, out):  # type: ignore[no-untyped-def]
    """Writes x W + b into `out`, for W (in, out); skips the zeros that a ReLU leaves in x."""
    weight, bias = layer
    out[:] = bias
    for j in range(x.size):
        if x[j] != 0:
            for i in range(out.size):
                out[i] += x[j] * weight[j, i]


@njit(error_model="numpy")
def _act(layers, observation, noise, buffers, action):  # type: ignore[no-untyped-def]
    """Writes tanh(mean + std * noise) into `action`."""
    first, second, log_std = buffers
    _linear(layers[0], observation, first)
    for i in range(first.size):
        first[i] = max(first[i], np.float32(0))
    _linear(layers[1], first, second)
    for i in range(second.size):
        second[i] = max(second[i], np.float32(0))
    _linear(layers[2], second, action)
    _linear(layers[3], second, log_std)
    for i in range(action.size):
        std = math.exp(min(max(log_std[i], LOG_STD_MIN), LOG_STD_MAX))
        action[i] = math.tanh(action[i] + std * noise[i])


@njit(error_model="numpy")
def _buffers(layers):  # type: ignore[no-untyped-def]
    return (
        np.empty_like(layers[0][1]),
        np.empty_like(layers[1][1]),
        np.empty_like(layers[3][1]),
    )


@_compiled
def act(layers, observations, noise, actions):  # type: ignore[no-untyped-def]
    """Writes the action for each row of `observations` into `actions`."""
    buffers = _buffers(layers)
    for row in range(len(observations)):
        _act(layers, observations[row], noise[row], buffers, actions[row])


@njit(error_model="numpy")
def _healthy(rules, qpos, qvel):  # type: ignore[no-untyped-def]
    healthy = rules.z_low < qpos[1] < rules.z_high and -rules.angle < qpos[2] < rules.angle
    for i in range(2, qpos.size):
        healthy &= abs(qpos[i]) < rules.state
    for i in range(qvel.size):
        healthy &= abs(qvel[i]) < rules.state
    return healthy


@_compiled
def run_episode(  # type: ignore[no-untyped-def]
    model, data, qpos, qvel, control, frame_skip, rules, layers, noise, observations, actions, x
):
    """Runs an episode from the state that `data` is in, for at most len(actions) steps.

    Args:
        model: Address of MuJoCo's model.
        data: Address of its simulation.
        qpos: View of the simulation's positions.
        qvel: View of its velocities.
        control: View of its controls.
        frame_skip: Calls of mj_step in a step of the environment.
        rules: Of the environment.
        layers: (weight (in, out), bias (out,)) of each layer.
        noise: (steps, action_dim) float32, standard normal numbers.
        observations: (steps + 1, observation_dim) float32; row 0 is given, the others are written.
        actions: (steps, action_dim) float32, written.
        x: (steps + 1,) float64, horizontal positions; written.

    Returns:
        The number of steps made, and whether the last one terminated the episode.
    """
    buffers = _buffers(layers)
    x[0] = qpos[0]
    for t in range(len(actions)):
        # The policy.
        _act(layers, observations[t], noise[t], buffers, actions[t])
        # The physics.
        control[:] = actions[t]
        for _ in range(frame_skip):
            _mj_step(model, data)
        # The observation: no horizontal position, clipped velocities.
        x[t + 1] = qpos[0]
        observation = observations[t + 1]
        observation[: qpos.size - 1] = qpos[1:]
        for i in range(qvel.size):
            clipped = min(max(qvel[i], -rules.velocity_clip), rules.velocity_clip)
            observation[qpos.size - 1 + i] = clipped
        if not _healthy(rules, qpos, qvel):
            return t + 1, True
    return len(actions), False
