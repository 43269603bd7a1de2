"""The locomotion tasks: environment ids, reference scores with their source, target returns.

A task is what a data set and a rollout share. The reference pair turns a return into a
normalised score, ``100 * (return - minimum) / (maximum - minimum)``.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from common.errors import UserError

# D4RL (Fu et al., arXiv 2004.07219), d4rl/infos.py: a random policy's and a SAC expert's mean
# return, measured in the v2 environments. v5 no longer pays the healthy reward on the step that
# falls (Hopper, Walker2d) and changed Walker2d's foot friction, so a score in v5 is comparable
# with D4RL's tables only approximately.
D4RL_REFERENCE_SOURCE = "D4RL (arXiv 2004.07219), measured in the v2 environments"


@dataclass(frozen=True)
class Reference:
    """The two returns that turn a return into a normalised score.

    Attributes:
        minimum: Return of a random policy, which scores 0.
        maximum: Return of an expert, which scores 100.
        source: Where the pair comes from.
    """

    minimum: float
    maximum: float
    source: str = "not stated"

    def __post_init__(self) -> None:
        if not -np.inf < self.minimum < self.maximum < np.inf:
            raise UserError(
                f"the reference returns {self.minimum} and {self.maximum} must both be finite, "
                "and the expert's above the random policy's: mend them in the data set's metadata."
            )

    def score(self, returns: Any) -> Any:
        """Returns normalised scores, 0 to 100 between the two, of the shape of `returns`.

        ``100 * (return - minimum) / (maximum - minimum)``, as D4RL (arXiv 2004.07219, section 4).

        >>> Reference(0.0, 200.0).score(50.0)
        25.0
        """
        return 100 * (returns - self.minimum) / (self.maximum - self.minimum)


@dataclass(frozen=True)
class DatasetInfo:
    """What is remembered of the data that a policy was trained on; plain values only.

    Attributes:
        id: Of the data set.
        environment_id: Gymnasium id of the environment that it was recorded in; None if unknown.
        environment_kwargs: Keyword arguments of `gymnasium.make` for that environment.
        reference: Reference returns; None if none are known.
        episodes: Number of episodes.
        steps: Number of steps.
        return_mean: Mean return.
        return_top10: Mean return of the best 10 % of the episodes.
        return_max: The best return.
        sha256: Hash of the arrays.
    """

    id: str
    environment_id: str | None
    environment_kwargs: dict[str, Any]
    reference: Reference | None
    episodes: int
    steps: int
    return_mean: float
    return_top10: float
    return_max: float
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for config.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DatasetInfo":
        """Builds it from what `to_dict` returned.

        Raises:
            TypeError: A key is missing or unknown.
        """
        reference = values.get("reference")
        return cls(**{**values, "reference": Reference(**reference) if reference else None})


@dataclass(frozen=True)
class Task:
    """One locomotion task.

    Attributes:
        name: Short name, as in data set ids: ``hopper``.
        environment_id: Gymnasium id of the environment that this project simulates.
        reference: Reference returns.
        target_return: Decision Transformer's first target (arXiv 2106.01345, table 8).
    """

    name: str
    environment_id: str
    reference: Reference
    target_return: float


def _d4rl(minimum: float, maximum: float) -> Reference:
    return Reference(minimum, maximum, D4RL_REFERENCE_SOURCE)


TASKS = {
    task.name: task
    for task in (
        Task("hopper", "Hopper-v5", _d4rl(-20.272305, 3234.3), 3600.0),
        Task("halfcheetah", "HalfCheetah-v5", _d4rl(-280.178953, 12135.0), 12000.0),
        Task("walker2d", "Walker2d-v5", _d4rl(1.629008, 4592.3), 5000.0),
    )
}


def task_of_environment(environment_id: str | None) -> Task | None:
    """Returns the task whose environment this is, any version; None for an unknown one.

    >>> task_of_environment("Hopper-v4").name
    'hopper'
    """
    stem = (environment_id or "").rsplit("-v", 1)[0].lower()
    return TASKS.get(stem)
