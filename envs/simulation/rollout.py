"""Recurrent rollouts: a policy acts in many environments at once, one step at a time.

The policy steps all slots together and carries its state from step to step; the physics runs only
in slots whose episode is still alive. Nothing resets by itself: an episode that ends is followed,
in the next step of the policy, by the first observation of the slot's next episode.
"""

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from common.errors import UserError
from envs.simulation.envpool import EnvPoolSimulators
from envs.simulation.simulators import Simulators
from envs.tasks import Evaluation, RolloutResult


class Actor(Protocol):
    """What a rollout needs of a policy, which is expected in evaluation mode (no dropout).

    The attributes ``observation_dim`` and ``action_dim``, where an actor has them, are checked
    against the environment before the first step.
    """

    def initial_state(self, batch_size: int, target_return: torch.Tensor) -> Any:
        """Returns the state before the first step, for target returns (batch,) float32."""

    def act(
        self, observation: torch.Tensor, reward: torch.Tensor, state: Any, is_first: torch.Tensor
    ) -> tuple[torch.Tensor, Any]:
        """Chooses one action for each row.

        Args:
            observation: (batch, observation_dim), float32, on the CPU, never changed afterwards.
            reward: (batch,), float32, what the previous action earned; without meaning where
                ``is_first``.
            state: From ``initial_state`` or from the previous step.
            is_first: (batch,), bool, true where ``observation`` begins an episode: the actor
                resets that row's state.

        Returns:
            The actions, (batch, action_dim) on any device, and the next state.
        """


class Scene(NamedTuple):
    """What an observer of a rollout sees before each step, and once after the last.

    For each slot, `playing` is false once its last episode has ended; `returns` and `lengths` are
    those of its episode so far.
    """

    simulators: Simulators | EnvPoolSimulators
    playing: np.ndarray
    returns: np.ndarray
    lengths: np.ndarray


