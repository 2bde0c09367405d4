"""The whole policy gradient, through the real loop, packing and loss, against Relay's exact one; bounds in standard errors."""

import numpy as np
import pytest

from trace_gym.benchmarks import gradient
from trace_gym.benchmarks.gradient import DEPTH, Expansion, Measured, Rule, ratios

STEPS, TREES = 12, 48
EDGE: Rule = ("edge", "path")
TURN: Rule = ("edge", "turn")
SIBLING: Rule = ("sibling", "path")
Table = dict[Rule, Measured]


@pytest.fixture(scope="module")
def tables() -> dict[str, Table]:
    found: dict[str, Table] = {}
    expansions: tuple[Expansion, ...] = ("none", "uniform")
    for expansion in expansions:
        found[expansion] = ratios(
            gradient.Testbed(), expansion, steps=STEPS, trees=TREES, rules=(EDGE, TURN, SIBLING)
        )
    return found


@pytest.mark.parametrize("expansion", ["none", "uniform"])
def test_edge_with_path_weights_is_unbiased_at_every_station(
    tables: dict[str, Table], expansion: str
) -> None:
    ratio, error, cosine, _ = tables[expansion][EDGE]
    assert ratio.shape == (DEPTH,)
    assert (abs(ratio - 1.0) < 3 * error).all() and (error < 0.3).all()
    assert 0.8 < cosine < 1.0  # noise is what is left of an unbiased estimate


def test_siblings_alone_teach_nothing_before_a_fork(tables: dict[str, Table]) -> None:
    """Without forks nothing at all; with them, of the first station only what was tried there a second time."""
    ratio, error, *_ = tables["none"][SIBLING]
    assert (ratio == 0).all() and (error == 0).all() and tables["none"][SIBLING].cosine == 0
    assert (
        tables["none"][SIBLING].taught
        == 0
        < tables["uniform"][SIBLING].taught
        < tables["uniform"][EDGE].taught
    )
    ratio, error, *_ = tables["uniform"][SIBLING]
    assert ratio[0] < 1.0 - 4 * error[0] and ratio[0] < 0.7


def test_one_vote_a_turn_leans_on_what_was_expanded(tables: dict[str, Table]) -> None:
    """`turn` weights sum over rollouts, so it is the stations' shares that must agree, and under expansion they do not."""
    ratio, error, *_ = tables["none"][TURN]
    np.testing.assert_allclose(
        ratio, 4 * tables["none"][EDGE][0], rtol=1e-5
    )  # four rollouts a tree, each with weight 1
    ratio, error, *_ = tables["uniform"][TURN]
    assert ratio[-1] / ratio[0] - 1.0 > 3 * (error[-1] / ratio[0] + error[0] * ratio[-1] / ratio[0] ** 2)
