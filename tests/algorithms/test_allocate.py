"""Allocation against exact dynamic programmes, enumeration and counting; the slow side shares no code with it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.slow_allocate import (
    best_prefixes,
    best_roots,
    flip_chance,
    mean_mixed_chance,
    mixed_chance,
)
from trace_gym.algorithms.allocate import (
    allocate_prefixes,
    allocate_roots,
    inclusion_probabilities,
    prefix_value,
    root_value,
    sample_roots,
    select_groups,
)

Counts = npt.NDArray[np.int64]

# many exact ties and the ends of the range beside ordinary numbers
chances = st.one_of(st.sampled_from([0.0, 1.0, 0.5, 0.25, 0.75, 1e-9, 1.0 - 1e-9]), st.floats(0.0, 1.0))


def greedy(
    v: Sequence[float] | Sequence[Sequence[float]],
    budget: int,
    *,
    cap: int = 16,
    epsilon: float = 0.0,
    seed: int = 0,
) -> Counts:
    return allocate_roots(np.array(v), budget, cap=cap, epsilon=epsilon, rng=np.random.default_rng(seed))


# ---- the two values -------------------------------------------------------------------------------------------------


def test_golden_values() -> None:
    assert float(root_value(0.5, 3)) == 0.75
    assert float(root_value(0.5, 2)) == 0.5
    v = np.linspace(0.0, 1.0, 101)
    u = v * (1 - v)
    np.testing.assert_allclose(root_value(v, 4), 4 * u - 2 * u**2, atol=1e-15)
    np.testing.assert_allclose(root_value(v, 2), 2 * u, atol=1e-15)
    np.testing.assert_allclose(root_value(v, 3), 3 * u, atol=1e-15)
    np.testing.assert_allclose(prefix_value(v, 1), v, atol=1e-15)
    assert (prefix_value(v, 0) == 0).all()
    assert float(prefix_value(0.5, 3)) == 0.875


@given(chances, st.integers(0, 20))
def test_values_equal_enumeration(v: float, m: int) -> None:
    assert float(root_value(v, m)) == pytest.approx(mixed_chance(v, m), abs=1e-14)
    assert float(root_value(1 - v, m)) == pytest.approx(mixed_chance(v, m), abs=1e-14)
    assert float(prefix_value(v, m)) == pytest.approx(flip_chance(v, m), abs=1e-14)


def test_less_than_two_rollouts_show_nothing() -> None:
    assert (root_value(np.linspace(0, 1, 11)[:, None], np.array([0, 1])) == 0.0).all()


def test_values_broadcast() -> None:
    assert root_value(np.zeros((3, 4)), 2).shape == (3, 4)
    assert root_value(np.array([0.2, 0.5]), np.array([[2], [3], [4]])).shape == (3, 2)


@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=8, unique=True), st.integers(2, 16))
def test_with_a_fixed_group_size_all_three_scores_rank_alike(values: list[float], m: int) -> None:
    v = np.array(values)
    for a, b in [(root_value(v, m), v * (1 - v)), (root_value(v, m), -np.abs(v - 0.5))]:
        difference, other = a[:, None] - a[None], b[:, None] - b[None]
        apart = (np.abs(difference) > 1e-12) & (np.abs(other) > 1e-12)
        assert (np.sign(difference[apart]) == np.sign(other[apart])).all()


# ---- stage 2 --------------------------------------------------------------------------------------------------------


@given(st.lists(chances, min_size=1, max_size=4), st.integers(0, 6), st.integers(0, 9))
def test_prefixes_equal_exhaustive_search(flips: list[float], budget: int, seed: int) -> None:
    counts = allocate_prefixes(np.array(flips), budget, rng=np.random.default_rng(seed))
    assert counts.sum() == budget and (counts >= 0).all()
    got = sum(flip_chance(f, int(k)) for f, k in zip(flips, counts, strict=True))
    assert got == pytest.approx(best_prefixes(flips, budget), abs=1e-12)


def test_no_prefix_takes_nothing() -> None:
    assert allocate_prefixes(np.zeros(0), 5, rng=np.random.default_rng(0)).shape == (0,)


def test_equal_prefixes_share_evenly_and_at_random() -> None:
    wins = np.zeros(5)
    for seed in range(400):
        counts = allocate_prefixes(np.full(5, 0.3), 7, rng=np.random.default_rng(seed))
        assert sorted(counts) == [1, 1, 1, 2, 2]
        wins += counts == 2
    assert (np.abs(wins / 400 - 0.4) < 4 * np.sqrt(0.4 * 0.6 / 400)).all()


def test_certain_flips_need_one_continuation() -> None:
    counts = allocate_prefixes(np.array([1.0, 0.2, 0.0]), 4, rng=np.random.default_rng(0))
    assert counts.tolist() == [1, 3, 0]


def test_an_ensemble_of_flip_chances_averages_the_value() -> None:
    # members disagree about the first prefix: its second continuation gains 0, the mean would promise .25
    members = np.array([[0.0, 0.4], [1.0, 0.4]])
    assert allocate_prefixes(members, 3, rng=np.random.default_rng(0)).tolist() == [1, 2]
    assert allocate_prefixes(members.mean(axis=0), 3, rng=np.random.default_rng(0)).tolist() == [2, 1]


# ---- stage 1 --------------------------------------------------------------------------------------------------------


def columns_of(v: Sequence[float] | Sequence[Sequence[float]]) -> list[list[float]]:
    return np.atleast_2d(np.array(v)).T.tolist()  # type: ignore[no-any-return]


def total(v: Sequence[float] | Sequence[Sequence[float]], counts: Counts) -> float:
    return sum(mean_mixed_chance(c, int(m)) for c, m in zip(columns_of(v), counts, strict=True))


def singles_allowed(prompts: int, budget: int, cap: int) -> int:
    """The least number of prompts with exactly one rollout, over all ways to spend min(budget, P cap)."""
    budget = min(budget, prompts * cap)
    if cap == 1:
        return budget
    if budget == 1 or (cap == 2 and budget % 2):
        return 1
    return 0


@settings(max_examples=300)
@given(st.lists(chances, min_size=1, max_size=7), st.integers(0, 24), st.integers(1, 7), st.integers(0, 9))
def test_roots_equal_the_dynamic_programme_within_one_unit(
    v: list[float], budget: int, cap: int, seed: int
) -> None:
    counts = greedy(v, budget, cap=cap, seed=seed)
    assert counts.sum() == min(budget, len(v) * cap) and (counts >= 0).all() and (counts <= cap).all()
    assert (counts == 1).sum() == singles_allowed(len(v), budget, cap)
    best, unit = best_roots(columns_of(v), budget, cap), max(p * (1 - p) for p in v)
    assert best - unit - 1e-12 <= total(v, counts) <= best + 1e-12


@given(
    st.lists(st.lists(chances, min_size=3, max_size=3), min_size=1, max_size=6),
    st.integers(0, 20),
    st.integers(1, 6),
)
def test_ensembles_equal_the_dynamic_programme_within_one_unit(
    columns: list[list[float]], budget: int, cap: int
) -> None:
    v = np.array(columns).T.tolist()
    counts = greedy(v, budget, cap=cap)
    assert counts.sum() == min(budget, len(columns) * cap) and (counts <= cap).all()
    best = best_roots(columns, budget, cap)
    unit = max(sum(p * (1 - p) for p in c) / len(c) for c in columns)
    assert best - unit - 1e-12 <= total(v, counts) <= best + 1e-12


@given(st.lists(chances, min_size=1, max_size=9), st.integers(0, 40), st.integers(1, 8), st.floats(0, 1))
def test_exploration_keeps_sums_caps_and_pairs(v: list[float], budget: int, cap: int, epsilon: float) -> None:
    counts = greedy(v, budget, cap=cap, epsilon=epsilon)
    assert counts.sum() == min(budget, len(v) * cap) and (counts >= 0).all() and (counts <= cap).all()
    assert (counts == 1).sum() == singles_allowed(len(v), budget, cap)


def test_the_best_prompts_are_opened_and_deepened() -> None:
    assert greedy([0.5, 0.01, 0.99, 0.5], 4).tolist() == [2, 0, 0, 2]
    assert greedy([0.5, 0.01, 0.99, 0.5], 8).tolist() == [4, 0, 0, 4]
    assert greedy([0.5, 0.5, 0.5], 6).tolist() == [2, 2, 2]  # ties open more prompts
    assert (
        greedy([0.0, 1.0, 0.5], 10, cap=8).tolist().count(0) == 1
    )  # 8 to the coin flip, a pair to one of the rest


def test_an_odd_unit_deepens_an_open_prompt() -> None:
    assert sorted(greedy([0.3, 0.3, 0.3], 5)) == [0, 2, 3]
    assert sorted(greedy([0.5, 0.5], 5, cap=3)) == [2, 3]
    assert sorted(greedy([0.5, 0.5], 4, cap=3)) == [2, 2]
    assert greedy([0.5], 1).tolist() == [1]  # nothing better can be done with one unit
    assert sorted(greedy([0.5, 0.5], 3, cap=2)) == [1, 2]


def test_same_generator_same_counts_and_ties_are_random() -> None:
    v = [0.5] * 6
    assert (greedy(v, 4, seed=3) == greedy(v, 4, seed=3)).all()
    opened = sum(greedy(v, 4, seed=s) > 0 for s in range(600))
    assert (np.abs(opened / 600 - 1 / 3) < 4 * np.sqrt(2 / 9 / 600)).all()


@given(st.lists(chances, min_size=2, max_size=8), st.integers(0, 24), st.integers(0, 99))
def test_the_order_of_prompts_changes_nothing_but_ties(v: list[float], budget: int, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(v))
    shuffled = np.array(v)[order].tolist()
    counts, moved = greedy(v, budget), greedy(shuffled, budget, seed=seed)
    assert total(v, counts) == pytest.approx(total(shuffled, moved), abs=1e-12)
    u = np.sort([p * (1 - p) for p in v])
    if np.diff(u).min() > 1e-6 and u[0] > 1e-6:
        assert (counts[order] == moved).all()


def test_an_ensemble_averages_the_value_not_the_prediction() -> None:
    # nobody knows the first prompt: 0 or 1 for sure, so it never shows both outcomes; its mean looks like a coin flip
    members = [[0.0, 0.2], [1.0, 0.2]]
    assert greedy(members, 4).tolist() == [0, 4]
    assert greedy(np.mean(members, axis=0).tolist(), 2).tolist() == [2, 0]


# ---- exploration ----------------------------------------------------------------------------------------------------


def test_exploration_is_uniform_over_the_pool_hopeless_prompts_included() -> None:
    """40 good prompts, 160 hopeless; M = 80, so greedy alone never leaves the good ones."""
    v = np.concatenate([np.full(40, 0.5), np.zeros(160)])
    seeds, budget, epsilon = 1500, 80, 0.25
    opened = np.zeros(200)
    for seed in range(seeds):
        counts = allocate_roots(v, budget, epsilon=epsilon, rng=np.random.default_rng(seed))
        assert counts.sum() == budget
        assert set(counts[40:].tolist()) <= {0, 2}  # a pair and no more
        opened += counts > 0
    share = epsilon * budget / 2 / 200  # pairs per prompt
    error = np.sqrt(share * (1 - share) / seeds)
    assert (np.abs(opened[40:] / seeds - share) < 4.5 * error).all()  # 160 comparisons
    hopeless = opened[40:].sum() / seeds / 160
    assert abs(hopeless - share) < 4 * error / np.sqrt(160)
    chi_square = float((((opened[40:] / seeds - share) / error) ** 2).sum())
    assert chi_square < 160 + 5 * np.sqrt(2 * 160)


def test_the_share_is_exact_on_average() -> None:
    """0.1 of 30 units is one pair and a half."""
    v = np.concatenate([np.full(30, 0.5), np.zeros(3000)])
    explored = [
        int((allocate_roots(v, 30, epsilon=0.1, rng=np.random.default_rng(s))[30:] > 0).sum())
        for s in range(800)
    ]
    assert set(explored) <= {0, 1, 2}
    hopeless = 3000 / 3030
    mean, spread = float(np.mean(explored)), float(np.std(explored))
    assert abs(mean - 1.5 * hopeless) < 4 * spread / np.sqrt(800)


def test_no_exploration_as_published() -> None:
    v = np.concatenate([np.full(10, 0.5), np.zeros(90)])
    for seed in range(50):
        assert allocate_roots(v, 40, epsilon=0.0, rng=np.random.default_rng(seed))[10:].sum() == 0


# ---- drawing prompts ------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=12), st.integers(0, 14))
def test_inclusion_probabilities_sum_and_keep_proportions(scores: list[float], expected: int) -> None:
    s = np.array(scores)
    s[s < 1e-6] = 0.0
    p = inclusion_probabilities(s, expected)
    assert ((p >= 0) & (p <= 1)).all() and (p[s == 0] == 0).all()
    assert p.sum() == pytest.approx(min(expected, int((s > 0).sum())), abs=1e-9)
    free = (p > 0) & (p < 1)
    if free.any():
        ratio = p[free] / s[free]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)
        assert (s[p == 1.0] * ratio[0] >= 1 - 1e-9).all()  # the certain ones would have had 1 or more


V = np.array([0.0, 1.0, 0.5, 0.5, 0.02, 0.3, 0.9, 0.0001, 0.6, 0.5])


@pytest.mark.parametrize("groups", [1, 3, 7, 9])
def test_prompts_are_drawn_with_exactly_the_stated_probabilities(groups: int) -> None:
    seeds = 4000
    hits, chances_seen = np.zeros(len(V)), np.zeros(len(V))
    for seed in range(seeds):
        counts, p = sample_roots(V, groups * 4, group=4, floor=0.05, rng=np.random.default_rng(seed))
        assert set(counts.tolist()) <= {0, 4} and counts.sum() == groups * 4
        hits += counts > 0
        chances_seen = p
    score = np.sqrt(V * (1 - V)) + 0.05
    if groups <= 3:  # nobody is certain yet
        np.testing.assert_allclose(chances_seen, groups * score / score.sum(), rtol=1e-12)
    assert chances_seen.sum() == pytest.approx(groups)
    error = np.sqrt(chances_seen * (1 - chances_seen) / seeds)
    assert (np.abs(hits / seeds - chances_seen) <= 4 * error + 1e-12).all()
    assert (hits[chances_seen == 1.0] == seeds).all()
    if groups >= 7:
        assert (chances_seen == 1.0).any()  # the case of certain prompts was met


def test_weighting_by_the_inverse_probability_is_unbiased() -> None:
    """Horvitz-Thompson: the mean of the sum over drawn prompts of y / p is the sum of y over the pool."""
    y = np.array([3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0, 6.0, -5.0, 3.0])
    sums = []
    for seed in range(4000):
        counts, p = sample_roots(V, 16, group=4, floor=0.05, rng=np.random.default_rng(seed))
        drawn = counts > 0
        sums.append(float((y[drawn] / p[drawn]).sum()))
    assert abs(np.mean(sums) - y.sum()) < 4 * np.std(sums) / np.sqrt(len(sums))


def test_a_budget_beyond_the_pool_takes_everyone_once() -> None:
    counts, p = sample_roots(V, 1000, group=4, rng=np.random.default_rng(0))
    assert (counts == 4).all() and (p == 1.0).all()
    counts, p = sample_roots(V, 3, group=4, rng=np.random.default_rng(0))
    assert (counts == 0).all() and (p == 0).all()


def test_sampling_averages_the_score_over_an_ensemble_too() -> None:
    """As in stage 1: a prompt that is surely 0 or surely 1 is no coin flip."""
    _, p = sample_roots(
        np.array([[0.0, 0.5], [1.0, 0.5]]), 4, group=4, floor=0.1, rng=np.random.default_rng(0)
    )
    np.testing.assert_allclose(p, np.array([0.1, 0.6]) / 0.7)


# ---- size, and predictions that are none ----------------------------------------------------------------------------


def test_a_large_pool() -> None:
    rng = np.random.default_rng(0)
    v = rng.beta(0.5, 0.5, 100_000)
    counts = allocate_roots(v, 8192, epsilon=0.0, rng=rng)
    assert counts.sum() == 8192 and counts.max() <= 16 and not (counts == 1).any()
    # optimal: no unit outside is worth more than the least one inside
    u = v * (1 - v)
    inside = np.where(counts > 2, root_value(v, counts) - root_value(v, np.maximum(counts - 1, 0)), u)
    outside = np.where(counts >= 2, root_value(v, counts + 1) - root_value(v, counts), u)
    assert inside[counts > 0].min() >= outside[counts < 16].max() - 1e-9
    explored = allocate_roots(v, 8192, epsilon=0.1, rng=rng)
    assert explored.sum() == 8192 and not (explored == 1).any()
    drawn, p = sample_roots(v, 8192, group=8, rng=rng)
    assert drawn.sum() == 8192 and p.sum() == pytest.approx(1024)


@pytest.mark.parametrize("bad", [np.nan, -0.5, 1.5])
def test_what_is_no_probability_is_refused(bad: float) -> None:
    v, rng = np.array([0.5, bad, 0.2]), np.random.default_rng(0)
    for call in (
        lambda: allocate_roots(v, 4, rng=rng),
        lambda: allocate_prefixes(v, 4, rng=rng),
        lambda: sample_roots(v, 4, group=2, rng=rng),
    ):
        with pytest.raises(AssertionError, match="probabilities"):
            call()


def test_rounding_beyond_the_range_is_forgiven() -> None:
    counts = greedy([1.0 + 1e-12, -1e-12, 0.5], 6, cap=4)
    assert counts[2] == 4 and counts.sum() == 6


# ---- whole groups for the likeliest contrasts -----------------------------------------------------------------------


def groups(
    v: Sequence[float] | Sequence[Sequence[float]], budget: int, *, group: int = 8, epsilon: float = 0.0
) -> Counts:
    return select_groups(np.array(v), budget, group=group, epsilon=epsilon, rng=np.random.default_rng(0))


def test_groups_go_to_the_prompts_nearest_one_half() -> None:
    assert groups([0.0, 0.45, 0.9, 0.6, 1.0, 0.2], 16).tolist() == [0, 8, 0, 8, 0, 0]
    assert groups([0.0, 0.45, 0.9, 0.6, 1.0, 0.2], 31).tolist() == [0, 8, 0, 8, 0, 8]  # whole groups alone
    assert groups([0.1, 0.5], 100, group=4).tolist() == [4, 4]  # the pool is all there is


@given(st.lists(chances, min_size=1, max_size=9), st.integers(0, 40), st.integers(2, 6))
def test_no_other_choice_of_groups_shows_more_contrasts(v: list[float], budget: int, group: int) -> None:
    counts = groups(v, budget, group=group)
    worth = sorted((mixed_chance(x, group) for x in v), reverse=True)
    chosen = [mixed_chance(x, group) for x, m in zip(v, counts, strict=True) if m]
    assert set(counts.tolist()) <= {0, group} and len(chosen) == min(budget // group, len(v))
    assert sum(chosen) == pytest.approx(sum(worth[: len(chosen)]), abs=1e-9)


def test_groups_average_an_ensemble_after_the_value() -> None:
    """Members that say 0 and 1 know a prompt without contrast; their mean would look like a coin."""
    assert groups([[0.0, 0.3], [1.0, 0.3]], 8).tolist() == [0, 8]


def test_explored_groups_are_spread_over_the_whole_pool() -> None:
    """One of two groups goes anywhere, hopeless prompts included; the other to a coin."""
    v, hits = np.array([0.5, 0.5, *[0.0] * 8]), np.zeros(10)
    for seed in range(2000):
        hits += select_groups(v, 16, group=8, epsilon=0.5, rng=np.random.default_rng(seed)) > 0
    assert hits.sum() == 4000
    np.testing.assert_allclose(hits[2:] / 2000, 0.1, atol=4 * np.sqrt(0.1 * 0.9 / 2000))
