"""What a prompt's backed-up value is worth once TRACE has chosen where to branch: `leaf` against `draw` and `fresh`.

    python -m trace_gym.benchmarks.bias

A chain of turns, each good with probability q; the task is solved when enough turns were good. So every prefix's success
probability is exact, and so is the predictor (an oracle). Each tree gets `m` rollouts from the prompt, then `m * N`
continuations where `allocate_prefixes` puts them. No engine and no environment: nodes hold no tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import comb
from typing import get_args

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from trace_gym.algorithms.allocate import allocate_prefixes
from trace_gym.algorithms.credit import TargetWeighting, node_values
from trace_gym.ledger import Cost
from trace_gym.tree import NO_LOGPROBS, NO_TOKENS, Node, Tree

__all__ = ["Chain", "estimates", "grown"]

TARGETS: tuple[TargetWeighting, ...] = get_args(TargetWeighting)


@dataclass(frozen=True)
class Chain:
    """An episode of `turns` turns, each good with probability `q`, solved by `need` good ones."""

    turns: int
    need: int
    q: float

    @classmethod
    def with_value(cls, value: float, *, turns: int = 4, need: int = 3) -> Chain:
        """The chain whose success probability is `value`."""
        return cls(turns, need, float(brentq(lambda q: cls(turns, need, q).success(0, 0) - value, 0.0, 1.0)))

    @cache  # noqa: B019 - a handful of chains a run
    def success(self, turn: int, good: int) -> float:
        """Probability of solving the task after `turn` turns of which `good` were good."""
        left = self.turns - turn
        return sum(
            comb(left, k) * self.q**k * (1 - self.q) ** (left - k)
            for k in range(max(0, self.need - good), left + 1)
        )


def grown(chain: Chain, m: int, per_rollout: int, rng: np.random.Generator) -> Tree:
    """A tree of `m` rollouts and `m * per_rollout` continuations, placed as TRACE's second stage places them."""
    tree = Tree("chain", [Node.prompt(NO_TOKENS, "", None)])
    state = [(0, 0)]  # of each node: turns taken, good ones

    def roll_out(node: int) -> float:
        turn, good = state[node]
        origin = node
        while turn < chain.turns:
            turn, good = turn + 1, good + int(rng.random() < chain.q)
            node = tree.append(_turn(node, origin, ended=turn == chain.turns, solved=good >= chain.need))
            state.append((turn, good))
        return float(good >= chain.need)

    flips: dict[int, float] = {}
    for _ in range(m):
        first = len(tree)
        reward = roll_out(0)
        for node in range(first, len(tree) - 1):  # its prefixes; the leaf is none
            success = chain.success(*state[node])
            flips[node] = 1.0 - success if reward else success
    counts = allocate_prefixes(np.array(list(flips.values())), m * per_rollout, rng=rng)
    for node, count in zip(flips, counts, strict=True):
        for _ in range(count):
            roll_out(node)
    return tree


def _turn(parent: int, origin: int, *, ended: bool, solved: bool) -> Node:
    return Node(
        parent=parent,
        tokens=NO_TOKENS,
        n_action=0,
        logprobs=NO_LOGPROBS,
        policy_version=0,
        action="",
        observation="",
        snapshot=None,
        state_key="",
        reward=float(ended and solved),
        status="done" if ended else "running",
        origin="continuation" if origin else "root",
        draw=0,
        cost=Cost(),
    )


def estimates(
    chain: Chain, *, m: int, per_rollout: int, trees: int, rng: np.random.Generator
) -> dict[TargetWeighting, npt.NDArray[np.float64]]:
    """The prompt's backed-up value in each of `trees` trees, by weighting."""
    out = {target: np.empty(trees) for target in TARGETS}
    for i in range(trees):
        tree = grown(chain, m, per_rollout, rng)
        for target in TARGETS:
            out[target][i] = node_values(tree, target)[0]
    return out


def main() -> None:
    print("true   chain      m  N " + "".join(f"{target:>18}" for target in TARGETS))
    for value in (0.25, 0.10):
        for turns, need in ((2, 2), (4, 3), (4, 4)):
            for m, per_rollout in ((4, 2), (8, 2), (8, 0)):
                chain = Chain.with_value(value, turns=turns, need=need)
                rng = np.random.default_rng(0)
                found = estimates(chain, m=m, per_rollout=per_rollout, trees=2000, rng=rng)
                cells = "".join(
                    f"  {x.mean():8.3f} ± {x.std() / np.sqrt(len(x)):.3f}" for x in found.values()
                )
                print(f"{value:.2f}  {need} of {turns}  {m:4d} {per_rollout:2d} {cells}", flush=True)


if __name__ == "__main__":
    main()
