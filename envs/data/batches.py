"""Training batches: packed whole episodes, streams of episode segments, context windows.

The protocol decides how long a history the recurrent state has seen in training, which must cover
that of the rollout. All three sample every step equally often, or the best episodes' more often
(`best_share`). A batch is one gather from flat arrays, on the device that holds the data.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
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
from envs.data.order import EpisodeOrder, best_episodes

# Bytes of a step in a batch, of any dimensions: index, timestep, resets, mask, return-to-go.
_LEAST_STEP_BYTES = 22


@dataclass
class ProtocolConfig:
    """How episodes become batches.

    Attributes:
        name: `whole_episodes` (whole episodes packed end to end), `streamed` (consecutive segments
            of episodes in each row, the state carried from batch to batch) or `windowed` (context
            windows from the initial state).
        batch_steps: Steps in a batch, over all its rows; at least this many in `whole_episodes`.
        context_length: Steps in a row of a batch (`streamed`, `windowed`).
        restart: Probability that the state is reset at the start of a segment in the middle of an
            episode (`streamed`).
        best_share: Share of the steps that are drawn from the best 10 % of the episodes alone, the
            others from all of them; 0 draws every step equally often.
    """

    name: str = "streamed"
    batch_steps: int = number(1280, at_least=1, at_most=MOST_STEPS)
    context_length: int = number(64, at_least=1, at_most=MOST_STEPS)
    restart: float = number(0.25, at_least=0, at_most=1)
    best_share: float = number(0.5, at_least=0, at_most=1)

    def __post_init__(self) -> None:
        check_fields(self, "protocol")
        check_choice("protocol.name", self.name, BATCHES)
        if self.batch_steps < self.context_length:
            raise UserError(
                f"protocol.batch_steps is {self.batch_steps}, less than one row of "
                f"protocol.context_length = {self.context_length} steps; raise the first or lower "
                "the second."
            )
        size = self.batch_steps * _LEAST_STEP_BYTES
        require_memory(size, f"protocol.batch_steps={self.batch_steps}", "lower it.")

    @property
    def rows(self) -> int:
        """Rows in a batch of segments or windows."""
        return self.batch_steps // self.context_length


def last_arrived(starts: np.ndarray, lengths: np.ndarray, loss: float, seed: int) -> np.ndarray:
    """Draws which observations are lost, each with probability `loss`, the first of no episode.

    Args:
        starts: (episodes,), the first row of each episode.
        lengths: (episodes,), its steps.
        loss: Probability, 0 to 1.
        seed: Seed of the draws.

    Returns:
        (rows,) int64, for each row that of the last observation of its episode that arrived.
    """
    # A stream of its own: the order of the episodes is drawn from the same seed.
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    arrived = np.zeros(starts[-1] + lengths[-1], np.int64)
    for begin, length in zip(starts, lengths, strict=True):
        lost = generator.random(length) < loss
        lost[0] = False
        steps = np.where(lost, 0, np.arange(length))
        arrived[begin : begin + length] = begin + np.maximum.accumulate(steps)
    return arrived


class Batches:
    """The data on a device, and a resumable position in an endless random order of them.

    Batches are dictionaries of `observations` (batch, time, observation_dim), `actions` (batch,
    time, action_dim), `returns_to_go`, `timesteps`, `resets` and `mask` (batch, time).

    Each of `ranks` processes draws the same whole batch and gathers its own part of it, so the
    position does not depend on their number.

    With an `observation_loss`, a step has the observation that `last_arrived` draws for it, in
    every batch the same. `per_step` are further arrays with a row for each of the episodes' rows,
    (rows,), which batches have under the same names, (batch, time).

    Attributes:
        continues: Whether row i continues row i of the previous batch.
        own_rows: The rows of a batch that belong to this process (`streamed`, `windowed`).

    Raises:
        UserError: A batch is too small for each process to have a part of it.
    """

    continues = False
    # Attributes that make up the position, besides the random generator and the orders.
    position_names: tuple[str, ...] = ()

    def __init__(
        self,
        episodes: Episodes,
        config: ProtocolConfig,
        *,
        seed: int,
        device: torch.device,
        observation_loss: float = 0.0,
        per_step: Mapping[str, np.ndarray] | None = None,
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
        best = best_episodes(episodes)
        self.orders = [EpisodeOrder(np.arange(len(self.lengths))), EpisodeOrder(best)]
        # Probability that an episode or window is drawn from the best alone, to give their steps
        # that share: it is smaller where theirs are longer.
        others = (1 - config.best_share) * self._steps_of_a_draw(self.lengths[best])
        favoured = config.best_share * self._steps_of_a_draw(self.lengths)
        self.best_probability = favoured / (favoured + others)
        self.device = device
        arrays = {
            "observations": episodes.observations,
            "actions": episodes.actions,
            "returns_to_go": episodes.returns_to_go,
            **(per_step or {}),
        }
        self.too_large = too_large(arrays.values(), episodes.n_steps)
        # Data that do not fit into memory do not fit on the device either: only batches go there.
        home = torch.device("cpu") if self.too_large else device
        if home.type != "cpu" and episodes.n_steps < len(episodes.rewards):
            # Only what was selected is copied to the device.
            arrays = {
                k: np.concatenate([a[b:e] for b, e in episodes.spans]) for k, a in arrays.items()
            }
            self.starts = np.cumsum(self.lengths) - self.lengths
        self.arrived = None
        if observation_loss:
            self.arrived = last_arrived(self.starts, self.lengths, observation_loss, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of arrays that are read-only: so are these tensors
            self.data = {name: torch.as_tensor(a).to(home) for name, a in arrays.items()}

    def _least_steps(self) -> int:
        """Returns the least batch_steps with which every process has a part of each batch."""
        return self.ranks * self.config.context_length

    def _steps_of_a_draw(self, lengths: np.ndarray) -> float:
        """Returns the mean number of steps that are drawn at once from episodes of such lengths."""
        return float(lengths.mean())

    def _next_episode(self) -> int:
        """Returns the number of the next episode, of all of them or of the best."""
        best = self.best_probability > 0 and self.generator.random() < self.best_probability
        return self.orders[int(best)].next(self.generator)

    def _gather(self, index: np.ndarray, resets: np.ndarray, mask: np.ndarray) -> dict:
        rows = dict.fromkeys(self.data, index)
        if self.arrived is not None:
            rows["observations"] = self.arrived[index]
        batch = {
            name: values[torch.as_tensor(rows[name]).to(values.device)].to(self.device)
            for name, values in self.data.items()
        }
        release(*self.too_large)
        episode = np.searchsorted(self.starts, index, side="right") - 1
        batch["timesteps"] = torch.as_tensor(index - self.starts[episode]).to(self.device)
        batch["resets"] = torch.as_tensor(resets).to(self.device)
        batch["mask"] = torch.as_tensor(mask).to(self.device)
        return batch

    def next(self) -> dict[str, Tensor]:
        """Returns the next batch and advances the position."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Returns the position: plain numbers and tensors."""
        values = {name: getattr(self, name) for name in self.position_names}
        copies = {
            name: torch.as_tensor(value.copy()) if isinstance(value, np.ndarray) else value
            for name, value in values.items()
        }
        orders = [(torch.as_tensor(order.order), order.drawn) for order in self.orders]
        return {"generator": self.generator.bit_generator.state, "orders": orders, **copies}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a position."""
        self.generator.bit_generator.state = state["generator"]
        for order, (permutation, drawn) in zip(self.orders, state["orders"], strict=True):
            order.order, order.drawn = permutation.numpy().copy(), drawn
        for name in self.position_names:
            value = state[name]
            setattr(self, name, value.numpy().copy() if isinstance(value, Tensor) else value)


class WholeEpisodes(Batches):
    """`whole_episodes`: one row of whole episodes, end to end, at least batch_steps long."""

    def _least_steps(self) -> int:
        """Returns that number; with fewer steps there may be fewer episodes than processes."""
        return (self.ranks - 1) * int(self.lengths.max()) + 1

    def next(self) -> dict[str, Tensor]:
        """Returns a batch of one row; its length varies with the episodes drawn."""
        chosen: list[int] = []
        while self.lengths[chosen].sum() < self.config.batch_steps:
            chosen.append(self._next_episode())
        own = self._share(chosen)
        index = np.concatenate(
            [np.arange(self.starts[e], self.starts[e] + self.lengths[e]) for e in own]
        )
        resets = np.isin(index, self.starts[own])
        return self._gather(index[None], resets[None], np.ones((1, len(index)), bool))

    def _share(self, episodes: list[int]) -> list[int]:
        """Assigns each episode to the process with the fewest steps so far; returns this one's."""
        steps = [0] * self.ranks
        shares: list[list[int]] = [[] for _ in steps]
        for episode in episodes:
            rank = steps.index(min(steps))
            steps[rank] += int(self.lengths[episode])
            shares[rank].append(episode)
        return shares[self.rank]


