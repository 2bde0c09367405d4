"""A stored node of a run's tree, entered again: by a person (`play`), or by a policy, k times (`success_from`).

Invariant: the run is only read. What is drawn from a node shares no random stream with training or evaluation, so it tells
anew how often the policy succeeds from there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trace_gym.actor import Actor
from trace_gym.algorithm import Algorithm, Branch, Credit, RunContext, StepContext
from trace_gym.errors import ConfigError
from trace_gym.evaluate import wilson
from trace_gym.ledger import Ledger
from trace_gym.rollout import grow_trees
from trace_gym.runs import RunFolder
from trace_gym.seeding import derive_seed
from trace_gym.tree import Tree
from trace_gym.view.data import RunReader

__all__ = ["Rate", "StoredNode", "find_node", "split_address", "success_from"]


@dataclass(frozen=True, slots=True)
class StoredNode:
    """A node that play can go on from. `facts` is what the viewer shows of it."""

    run: RunFolder
    step: int
    number: int  # of the tree in its step
    tree: Tree
    node: int
    facts: Mapping[str, Any]

    def __str__(self) -> str:
        turn = self.facts["turn"]
        return f"step {self.step}, tree {self.number} ({self.tree.task_id}), node {self.node}, turn {turn}"


@dataclass(frozen=True, slots=True)
class Rate:
    """How often continuations succeeded. Those that could not be scored are counted apart, not as failures."""

    continuations: int
    unscored: int
    successes: int

    @property
    def success(self) -> float:
        """nan when nothing was scored."""
        scored = self.continuations - self.unscored
        return self.successes / scored if scored else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval: continuations are independent draws from one state."""
        return wilson(self.success, self.continuations - self.unscored)


def split_address(text: str) -> tuple[str, int, str, int]:
    """RUN:STEP:TREE:NODE in its parts; a run's path may hold colons. Raises `ConfigError`."""
    parts = text.rsplit(":", 3)
    if len(parts) != 4 or not parts[0] or not parts[2] or not all(_is_number(parts[i]) for i in (1, 3)):
        raise ConfigError(f"{text!r}: write RUN:STEP:TREE:NODE, such as runs/train:12:3:5")
    return parts[0], int(parts[1]), parts[2], int(parts[3])


def find_node(run: str | Path, step: int, tree: str, node: int) -> StoredNode:
    """The node; `tree` is its number in the step or its task's id. Raises `TraceGymError` for one that is not there, or that
    no play can go on from."""
    folder, reader = RunFolder.open(run), RunReader(run)
    tasks = [recorded.tree.task_id for recorded in reader.trees(step)]
    if not _is_number(tree) and tree not in tasks:
        raise ConfigError(f"step {step} has no tree of task {tree!r}; give its number, 0 to {len(tasks) - 1}")
    number = int(tree) if _is_number(tree) else tasks.index(tree)
    facts = reader.node(step, number, node)
    if facts["status"] != "running":
        raise ConfigError(f"node {node} is the end of an episode ({facts['status']}): {_instead(facts)}")
    if not facts["forkable"]:
        raise ConfigError(
            f"node {node} holds no snapshot, for an irreversible tool was called: {_instead(facts)}"
        )
    return StoredNode(folder, step, number, folder.load_trees(step)[number], node, facts)


def success_from(stored: StoredNode, actor: Actor, *, continuations: int, seed: int = 0) -> Rate:
    """Draw continuations from the node with the actor's policy. Raises `ConfigError` for a policy that reads other tokens than
    the ones the tree is made of."""
    _check_tokens(stored, actor)
    tree = Tree(stored.tree.task_id, list(stored.tree.nodes))
    run = RunContext(seed=derive_seed(seed, "revisit"), tasks=(tree.task_id,))
    grow_trees(
        _From(node=stored.node, count=continuations),
        StepContext(run=run, step=stored.step, trees={tree.task_id: tree}),
        engine=actor.engine,
        renderer=actor.renderer,
        env=actor.env,
        settings=actor.settings,
        ledger=Ledger(),
    )
    ends = [tree[leaf] for leaf in tree.leaves() if leaf >= len(stored.tree)]
    scored = [node for node in ends if node.scored]
    solved = sum(node.reward > 0 if node.success is None else node.success for node in scored)
    return Rate(continuations, continuations - len(scored), solved)


@dataclass(kw_only=True)
class _From(Algorithm):
    """`count` rollouts from one node."""

    node: int
    count: int

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        return [] if ctx.idle else [Branch(ctx.pool[0], self.node, self.count)]

    def credit(self, ctx: StepContext) -> Mapping[str, Credit]:
        return {}


def _check_tokens(stored: StoredNode, actor: Actor) -> None:
    """The prompt, rendered by this policy's tokenizer and template, must be the tree's: its tokens are the policy's input."""
    prompt = stored.tree[0]
    assert prompt.snapshot is not None, "a tree that can be continued has a prompt that can"
    observation, info = actor.env.restore(prompt.snapshot)
    tokens = actor.renderer.prompt(observation, system=info["system"], tools=info["tools"])
    if not np.array_equal(tokens, prompt.tokens):
        raise ConfigError(
            "this policy reads the prompt as other tokens than the tree holds: it has another tokenizer or chat template"
        )


def _instead(facts: Mapping[str, Any]) -> str:
    parent = facts["parent"]
    return (
        f"take one before it, such as its parent {parent}"
        if parent >= 0
        else "nothing can be entered again here"
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10
