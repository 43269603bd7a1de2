"""Episodes: every data set as the same flat arrays, validated once."""

import hashlib
from collections.abc import Iterator
from dataclasses import InitVar, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from common.errors import UserError
from envs.data.mapped import pieces, release
from envs.tasks import Reference

# Dimensions that hardly vary in the data must not get huge values when a rollout leaves them; the
# constant is that of TD3+BC (Fujimoto and Gu, arXiv 2106.06860, section 5.2).
OBSERVATION_STD_FLOOR = 1e-3

# Room for the rounding of bounds and actions that were stored in different precisions.
ACTION_TOLERANCE = 1e-5

# The arrays that have a row for each step.
TYPES: dict[str, type] = {
    "observations": np.float32,
    "actions": np.float32,
    "rewards": np.float32,
    "terminations": np.bool_,
    "truncations": np.bool_,
}


@dataclass(frozen=True, eq=False)
class Episodes:
    """Whole episodes in flat arrays that have a row for each step.

    Row t holds the observation in which action t was taken, and its outcome; the observation after
    the last action of an episode is not kept. Episode i is the rows starts[i] to
    starts[i] + lengths[i] - 1. A selection of episodes (`select`) shares the arrays and has fewer
    starts and lengths: nothing is copied. Arrays are converted to the types below and validated.

    >>> episodes = Episodes.from_arrays(
    ...     observations=np.zeros((5, 2)),
    ...     actions=np.zeros((5, 1)),
    ...     rewards=[1, 1, 1, 10, 10],
    ...     terminations=[0, 0, 1, 0, 0],
    ...     truncations=[0, 0, 0, 0, 1],
    ...     action_low=[-1],
    ...     action_high=[1],
    ...     dataset_id="mine/walk-v0",
    ... )
    >>> episodes.lengths.tolist(), episodes.returns.tolist()
    ([3, 2], [3.0, 20.0])
    >>> episodes.returns_to_go.tolist()
    [3.0, 2.0, 1.0, 20.0, 10.0]

    Attributes:
        observations: (rows, observation_dim) float32.
        actions: (rows, action_dim) float32.
        rewards: (rows,) float32.
        terminations: (rows,) bool.
        truncations: (rows,) bool.
        lengths: (episodes,) int64, steps of each episode.
        action_low: (action_dim,) float32, lower bounds of the actions.
        action_high: (action_dim,) float32, upper bounds of the actions.
        dataset_id: Id of the data set.
        environment_id: Gymnasium id of the environment; None if unknown.
        environment_kwargs: Keyword arguments of `gymnasium.make` for that environment.
        reference: Reference returns; None if none are known.
        starts: (episodes,) int64, ascending, the first row of each episode; by default the
            episodes are contiguous and cover all rows.
        check: Whether the values are validated; arrays from the cache already were.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    lengths: np.ndarray
    action_low: np.ndarray
    action_high: np.ndarray
    dataset_id: str
    environment_id: str | None = None
    environment_kwargs: dict[str, Any] = field(default_factory=dict)
    reference: Reference | None = None
    starts: np.ndarray = field(default=None)  # type: ignore[arg-type]
    check: InitVar[bool] = True

    def __post_init__(self, check: bool) -> None:
        bounds = {"action_low": np.float32, "action_high": np.float32}
        for name, dtype in (TYPES | bounds | {"lengths": np.int64}).items():
            self._convert(name, dtype)
        if self.starts is None:
            if (steps := self.lengths.sum()) != len(self.rewards):
                self._fail(f"{steps} steps in episodes for {len(self.rewards)} rewards")
            object.__setattr__(self, "starts", np.cumsum(self.lengths) - self.lengths)
        self._convert("starts", np.int64)
        if check:
            self.validate()

    def _convert(self, name: str, dtype: type) -> None:
        array = numbers(self.dataset_id, name, getattr(self, name))
        with np.errstate(over="ignore"):  # becomes infinite, which `validate` reports
            object.__setattr__(self, name, np.ascontiguousarray(array, dtype))

    @classmethod
    def from_arrays(
        cls,
        observations: Any,
        actions: Any,
        rewards: Any,
        terminations: Any,
        truncations: Any,
        *,
        dataset_id: str,
        **others: Any,
    ) -> "Episodes":
        """Splits flat arrays into episodes: one ends where it is terminated or truncated.

        The arrays are those of the class; rewards and flags may be (rows, 1). A truncation ends an
        episode for another reason than termination, such as a time limit. The last row must end
        an episode. `others` are further arguments of the class.
        """
        rewards = column(dataset_id, "rewards", rewards)
        terminations = flags(dataset_id, "terminations", terminations)
        truncations = flags(dataset_id, "truncations", truncations)
        for name, array in (("terminations", terminations), ("truncations", truncations)):
            if len(array) != len(rewards):
                raise UserError(
                    f"{dataset_id}: there are {len(array)} {name} for {len(rewards)} rewards; "
                    "each step needs one of each"
                )
        ends = np.flatnonzero(terminations | truncations) + 1
        if len(rewards) and (not len(ends) or ends[-1] != len(rewards)):
            last = len(rewards) - 1
            raise UserError(
                f"{dataset_id}: the last episode has no end: neither terminations[{last}] nor "
                f"truncations[{last}] is true; mark its last step as truncated, or remove it"
            )
        return cls(
            *(observations, actions, rewards, terminations, truncations),
            lengths=np.diff(ends, prepend=0),
            dataset_id=dataset_id,
            **others,
        )

    def select(self, chosen: np.ndarray, dataset_id: str | None = None) -> "Episodes":
        """Returns the episodes of these numbers, in the order of the data; shares the arrays."""
        chosen = np.unique(chosen)
        selected = replace(
            self,
            starts=self.starts[chosen],
            lengths=self.lengths[chosen],
            dataset_id=dataset_id or self.dataset_id,
            check=False,
        )
        if "returns_to_go" in vars(self):  # each episode has its own, in any selection
            vars(selected)["returns_to_go"] = self.returns_to_go
        return selected

    def validate(self) -> None:
        """Checks shapes, borders, finiteness and action bounds.

        Raises:
            UserError: With the array, the first bad index and what was expected.
        """
        rows = len(self.rewards)
        for name in TYPES:
            array, dimensions = getattr(self, name), 2 if name in ("observations", "actions") else 1
            if array.ndim != dimensions:
                self._fail(f"{name} has shape {array.shape}, not {dimensions} dimensions")
            if len(array) != rows:
                self._fail(f"{len(array)} {name} for {rows} rewards; each step needs one of each")
        # Borders of episodes.
        if self.n_episodes < 1:
            self._fail("there is no episode; at least one is needed")
        if (empty := np.flatnonzero(self.lengths < 1)).size:
            self._fail(f"episode {empty[0]} is empty; remove it")
        ends = self.starts + self.lengths
        if self.starts[0] < 0 or ends[-1] > rows or (self.starts[1:] < ends[:-1]).any():
            self._fail(f"its episodes overlap, or leave the {rows} rows of the arrays")
        for name in ("terminations", "truncations"):
            flagged = np.flatnonzero(getattr(self, name))
            episode = self._episode(flagged)
            early = flagged[(episode >= 0) & (flagged < ends[episode] - 1)]
            if early.size:
                self._fail_at(name, early[:1], "ends an episode before its last step; split it")
        # Values.
        low, high = self.action_low, self.action_high
        for name, bound in (("action_low", low), ("action_high", high)):
            if bound.shape != self.actions.shape[1:] or not np.isfinite(bound).all():
                self._fail(
                    f"{name} is {_line(bound)}, not {self.actions.shape[1]} finite numbers; give "
                    "the bounds that the actions really have, a number for each dimension"
                )
        if (wrong := np.flatnonzero(low > high)).size:
            self._fail(
                f"action_low[{wrong[0]}] = {low[wrong[0]]} is above action_high[{wrong[0]}] = "
                f"{high[wrong[0]]}; exchange them"
            )
        outside = (
            f"is outside the bounds {_line(low)} to {_line(high)} by more than "
            f"{ACTION_TOLERANCE:g}; clip the actions or widen the bounds"
        )
        for piece in self.pieces("observations", "actions", "rewards"):
            for name in ("observations", "actions", "rewards"):
                bad = ~np.isfinite(getattr(self, name)[piece])
                self._require_none(
                    name, piece, bad, "is not finite (in float32); remove the episode"
                )
            actions = self.actions[piece]
            bad = (actions < low - ACTION_TOLERANCE) | (actions > high + ACTION_TOLERANCE)
            self._require_none("actions", piece, bad, outside)

    def _require_none(self, name: str, piece: slice, bad: np.ndarray, message: str) -> None:
        if bad.any():
            self._fail_at(name, np.argwhere(bad)[0] + [piece.start, 0][: bad.ndim], message)

    def _fail_at(self, name: str, index: np.ndarray, message: str) -> None:
        value = getattr(self, name)[tuple(index)]
        where = ", ".join(map(str, index))
        self._fail(f"{name}[{where}] = {value} (episode {self._episode(index[0])}) {message}")

    def _fail(self, message: str) -> None:
        raise UserError(f"{self.dataset_id}: {message}")

    def _episode(self, rows: Any) -> Any:
        """Returns the number of the episode of each row, -1 before the first."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    @property
    def n_steps(self) -> int:
        """Number of steps in all episodes."""
        return int(self.lengths.sum())

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return len(self.lengths)

    @property
    def borders(self) -> Iterator[tuple[int, int]]:
        """First row and one past the last row of each episode."""
        return zip(self.starts.tolist(), (self.starts + self.lengths).tolist(), strict=True)

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """The ranges of rows that the episodes cover, adjacent ones merged."""
        ends = self.starts + self.lengths
        gaps = np.flatnonzero(self.starts[1:] != ends[:-1])
        begins = self.starts[np.concatenate([[0], gaps + 1])]
        return list(zip(begins.tolist(), ends[np.append(gaps, -1)].tolist(), strict=True))

    def pieces(self, *names: str) -> Iterator[slice]:
        """Yields slices that cover the episodes; releases the pages of the named arrays."""
        return pieces([getattr(self, name) for name in names], self.spans)

    @cached_property
    def returns(self) -> np.ndarray:
        """(episodes,) float64, sum of the rewards of each episode."""
        # reduceat sums from each border to the next: every second sum is that of a gap.
        borders = np.stack([self.starts, self.starts + self.lengths], axis=1).ravel()
        inside = borders[borders < len(self.rewards)]
        result: np.ndarray = np.add.reduceat(self.rewards, inside, dtype=np.float64)[::2]
        release(self.rewards)
        return result

    @cached_property
    def terminated(self) -> np.ndarray:
        """(episodes,) bool, whether an episode ends by termination, and not by truncation."""
        result = self.terminations[self.starts + self.lengths - 1]
        release(self.terminations)
        return result

    @cached_property
    def cut_short(self) -> bool:
        """Whether the best 10 % of the episodes fall: they end, where to go on would earn more.

        That is, more than half of them end by termination, and over all episodes return and length
        correlate above 0.5. An episode that ends because its goal is reached is not cut short.
        """
        if np.ptp(self.lengths) == 0 or np.ptp(self.returns) == 0:
            return False
        grows = np.corrcoef(self.lengths, self.returns)[0, 1] > 0.5
        return bool(grows and self.terminated[self.best(0.1)].mean() > 0.5)

    def each_returns_to_go(self) -> Iterator[np.ndarray]:
        """Yields the returns-to-go of each episode, (steps,) float32.

        Summed in float64 within each episode: differences of one cumulative sum over all episodes
        would carry the rounding errors of one into the next.
        """
        for begin, end in self.borders:
            rewards = self.rewards[begin:end]
            yield np.cumsum(rewards[::-1], dtype=np.float64)[::-1].astype(np.float32)
        release(self.rewards)

    @cached_property
    def returns_to_go(self) -> np.ndarray:
        """(rows,) float32, sum of the rewards from each step (inclusive) to its episode's end.

        Rows outside the selection hold any numbers.
        """
        result = np.zeros(len(self.rewards), np.float32)
        for (begin, end), values in zip(self.borders, self.each_returns_to_go(), strict=True):
            result[begin:end] = values
        return result

    @cached_property
    def observation_mean(self) -> np.ndarray:
        """(observation_dim,) float32, mean over the steps of the episodes."""
        return self._observation_moments[0]

    @cached_property
    def observation_std(self) -> np.ndarray:
        """(observation_dim,) float32, standard deviation, at least OBSERVATION_STD_FLOOR."""
        return self._observation_moments[1]

    @cached_property
    def _observation_moments(self) -> tuple[np.ndarray, np.ndarray]:
        values = self.observations
        total = sum(values[p].sum(axis=0, dtype=np.float64) for p in self.pieces("observations"))
        mean = total / self.n_steps
        square = sum(np.square(values[p] - mean).sum(axis=0) for p in self.pieces("observations"))
        std = np.maximum(np.sqrt(square / self.n_steps), OBSERVATION_STD_FLOOR)
        return mean.astype(np.float32), std.astype(np.float32)

    def best(self, fraction: float) -> np.ndarray:
        """Returns the numbers of the best `fraction` (0 to 1) of the episodes, at least one."""
        count = max(1, round(fraction * self.n_episodes))
        return np.sort(np.argsort(-self.returns, kind="stable")[:count])

    def top_fraction_return(self, fraction: float = 0.1) -> float:
        """Returns the mean return of the best `fraction` (0 to 1) of the episodes, at least one."""
        return float(np.sort(self.returns[self.best(fraction)]).mean())

    @cached_property
    def sha256(self) -> str:
        """A hash of the observations, actions and rewards, and of the borders."""
        digest = hashlib.sha256()
        for name in ("observations", "actions", "rewards"):
            for piece in self.pieces(name):
                digest.update(getattr(self, name)[piece].data)
        digest.update(np.concatenate([[0], np.cumsum(self.lengths)]).data)
        return digest.hexdigest()


