"""A trained policy in one call for each step: NumPy in, NumPy out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.acting import make_actor
from agents.checkpoint import load_policy, scored_as
from agents.critic.file import critic_of
from agents.hub import find_run
from agents.policy import Q, ReturnConditionedPolicy
from common.errors import UserError


class Actor:
    """Acts in one environment, or in the rows of a batch, and keeps all that acting needs.

    It carries the state, the previous action and the return still to be collected:

        actor = load_actor("runs/hopper-medium-expert/min_gru-streamed-seed0")
        observation, _ = env.reset(seed=0)
        actor.reset()
        action = actor.act(observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        action = actor.act(observation, reward)
    """

    def __init__(
        self,
        policy: ReturnConditionedPolicy,
        *,
        rollout: str = "carried",
        context_length: int = 20,
        held: bool = False,
        q: Q | None = None,
        target_return: float | np.ndarray | None = None,
    ) -> None:
        """Makes the actor of a policy in evaluation mode.

        Args:
            policy: The policy; the actor may copy its weights as they are now.
            rollout: `carried`, `rolling` or `window`; see agents.acting.
            context_length: Steps of the past that `rolling` and `window` keep.
            held: Whether the target is asked for at every step: rewards are then neither needed
                nor subtracted.
            q: A critic that chooses at each step between counting the target down and holding it.
            target_return: Return to collect in an episode, in units of return; an array (rows,)
                has one for each row. None asks for the policy's own.

        Raises:
            UserError: A target is given, and the policy does not see the return-to-go.
        """
        if target_return is not None and not policy.config.return_to_go:
            raise UserError(
                f"target_return is {target_return}, but the policy was trained with "
                "policy.return_to_go=false and does not see it; leave it out."
            )
        target = None if target_return is None else np.asarray(target_return, np.float32)
        if target is not None and (target.ndim > 1 or not np.isfinite(target).all()):
            raise UserError(
                f"target_return is {target_return!r:.60}; give one finite number, or an array with "
                "one for each row."
            )
        self._target = target
        self._counts = policy.config.return_to_go and not held
        self._actor: Any = make_actor(policy, rollout, context_length, q)  # each has its own state
        self._low, self._high = (
            bound.numpy(force=True) for bound in (policy.action_low, policy.action_high)
        )
        self.observation_dim, self.action_dim = policy.observation_dim, policy.action_dim
        self.reset(None if target is None or target.ndim == 0 else len(target))

    def reset(self, rows: int | None = None) -> None:
        """Begins an episode: in one environment, or in each of the rows of a batch.

        Raises:
            UserError: The targets are for another number of rows.
        """
        batch, target = 1 if rows is None else rows, self._target
        if batch < 1 or (target is not None and target.shape not in ((), (batch,))):
            targets = "" if target is None else f", and the targets are for {target.size} rows"
            raise UserError(f"reset() was asked for {batch} rows{targets}; give as many as act().")
        asked = None if target is None else torch.from_numpy(target)
        self._state: Any = self._actor.initial_state(batch, asked)
        self._rows, self._begins = rows, True

    def act(
        self,
        observation: Any,
        reward: float | np.ndarray | None = None,
        is_first: np.ndarray | None = None,
    ) -> np.ndarray:
        """Returns the next action, float32 within the bounds of the data.

        Args:
            observation: (observation_dim,), or (rows, observation_dim) after `reset(rows)`; of a
                Dict or Tuple observation space, the environment's own observation.
            reward: What the previous action earned, a number or (rows,); not needed on the step
                after `reset`, nor by a policy that holds its target or sees no return-to-go.
            is_first: (rows,) bool, true where a row's observation begins another episode.

        Returns:
            (action_dim,), or (rows, action_dim) after `reset(rows)`.

        Raises:
            UserError: Something does not fit the rows or the policy, or is missing.
        """
        batch = 1 if self._rows is None else self._rows
        if reward is None and self._counts and not self._begins:
            raise UserError(
                "act() was called without the reward of the previous action; give it as "
                "act(observation, reward), call reset() where an episode begins, or load the "
                "policy with held=True, which needs none."
            )
        observed = self._array("observation", observation, self.observation_dim)
        counted = np.zeros(batch) if reward is None or not self._counts else reward
        earned = self._array("reward", counted)
        first = np.zeros(batch, bool) if is_first is None else np.asarray(is_first, bool).ravel()
        if first.shape != (batch,):
            raise UserError(
                f"is_first has {first.size} values for {batch} rows; give one for each."
            )
        with torch.inference_mode():
            action, self._state = self._actor.act(
                torch.from_numpy(observed),
                torch.from_numpy(earned),
                self._state,
                torch.from_numpy(first | self._begins),
            )
        self._begins = False
        chosen: Tensor = action if self._rows is not None else action[0]
        return np.clip(chosen.numpy(force=True), self._low, self._high)

    def _array(self, name: str, values: Any, *channels: int) -> np.ndarray:
        """Returns values as (batch, *channels) float32; raises UserError if they do not fit."""
        batch = 1 if self._rows is None else self._rows
        try:
            flat = _flat(values, batch) if channels else values
            array = np.array(flat, np.float32)  # a copy, for the actor may keep it
        except (TypeError, ValueError) as error:
            raise UserError(
                f"the {name} given to act() is {values!r:.60}; give numbers, shaped as the "
                "environment gives them."
            ) from error
        alone = self._rows is None and array.shape == channels
        if not alone and array.shape != (batch, *channels):
            expected = f"{channels}" if self._rows is None else f"{(batch, *channels)}"
            raise UserError(
                f"the {name} given to act() has the shape {array.shape}; the policy expects "
                f"{expected} after reset({'' if self._rows is None else self._rows})."
            )
        return array.reshape(batch, *channels)


def load_actor(
    run: str | Path,
    target_return: float | np.ndarray | None = None,
    *,
    held: bool | None = None,
    device: str = "cpu",
) -> Actor:
    """Returns the actor of a run folder, which acts as the run was scored.

    Args:
        run: The folder, as train.py printed it; or a repository of the Hugging Face Hub, as
            "USER/NAME" or "USER/NAME@REVISION".
        target_return: As of `Actor`.
        held: As of `Actor`. None holds the policy's own target, or lets the critic of the run
            choose, if the run was scored so, and counts down a target that is given.
        device: A device of PyTorch.

    Raises:
        UserError: The folder holds no checkpoint or a damaged one, the target is not for it, or
            the repository cannot be downloaded.
    """
    folder = find_run(run)
    policy, description, _ = load_policy(folder)
    how = scored_as(folder, description)
    as_scored = held is None and target_return is None
    how["held"] = (how["held"] and as_scored) if held is None else held
    q = None
    if how.pop("chosen") and as_scored:
        q = critic_of(folder, str(description.dataset.get("sha256"))).to(device)
    try:
        return Actor(policy.to(device), target_return=target_return, q=q, **how)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{folder / 'config.json'} does not say how the policy acts: {error} Copy it "
            "again from its source, or train again."
        ) from error


def _flat(observation: Any, batch: int) -> Any:
    """Returns a Dict or Tuple observation as one array, in Gymnasium's order (spaces.flatten)."""
    if isinstance(observation, Mapping):  # a space of Gymnasium sorts its keys
        observation = tuple(observation[key] for key in sorted(observation))
    if not isinstance(observation, tuple):
        return observation
    parts = [np.reshape(_flat(part, batch), (batch, -1)) for part in observation]
    return np.concatenate(parts, axis=1)
