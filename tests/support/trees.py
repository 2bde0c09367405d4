"""Trees made by hand and by hypothesis."""

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from trace_gym.ledger import Cost
from trace_gym.tree import Node, Origin, Status, Tree


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
    origin: Origin = "root",
    draw: int = 0,
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
            origin=origin,
            draw=draw,
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


def add_rollout(
    tree: Tree,
    node: int,
    turns: int,
    *,
    status: Status = "done",
    reward: float = 0.0,
    along: float = 0.0,
    sampled: Sequence[Sequence[int]] = (),
) -> int:
    """A whole rollout from `node`, as the loop appends it; returns its leaf. `along` is the reward of every other turn."""
    parent = node
    origin: Origin = "root" if node == 0 else "continuation"
    draw = sum(n.parent == node for n in tree.nodes)
    for turn in range(turns):
        last = turn == turns - 1
        parent = add(
            tree,
            parent,
            sampled[turn] if sampled else (5, 6),
            () if last else (7,),
            reward=reward if last else along,
            status=status if last else "running",
            origin=origin,
            draw=0 if turn else draw,
        )
    return parent


@st.composite
def grown_trees(
    draw: st.DrawFn,
    rewards: st.SearchStrategy[float] | None = None,
    max_rollouts: int = 9,
    max_turns: int = 5,
) -> Tree:
    """Trees as the rollout loop grows them: waves of whole rollouts, first from the prompt, then from visited prefixes.

    Rewards are 0 or 1 unless given. Leaves may be failed or censored (nan, in a turn that may hold no token).
    """
    tree = prompt_tree(tokens=[1])
    outcomes = st.sampled_from([0.0, 1.0]) if rewards is None else rewards
    along = 0.0 if rewards is None else draw(st.sampled_from([0.0, 0.0, 0.25]))
    bare = draw(st.integers(1, 4))
    for number in range(draw(st.integers(bare, max_rollouts))):
        anchors = [i for i, n in enumerate(tree.nodes) if i > 0 and n.status == "running"]
        late_root = (
            number >= bare and draw(st.integers(0, 9)) == 0
        )  # a joint budget may come back to the prompt
        node = 0 if number < bare or late_root or not anchors else draw(st.sampled_from(anchors))
        status: Status = draw(st.sampled_from(["done"] * 6 + ["truncated", "failed", "censored"]))
        lost = status in ("failed", "censored")
        reward = float("nan") if lost else 0.0 if status == "truncated" else draw(outcomes)
        add_rollout(tree, node, draw(st.integers(1, max_turns)), status=status, reward=reward, along=along)
    return tree


@st.composite
def any_trees(draw: st.DrawFn, rewards: st.SearchStrategy[float] | None = None) -> Tree:
    """Grown trees, and shapes that the loop never makes."""
    return draw(st.one_of(grown_trees(rewards), grown_trees(rewards, 12, 8), random_trees()))
