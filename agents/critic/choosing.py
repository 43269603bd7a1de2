"""Acting with a critic: at each step the better of two actions, as Q of the data judges them.

The policy is asked twice, for the same return: once less the rewards received, and once held, as if
nothing had been received. Counting down caps what is earned; holding may ask for what the data do
not show at that point of an episode. To let a critic choose among the actions of several returns is
how the Q-value regularised transformer acts (QT, Hu et al., arXiv 2405.17098).
"""

from typing import Any

import torch
from torch import Tensor

from agents.policy import Q


class ChoosingActor:
    """Acts with another actor, with two rows for each environment: counted and held.

    Each row has a state of its own; the previous action of both is the one that was chosen.
    """

    def __init__(self, actor: Any, q: Q) -> None:
        """Makes the actor.

        Args:
            actor: One of agents.acting.
            q: The critic, of all observations and the policy's actions; see agents.critic.learning.
        """
        self._actor, self._q = actor, q
        self.observation_dim, self.action_dim = actor.observation_dim, actor.action_dim

    def initial_state(self, batch_size: int, target_return: float | Tensor | None = None) -> Any:
        """Returns the state of twice as many rows: all that count, then all that hold."""
        if isinstance(target_return, Tensor) and target_return.ndim:
            target_return = target_return.repeat(2)
        return self._actor.initial_state(2 * batch_size, target_return)

    def act(
        self, observation: Tensor, reward: Tensor, state: Any, is_first: Tensor
    ) -> tuple[Tensor, Any]:
        """Acts as `ReturnConditionedPolicy.act` does, at the cost of two steps and the critic's."""
        earned = torch.cat([reward, torch.zeros_like(reward)])
        actions, state = self._actor.act(
            observation.repeat(2, 1), earned, state, is_first.repeat(2)
        )
        counted, held = actions.chunk(2)
        seen = observation.to(actions.device)
        better = (self._q(seen, held) > self._q(seen, counted)).unsqueeze(-1)
        action = torch.where(better, held, counted)
        return action, _acted(state, action.repeat(2, 1))


def _acted(state: Any, action: Tensor) -> Any:
    """Returns the state with another previous action."""
    if hasattr(state, "past"):  # of a window
        return state._replace(past=_acted(state.past, action))
    return state._replace(action=action)
