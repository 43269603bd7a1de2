"""Recurrent rollouts: a policy acts in many environments at once, one step at a time.

The policy steps all slots together and carries its state from step to step; the physics runs only
in slots whose episode is still alive. Nothing resets by itself: an episode that ends is followed,
in the next step of the policy, by the first observation of the slot's next episode.
"""

import difflib
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch

from common.errors import UserError
from envs.simulation.envpool import EnvPoolSimulators
from envs.simulation.simulators import Simulators, with_flat_observations

DEFAULT_N_ENVS = 100
ENGINES = ("gymnasium", "envpool")


class Actor(Protocol):
    """What a rollout needs of a policy, which is expected in evaluation mode (no dropout).

    An actor may also have the attributes ``observation_dim`` and ``action_dim``; they are then
    checked against the environment before the first step.
    """

    def initial_state(self, batch_size: int) -> Any:
        """Returns the state before the first step; the rollout never looks into it."""

    def act(
        self, observation: torch.Tensor, reward: torch.Tensor, state: Any, is_first: torch.Tensor
    ) -> tuple[torch.Tensor, Any]:
        """Chooses one action for each row.

        Args:
            observation: (batch, observation_dim), float32, on the CPU, never changed afterwards.
            reward: (batch,), float32, what the previous action earned; 0 where ``is_first``.
            state: From ``initial_state`` or from the previous step.
            is_first: (batch,), bool, true where ``observation`` begins an episode: the actor
                forgets what that row's state held.

        Returns:
            The actions, (batch, action_dim) on any device, and the next state.
        """


@dataclass(frozen=True)
class RolloutResult:
    """Complete episodes, in the order of their index.

    Attributes:
        episode_returns: Undiscounted sums of rewards, (episodes,), float64.
        episode_lengths: Steps, (episodes,), int64.
        environment_id: Gymnasium id of the environment.
        engine: What stepped it: ``gymnasium`` or ``envpool``.
        mujoco_version: Version of the physics engine that ran.
        seed: Seed of the start states.
        seconds: Wall time of the whole rollout.
        policy_seconds: Part of it spent in ``Actor.act``.
    """

    episode_returns: np.ndarray
    episode_lengths: np.ndarray
    environment_id: str
    engine: str
    mujoco_version: str
    seed: int
    seconds: float
    policy_seconds: float


