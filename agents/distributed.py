"""Data-parallel training of one run: each process trains on its share of every batch.

    torchrun --nproc-per-node 2 train.py

All ranks hold the same parameters and make the same update, from the gradient of the whole batch.
Rank 0 alone writes, evaluates and prints. Without torchrun there is one rank and no overhead.
Everything but gradients is exchanged on the CPU, through gloo, whatever the device.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from agents.backbones.state import State, map_state
from agents.policy import ReturnConditionedPolicy, TrainingState
from common.errors import UserError

# How long ranks wait for rank 0 while it evaluates, or for another that makes a data set. The
# death of a rank is noticed at once, without this timeout.
_PATIENCE = timedelta(days=1)

LossFunction = Callable[..., tuple[Tensor, TrainingState]]


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, as seen by one of them.

    `seed` is that of the dropout masks, where there are several processes.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0

    def __str__(self) -> str:
        return str(self.device) if self.count == 1 else f"{self.count} x {self.device.type}"

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes, evaluates and prints."""
        return self.rank == 0

    def sum(self, value: float) -> float:
        """Returns the sum of the values of all ranks; all must call it."""
        if self.count == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        torch.distributed.all_reduce(total)
        return total.item()

    def from_first(self, make: Callable[[], Any]) -> Any:
        """Calls a function on rank 0 and returns its result on all ranks."""
        if self.count == 1:
            return make()
        made = [make() if self.leads else None]
        torch.distributed.broadcast_object_list(made)
        return made[0]

    def gather(self, state: State | None) -> State | None:
        """Returns the states of all ranks, concatenated by rows, on rank 0; None on the others."""
        if self.count == 1 or state is None:
            return state
        states: list[State] | None = [None] * self.count if self.leads else None
        torch.distributed.gather_object(map_state(Tensor.cpu, state), states)
        return map_state(lambda *parts: torch.cat(parts), *states) if states else None

    def draw_dropout(self, step: int) -> None:
        """Seeds the dropout masks of one update, so that a resumed run repeats them.

        A single process saves its random state instead.
        """
        if self.count > 1:
            sequence = np.random.SeedSequence((self.seed, step, self.rank))
            torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))

    def loss_of(self, policy: ReturnConditionedPolicy) -> LossFunction:
        """Returns the policy's loss on this rank's share of the batch, weighted by its steps.

        `backward` leaves on every rank the gradient of the mean, the loss on the whole batch.
        """
        if self.count == 1:
            return policy.loss
        loss = DistributedDataParallel(_SharedLoss(policy, self))
        # DistributedDataParallel rebuilds its buckets after the first backward pass, which changes
        # the order of the sums. An empty first pass gives resumed and unbroken runs one order.
        nothing = torch.zeros(1, 1, device=self.device)
        total, _ = loss(
            observations=nothing.new_zeros(1, 1, policy.observation_dim),
            actions=nothing.new_zeros(1, 1, policy.action_dim),
            returns_to_go=nothing,
            timesteps=nothing.long(),
            resets=nothing.bool(),
            mask=nothing.bool(),
        )
        total.backward()
        return loss


class _SharedLoss(nn.Module):
    """The loss as a module, for DistributedDataParallel.

    Holds the parameters only: buffers never change, but would be broadcast at every update.
    """

    def __init__(self, policy: ReturnConditionedPolicy, ranks: Ranks) -> None:
        super().__init__()
        self.trained = nn.ParameterList(policy.parameters())
        self.loss = policy.loss
        self.ranks = ranks

    def forward(self, **batch: Any) -> tuple[Tensor, TrainingState]:
        """Takes the keyword arguments of `ReturnConditionedPolicy.loss`."""
        # A loss is a mean over real steps, and shares differ in their numbers of these.
        steps = int(batch["mask"].sum())
        weight = self.ranks.count * steps / max(1, self.ranks.sum(steps))
        loss, state = self.loss(**batch)
        return loss * weight, state


def launched() -> bool:
    """Whether torchrun has started this process as one of several."""
    return torch.distributed.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1


@functools.cache
def _store() -> torch.distributed.Store:
    store, _, _ = next(torch.distributed.rendezvous("env://"))
    return store


def join(device: torch.device, seed: int) -> Ranks:
    """Joins the other processes of a run that torchrun has started, if there are any.

    With `cuda`, each process of a machine takes a device of its own.
    """
    if not launched():
        return Ranks(device=device)
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if device.type == "cuda":
        local, there = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if local > there:
            raise UserError(
                f"torchrun started {local} processes on a machine with {there} CUDA devices; give "
                f"--nproc-per-node {there}, or device=cpu."
            )
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():  # by the run before, in a sweep
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=_store(),
            rank=rank,
            world_size=count,
            timeout=_PATIENCE,
        )
        atexit.register(torch.distributed.destroy_process_group)
    if rank > 0:
        logging.disable(logging.WARNING)  # rank 0 prints the same
    return Ranks(rank, count, device, seed)


def fails_first() -> bool:
    """Whether this process is the first to fail, and so the one to print its error; call it once.

    The others meet the same error, or fail because the first one has gone.
    """
    if not launched():
        return True
    try:
        return _store().add("failed", 1) == 1
    except RuntimeError:  # the process that kept the store has gone
        return False
