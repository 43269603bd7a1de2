"""One run in several processes: torchrun starts them, and each trains on its share of the batches.

    torchrun --nproc-per-node 2 train.py

All ranks hold the same parameters and make the same update, from the gradient of the whole batch;
the first one alone (rank 0) writes, evaluates and talks. Without torchrun there is one rank, and
nothing here costs anything. What ranks tell each other, their gradients apart, is small and lies
on the CPU, so it goes through gloo whatever the device.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

# Ranks wait for the first while it makes a data set or evaluates. That one of them has died they
# find at once, without this.
_PATIENCE = timedelta(days=1)

LossFunction = Callable[..., tuple[Tensor, TrainingState]]


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, as one of them sees them.

    Attributes:
        rank: This one's number.
        count: How many there are.
        device: Where this one computes.
        seed: Of the dropout, of several.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0

    def __str__(self) -> str:
        return str(self.device) if self.count == 1 else f"{self.count} x {self.device.type}"

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes, evaluates and talks."""
        return self.rank == 0

    def sum(self, value: float) -> float:
        """Returns the sum of every rank's value, once all have come here."""
        if self.count == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        torch.distributed.all_reduce(total)
        return total.item()

    @contextmanager
    def one_first(self) -> Iterator[None]:
        """Lets one process of each machine through first, so that what it makes is there."""
        first = int(os.environ["LOCAL_RANK"]) == 0 if self.count > 1 else True
        if not first:
            self.sum(0)
        yield
        if first:
            self.sum(0)

    def from_first(self, make: Callable[[], Any]) -> Any:
        """Returns to all what a function returns to the first rank, the only one to call it."""
        if self.count == 1:
            return make()
        made = [make() if self.leads else None]
        torch.distributed.broadcast_object_list(made)
        return made[0]

    def gather(self, state: State | None) -> State | None:
        """Returns to the first rank the rows of all ranks' states, in order; None to the others."""
        if self.count == 1 or state is None:
            return state
        states: list[State] | None = [None] * self.count if self.leads else None
        torch.distributed.gather_object(map_state(Tensor.cpu, state), states)
        return None if states is None else _concatenate(states)

    def draw_dropout(self, step: int) -> None:
        """Seeds this rank's dropout masks of one update.

        They depend on nothing but seed, update and rank, so that resuming repeats them; one
        process alone goes on with its random state instead.
        """
        if self.count > 1:
            sequence = np.random.SeedSequence((self.seed, step, self.rank))
            torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))

    def loss_of(self, policy: ReturnConditionedPolicy) -> LossFunction:
        """Returns the policy's loss on this rank's share of the batch.

        It is such that the mean of the ranks' losses is the loss on the whole batch, and its
        `backward` leaves each rank with the gradient of that.
        """
        if self.count == 1:
            return policy.loss
        loss = DistributedDataParallel(_SharedLoss(policy, self))
        # It lays its buckets out anew after the first pass, and then adds up in another order. So
        # that a resumed run adds up as an unbroken one, each begins with a pass for nothing.
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
    """A policy's loss as a module's `forward`, which is what DistributedDataParallel knows.

    It holds the parameters alone: the policy's buffers never change, and would be sent around at
    every update.
    """

    def __init__(self, policy: ReturnConditionedPolicy, ranks: Ranks) -> None:
        super().__init__()
        self.trained = nn.ParameterList(policy.parameters())
        self.loss = policy.loss
        self.ranks = ranks

    def forward(self, **batch: Any) -> tuple[Tensor, TrainingState]:
        """Takes the keyword arguments of `ReturnConditionedPolicy.loss`."""
        # A loss is a mean over real steps, and shares differ in their number.
        steps = int(batch["mask"].sum())
        weight = self.ranks.count * steps / max(1, self.ranks.sum(steps))
        loss, state = self.loss(**batch)
        return loss * weight, state


def _concatenate(states: list[State]) -> State:
    if isinstance(states[0], Tensor):
        return torch.cat(states)
    return tuple(_concatenate(list(parts)) for parts in zip(*states, strict=True))


def launched() -> bool:
    """Whether torchrun has started this process beside others."""
    return torch.distributed.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1


@functools.cache
def _store() -> torch.distributed.Store:
    store, _, _ = next(torch.distributed.rendezvous("env://"))
    return store


def join(device: torch.device, seed: int) -> Ranks:
    """Joins the other processes of a run that torchrun has started, if there are any.

    Args:
        device: `cpu`, or `cuda`: each process of a machine then takes a device of its own.
        seed: The run's.

    Raises:
        UserError: A machine has fewer CUDA devices than processes.
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
        logging.disable(logging.WARNING)  # the first rank says the same
    return Ranks(rank, count, device, seed)


def fails_first() -> bool:
    """Whether this process, about to end with an error, should say so.

    Of several only the first to fail should: the others meet the same error, or fail because that
    one has gone. Call it once.
    """
    if not launched():
        return True
    try:
        return _store().add("failed", 1) == 1
    except RuntimeError:  # what is lost is the process that kept the store
        return False
