"""A stored node of a run's tree that play can go on from, found by its address RUN:STEP:TREE:NODE.

Invariant: the run is only read, and what is found can be entered again: its state is there and its episode goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trace_gym.errors import ConfigError
from trace_gym.runs import RunFolder
from trace_gym.tree import Tree
from trace_gym.view.data import RunReader

__all__ = ["StoredNode", "find_node", "split_address"]


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


def _instead(facts: Mapping[str, Any]) -> str:
    parent = facts["parent"]
    return (
        f"take one before it, such as its parent {parent}"
        if parent >= 0
        else "nothing can be entered again here"
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10
