"""Run folders with trees made by hand, for those who look at runs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.trees import add, prompt_tree
from trace_gym.algorithm import Credit, Notes
from trace_gym.config import TrainConfig
from trace_gym.runs import RunFolder
from trace_gym.tree import Tree

HOSTILE = (
    '<script>window.owned=1</script><img src=x onerror="window.owned=1"><svg onload=window.owned=1>'
    "'\"></pre></title><!-- ${window.owned=1} {{constructor}} \x00\x1b[2J\u202edesrever\u2066 javascript:owned=1"
)


def run_folder(parent: Path, name: str = "run", algorithm: str = "trace") -> RunFolder:
    """An empty run."""
    return RunFolder.create(parent, name, config=TrainConfig(algorithm={"name": algorithm}))


def small_tree(task: str = "word/1") -> Tree:
    """Nodes 1 and 2: an attempt that failed; 3: continued from 1 and solved; 4: broken; 5: cut short."""
    tree = prompt_tree(task)
    one = add(tree, 0, shown=(7,))
    add(tree, one, status="done", reward=0.0)
    add(tree, one, status="done", reward=1.0, origin="continuation", draw=1)
    add(tree, 0, status="failed", reward=float("nan"), draw=1)
    add(tree, 0, status="truncated", reward=0.0, draw=2)
    return tree


def with_text(tree: Tree, text: str) -> Tree:
    """The tree with `text` wherever a stranger may have written."""
    nodes = [replace(node, action=text, observation=text, reason=text, state_key=text) for node in tree.nodes]
    return Tree(text, nodes)


def big_tree(nodes: int, task: str = "big/1", seed: int = 0) -> Tree:
    """Rollouts of up to eight turns from the prompt and from random prefixes, until there are so many nodes."""
    rng = np.random.default_rng(seed)
    tree, anchors = prompt_tree(task), [0]
    while len(tree) < nodes:
        parent = start = int(rng.choice(anchors[-400:]))
        turns = int(rng.integers(1, 9))
        for turn in range(turns):
            last = turn == turns - 1
            parent = add(
                tree,
                parent,
                status="done" if last else "running",
                reward=float(last and rng.random() < 0.5),
                origin="root" if start == 0 else "continuation",
                draw=1 if start and not turn else 0,
            )
            anchors += [] if last else [parent]
    return tree


def credit(tree: Tree) -> Credit:
    """An advantage of (index / N) - 0.5."""
    return Credit(np.arange(len(tree)) / len(tree) - 0.5, np.ones(len(tree)))


def notes(tree: Tree, predicted: Sequence[float] | None = None, **why: str) -> Notes:
    """`why` by node: `n3="…"`."""
    values = np.full(len(tree), np.nan) if predicted is None else np.array(predicted, dtype=np.float64)
    return Notes(values, {int(name[1:]): text for name, text in why.items()})


def keep(
    run: RunFolder, step: int, *trees: Tree, predicted: Any = None, why: dict[str, str] | None = None
) -> None:
    """Keep the trees as `step`, with credits, and with notes on the first."""
    named = {tree.task_id: tree for tree in trees}
    first = trees[0]
    noted = (
        {} if predicted is None and why is None else {first.task_id: notes(first, predicted, **(why or {}))}
    )
    run.save_trees(step, named, {tree.task_id: credit(tree) for tree in trees}, noted)
