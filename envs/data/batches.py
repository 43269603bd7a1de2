"""Training batches from episodes: packed whole episodes, streams of pieces, context windows.

A protocol says what the state has seen in training, which must cover what it meets in the
rollout. All three sample every step of the data equally often and are index arithmetic on flat
arrays: a batch is one gather, on the device where the data lie.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.checks import MOST_STEPS, check_choice, check_fields, number
from common.errors import UserError
from common.memory import require_memory
from envs.data.episodes import Episodes
from envs.data.mapped import release, too_large

# Bytes of a step in a batch, of any dimensions: index, timestep, resets, mask, return-to-go.
_LEAST_STEP_BYTES = 22


@dataclass
class ProtocolConfig:
    """How episodes become batches.

    Attributes:
        name: `whole_episodes` (whole episodes packed end to end), `streamed` (pieces of episodes in
            many streams, the state carried from piece to piece) or `windowed` (context windows
            from the initial state).
        batch_steps: Steps in a batch, over all its rows; `whole_episodes` takes whole episodes
            until it has at least these.
        context_length: Steps in a row of a batch (`streamed`, `windowed`).
        restart: Probability that a piece begins from the initial state, as only the first of an
            episode would (`streamed`).
    """

    name: str = "streamed"
    batch_steps: int = number(2048, at_least=1, at_most=MOST_STEPS)
    context_length: int = number(64, at_least=1, at_most=MOST_STEPS)
    restart: float = number(0.25, at_least=0, at_most=1)

    def __post_init__(self) -> None:
        check_fields(self, "protocol")
        check_choice("protocol.name", self.name, BATCHES)
        if self.batch_steps < self.context_length:
            raise UserError(
                f"protocol.batch_steps is {self.batch_steps}, less than one row of "
                f"protocol.context_length = {self.context_length} steps; raise the first or lower "
                "the second."
            )
        require_memory(
            self.batch_steps * _LEAST_STEP_BYTES,
            f"protocol.batch_steps={self.batch_steps}",
            "lower it.",
        )

    @property
    def rows(self) -> int:
        """Rows in a batch of pieces or windows."""
        return self.batch_steps // self.context_length


class Batches:
    """The data on a device, and a position in an endless random order of it.

    Batches are dictionaries of `observations` (batch, time, observation_dim), `actions` (batch,
    time, action_dim), `returns_to_go`, `timesteps`, `resets` and `mask` (batch, time).

    Processes that share the batches draw the same ones, and each gathers its own part of them: so
    a position is the same for all, whatever their number.

    Attributes:
        continues: Whether row i continues row i of the previous batch.
        own_rows: Which of a batch's rows are this process's (`streamed`, `windowed`).
    """

    continues = False

    def __init__(
        self,
        episodes: Episodes,
        config: ProtocolConfig,
        *,
        seed: int,
        device: torch.device,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.config = config
        self.rank, self.ranks = rank, ranks
        self.own_rows = slice(config.rows * rank // ranks, config.rows * (rank + 1) // ranks)
        self.lengths, self.starts = episodes.lengths, episodes.starts
        if config.batch_steps < self._least_steps():
            raise UserError(
                f"protocol.batch_steps is {config.batch_steps}, too few for {ranks} processes to "
                f"share; raise it to at least {self._least_steps()}, or start fewer processes."
            )
        self.generator = np.random.default_rng(seed)
        self.device = device
        arrays = {
            "observations": episodes.observations,
            "actions": episodes.actions,
            "returns_to_go": episodes.returns_to_go,
        }
        self.too_large = too_large(arrays.values(), episodes.n_steps)
        # Data that do not fit in memory do not fit on the device either: their batches go there.
        home = torch.device("cpu") if self.too_large else device
        if home.type != "cpu" and episodes.n_steps < len(episodes.rewards):
            # Only what was selected is copied to the device.
            arrays = {
                k: np.concatenate([a[b:e] for b, e in episodes.spans]) for k, a in arrays.items()
            }
            self.starts = np.cumsum(self.lengths) - self.lengths
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of arrays that are read-only: so are these tensors
            self.data = {name: torch.as_tensor(a).to(home) for name, a in arrays.items()}

    def _least_steps(self) -> int:
        """Returns the steps in a batch from which on every process has a part of it."""
        return self.ranks * self.config.context_length

    def _gather(self, index: np.ndarray, resets: np.ndarray, mask: np.ndarray | None) -> dict:
        batch = {
            name: values[torch.as_tensor(index).to(values.device)].to(self.device)
            for name, values in self.data.items()
        }
        release(*self.too_large)
        episode = np.searchsorted(self.starts, index, side="right") - 1
        batch["timesteps"] = torch.as_tensor(index - self.starts[episode]).to(self.device)
        batch["resets"] = torch.as_tensor(resets).to(self.device)
        if mask is None:
            mask = np.ones(index.shape, dtype=bool)
        batch["mask"] = torch.as_tensor(mask).to(self.device)
        return batch

    def next(self) -> dict[str, Tensor]:
        """Returns the next batch and moves on."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Returns the position: plain numbers and tensors."""
        return {"generator": self.generator.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a position back."""
        self.generator.bit_generator.state = state["generator"]


class EpisodeOrder:
    """Every episode once in a random order, then every one again in another, without end."""

    def __init__(self, n_episodes: int, generator: np.random.Generator) -> None:
        self.n_episodes = n_episodes
        self.generator = generator
        self.order = np.zeros(0, dtype=np.int64)
        self.position = 0

    def next(self) -> int:
        """Returns the next episode's number."""
        if self.position == len(self.order):
            self.order = self.generator.permutation(self.n_episodes)
            self.position = 0
        self.position += 1
        return int(self.order[self.position - 1])

    def state_dict(self) -> dict[str, Any]:
        """Returns the rest of the order."""
        return {"order": torch.as_tensor(self.order.copy()), "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes an order back."""
        self.order = state["order"].numpy().copy()
        self.position = state["position"]


class WholeEpisodes(Batches):
    """`whole_episodes`: one row of whole episodes, end to end, at least batch_steps long."""

    def __init__(self, episodes: Episodes, config: ProtocolConfig, **kwargs: Any) -> None:
        super().__init__(episodes, config, **kwargs)
        self.order = EpisodeOrder(len(self.lengths), self.generator)

    def _least_steps(self) -> int:
        """In fewer steps there may be fewer episodes than processes, if they are long ones."""
        return (self.ranks - 1) * int(self.lengths.max()) + 1

    def next(self) -> dict[str, Tensor]:
        """Returns a batch of one row; its length varies with the episodes drawn."""
        chosen: list[int] = []
        while self.lengths[chosen].sum() < self.config.batch_steps:
            chosen.append(self.order.next())
        own = self._share(chosen)
        index = np.concatenate(
            [np.arange(self.starts[e], self.starts[e] + self.lengths[e]) for e in own]
        )
        resets = np.isin(index, self.starts[own])
        return self._gather(index[None], resets[None], None)

    def _share(self, episodes: list[int]) -> list[int]:
        """Deals episodes out, each to the process that has the fewest steps so far."""
        steps = [0] * self.ranks
        shares: list[list[int]] = [[] for _ in steps]
        for episode in episodes:
            rank = steps.index(min(steps))
            steps[rank] += int(self.lengths[episode])
            shares[rank].append(episode)
        return shares[self.rank]

    def state_dict(self) -> dict[str, Any]:
        """Returns the position, the episodes' order included."""
        return super().state_dict() | {"order": self.order.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a position back."""
        super().load_state_dict(state)
        self.order.load_state_dict(state["order"])


class Streams(Batches):
    """`streamed`: each row goes on where the same row of the batch before ended.

    A stream plays one episode after the other. The first episode of each is entered at a random
    step, so that streams of equally long episodes do not march in step. Some pieces go on from the
    initial state: without that it is seen once an episode, too seldom to act well in it.
    """

    continues = True

    def __init__(self, episodes: Episodes, config: ProtocolConfig, **kwargs: Any) -> None:
        super().__init__(episodes, config, **kwargs)
        self.order = EpisodeOrder(len(self.lengths), self.generator)
        # Rows of the flat arrays: where each stream stands, and where its episode ends.
        self.position = np.zeros(config.rows, dtype=np.int64)
        self.end = np.zeros(config.rows, dtype=np.int64)
        for row in range(config.rows):
            self._enter_next_episode(row)
            self.position[row] += self.generator.integers(self.end[row] - self.position[row])
        self.fresh = True

    def _enter_next_episode(self, row: int) -> None:
        episode = self.order.next()
        self.position[row] = self.starts[episode]
        self.end[row] = self.starts[episode] + self.lengths[episode]

    def next(self) -> dict[str, Tensor]:
        """Returns a batch (rows, context_length) that continues the one before."""
        index = np.empty((self.config.rows, self.config.context_length), dtype=np.int64)
        resets = np.zeros(index.shape, dtype=bool)
        resets[:, 0] = self.generator.random(self.config.rows) < self.config.restart
        resets[:, 0] |= self.fresh
        for row in range(self.config.rows):
            filled = 0
            while filled < self.config.context_length:
                if self.position[row] == self.end[row]:
                    self._enter_next_episode(row)
                    resets[row, filled] = True
                count = min(self.config.context_length - filled, self.end[row] - self.position[row])
                index[row, filled : filled + count] = self.position[row] + np.arange(count)
                self.position[row] += count
                filled += count
        self.fresh = False
        return self._gather(index[self.own_rows], resets[self.own_rows], None)

    def state_dict(self) -> dict[str, Any]:
        """Returns the position of every stream."""
        return super().state_dict() | {
            "order": self.order.state_dict(),
            "position": torch.as_tensor(self.position.copy()),
            "end": torch.as_tensor(self.end.copy()),
            "fresh": self.fresh,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a position back."""
        super().load_state_dict(state)
        self.order.load_state_dict(state["order"])
        self.position = state["position"].numpy().copy()
        self.end = state["end"].numpy().copy()
        self.fresh = state["fresh"]


class Windows(Batches):
    """`windowed`: windows of context_length steps, drawn so that each step is seen equally often.

    A window may begin before its episode or end after it, and is cut there. Decision Transformer
    draws only beginnings inside the episode, so that it sees an episode's first step
    context_length times less often than its later ones.
    """

    def __init__(self, episodes: Episodes, config: ProtocolConfig, **kwargs: Any) -> None:
        super().__init__(episodes, config, **kwargs)
        # Each episode of n steps has n + context_length - 1 windows; this counts them up.
        self.windows_until = np.cumsum(self.lengths + config.context_length - 1)

    def next(self) -> dict[str, Tensor]:
        """Returns a batch (rows, context_length), padded on the right where a window was cut."""
        length = self.config.context_length
        window = self.generator.integers(self.windows_until[-1], size=self.config.rows)
        window = window[self.own_rows]
        episode = np.searchsorted(self.windows_until, window, side="right")
        # The window's last step within its episode, counted from the last possible one.
        last = self.windows_until[episode] - 1 - window
        first = np.maximum(last - (length - 1), 0)
        index = first[:, None] + np.arange(length)
        mask = index < np.minimum(last + 1, self.lengths[episode])[:, None]
        resets = np.zeros(index.shape, dtype=bool)
        resets[:, 0] = True
        index = self.starts[episode][:, None] + np.where(mask, index, first[:, None])
        return self._gather(index, resets, mask)


BATCHES: dict[str, type[Batches]] = {
    "whole_episodes": WholeEpisodes,
    "streamed": Streams,
    "windowed": Windows,
}


def make_batches(
    episodes: Episodes,
    config: ProtocolConfig,
    *,
    seed: int,
    device: torch.device,
    rank: int = 0,
    ranks: int = 1,
) -> Batches:
    """Returns the endless batches of a protocol, or the share of one of several processes.

    Args:
        episodes: The data.
        config: The protocol.
        seed: Of the random order.
        device: Where the data and the batches lie.
        rank: Which process's share this is.
        ranks: How many processes share each batch.

    Raises:
        UserError: A batch is too small for each process to have a part of it.
    """
    return BATCHES[config.name](episodes, config, seed=seed, device=device, rank=rank, ranks=ranks)
