"""One budget for roots and prefixes: whoever offers more contrast per token is served first [ours].

TRACE fixes the split between prompts and prefixes (N continuations per rollout) and looks once. Here every node of a tree that
can be continued, the prompt included, is an anchor with one question: what would another rollout from here show, and what
does it cost?

    contrast of an anchor = h(n) once its n draws hold both outcomes, else 0;  h(n) = n (1 - n / (2 enough)), n <= enough:
                            the rollouts that have something to be compared with, each worth less than the one before
    gain of a draw        = f h(n + 1) D^c             no contrast yet; f: chance to end otherwise than all n draws so far
                          = (h(n + 1) - h(n)) D^c      both outcomes are there: it joins a known contrast
    cost                  = expected tokens from the anchor to the end; what the contrast teaches is as many: gain per token is
                            gain per draw

c counts the other contrasts of the tree, D < 1 (`discount`) is the diminishing return. An opening pair at a prompt of success v
is worth 2 v (1-v) h(2), and `coverage` on top of it for a prompt not looked at. So pairs probe many prompts, those that show
both outcomes are deepened to a group, and promising turns of those that do not are forked.

A draw is made while its gain exceeds the *price*, one number for all anchors of all trees, which therefore need not wait for
each other. The price moves after each step so that a step spends about its budget; no tree spends more than `SHARES`
equal shares, whatever the price. v blends the prediction, worth `prior_rollouts` rollouts, with what was seen at the anchor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from trace_gym.algorithm import Branch, StepContext
from trace_gym.algorithms.credit import node_values
from trace_gym.algorithms.predictor import by_task
from trace_gym.tree import Tree

__all__ = ["JointRule"]

Floats = npt.NDArray[np.float64]
OPENING = 2
ADAPTATION = 0.3  # how fast the price follows the spending
FASTEST = 1.5  # the price changes by no more than this factor a step
MOST_DRAWS = 4  # from one anchor in one plan: then look again
LEAST_PRICE = 1e-3  # so that a time without anything worth drawing is not paid for in steps afterwards
LEAST_COST = 0.25  # of a draw, in rollouts: a turn before the end is cheap, not free
SHARES = 4.0  # equal shares of the step's budget that one tree may spend
MIXED = 1e-9


@dataclass(slots=True, kw_only=True)
class JointRule:
    """See the module. `price` is in compared rollouts per draw; nan until the first step that it rules."""

    prior_rollouts: float = 4.0
    discount: float = 0.5
    coverage: float = 0.1
    waves: int = 4
    enough: int = 8
    price: float = math.nan
    _plans: dict[str, int] = field(default_factory=dict)  # made for each tree of the step
    _left: dict[str, float] = field(default_factory=dict)  # what each tree may still spend, in rollouts

    def open(self, ctx: StepContext, v: Floats, units: float) -> list[Branch]:
        """A pair of rollouts for each prompt whose opening is worth the price; `v` [P] predicts their success.

        At most half of the step's `units` opens prompts. The first price is that of the pair which spends it. Prompts worth
        at least half of the best are opened whatever the price: it also has to hold back draws that are worth more than any
        opening, and would else close all prompts at once, step about.
        """
        worth = v * (1.0 - v) * self._contrast(OPENING) + self.coverage / OPENING  # per rollout
        order = np.lexsort((ctx.rng("open").permutation(len(v)), -worth))
        most = min(len(v), max(1, int(units / 2 / OPENING)))
        if math.isnan(self.price):
            self.price = float(worth[order[most - 1]])
        bar = min(self.price, float(worth.max()) / 2)
        chosen = [int(i) for i in order[:most] if worth[i] >= bar]
        tasks = [ctx.pool[i] for i in sorted(chosen)]
        self._plans = dict.fromkeys(tasks, 1)
        self._left = dict.fromkeys(tasks, SHARES * (units / len(tasks) - OPENING))
        return [Branch(task, count=OPENING) for task in tasks]

    def deepen(self, ctx: StepContext, places: Sequence[tuple[str, int]], v: Floats) -> list[Branch]:
        """More draws in the trees that have become idle; `v` [n] predicts success from each of their anchors."""
        branches: list[Branch] = []
        owned = by_task(places)
        for task in ctx.idle:
            if self._plans.get(task, 0) >= self.waves:
                continue
            self._plans[task] = self._plans.get(task, 0) + 1
            mine = owned.get(task, [])
            branches += self._deepen_one(ctx.trees[task], [places[i][1] for i in mine], v[mine])
        return branches

    def _deepen_one(self, tree: Tree, nodes: Sequence[int], predicted: Floats) -> list[Branch]:
        """The draws worth their price, best first, as far as the tree's allowance goes."""
        offers = sorted(self._offers(tree, nodes, predicted), key=lambda offer: -offer[0])
        counts: dict[int, int] = {}
        for gain, node, cost in offers:
            if gain < self.price or self._left[tree.task_id] < cost:
                break
            self._left[tree.task_id] -= cost
            counts[node] = counts.get(node, 0) + 1
        return [Branch(tree.task_id, node, count) for node, count in counts.items()]

    def _offers(
        self, tree: Tree, nodes: Sequence[int], predicted: Floats
    ) -> Iterator[tuple[float, int, float]]:
        """(gain, node, cost) of each draw that could be made."""
        draws, mixed, mean, costs = _seen(tree)
        contrasts = float(mixed.sum())
        for node, prediction in zip(nodes, predicted, strict=True):
            n = float(draws[node])
            if n == 0:
                continue  # nothing was scored there: no outcome to contrast with
            v = (self.prior_rollouts * prediction + n * mean[node]) / (self.prior_rollouts + n)
            flip = 1.0 - v if mean[node] > 0.5 else v
            cost = max(LEAST_COST, float(costs[node]))
            worth = self.discount ** (contrasts - float(mixed[node]))
            gain = math.inf
            for k in range(MOST_DRAWS):
                if mixed[node]:
                    next_gain = self._contrast(n + k + 1) - self._contrast(n + k)
                else:
                    next_gain = flip * (1.0 - flip) ** k * self._contrast(n + k + 1)
                gain = min(gain, worth * next_gain)  # a draw is not made for the sake of a later one
                yield gain, node, cost

    def _contrast(self, n: float) -> float:
        """h(n): what n draws that hold both outcomes are worth."""
        n = min(n, float(self.enough))
        return n * (1.0 - n / (2.0 * self.enough))

    def learn(self, ctx: StepContext, units: float) -> bool:
        """Move the price by how much of `units` the step cost, in rollouts' worth of tokens; False before it rules."""
        if math.isnan(self.price) or not self._plans:
            return False
        whole = [_rollout_tokens(tree) for tree in ctx.trees.values() if len(tree) > 1]
        mean = float(np.mean(whole)) if whole else 0.0
        if mean > 0:
            share = ctx.purse.spent.policy_tokens / (mean * units)
            self.price = max(LEAST_PRICE, self.price * min(FASTEST, max(1 / FASTEST, share**ADAPTATION)))
        self._plans, self._left = {}, {}
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"price": self.price}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.price = float(state["price"])


