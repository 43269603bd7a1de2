"""Spaces of environments, flattened to the vectors that a policy sees."""

from typing import Any

import gymnasium as gym

from common.errors import UserError
from envs.simulation.simulators import make_environment


def environment_spaces(
    environment_id: str, kwargs: dict[str, Any] | None = None
) -> tuple[gym.spaces.Box, gym.spaces.Box]:
    """Returns the observation and the action space of an environment, flattened.

    Raises:
        UserError: It does not exist, cannot be made, or has spaces of another kind.
    """
    environment = make_environment(environment_id, **(kwargs or {}))
    environment.close()
    observations, actions = environment.observation_space, environment.action_space
    assert isinstance(observations, gym.spaces.Box) and isinstance(actions, gym.spaces.Box)
    return observations, actions


def fitting_spaces(
    name: str,
    dimensions: tuple[int, int],
    environment_id: str,
    kwargs: dict[str, Any] | None = None,
) -> tuple[gym.spaces.Box, gym.spaces.Box]:
    """Returns `environment_spaces` if data have their dimensions, of observations and actions.

    Raises:
        UserError: They differ; names the data set and the environment.
    """
    spaces = environment_spaces(environment_id, kwargs)
    for kind, space, found in zip(("observations", "actions"), spaces, dimensions, strict=True):
        if space.shape != (found,):
            raise UserError(
                f"{name}: the {kind} have {found} dimensions, but those of {environment_id} "
                f"{space.shape[0]}; give the environment that the data come from"
            )
    return spaces