def rollout(
    actor: Actor,
    evaluation: Evaluation,
    *,
    progress: Callable[[int, int], None] | None = None,
    on_step: Callable[[Scene], None] | None = None,
) -> RolloutResult:
    """Plays whole episodes and returns what each of them earned.

    Slot ``j`` of a target plays the episodes ``j``, ``j + n_envs``, ...: to take the first that end
    would count short ones too often. An episode starts from a state fixed by the seed and its index
    alone, so its result does not depend on ``n_envs`` or on the other targets, up to the rounding
    of batched matrix products, which MuJoCo's contacts can amplify into another trajectory.

    Args:
        actor: The policy.
        evaluation: What to play.
        progress: Called as ``progress(finished, episodes)`` whenever episodes have ended.
        on_step: Called before each step, and after the last.

    Raises:
        UserError: The environment cannot be made, or the policy does not fit it or chose an action
            that is not finite.
    """
    started = time.perf_counter()
    episodes, targets = evaluation.episodes, len(evaluation.target_returns)
    n_envs = min(evaluation.n_envs or 100, episodes)
    slots = targets * n_envs
    target_of_slot = np.repeat(np.arange(targets), n_envs)
    returns = np.zeros((targets, episodes), np.float64)
    lengths = np.zeros((targets, episodes), np.int64)
    successes = np.zeros((targets, episodes), bool)
    # The episode that each slot plays; at or past `episodes` the slot is done.
    episode = np.tile(np.arange(n_envs), targets)
    active = np.arange(slots)
    rewards = np.zeros(slots, np.float32)
    is_first = np.ones(slots, bool)

    with closing(make_simulators(evaluation, slots)) as simulators, torch.inference_mode():
        check_dimensions(actor, simulators)
        state = actor.initial_state(
            slots, torch.tensor(evaluation.target_returns)[torch.from_numpy(target_of_slot)]
        )
        observations = simulators.reset(active, start_seeds(evaluation.seed, episode))
        while True:
            if on_step is not None:
                playing = episode < episodes
                place = target_of_slot, np.where(playing, episode, episode - n_envs)
                on_step(Scene(simulators, playing, returns[place], lengths[place]))
            if not active.size:
                break
            # A return-to-go from which nothing is subtracted stays at the target.
            counted = torch.zeros(slots) if evaluation.held else torch.tensor(rewards)
            # Slots that are done stay in the batch and are ignored: taking their rows out would
            # need to know the layout of the state. Copies, for an actor may keep what it is given.
            actions, state = actor.act(
                torch.tensor(observations), counted, state, torch.tensor(is_first)
            )
            stepped, earned, terminations, truncations = simulators.step(
                active, bounded_actions(actions[active], simulators)
            )
            place = target_of_slot[active], episode[active]
            returns[place] += earned
            lengths[place] += 1
            observations[active] = stepped
            rewards[active] = earned
            is_first[:] = False

            ends = np.logical_or(terminations, truncations)
            if not ends.any():
                continue
            # Ended slots begin their next episode, if one is left.
            ended = active[ends]
            successes[target_of_slot[ended], episode[ended]] = simulators.success[ended]
            episode[ended] += n_envs
            restarted = ended[episode[ended] < episodes]
            if restarted.size:
                seeds = start_seeds(evaluation.seed, episode[restarted])
                observations[restarted] = simulators.reset(restarted, seeds)
                is_first[restarted] = True
            active = np.flatnonzero(episode < episodes)
            if progress is not None:
                # Slot j has finished the episodes j, j + n_envs, ... below its current one.
                progress(int((episode // n_envs).sum()), targets * episodes)

        return RolloutResult(
            episode_returns=returns,
            episode_lengths=lengths,
            successes=successes if simulators.reports_success else None,
            environment_id=simulators.environment_id,
            engine_version=simulators.version,
            mujoco_version=simulators.mujoco_version,
            seconds=time.perf_counter() - started,
        )


def make_simulators(evaluation: Evaluation, slots: int) -> Simulators | EnvPoolSimulators:
    """Makes the environments of an evaluation."""
    name, horizon = evaluation.environment_id, evaluation.horizon
    if name is None:
        raise UserError("the evaluation names no environment to play in; give its Gymnasium id.")
    options = dict(evaluation.environment_kwargs)
    if evaluation.start_noise is not None:
        options["reset_noise_scale"] = evaluation.start_noise
    if evaluation.engine == "gymnasium":
        return Simulators(name, slots, horizon=horizon, options=options)
    seeds = start_seeds(evaluation.seed, np.arange(evaluation.episodes))
    seeds = np.tile(seeds, len(evaluation.target_returns))
    return EnvPoolSimulators(name, slots, seeds, horizon=horizon, options=options)


def start_seeds(seed: int, episodes: np.ndarray) -> np.ndarray:
    """Returns the seed of each episode's start state, from `seed` and its index: int64 < 2**32."""
    sequences = [np.random.SeedSequence(seed, spawn_key=(int(i),)) for i in episodes]
    return np.array([sequence.generate_state(1)[0] for sequence in sequences], np.int64)


def bounded_actions(
    actions: torch.Tensor, simulators: Simulators | EnvPoolSimulators
) -> np.ndarray:
    """Returns a policy's actions as the environment takes them: (batch, action_dim), in bounds."""
    array = actions.detach().float().cpu().numpy()
    if array.ndim != 2 or array.shape[1] != simulators.action_dim:
        raise UserError(
            f"The policy returned actions of shape {array.shape}, but the environment takes"
            f" (batch, {simulators.action_dim})."
        )
    if not np.isfinite(array).all():
        raise UserError(
            "The policy returned an action that is not finite (NaN or infinite); its parameters"
            " or its observation normaliser are likely not finite either."
        )
    return np.clip(array, simulators.action_low, simulators.action_high)


def check_dimensions(actor: Any, simulators: Simulators | EnvPoolSimulators) -> None:
    """Compares the dimensions that an actor declares, if it does, with the environment's."""
    for kind in ("observation", "action"):
        found = getattr(simulators, f"{kind}_dim")
        expected = getattr(actor, f"{kind}_dim", found)
        if expected != found:
            raise UserError(
                f"The policy was made for {expected} {kind} dimensions, but"
                f" {simulators.environment_id} has {found}: evaluate it in the environment that its"
                " data came from."
            )