class Streams(Batches):
    """`streamed`: each row continues the same row of the previous batch.

    A stream plays one episode after the other. Each stream enters its first episode at a random
    step, so that streams of equally long episodes are not synchronised. The state is reset before
    some segments: otherwise it would be in its initial value once an episode, too seldom to learn
    to act well from it.
    """

    continues = True
    position_names = ("position", "end", "fresh")

    def __init__(self, episodes: Episodes, config: ProtocolConfig, **kwargs: Any) -> None:
        super().__init__(episodes, config, **kwargs)
        # Rows of the flat arrays: the next step of each stream, and the end of its episode.
        self.position = np.zeros(config.rows, dtype=np.int64)
        self.end = np.zeros(config.rows, dtype=np.int64)
        for row in range(config.rows):
            self._enter_next_episode(row)
            self.position[row] += self.generator.integers(self.end[row] - self.position[row])
        self.fresh = True

    def _enter_next_episode(self, row: int) -> None:
        episode = self._next_episode()
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
        index, resets = index[self.own_rows], resets[self.own_rows]
        return self._gather(index, resets, np.ones(index.shape, bool))


class Windows(Batches):
    """`windowed`: windows of context_length steps, drawn so that each step is seen equally often.

    A window may begin before its episode or end after it, and is cut there. Decision Transformer
    samples only beginnings inside the episode, so it sees the first step of an episode
    context_length times less often than later ones.
    """

    def __init__(self, episodes: Episodes, config: ProtocolConfig, **kwargs: Any) -> None:
        super().__init__(episodes, config, **kwargs)
        # Each episode of n steps has n + context_length - 1 windows; this counts them up.
        self.windows_until = np.cumsum(self.lengths + config.context_length - 1)
        best = self.orders[1].chosen
        self.best_until = np.cumsum(self.lengths[best] + config.context_length - 1)

    def next(self) -> dict[str, Tensor]:
        """Returns a batch (rows, context_length), padded on the right where a window was cut."""
        length = self.config.context_length
        window = self.generator.integers(self.windows_until[-1], size=self.config.rows)
        if self.config.best_share:
            of_the_best = self.generator.random(self.config.rows) < self.best_probability
            window = np.where(of_the_best, self._best_windows(), window)
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

    def _steps_of_a_draw(self, lengths: np.ndarray) -> float:
        """Returns the mean number of steps in a window: those cut at a border have fewer."""
        length = self.config.context_length
        return float(length * lengths.mean() / (lengths.mean() + length - 1))

    def _best_windows(self) -> np.ndarray:
        """Draws a window of the best episodes for each row; returns its number among all."""
        drawn = self.generator.integers(self.best_until[-1], size=self.config.rows)
        among = np.searchsorted(self.best_until, drawn, side="right")
        return drawn + (self.windows_until[self.orders[1].chosen] - self.best_until)[among]


BATCHES: dict[str, type[Batches]] = {
    "whole_episodes": WholeEpisodes,
    "streamed": Streams,
    "windowed": Windows,
}


def make_batches(episodes: Episodes, config: ProtocolConfig, **others: Any) -> Batches:
    """Returns the batches of a protocol; the arguments are those of `Batches`."""
    return BATCHES[config.name](episodes, config, **others)