def _seen(tree: Tree) -> tuple[Floats, npt.NDArray[np.bool_], Floats, Floats]:
    """[N] scored draws at each node, whether they differ in outcome, their mean, and the mean number of tokens from the node to
    the end in units of the tree's whole rollouts."""
    values, parents = node_values(tree), tree.parents()
    low, high = np.full(len(tree), np.inf), np.full(len(tree), -np.inf)
    known = np.flatnonzero(~np.isnan(values[1:])) + 1
    np.minimum.at(low, parents[known], values[known])
    np.maximum.at(high, parents[known], values[known])
    tokens = _tokens_below(tree)
    return (
        tree.draws().astype(np.float64),
        high - low > MIXED,
        np.nan_to_num(values),
        tokens / max(tokens[0], 1e-9),
    )


def _tokens_below(tree: Tree) -> Floats:
    """[N] mean sampled tokens from a node to the ends of the rollouts through it, those that broke included: they were paid."""
    total, ends = np.zeros(len(tree)), np.zeros(len(tree))
    for index in range(len(tree) - 1, 0, -1):
        ends[index] = max(ends[index], 1.0)
        parent = tree[index].parent
        ends[parent] += ends[index]
        total[parent] += total[index] + tree[index].n_action * ends[index]
    return total / np.maximum(ends, 1.0)


def _rollout_tokens(tree: Tree) -> float:
    return float(_tokens_below(tree)[0])
