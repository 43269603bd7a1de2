"""Statistics against figures worked by hand, and against what their definitions promise."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from reports.statistics import (
    bootstrap_interval,
    interquartile_difference,
    interquartile_mean,
    mean_difference,
    mean_over_tasks,
    score_of_the_chosen,
    student_half_width,
    student_t,
)

# Halves, so that sums and comparisons are exact.
values = st.integers(-400, 400).map(lambda n: n / 2)
tasks = st.lists(st.lists(values, min_size=1, max_size=5).map(np.array), min_size=1, max_size=4)


def arrays(*runs):
    return [np.array(task, float) for task in runs]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        # Eight runs: two go at either end, whichever task they are of.
        (arrays([100, 1, 2, 3], [4, 5, -50, 6]), (2 + 3 + 4 + 5) / 4),
        # Six: a quarter is 1.5, and one goes, as scipy.stats.trim_mean(x, 0.25) cuts.
        (arrays([0, 10, 20], [30, 40, 500]), (10 + 20 + 30 + 40) / 4),
        # Fewer than four: none goes. Both tasks count alike, however many runs they have.
        (arrays([1, 3], [6]), (2 + 6) / 2),
        # Five: a fifth of the weight goes at either end. Each run of the first task has an eighth,
        # the one of the second a half: 1 goes, and parts of 2 and of 6.
        (arrays([1, 2, 3, 4], [6]), (2 * 0.05 + 3 / 8 + 4 / 8 + 6 * 0.3) / 0.6),
    ],
)
def test_interquartile_mean_by_hand(scores, expected):
    assert interquartile_mean(scores) == pytest.approx(expected)


def test_mean_over_tasks_weighs_tasks_not_runs():
    assert mean_over_tasks(arrays([1, 2, 3], [10])) == 6


@settings(deadline=None)
@given(tasks)
def test_what_the_definitions_promise(scores):
    stretched = [2 * task + 7 for task in scores]
    assert mean_difference(stretched, scores) == pytest.approx(float(mean_over_tasks(scores)) + 7)
    for mean in (interquartile_mean, mean_over_tasks):
        assert mean(stretched) == pytest.approx(2 * float(mean(scores)) + 7)
        runs = np.concatenate(scores)
        assert runs.min() - 1e-9 <= mean(scores) <= runs.max() + 1e-9


@settings(deadline=None)
@given(tasks)
def test_resamples_are_computed_side_by_side(scores):
    rng = np.random.default_rng(0)
    resampled = [task[rng.integers(len(task), size=(6, len(task)))] for task in scores]
    others = [task[:, ::-1] + 1.5 for task in resampled]
    for i in range(6):
        own, other = [task[i] for task in resampled], [task[i] for task in others]
        for mean in (interquartile_mean, mean_over_tasks):
            assert mean(resampled)[i] == pytest.approx(float(mean(own)))
        for difference in (mean_difference, interquartile_difference):
            alone = float(difference(own, other))
            assert difference(resampled, others)[i] == pytest.approx(alone)


@settings(deadline=None)
@given(tasks)
def test_statistics_against_scipy(scores):
    # Each run as often as gives all tasks the same weight, and the quarter whole runs.
    runs = sum(map(len, scores))
    often = [np.repeat(task, 60 * runs // len(task)) for task in scores]  # 60: of 1 to 5 runs
    share = runs // 4 / runs
    trimmed = stats.trim_mean(np.concatenate(often), share + 1e-9)
    assert interquartile_mean(scores) == pytest.approx(trimmed)
    if len({*map(len, scores)}) == 1:
        plain = stats.trim_mean(np.concatenate(scores), 0.25)
        assert interquartile_mean(scores) == pytest.approx(plain)
    for task in scores:
        if len(task) > 1:
            width = stats.t.ppf(0.975, len(task) - 1) * stats.sem(task)
            assert student_half_width(task) == pytest.approx(width, rel=1e-5)


def test_bootstrap_against_all_resamples():
    scores = arrays([0, 1, 5], [10, 30])
    drawn = [list(itertools.product(task, repeat=len(task))) for task in scores]
    every = [
        float(interquartile_mean(arrays(first, second)))
        for first, second in itertools.product(*drawn)
    ]
    low, high = bootstrap_interval(interquartile_mean, scores, repeats=40_000)
    # 108 equally likely resamples: the percentiles of the distribution itself.
    exact = np.quantile(every, [0.025, 0.975], method="inverted_cdf")
    np.testing.assert_allclose([low, high], exact, atol=0.2)


def test_bootstrap_draws_within_each_task():
    # Every resample is the same, though the tasks are far apart.
    low, high = bootstrap_interval(mean_over_tasks, arrays([1, 1, 1], [90, 90]))
    assert (low, high) == (45.5, 45.5)


def test_bootstrap_draws_both_methods_and_repeats_itself():
    scores, others = arrays([1, 4], [2, 8]), arrays([3, 5], [1, 9])
    first, again = (bootstrap_interval(mean_difference, scores, others) for _ in range(2))
    assert first == again
    # With one method held, no resample is below -3.25 or above 1.75.
    assert first[0] < -3.25 and first[1] > 1.75


def test_a_single_seed_has_no_interval():
    assert student_half_width(np.array([3.0])) is None
    assert bootstrap_interval(interquartile_mean, arrays([1, 2, 3], [4])) is None
    assert bootstrap_interval(mean_difference, arrays([1, 2]), arrays([4])) is None


def test_the_score_of_a_choice_by_hand():
    # One episode each, the same for both: 0 and 10 lose against 15, 20 wins and leaves 0 and 10.
    found = score_of_the_chosen(arrays([0, 10, 20], [15, 15, 15]), 1, repeats=20_000)
    assert found == pytest.approx((15 + 15 + 5) / 3, abs=0.15)
    # Two: 0 and 10 lose, and so do 0 and 20; 10 and 20 are as good, and the first is taken.
    found = score_of_the_chosen(arrays([0, 10, 20], [15, 15, 15]), 2, repeats=20_000)
    assert found == pytest.approx((15 + 15 + 0) / 3, abs=0.25)
    # What is better in every episode is chosen always.
    assert score_of_the_chosen(arrays([1, 2, 3], [5, 6, 7]), 1) == pytest.approx(6, abs=0.1)


# Two-sided 95 % points, as in any printed table of Student's distribution.
@pytest.mark.parametrize(
    ("degrees", "expected"),
    [
        (1, 12.706),
        (2, 4.303),
        (3, 3.182),
        (4, 2.776),
        (5, 2.571),
        (9, 2.262),
        (10, 2.228),
        (29, 2.045),
        (100, 1.984),
        (1000, 1.962),
    ],
)
def test_student_t_against_the_printed_table(degrees, expected):
    assert student_t(degrees) == pytest.approx(expected, abs=0.0006)


def test_student_interval_by_hand_and_by_its_coverage():
    # Standard deviation 2, n 3: 4.303 * 2 / sqrt(3).
    assert student_half_width(np.array([8.0, 10, 12])) == pytest.approx(4.968, abs=0.001)
    samples = np.random.default_rng(0).normal(size=(4000, 3))
    covered = [abs(sample.mean()) <= student_half_width(sample) for sample in samples]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)
