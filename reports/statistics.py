"""Statistics over seeds and tasks, as Agarwal et al. (arXiv 2108.13264) propose.

The scores of one method are a list with one array for each task: one score for each run, on the
last axis. Leading axes are resamples: every statistic is computed for all of them at once. The
number of runs may differ between tasks.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

Scores = Sequence[np.ndarray]

# Two-sided 95 % points of Student's t for 1 to 9 degrees of freedom.
STUDENT = (
    12.706205,
    4.302653,
    3.182446,
    2.776445,
    2.570582,
    2.446912,
    2.364624,
    2.306004,
    2.262157,
)


def mean_over_tasks(scores: Scores) -> np.ndarray:
    """Returns the mean of the tasks' means, of shape (...)."""
    return np.mean([task.mean(axis=-1) for task in scores], axis=0)


def interquartile_mean(scores: Scores) -> np.ndarray:
    """Returns the mean of the middle half of all runs of all tasks, of shape (...).

    The 25 % trimmed mean (Agarwal et al., section 4.3): a quarter of the runs, rounded down, is
    left out at either end, as ``scipy.stats.trim_mean`` does.
    """
    runs = np.sort(np.concatenate(scores, axis=-1), axis=-1)
    cut = runs.shape[-1] // 4
    return np.asarray(runs[..., cut : runs.shape[-1] - cut].mean(axis=-1))


def mean_difference(scores: Scores, others: Scores) -> np.ndarray:
    """Returns a method's mean over tasks minus another's on the same tasks, of shape (...)."""
    return mean_over_tasks(scores) - mean_over_tasks(others)


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


def student_half_width(runs: np.ndarray) -> float | None:
    """Returns half the width of Student's 95 % interval of a mean; None for a single run.

    ``t * s / sqrt(n)`` with n - 1 degrees of freedom. It is meant for the few seeds of one task,
    for which the bootstrap interval is far too narrow.
    """
    n = len(runs)
    return None if n < 2 else student_t(n - 1) * float(runs.std(ddof=1)) / math.sqrt(n)


def student_t(degrees: int) -> float:
    """Returns the two-sided 95 % point of Student's t, with an error below 0.0002.

    From 10 degrees of freedom on by Abramowitz and Stegun, 26.7.5.
    """
    if degrees <= len(STUDENT):
        return STUDENT[degrees - 1]
    z, n = NormalDist().inv_cdf(0.975), degrees
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )
