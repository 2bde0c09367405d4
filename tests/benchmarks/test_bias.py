"""Which back-up survives an allocation that looks for contrast; every bound is in standard errors."""

import numpy as np
import pytest

from trace_gym.algorithms.allocate import allocate_prefixes
from trace_gym.benchmarks.bias import Chain, estimates, grown


@pytest.mark.parametrize(("value", "turns", "need"), [(0.25, 2, 2), (0.10, 2, 2), (0.25, 4, 3), (0.10, 4, 4)])
def test_leaf_is_biased_upwards_and_draw_and_fresh_nearly_not(value: float, turns: int, need: int) -> None:
    chain = Chain.with_value(value, turns=turns, need=need)
    found = estimates(chain, m=8, per_rollout=2, trees=300, rng=np.random.default_rng(0))
    error = {target: x.std() / np.sqrt(len(x)) for target, x in found.items()}
    bias = {target: x.mean() - value for target, x in found.items()}
    assert bias["leaf"] > 0.3 * value + 4 * error["leaf"]  # a third too high at the least
    for target in ("draw", "fresh"):
        assert abs(bias[target]) < 0.1 * value + 4 * error[target]  # within a tenth


def test_without_outcome_in_the_choice_draw_is_unbiased() -> None:
    """Two turns that must both be good: a live prefix stands at 1/2, so its flip chance does not depend on the outcome."""
    chain = Chain.with_value(0.25, turns=2, need=2)
    found = estimates(chain, m=4, per_rollout=2, trees=1500, rng=np.random.default_rng(1))
    draw = found["draw"]
    assert abs(draw.mean() - 0.25) < 4 * draw.std() / np.sqrt(len(draw))


def test_without_continuations_all_back_ups_agree() -> None:
    chain = Chain.with_value(0.25)
    found = estimates(chain, m=8, per_rollout=0, trees=50, rng=np.random.default_rng(0))
    for x in found.values():
        np.testing.assert_allclose(x, found["draw"])


def test_the_chain_is_exact_and_its_trees_are_whole() -> None:
    chain = Chain.with_value(0.1, turns=4, need=3)
    assert chain.success(0, 0) == pytest.approx(0.1)
    assert chain.success(4, 3) == 1.0 and chain.success(4, 2) == 0.0 and chain.success(3, 1) == 0.0
    after = chain.q * chain.success(1, 1) + (1 - chain.q) * chain.success(1, 0)
    assert after == pytest.approx(0.1)
    tree = grown(chain, 3, 2, np.random.default_rng(0))
    assert len(tree.leaves()) == 9 and not np.isnan(tree.outcomes()).any()
    assert (tree.depths()[tree.leaves()] == 4).all()


def test_the_oracle_branches_where_the_outcome_may_flip() -> None:
    """A failed rollout whose second prefix is hopeless is continued from its first."""
    counts = allocate_prefixes(np.array([0.5, 0.0]), 3, rng=np.random.default_rng(0))
    assert counts.tolist() == [3, 0]
