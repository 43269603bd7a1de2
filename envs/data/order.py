"""The order in which episodes are drawn, and which of them are drawn more often."""

import numpy as np

from envs.data.episodes import Episodes

# Of the episodes, by their return: those that `protocol.best_share` draws more often.
BEST_FRACTION = 0.1


def best_episodes(episodes: Episodes) -> np.ndarray:
    """Returns the numbers of the best tenth of the episodes, and of those with as high a return.

    In logs without rewards all episodes are equally good, and all are the best.
    """
    returns = episodes.returns
    return np.flatnonzero(returns >= returns[episodes.best(BEST_FRACTION)].min())


class EpisodeOrder:
    """A resumable position in endless random permutations of some episodes.

    Attributes:
        chosen: Numbers of the episodes.
        order: The permutation of `chosen` that is being drawn from.
        drawn: How many of it were drawn.
    """

    def __init__(self, chosen: np.ndarray) -> None:
        self.chosen = chosen
        self.order = np.zeros(0, dtype=np.int64)
        self.drawn = 0

    def next(self, generator: np.random.Generator) -> int:
        """Returns the number of the next episode."""
        if self.drawn == len(self.order):
            self.order = generator.permutation(self.chosen)
            self.drawn = 0
        self.drawn += 1
        return int(self.order[self.drawn - 1])
