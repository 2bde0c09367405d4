"""The trees that updates are timed on are what the table says they are, and the FLOPs are counted right."""

import numpy as np
import pytest

from trace_gym.benchmarks.speed_engine import tiny_llama
from trace_gym.benchmarks.speed_update import DEPTHS, LEAVES, RATIOS, flops, grow, page, rows_of
from trace_gym.pack import Row, pack


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_trees_have_the_ratio_the_depth_and_the_leaves_asked_for(depth: int, ratio: int) -> None:
    trees = grow(depth, ratio, 256, 512)
    assert sum(len(tree.leaves()) for tree in trees.values()) == LEAVES
    assert all(tree.depths().max() == depth for tree in trees.values())
    flat = sum(len(tree.tokens(leaf)) for tree in trees.values() for leaf in tree.leaves())
    assert flat == pytest.approx(256 * LEAVES, rel=0.15)
    assert flat / sum(len(node.tokens) for tree in trees.values() for node in tree.nodes) == pytest.approx(
        ratio, rel=0.2
    )
    rows = rows_of(trees)
    assert len(rows) == LEAVES
    trained = sum(int(np.count_nonzero(row.weight)) for row in rows)
    assert trained == sum(node.n_action for tree in trees.values() for node in tree.nodes)


def test_flops_by_hand() -> None:
    """Two rows of 4 tokens that share 2: 3 inputs each, 4 in the pack; three log-probs read at three or two places."""
    tokens = [np.array(x, dtype=np.int32) for x in ([1, 2, 3, 4], [1, 2, 5, 6])]
    weights = [np.array(x, dtype=np.float32) for x in ([0, 0, 1, 1], [0, 0, 0, 1])]
    rows = [Row(t, w, w, w) for t, w in zip(tokens, weights, strict=True)]
    weights[1][2] = 1.0  # its first token is read where the other's is
    found = flops(tiny_llama(), rows)
    linear = 4 * (4 * 128 * 128 + 3 * 128 * 344)
    pairs = {"flat": 2 * (1 + 2 + 3), "packed": 1 + 2 + 3 + 3}
    read = {"flat": 4, "packed": 3}
    assert len(pack([t[:3] for t in tokens])) == 4
    for layout, inputs in (("flat", 6), ("packed", 4)):
        forward = 2 * linear * inputs + 4 * 4 * 128 * pairs[layout] + 2 * 128 * 512 * read[layout]
        assert found[layout] == 3 * forward  # type: ignore[index]


def test_the_page_names_what_was_missed() -> None:
    def cell(ratio: int, packed_s: float) -> dict[str, float]:
        cell = {"depth": 3, "flat_tokens": 40, "packed_tokens": 40 / ratio, "token_ratio": ratio}
        cell |= {"flop_ratio": ratio, "aimed_ratio": ratio, "flat_s": 1.0, "packed_s": packed_s}
        cell |= {f"{x}_micro_batch_tokens": 64 for x in ("flat", "packed")}
        return cell | {f"{x}_gflops_per_s": 1.0 for x in ("flat", "packed")}

    found = {"about": {}, "models": {"tiny": [cell(1, 1.04), cell(4, 0.3)]}}
    assert "All met." in page(found)
    found["models"]["tiny"] = [cell(1, 1.06), cell(4, 0.33)]
    missed = next(line for line in page(found).splitlines() if line.startswith("Missed"))
    assert "0.94 < 0.95" in missed and "0.76 < 0.8" in missed
