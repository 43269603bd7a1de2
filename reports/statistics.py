"""Statistics over seeds and tasks, as Agarwal et al. (arXiv 2108.13264) propose.

The scores of one method are a list with one array for each task: its runs, one score each, on the
last axis. Leading axes are resamples: every statistic is computed for all of them at once. The
number of runs may differ between tasks.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

CONFIDENCE = 0.95

Scores = Sequence[np.ndarray]
Interval = tuple[np.ndarray, np.ndarray]


def mean_over_tasks(scores: Scores) -> np.ndarray:
    """Returns the mean of the tasks' means, of shape (...)."""
    return np.mean([task.mean(axis=-1) for task in scores], axis=0)


def interquartile_mean(scores: Scores) -> np.ndarray:
    """Returns the mean of the middle half of all runs of all tasks, of shape (...).

    A quarter of the runs, rounded down, is left out at either end: the 25 % trimmed mean
    (Agarwal et al., section 4.3), where it is computed by ``scipy.stats.trim_mean``.
    """
    runs = np.sort(np.concatenate(scores, axis=-1), axis=-1)
    cut = runs.shape[-1] // 4
    middle = runs[..., cut : runs.shape[-1] - cut]
    return np.asarray(middle.mean(axis=-1))


def mean_difference(scores: Scores, others: Scores) -> np.ndarray:
    """Returns by how much a method's mean is higher than another's, averaged over tasks, (...).

    Args:
        scores: Of the one method: one array (..., runs) for each task.
        others: Of the other, on the same tasks in the same order.
    """
    return mean_over_tasks(scores) - mean_over_tasks(others)


def bootstrap_interval(
    statistic: Callable[..., np.ndarray], *methods: Scores, repeats: int = 10_000, seed: int = 0
) -> Interval | None:
    """Returns the 95 % interval of a statistic by the stratified bootstrap.

    Each repeat draws, within every task, as many runs as there are, with replacement; the interval
    lies between the percentiles of the statistic over the repeats (Agarwal et al., section 4.1).

    Args:
        statistic: Takes the resampled scores of each method.
        methods: Scores of each: one array (runs,) for each task.
        repeats: Resamples.
        seed: Of the resamples, so that the same runs give the same interval.

    Returns:
        The lower and the upper end, or None where a task has a single run: what one seed would
        do another time cannot be learned from it.
    """
    if any(len(task) < 2 for scores in methods for task in scores):
        return None
    rng = np.random.default_rng(seed)
    resampled = [
        [task[rng.integers(len(task), size=(repeats, len(task)))] for task in scores]
        for scores in methods
    ]
    ends = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.quantile(statistic(*resampled), ends, axis=0)
    return low, high


def student_half_width(runs: np.ndarray) -> float | None:
    """Returns half the width of Student's 95 % interval of a mean; None for a single run.

    ``t * s / sqrt(n)`` with n - 1 degrees of freedom. For the few seeds of one task: the bootstrap
    of three values is far too narrow.
    """
    n = len(runs)
    if n < 2:
        return None
    return student_quantile(n - 1) * float(runs.std(ddof=1)) / math.sqrt(n)


def student_quantile(degrees: int) -> float:
    """Returns the t that Student's variable stays within, on both sides, 95 % of the time.

    Inverts the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4, by bisection in
    ``theta = atan(t / sqrt(degrees))``.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        theta = (low + high) / 2
        if _share_within(theta, degrees) < CONFIDENCE:
            low = theta
        else:
            high = theta
    return math.tan(low) * math.sqrt(degrees)


def _share_within(theta: float, degrees: int) -> float:
    """Returns the probability of ``|T| < sqrt(degrees) * tan(theta)``."""
    odd = degrees % 2
    cosine = math.cos(theta)
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 + odd, degrees, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    if odd:
        return 2 / math.pi * (theta + math.sin(theta) * total)
    return math.sin(theta) * total
