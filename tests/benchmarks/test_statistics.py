"""The numbers of a report against calculations that share no code with them."""

import itertools

import numpy as np
import pytest
from scipy import stats

from trace_gym.benchmarks.statistics import (
    bootstrap,
    iqm,
    mean,
    paired,
    probability_of_improvement,
    profile,
    profile_bands,
)


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_the_interquartile_mean_is_that_of_the_middle_half() -> None:
    scores = np.arange(8.0)[::-1].reshape(4, 2)
    assert iqm(scores) == pytest.approx(np.mean([2, 3, 4, 5]))
    assert iqm(np.array([[[0.0, 1, 1, 100]], [[2.0, 2, 4, 4]]])).tolist() == [1.0, 3.0]


def test_the_bootstrap_of_few_seeds_has_the_exact_ends() -> None:
    """Three seeds have 27 equally likely draws: the percentiles of their means can be listed."""
    x = np.array([0.0, 0.3, 0.9])
    exact = [np.mean(draw) for draw in itertools.product(x, repeat=3)]
    found = bootstrap(x[:, None], mean, rng())
    low, high = np.percentile(exact, [2.5, 97.5], method="inverted_cdf")
    assert found.value == pytest.approx(0.4) and found.n == 3
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)


def test_the_bootstrap_agrees_with_scipys() -> None:
    x = rng().normal(0.1, 0.2, 12)
    theirs = stats.bootstrap(
        (x,), np.mean, method="percentile", n_resamples=20_000, rng=rng()
    ).confidence_interval
    found = bootstrap(x[:, None], mean, rng())
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_seeds_are_drawn_within_each_environment() -> None:
    """Environments far apart do not widen the interval; drawing over all runs would."""
    apart = np.array([[0.1, 0.9], [0.12, 0.92], [0.08, 0.88]])
    found = bootstrap(apart, mean, rng())
    assert found.high - found.low < 0.05 and found.value == pytest.approx(0.5)


def test_each_environment_has_its_own_draw_of_seeds() -> None:
    """A seed's two scores always have the mean 0.5: one draw for both environments would show no spread at all."""
    found = bootstrap(np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]]), mean, rng())
    assert found.low < 0.4 and found.high > 0.6


def test_one_seed_has_no_interval() -> None:
    one = bootstrap(np.array([[0.5, 0.7]]), mean, rng())
    assert one.value == pytest.approx(0.6) and np.isnan(one.low) and not one.apart
    low, high = profile_bands(np.array([[0.5, 0.7]]), np.linspace(0, 1, 3), rng())
    assert np.isnan(low).all() and np.isnan(high).all()


def test_differences_are_within_seeds() -> None:
    one, other = {0: 0.5, 1: 0.9, 2: 0.1}, {0: 0.4, 1: 0.8, 2: 0.0, 9: 5.0}
    found = paired(one, other, rng())
    assert (
        (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
        and found.n == 3
        and found.apart
    )
    assert paired({0: 1.0}, {1: 1.0}, rng()).n == 0
    alone = paired({0: 1.0, 1: float("nan")}, {0: 0.5, 1: 0.5}, rng())
    assert (alone.value, alone.n) == (0.5, 1) and np.isnan(alone.low)


def test_the_chance_of_improvement_counts_pairs_and_half_of_ties() -> None:
    one, other = np.array([[1.0, 0.0], [3.0, 0.0]]), np.array([[2.0, 0.0], [2.0, 1.0]])
    by_hand = []
    for world in range(2):
        pairs = [(a, b) for a in one[:, world] for b in other[:, world]]
        by_hand.append(np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]))
    assert probability_of_improvement(one, other) == pytest.approx(np.mean(by_hand))
    whitney = stats.mannwhitneyu(one[:, 1], other[:, 1]).statistic / 4
    assert by_hand[1] == pytest.approx(whitney)


def test_a_profile_is_the_share_of_runs_above() -> None:
    scores = np.array([[0.1, 0.5], [0.2, 0.9]])
    assert profile(scores, np.array([0.0, 0.1, 0.5, 0.9])).tolist() == [1.0, 0.75, 0.25, 0.0]
    low, high = profile_bands(scores, np.array([0.15, 0.6]), rng())
    # of the first environment's seeds one of two exceeds 0.15, of the second's both: shares 0.5, 0.75, 1
    assert (low[0], high[0]) == (0.5, 1.0) and (low[1], high[1]) == (0.0, 0.5)


def test_the_same_generator_gives_the_same_page() -> None:
    x = rng().random((4, 3))
    assert bootstrap(x, iqm, rng()) == bootstrap(x, iqm, rng())
