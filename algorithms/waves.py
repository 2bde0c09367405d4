"""What the forking baselines share: trees that are grown by waves until they hold a group, and how unsure a turn was.

A tree changes only when its wave has ended, and every rollout, scored or not, ends in a leaf of its own. So the number of
leaves is the number of rollouts made, and a plan needs no memory: what the budget refused is missing, and is asked for again
for as long as other rollouts still come back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from trace_gym.algorithm import Branch, StepContext
from trace_gym.errors import ConfigError
from trace_gym.tree import Node, Tree

__all__ = ["at_least_two", "branches", "draw_nodes", "grow_to", "surprise"]

Wave = Callable[[str, Tree, int], Iterable[int]]


def at_least_two(group: int) -> None:
    """Raise `ConfigError` for a group in which nothing could be compared."""
    if group < 2:
        raise ConfigError(
            f"algorithm.group={group}: a group of one has nothing to compare with; use 2 or more"
        )


def grow_to(ctx: StepContext, group: int, *, first: int, wave: Wave) -> list[Branch]:
    """`first` rollouts of every prompt; then, for each idle tree, rollouts from the nodes that `wave(task, tree, wanted)`
    names (a node may stand there twice; more than are wanted are cut off), until it holds `group`."""
    if not ctx.idle:
        return [Branch(task, count=min(first, group)) for task in ctx.pool]
    planned: list[Branch] = []
    for task in ctx.idle:
        tree = ctx.trees[task]
        wanted = group - len(tree.leaves())
        if wanted > 0:
            planned += branches(task, list(wave(task, tree, wanted))[:wanted])
    return planned


def branches(task: str, nodes: Iterable[int]) -> list[Branch]:
    """One rollout from each node, those from the same node together."""
    return [Branch(task, node=node, count=count) for node, count in Counter(nodes).items()]


def draw_nodes(nodes: list[int], count: int, rng: np.random.Generator) -> list[int]:
    """`count` of the nodes at random, none again before all others were drawn; the prompt where there are none."""
    if not nodes:
        return [0] * count
    rounds = [rng.permutation(nodes) for _ in range(-(-count // len(nodes)))]
    return [int(node) for node in np.concatenate([*rounds, np.zeros(0, dtype=np.int64)])[:count]]


def surprise(node: Node, window: int = 0) -> float:
    """Estimate of the policy's entropy in this turn, in nats a token: mean of -log-prob over its first `window` sampled
    tokens (0: all). Each term's expectation is the entropy at its place; nan where nothing was sampled."""
    logprobs = node.logprobs[:window] if window else node.logprobs
    return -float(np.mean(logprobs, dtype=np.float64)) if len(logprobs) else float("nan")
