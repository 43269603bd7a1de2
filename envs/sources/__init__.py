"""Sources of data: each ends as the same Episodes."""

from dataclasses import dataclass

from envs.episodes import DatasetError, Episodes
from envs.sources.builtin import load_builtin
from envs.sources.minari import load_minari

SOURCES = ("builtin", "minari")


@dataclass
class DatasetConfig:
    """Which data set, and how a built-in one is made on first use.

    Attributes:
        source: ``builtin`` (made here, on first use) or ``minari`` (any data set of Minari).
        id: ``builtin/hopper/medium-v0``, short ``hopper-medium``; or any Minari id.
        steps: Least number of steps when a built-in data set is made.
        seed: Seed when a built-in data set is made.
    """

    source: str
    id: str
    steps: int = 200_000
    seed: int = 0


def load_episodes(config: DatasetConfig) -> Episodes:
    """Loads a data set; a built-in one is made first if it is not there yet.

    Raises:
        DatasetError: There is no such source or data set, or it cannot be made, read or used.
    """
    if config.source == "builtin":
        return load_builtin(config.id, config.steps, config.seed)
    if config.source == "minari":
        return load_minari(config.id)
    raise DatasetError(
        f"there is no data source '{config.source}'; there are: {', '.join(SOURCES)}"
    )