def numbers(where: str, name: str, array: Any) -> np.ndarray:
    """Returns an array of real numbers, or raises UserError for text, objects, ragged rows."""
    try:
        array = np.atleast_1d(array)
    except ValueError:
        raise UserError(f"{where}: the rows of {name} are of unequal length") from None
    if array.dtype.kind not in "biuf":
        raise UserError(f"{where}: {name} are {array.dtype}; they must be real numbers or bool")
    return array


def column(where: str, name: str, array: Any) -> np.ndarray:
    """Returns (steps,) of an array (steps,) or (steps, 1), or raises UserError."""
    array = numbers(where, name, array)
    if array.ndim == 2 and array.shape[1] == 1:
        return array[:, 0]
    if array.ndim != 1:
        raise UserError(f"{where}: {name} has shape {array.shape}, not (steps,) or (steps, 1)")
    return array


def flags(where: str, name: str, array: Any) -> np.ndarray:
    """Returns (steps,) bool of 0s and 1s, (steps,) or (steps, 1); UserError for NaN and others."""
    array = column(where, name, array)
    wrong = np.flatnonzero((array != 0) & (array != 1))
    if len(wrong):
        raise UserError(
            f"{where}: {name}[{wrong[0]}] = {array[wrong[0]]}; it must be 0 or 1, or bool"
        )
    return array.astype(bool)


def _line(array: np.ndarray) -> str:
    return np.array2string(array, max_line_width=1000)
