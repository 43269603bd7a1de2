"""Spaces of environments and data sets, as the flat vectors that a policy sees."""

import warnings

import gymnasium as gym
import numpy as np

from common.errors import UserError
from envs.simulation.simulators import quiet_model_files


def environment_spaces(environment_id: str) -> tuple[gym.spaces.Box, gym.spaces.Box]:
    """Returns the observation and the action space of an environment, flattened.

    Raises:
        UserError: It does not exist, cannot be made, or has spaces of another kind.
    """
    with warnings.catch_warnings(), quiet_model_files():
        warnings.simplefilter("ignore", DeprecationWarning)  # v4, which is asked for on purpose
        try:
            environment = gym.make(environment_id)
        except (gym.error.Error, ImportError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise UserError(
                f"environment '{environment_id}' cannot be made ({reason}); "
                "give the Gymnasium id of one that is installed, such as Hopper-v5"
            ) from error
    observations, actions = environment.observation_space, environment.action_space
    environment.close()
    require_vectors(environment_id, observations, actions)
    return gym.spaces.flatten_space(observations), gym.spaces.flatten_space(actions)


def require_dimensions(
    name: str,
    environment_id: str,
    spaces: tuple[gym.spaces.Box, gym.spaces.Box],
    dimensions: tuple[int, int],
) -> None:
    """Checks that data have the dimensions of their environment.

    Args:
        name: Of the data set, for the message.
        environment_id: Gymnasium id.
        spaces: From `environment_spaces`.
        dimensions: observation_dim and action_dim of the data.

    Raises:
        UserError: They differ.
    """
    for kind, space, found in zip(("observations", "actions"), spaces, dimensions, strict=True):
        if space.shape != (found,):
            raise UserError(
                f"{name}: the {kind} have {found} dimensions, but those of {environment_id} "
                f"{space.shape[0]}; give the environment that the data come from"
            )


def require_vectors(name: str, observations: gym.Space, actions: gym.Space) -> None:
    """Checks that observations are boxes of numbers, or a Dict of such, and actions one box.

    Args:
        name: Of the data set or environment, for the message.
        observations: The observation space.
        actions: The action space.

    Raises:
        UserError: They are images, discrete or of another kind.
    """
    for kind, space in (("observations", observations), ("actions", actions)):
        parts = [space]
        if isinstance(space, gym.spaces.Dict) and kind == "observations":
            parts = _leaves(space)
        for part in parts:
            if not isinstance(part, gym.spaces.Box):
                raise UserError(
                    f"{name}: the {kind} are {space}, not boxes of numbers; a policy here sees "
                    "and gives vectors of real numbers"
                )
            if part.dtype == np.uint8 and len(part.shape) > 1:
                raise UserError(
                    f"{name}: the {kind} hold images ({part}); there is no encoder for images "
                    "here, only vectors of real numbers can be used"
                )


def _leaves(space: gym.Space) -> list[gym.Space]:
    if not isinstance(space, gym.spaces.Dict):
        return [space]
    return [leaf for part in space.spaces.values() for leaf in _leaves(part)]
