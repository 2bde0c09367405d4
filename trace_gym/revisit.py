"""How often a policy succeeds from a stored node of a run's tree.

Invariants: the run is only read; what is drawn from a node shares no random stream with training or evaluation, so it tells
anew how often the policy succeeds from there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trace_gym.actor import Actor
from trace_gym.algorithm import Algorithm, Branch, Credit, RunContext, StepContext
from trace_gym.errors import ConfigError
from trace_gym.evaluate import wilson
from trace_gym.ledger import Ledger
from trace_gym.rollout import grow_trees
from trace_gym.seeding import derive_seed
from trace_gym.tree import Tree
from trace_gym.view.stored import StoredNode

__all__ = ["Rate", "success_from"]


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
