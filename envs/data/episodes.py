"""Episodes: every data set as the same flat arrays, validated once."""

import itertools
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from common.errors import UserError
from envs.data.mapped import pieces, release
from envs.tasks import Reference

# A dimension that hardly varies in the data must not blow up when a rollout leaves the data; the
# same constant as in TD3+BC (Fujimoto and Gu, arXiv 2106.06860, section 5.2).
OBSERVATION_STD_FLOOR = 1e-3

# Room for the rounding of bounds and actions that were stored in different precisions.
ACTION_TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False)
class Episodes:
    """Whole episodes laid end to end.

    Row t holds one step: the observation in which action t was taken, and what came of it. The
    observation after the last action of an episode is not kept. Arrays are converted to the types
    below and checked when the object is made.

    Attributes:
        observations: (steps, observation_dim) float32.
        actions: (steps, action_dim) float32.
        rewards: (steps,) float32.
        terminations: (steps,) bool.
        truncations: (steps,) bool.
        offsets: (episodes + 1,) int64; episode i is the rows offsets[i] to offsets[i + 1] - 1.
        action_low: (action_dim,) float32, lower bounds of the actions.
        action_high: (action_dim,) float32, upper bounds of the actions.
        dataset_id: Id of the data set.
        environment_id: Gymnasium id of the environment; None if unknown.
        environment_kwargs: Keyword arguments of `gymnasium.make` for that environment.
        reference: Reference returns; None if none are known.
        check: Whether the arrays are checked; not if they were, as those in the cache.

    Raises:
        UserError: The arrays do not hold valid episodes.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    offsets: np.ndarray
    action_low: np.ndarray
    action_high: np.ndarray
    dataset_id: str
    environment_id: str | None
    environment_kwargs: dict[str, Any] = field(default_factory=dict)
    reference: Reference | None = None
    check: InitVar[bool] = True

    def __post_init__(self, check: bool) -> None:
        types = {"terminations": np.bool_, "truncations": np.bool_, "offsets": np.int64}
        for name in ("observations", "actions", "rewards", "action_low", "action_high", *types):
            kind = types.get(name, np.float32)
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), kind))
        if check:
            self.validate()

    @classmethod
    def from_lists(
        cls,
        observations: Sequence[np.ndarray],
        actions: Sequence[np.ndarray],
        rewards: Sequence[np.ndarray],
        terminations: Sequence[np.ndarray],
        truncations: Sequence[np.ndarray],
        *,
        action_low: np.ndarray,
        action_high: np.ndarray,
        dataset_id: str,
        environment_id: str | None,
        reference: Reference | None = None,
    ) -> "Episodes":
        """Lays out episodes, given as one array for each episode, end to end.

        Args:
            observations: One (episode steps, observation_dim) array for each episode.
            actions: One (episode steps, action_dim) array for each episode.
            rewards: One (episode steps,) array for each episode.
            terminations: One (episode steps,) array for each episode.
            truncations: One (episode steps,) array for each episode.
            action_low: As in the class.
            action_high: As in the class.
            dataset_id: As in the class.
            environment_id: As in the class.
            reference: As in the class.

        Raises:
            UserError: There is no episode, or the arrays do not hold valid episodes.
        """
        if not len(rewards):
            raise UserError(f"{dataset_id}: there is no episode; at least one is needed")
        lengths = [len(episode) for episode in rewards]
        for name, arrays in (
            ("observations", observations),
            ("actions", actions),
            ("terminations", terminations),
            ("truncations", truncations),
        ):
            for i, (array, length) in enumerate(zip(arrays, lengths, strict=True)):
                if len(array) != length:
                    raise UserError(
                        f"{dataset_id}: episode {i} has {len(array)} {name} for {length} rewards; "
                        "each step needs one of each"
                    )
        return cls(
            observations=np.concatenate(observations),
            actions=np.concatenate(actions),
            rewards=np.concatenate(rewards),
            terminations=np.concatenate(terminations),
            truncations=np.concatenate(truncations),
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            action_low=action_low,
            action_high=action_high,
            dataset_id=dataset_id,
            environment_id=environment_id,
            reference=reference,
        )

    def validate(self) -> None:
        """Checks shapes, borders, finiteness and action bounds.

        Raises:
            UserError: With the array, the first bad index and what was expected.
        """
        for name, dimensions in (("observations", 2), ("actions", 2), ("rewards", 1)):
            if getattr(self, name).ndim != dimensions:
                self._fail(
                    f"{name} has shape {getattr(self, name).shape}, not {dimensions} dimensions"
                )
        for name in ("observations", "actions", "terminations", "truncations"):
            if len(getattr(self, name)) != self.n_steps:
                self._fail(f"{len(getattr(self, name))} {name} for {self.n_steps} rewards")
        self._validate_borders()
        for name in ("action_low", "action_high"):
            bound = getattr(self, name)
            if bound.shape != self.actions.shape[1:] or not np.isfinite(bound).all():
                self._fail(
                    f"{name} is {_line(bound)}, not {self.actions.shape[1]} finite numbers; give "
                    "the action space the bounds that actions really have"
                )
        for rows in pieces(self.observations, self.actions, self.rewards):
            self._validate_values(rows)

    def _validate_values(self, rows: slice) -> None:
        for name in ("observations", "actions", "rewards"):
            finite = np.isfinite(getattr(self, name)[rows])
            message = "is not finite (in float32); remove the episode"
            self._require(finite, name, message, rows.start)
        inside = (self.actions[rows] >= self.action_low - ACTION_TOLERANCE) & (
            self.actions[rows] <= self.action_high + ACTION_TOLERANCE
        )
        self._require(
            inside,
            "actions",
            f"is outside the bounds {_line(self.action_low)} to {_line(self.action_high)} by more "
            f"than {ACTION_TOLERANCE:g}; clip the actions or mend the action space",
            rows.start,
        )

    def _validate_borders(self) -> None:
        if self.n_episodes < 1:
            self._fail("there is no episode; at least one is needed")
        empty = np.flatnonzero(self.lengths < 1)
        if len(empty):
            self._fail(f"episode {empty[0]} is empty; remove it")
        if self.offsets[0] != 0 or self.offsets[-1] != self.n_steps:
            self._fail(
                f"offsets run from {self.offsets[0]} to {self.offsets[-1]}, "
                f"not from 0 to {self.n_steps}"
            )
        last = np.zeros(self.n_steps, bool)
        last[self.offsets[1:] - 1] = True
        for name in ("terminations", "truncations"):
            self._require(
                last | ~getattr(self, name), name, "ends an episode before its last step; split it"
            )

    def _require(self, good: np.ndarray, name: str, message: str, begin: int = 0) -> None:
        if not good.all():
            index = np.argwhere(~good)[0]
            index[0] += begin
            value = getattr(self, name)[tuple(index)]
            where = ", ".join(str(i) for i in index)
            episode = np.searchsorted(self.offsets, index[0], side="right") - 1
            self._fail(f"{name}[{where}] = {value} (episode {episode}) {message}")

    def _fail(self, message: str) -> None:
        raise UserError(f"{self.dataset_id}: {message}")

    @property
    def n_steps(self) -> int:
        """Number of steps in all episodes."""
        return len(self.rewards)

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """(episodes,) int64, steps of each episode."""
        return np.diff(self.offsets)

    @cached_property
    def returns(self) -> np.ndarray:
        """(episodes,) float64, sum of the rewards of each episode."""
        result: np.ndarray = np.add.reduceat(self.rewards, self.offsets[:-1], dtype=np.float64)
        release(self.rewards)
        return result

    @cached_property
    def returns_to_go(self) -> np.ndarray:
        """(steps,) float32, sum of the rewards from each step, its own included, to the end.

        Summed in float64 within each episode: differences of one long cumulative sum would let the
        rounding of one episode into the next.
        """
        result = np.empty(self.n_steps, np.float32)
        for begin, end in itertools.pairwise(self.offsets.tolist()):
            rewards = self.rewards[begin:end]
            result[begin:end] = np.cumsum(rewards[::-1], dtype=np.float64)[::-1]
        release(self.rewards)
        return result

    @cached_property
    def timesteps(self) -> np.ndarray:
        """(steps,) int64, index of each step in its episode."""
        return np.arange(self.n_steps) - np.repeat(self.offsets[:-1], self.lengths)

    @cached_property
    def is_first(self) -> np.ndarray:
        """(steps,) bool, true on the first step of each episode."""
        return self.timesteps == 0

    @cached_property
    def observation_mean(self) -> np.ndarray:
        """(observation_dim,) float32, mean over all steps."""
        return self._mean_observation.astype(np.float32)

    @cached_property
    def observation_std(self) -> np.ndarray:
        """(observation_dim,) float32, standard deviation, at least OBSERVATION_STD_FLOOR."""
        mean, values = self._mean_observation, self.observations
        square = sum(np.square(values[rows] - mean).sum(axis=0) for rows in pieces(values))
        return np.maximum(np.sqrt(square / self.n_steps), OBSERVATION_STD_FLOOR).astype(np.float32)

    @cached_property
    def _mean_observation(self) -> np.ndarray:
        values = self.observations
        total = sum(values[rows].sum(axis=0, dtype=np.float64) for rows in pieces(values))
        return np.asarray(total / self.n_steps)

    def top_fraction_return(self, fraction: float = 0.1) -> float:
        """Returns the mean return of the best `fraction` of the episodes, at least one.

        Raises:
            ValueError: The fraction is not above 0 and at most 1.
        """
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction is {fraction}, not above 0 and at most 1")
        count = max(1, round(fraction * self.n_episodes))
        return float(np.sort(self.returns)[-count:].mean())


def _line(array: np.ndarray) -> str:
    return np.array2string(array, max_line_width=1000)
