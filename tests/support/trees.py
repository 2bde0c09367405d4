"""Trees made by hand and by hypothesis."""

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from trace_gym.ledger import Cost
from trace_gym.tree import Node, Status, Tree


def prompt_tree(task: str = "task", tokens: Sequence[int] = (1, 2, 3)) -> Tree:
    return Tree(task, [Node.prompt(np.array(tokens, dtype=np.int32), "prompt", None)])


def add(
    tree: Tree,
    parent: int,
    sampled: Sequence[int] = (5, 6),
    shown: Sequence[int] = (),
    *,
    reward: float = 0.0,
    status: Status = "running",
    logprob: float = -1.0,
) -> int:
    tokens = np.array([*sampled, *shown], dtype=np.int32)
    return tree.append(
        Node(
            parent=parent,
            tokens=tokens,
            n_action=len(sampled),
            logprobs=np.full(len(sampled), logprob, dtype=np.float32),
            policy_version=0,
            action="a",
            observation="o",
            snapshot=None,
            state_key="",
            reward=reward,
            status=status,
            origin="root",
            draw=0,
            cost=Cost(policy_tokens=len(sampled)),
        )
    )


def star(rewards: Sequence[float], lengths: Sequence[int] | None = None) -> Tree:
    """One-turn rollouts from the prompt."""
    tree = prompt_tree()
    for reward, length in zip(rewards, lengths or [2] * len(rewards), strict=True):
        add(tree, 0, range(5, 5 + length), reward=reward, status="done")
    return tree


@st.composite
def random_trees(draw: st.DrawFn, max_nodes: int = 14, vocabulary: int = 40) -> Tree:
    """Any shape; leaves are done, truncated or failed, with rewards 0 or 1."""
    token = st.integers(0, vocabulary - 1)
    tree = prompt_tree(tokens=draw(st.lists(token, min_size=1, max_size=5)))
    parents = [0]
    for _ in range(draw(st.integers(1, max_nodes))):
        parent = draw(st.sampled_from(parents))
        sampled = draw(st.lists(token, min_size=0, max_size=4))
        status: Status = draw(st.sampled_from(["running", "running", "done", "truncated", "failed"]))
        reward = (
            float(draw(st.booleans())) if status == "done" else float("nan") if status == "failed" else 0.0
        )
        shown = draw(st.lists(token, max_size=3)) if status == "running" else ()
        index = add(
            tree, parent, sampled, shown, reward=reward, status=status, logprob=-draw(st.floats(0.1, 3.0))
        )
        if status == "running":
            parents.append(index)
    return tree
