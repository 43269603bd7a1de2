"""How well a policy predicts the actions of data, as it does in training."""

import torch
from torch import Tensor

from agents.policy import ReturnConditionedPolicy
from agents.trainer import Batches


@torch.no_grad()
def prediction_errors(
    policy: ReturnConditionedPolicy, batches: Batches, count: int = 20
) -> tuple[float, Tensor]:
    """Measures a policy in evaluation mode over some batches, without a gradient.

    Returns:
        The mean squared error of the actions, which is the loss, and (action_dim,) the mean
        absolute error of each dimension, in units of the action.
    """
    losses, absolute, carried = [], [], None
    for _ in range(count):
        batch = batches.next()
        mask = batch.pop("mask")
        predicted, state = policy.predict(**batch, state=carried)
        carried = state if batches.continues else None
        error = (predicted - batch["actions"])[mask]
        losses.append(error.square().mean())
        absolute.append(error.abs().mean(dim=0))
    return torch.stack(losses).mean().item(), torch.stack(absolute).mean(dim=0)
