"""Statistics over seeds and tasks, as Agarwal et al. (arXiv 2108.13264) propose.

The scores of one method are a list with one array for each task: one score for each run, on the
last axis. Leading axes are resamples: every statistic is computed for all of them at once. The
number of runs may differ between tasks.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

Scores = Sequence[np.ndarray]


def mean_over_tasks(scores: Scores) -> np.ndarray:
    """Returns the mean of the tasks' means, of shape (...)."""
    return np.mean([task.mean(axis=-1) for task in scores], axis=0)


def interquartile_mean(scores: Scores) -> np.ndarray:
    """Returns the mean of the middle half of all runs of all tasks, of shape (...).

    The 25 % trimmed mean (Agarwal et al., section 4.3): a quarter of the runs, rounded down, is
    left out at either end, as ``scipy.stats.trim_mean`` does. Where tasks have different numbers of
    runs, these share the weight of their task: another seed of a task does not count it twice.
    """
    runs = np.concatenate(scores, axis=-1)
    shares = [np.full(task.shape[-1], 1 / task.shape[-1] / len(scores)) for task in scores]
    order = runs.argsort(axis=-1)
    share = np.concatenate(shares)[order]
    up_to = share.cumsum(axis=-1)
    cut = runs.shape[-1] // 4 / runs.shape[-1]
    kept = np.minimum(up_to, 1 - cut) - np.maximum(up_to - share, cut)
    kept = np.where(kept > 1e-9, kept, 0)  # left out, but for rounding
    middle = np.take_along_axis(runs, order, axis=-1) * kept
    return np.asarray(middle.sum(axis=-1) / kept.sum(axis=-1))


def mean_difference(scores: Scores, others: Scores) -> np.ndarray:
    """Returns a method's mean over tasks minus another's on the same tasks, of shape (...)."""
    return mean_over_tasks(scores) - mean_over_tasks(others)


def interquartile_difference(scores: Scores, others: Scores) -> np.ndarray:
    """Returns a method's interquartile mean minus another's on the same tasks, of shape (...)."""
    return interquartile_mean(scores) - interquartile_mean(others)


def bootstrap_interval(
    statistic: Callable[..., np.ndarray], *methods: Scores, repeats: int = 10_000, seed: int = 0
) -> tuple[float, float] | None:
    """Returns the 95 % interval of a statistic by the stratified bootstrap.

    Each repeat draws, within every task, as many runs as there are, with replacement; the interval
    lies between the percentiles of the statistic over the repeats (Agarwal et al., section 4.1).

    Args:
        statistic: Takes the resampled scores of each method.
        methods: Scores of each method: one array (runs,) for each task.
        repeats: Number of resamples.
        seed: Seed of the resampling, so that the same runs give the same interval.

    Returns:
        The lower and the upper end, or None if a task has a single run, which says nothing about
        the variation between seeds.
    """
    if any(len(task) < 2 for scores in methods for task in scores):
        return None
    rng = np.random.default_rng(seed)
    resampled = [
        [task[rng.integers(len(task), size=(repeats, len(task)))] for task in scores]
        for scores in methods
    ]
    low, high = np.quantile(statistic(*resampled), [0.025, 0.975], axis=0)
    return float(low), float(high)


def score_of_the_chosen(
    choices: Sequence[np.ndarray], trial: int, repeats: int = 1000, seed: int = 0
) -> float:
    """Returns the score that is expected after a choice by `trial` episodes of each of several.

    In each repeat, `trial` random episodes of each are played to choose the one with the best
    mean; its score is the mean of its other episodes, which the choice has not seen. So this is an
    honest score of a setting that was tuned in the environment (as in Jackson et al., arXiv
    2504.11453, who show it against the number of episodes).

    Args:
        choices: Scores (episodes,) of each; all have as many episodes.
        trial: Fewer than there are.
        repeats: Number of random orders.
        seed: Seed of the orders.
    """
    rng = np.random.default_rng(seed)
    scores = np.asarray(choices)
    orders = rng.permuted(np.tile(np.arange(scores.shape[1]), (repeats, 1)), axis=1)
    shuffled = scores[:, orders]  # (choices, repeats, episodes)
    chosen = shuffled[..., :trial].mean(axis=-1).argmax(axis=0)
    others = shuffled[..., trial:].mean(axis=-1)
    return float(others[chosen, np.arange(repeats)].mean())


def student_half_width(runs: np.ndarray) -> float | None:
    """Returns half the width of Student's 95 % interval of a mean; None for a single run.

    ``t * s / sqrt(n)`` with n - 1 degrees of freedom. It is meant for the few seeds of one task,
    for which the bootstrap interval is far too narrow.
    """
    n = len(runs)
    return None if n < 2 else student_t(n - 1) * float(runs.std(ddof=1)) / math.sqrt(n)


@cache
def student_t(degrees: int) -> float:
    """Returns the two-sided 95 % point of Student's t for up to 1,000 degrees of freedom n.

    With ``t = sqrt(n) * tan(angle)`` the density is proportional to ``cos(angle) ** (n - 1)``,
    integrated here with a relative error of t below 1e-6.
    """
    angle = np.linspace(0.0, math.pi / 2, 20_001)
    density = np.cos(angle) ** (degrees - 1)
    probability = np.cumsum(density) - density / 2 - density[0] / 2  # the trapezoidal rule
    point = np.interp(0.95 * probability[-1], probability, angle)
    return math.sqrt(degrees) * math.tan(point)
