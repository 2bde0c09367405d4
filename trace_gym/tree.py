"""A rollout tree: an append-only list of nodes with parent indices. Node 0 is the prompt.

A node is one turn: the tokens the policy sampled, then the tokens that show it the environment's answer. It stores only
what it adds; so concatenating the tokens along a path gives exactly the ids the model saw, with nothing tokenised again.
A parent's index is smaller than its children's, so one backward sweep visits children before parents. Everything else
(children, paths, leaves, values) is computed, never stored. A reward of nan means "not scored", which is not 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from trace_gym.engine import FloatArray, IntArray
from trace_gym.env import Snapshot
from trace_gym.ledger import Cost

__all__ = ["NO_PARENT", "Node", "Origin", "Status", "Tree"]

NO_PARENT = -1
Status = Literal["running", "done", "truncated", "failed", "censored"]
Origin = Literal["prompt", "root", "continuation"]
NO_TOKENS: IntArray = np.zeros(0, dtype=np.int32)
NO_LOGPROBS: FloatArray = np.zeros(0, dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Node:
    """One turn, or the prompt (`Node.prompt`). Its shapes are checked."""

    parent: int
    tokens: IntArray  # [n] sampled tokens, then those of the rendered observation
    n_action: int  # how many of them were sampled
    logprobs: FloatArray  # [n_action] under the sampling distribution
    policy_version: int
    action: str
    observation: str
    snapshot: Snapshot | None  # the state after this turn; None at leaves and where no fork is allowed
    state_key: str
    reward: float  # of this turn; nan when the turn was not scored
    status: Status
    origin: Origin  # did this turn's rollout start at the prompt or at a prefix?
    draw: int  # index among the draws made at the parent
    cost: Cost
    reason: str = ""  # why the leaf is truncated, failed or censored
    format_error: bool = False  # the environment could not parse the action
    success: bool | None = None  # at the end of an episode: was the task solved? The reward may say more

    def __post_init__(self) -> None:
        assert len(self.logprobs) == self.n_action <= len(self.tokens), (
            len(self.logprobs),
            self.n_action,
            len(self.tokens),
        )

    @classmethod
    def prompt(
        cls, tokens: IntArray, observation: str, snapshot: Snapshot | None, *, state_key: str = ""
    ) -> Node:
        """Node 0."""
        return cls(
            parent=NO_PARENT,
            tokens=tokens,
            n_action=0,
            logprobs=NO_LOGPROBS,
            policy_version=-1,
            action="",
            observation=observation,
            snapshot=snapshot,
            state_key=state_key,
            reward=0.0,
            status="running",
            origin="prompt",
            draw=0,
            cost=Cost(),
        )

    @property
    def scored(self) -> bool:
        return self.status in ("done", "truncated")


@dataclass(slots=True)
class Tree:
    """The attempts at one task. See the module for the invariant."""

    task_id: str
    nodes: list[Node] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, index: int) -> Node:
        return self.nodes[index]

    def append(self, node: Node) -> int:
        """Add a node and return its index. Its parent must be in the tree and must not be the end of an episode."""
        if node.parent == NO_PARENT:
            assert not self.nodes, "a tree has one prompt"
        else:
            assert 0 <= node.parent < len(self.nodes), f"node {node.parent} is not in the tree"
            assert self.nodes[node.parent].status == "running", "an ended episode has no next turn"
        self.nodes.append(node)
        return len(self.nodes) - 1

    # ---- views ------------------------------------------------------------------------------------------------------

    def parents(self) -> IntArray:
        """[N] parent of each node; NO_PARENT for the prompt."""
        return np.fromiter((node.parent for node in self.nodes), dtype=np.int32, count=len(self.nodes))

    def depths(self) -> IntArray:
        """[N] turns taken up to and including each node; 0 for the prompt."""
        depths = np.zeros(len(self.nodes), dtype=np.int32)
        for index, node in enumerate(self.nodes):
            if node.parent != NO_PARENT:
                depths[index] = depths[node.parent] + 1
        return depths

    def children(self) -> list[list[int]]:
        """[N] lists of child indices, in the order they were appended."""
        below: list[list[int]] = [[] for _ in self.nodes]
        for index, node in enumerate(self.nodes):
            if node.parent != NO_PARENT:
                below[node.parent].append(index)
        return below

    def path(self, index: int) -> list[int]:
        """Node indices from the prompt to `index`, both included."""
        path = [index]
        while (parent := self.nodes[path[-1]].parent) != NO_PARENT:
            path.append(parent)
        return path[::-1]

    def tokens(self, index: int) -> IntArray:
        """The token ids the model sees at the end of `index`: its path, concatenated."""
        return np.concatenate([self.nodes[i].tokens for i in self.path(index)])

    def leaves(self) -> list[int]:
        """Nodes without children, the prompt excluded, in index order."""
        has_child = np.zeros(len(self.nodes), dtype=bool)
        for node in self.nodes[1:]:
            has_child[node.parent] = True
        return [i for i in range(1, len(self.nodes)) if not has_child[i]]

    def returns(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """[N] sum of rewards along the path for ended episodes, nan for every other node."""
        sums = np.zeros(len(self.nodes))
        out = np.full(len(self.nodes), np.nan)
        for index, node in enumerate(self.nodes):
            sums[index] = node.reward + (sums[node.parent] if node.parent != NO_PARENT else 0.0)
            if node.scored:
                out[index] = sums[index]
        return out

    def values(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """[N] backed-up value: the return of an ended episode; else the mean over scored draws; nan where there is none.

        Children are distinct draws from the policy at their parent, so their plain mean is what each node's value is
        estimated by, however many leaves lie below each.
        """
        values = self.returns()
        total, count = np.zeros(len(self.nodes)), np.zeros(len(self.nodes))
        for index in range(len(self.nodes) - 1, -1, -1):
            if count[index]:
                values[index] = total[index] / count[index]
            parent = self.nodes[index].parent
            if parent != NO_PARENT and not np.isnan(values[index]):
                total[parent] += values[index]
                count[parent] += 1
        return values

    def draws(self) -> IntArray:
        """[N] scored draws made at each node: children with a value."""
        values = self.values()
        counts = np.zeros(len(self.nodes), dtype=np.int32)
        for index in range(1, len(self.nodes)):
            counts[self.nodes[index].parent] += not np.isnan(values[index])
        return counts

    def outcomes(self) -> list[float]:
        """Returns of the scored leaves, in index order."""
        returns = self.returns()
        return [float(returns[i]) for i in self.leaves() if not np.isnan(returns[i])]

    def mixed(self) -> bool:
        """Whether the tree holds two different outcomes, and so can teach by contrast."""
        outcomes = self.outcomes()
        return bool(outcomes) and max(outcomes) - min(outcomes) > 1e-9

    def mixed_anchors(self) -> int:
        """Nodes, the prompt included, whose draws differ in value: where success and failure can be compared directly."""
        values = self.values()
        low, high = np.full(len(self.nodes), np.inf), np.full(len(self.nodes), -np.inf)
        for index in range(1, len(self.nodes)):
            parent = self.nodes[index].parent
            if not np.isnan(values[index]):
                low[parent] = min(low[parent], values[index])
                high[parent] = max(high[parent], values[index])
        return int((high - low > 1e-9).sum())

    def anchors(self) -> list[int]:
        """Nodes a continuation can start from, the prompt excluded: running and with a snapshot."""
        return [
            i for i, n in enumerate(self.nodes) if i > 0 and n.status == "running" and n.snapshot is not None
        ]

    def cost(self) -> Cost:
        """What the whole tree cost."""
        total = Cost()
        for node in self.nodes:
            total = total + node.cost
        return total

    def walk(self) -> Iterator[int]:
        """Node indices in depth-first order, children in the order they were appended."""
        below = self.children()
        stack = [0] if self.nodes else []
        while stack:
            index = stack.pop()
            yield index
            stack.extend(reversed(below[index]))


def same_tree(one: Tree, other: Tree) -> bool:
    """Whether two trees hold the same nodes, snapshots included, in the same order."""
    return len(one) == len(other) and all(
        _same_node(a, b) for a, b in zip(one.nodes, other.nodes, strict=True)
    )


_PLAIN = (
    *("parent", "n_action", "policy_version", "action", "observation", "state_key", "status", "origin"),
    *("draw", "cost", "reason", "format_error", "success"),
)


def _same_node(a: Node, b: Node) -> bool:
    digests = [None if node.snapshot is None else node.snapshot.digest for node in (a, b)]
    return (
        all(getattr(a, name) == getattr(b, name) for name in _PLAIN)
        and np.array_equal(a.tokens, b.tokens)
        and np.array_equal(a.logprobs, b.logprobs)
        and np.array_equal([a.reward], [b.reward], equal_nan=True)
        and digests[0] == digests[1]
    )