def rollout(
    actor: Actor,
    environment_id: str,
    *,
    episodes: int,
    seed: int,
    n_envs: int | None = None,
    horizon: int | None = None,
    engine: str = "gymnasium",
    start_noise: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RolloutResult:
    """Plays whole episodes and returns what each of them earned.

    Episodes are dealt out before the start: slot ``j`` plays episodes ``j``, ``j + n_envs``, ...
    Taking the first ``episodes`` that end would count short ones too often. An episode starts from
    a state fixed by ``seed`` and its index alone, so its result does not depend on ``n_envs``,
    up to the rounding of the policy's batched matrix products: MuJoCo's contacts can amplify a
    last-bit difference in an action into another trajectory.

    Args:
        actor: The policy.
        environment_id: Gymnasium id of an environment with flat observations and actions.
        episodes: Number of episodes.
        seed: Seed of the start states, not negative.
        n_envs: Environments at once; by default 100, and never more than ``episodes``.
        horizon: Truncates episodes after this many steps, also past the environment's own limit,
            which is the default.
        engine: ``gymnasium``, the reference, or ``envpool``, faster, with other start states.
        start_noise: How far start states scatter, the ``reset_noise_scale`` of Gymnasium's MuJoCo
            tasks; by default the environment's own.
        progress: Called as ``progress(finished, episodes)`` whenever episodes have ended.

    Returns:
        The returns and lengths in the order of the episodes.

    Raises:
        UserError: The environment does not exist or cannot be made, the policy does not fit it
            or chose an action that is not finite, or a number is out of range.
    """
    for name, value, least in (
        ("episodes", episodes, 1),
        ("seed", seed, 0),
        ("n_envs", n_envs, 1),
        ("horizon", horizon, 1),
    ):
        if value is not None and value < least:
            raise UserError(f"{name} is {value}, but must be at least {least}.")
    if engine not in ENGINES:
        raise UserError(f"engine '{engine}' does not exist; there are: {', '.join(ENGINES)}.")
    started = time.perf_counter()
    options = {} if start_noise is None else {"reset_noise_scale": start_noise}
    with closing(make_environment(environment_id, **options)) as environment:
        environment_id = environment.spec.id  # of the newest version, where none was given
        action_space = environment.action_space
        observation_dim = environment.observation_space.shape[0]
    check_dimensions(actor, environment_id, observation_dim, action_space.shape[0])

    n_envs = min(n_envs or DEFAULT_N_ENVS, episodes)
    returns = np.zeros(episodes, np.float64)
    lengths = np.zeros(episodes, np.int64)
    episode = np.arange(n_envs)  # which one each slot plays; at or past `episodes`: slot is done
    active = np.arange(n_envs)
    observations = np.empty((n_envs, observation_dim), np.float32)
    rewards = np.zeros(n_envs, np.float32)
    is_first = np.ones(n_envs, bool)
    policy_seconds = 0.0

    simulators: Simulators | EnvPoolSimulators
    if engine == "gymnasium":
        simulators = Simulators(environment_id, n_envs, horizon=horizon, options=options)
    else:
        simulators = _make_envpool(environment_id, n_envs, episodes, seed, horizon, options)
    with closing(simulators), torch.inference_mode():
        state = actor.initial_state(n_envs)
        observations[:] = simulators.reset(active, start_seeds(seed, episode))
        while active.size:
            # Slots that are done stay in the batch and are ignored: taking their rows out would
            # need to know the layout of the state. Copies, for an actor may keep what it is given.
            policy_started = time.perf_counter()
            actions, state = actor.act(
                torch.tensor(observations), torch.tensor(rewards), state, torch.tensor(is_first)
            )
            policy_seconds += time.perf_counter() - policy_started
            stepped, earned, terminations, truncations = simulators.step(
                active, bounded_actions(actions[active], action_space)
            )
            played = episode[active]
            returns[played] += earned
            lengths[played] += 1
            observations[active] = stepped
            rewards[active] = earned
            is_first[:] = False

            ends = np.logical_or(terminations, truncations)
            if not ends.any():
                continue
            ended = active[ends]
            rewards[ended] = 0.0
            episode[ended] += n_envs
            restarted = ended[episode[ended] < episodes]
            if restarted.size:
                seeds = start_seeds(seed, episode[restarted])
                observations[restarted] = simulators.reset(restarted, seeds)
                is_first[restarted] = True
            active = np.flatnonzero(episode < episodes)
            if progress is not None:
                # Slot j has finished the episodes j, j + n_envs, ... below its current one.
                progress(int((episode // n_envs).sum()), episodes)

    return RolloutResult(
        episode_returns=returns,
        episode_lengths=lengths,
        environment_id=environment_id,
        engine=engine,
        mujoco_version=simulators.physics,
        seed=seed,
        seconds=time.perf_counter() - started,
        policy_seconds=policy_seconds,
    )


def _make_envpool(
    environment_id: str,
    n_envs: int,
    episodes: int,
    seed: int,
    horizon: int | None,
    options: dict[str, Any],
) -> EnvPoolSimulators:
    seeds = start_seeds(seed, np.arange(episodes))
    try:
        return EnvPoolSimulators(environment_id, n_envs, seeds, horizon=horizon, options=options)
    except ValueError as error:
        raise UserError(str(error)) from error


def start_seeds(seed: int, episodes: np.ndarray) -> np.ndarray:
    """Returns the seed of each episode's start state, (len(episodes),), int64 below 2**32.

    Each depends on ``seed`` and the episode's index only.
    """
    return np.array(
        [
            np.random.SeedSequence(seed, spawn_key=(int(i),)).generate_state(1)[0]
            for i in np.atleast_1d(episodes)
        ],
        np.int64,
    )


def bounded_actions(actions: torch.Tensor, space: gymnasium.spaces.Box) -> np.ndarray:
    """Returns a policy's actions as the environment takes them: (batch, action_dim), in bounds.

    Raises:
        UserError: An action is not finite, or the shape is not the environment's.
    """
    array = actions.detach().float().cpu().numpy()
    if array.ndim != 2 or array.shape[1:] != space.shape:
        raise UserError(
            f"The policy returned actions of shape {array.shape}, but the environment takes"
            f" (batch, {space.shape[0]})."
        )
    if not np.isfinite(array).all():
        raise UserError(
            "The policy returned an action that is not finite (NaN or infinite); its parameters"
            " or its observation normaliser are likely not finite either."
        )
    return np.clip(array, space.low, space.high)


def make_environment(environment_id: str, **options: Any) -> gymnasium.Env:
    """Makes one environment with continuous observations, laid flat, and continuous actions.

    Args:
        environment_id: Gymnasium id, such as ``Hopper-v5``.
        **options: Passed to ``gymnasium.make``.

    Raises:
        UserError: There is none of that id, it cannot be made here, or its spaces don't fit.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # v4, asked for on purpose
            environment = gymnasium.make(environment_id, **options)
    except gymnasium.error.UnregisteredEnv as error:
        near = difflib.get_close_matches(environment_id, list(gymnasium.registry), n=2, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        raise UserError(f"Environment '{environment_id}' does not exist{hint}") from error
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        reason = str(error).strip().rstrip(".")
        raise UserError(f"Environment '{environment_id}' cannot be made: {reason}.") from error
    environment = with_flat_observations(environment)
    for kind in ("observation", "action"):
        space = getattr(environment, f"{kind}_space")
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            environment.close()
            raise UserError(
                f"Environment '{environment_id}' has the {kind} space {space}, but a rollout"
                " needs a flat, continuous one (a Box of one dimension)."
            )
    return environment


def check_dimensions(
    actor: Actor, environment_id: str, observation_dim: int, action_dim: int
) -> None:
    """Compares the dimensions that an actor declares, if it does, with the environment's.

    Raises:
        UserError: They differ.
    """
    for kind, found in (("observation", observation_dim), ("action", action_dim)):
        expected = getattr(actor, f"{kind}_dim", found)
        if expected != found:
            raise UserError(
                f"The policy was made for {expected} {kind} dimensions, but {environment_id} has"
                f" {found}: evaluate it in the environment that its data came from."
            )
