"""Where tokens went, counted by hand on small trees."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from trace_gym.benchmarks.spending import Spending, read_spending, spent
from trace_gym.ledger import Cost, Ledger
from trace_gym.tree import Node, Origin, Tree


def add(tree: Tree, parent: int, tokens: int, *, origin: Origin, first: bool, draw: int = 0) -> int:
    node = Node(
        parent=parent,
        tokens=np.zeros(tokens, dtype=np.int32),
        n_action=tokens,
        logprobs=np.zeros(tokens, dtype=np.float32),
        policy_version=0,
        action="",
        observation="",
        snapshot=None,
        state_key="",
        reward=0.0,
        status="running",
        origin=origin,
        draw=draw,
        cost=Cost(policy_tokens=tokens, rollout_units=float(first)),
    )
    return tree.append(node)


def prompt(task: str) -> Tree:
    tree = Tree(task)
    tree.append(Node.prompt(np.zeros(3, dtype=np.int32), "", None))
    return tree


def forked() -> Tree:
    """A rollout of three turns, a fork after its first turn of six, and a fork inside that fork."""
    tree = prompt("a")
    one = add(tree, 0, 10, origin="root", first=True)
    two = add(tree, one, 20, origin="root", first=False)
    add(tree, two, 30, origin="root", first=False)
    at = add(tree, one, 1, origin="continuation", first=True, draw=1)
    places = [at]
    for _ in range(4):
        places.append(add(tree, places[-1], 1, origin="continuation", first=False))
    add(tree, places[0], 7, origin="continuation", first=True, draw=1)  # after turn 2
    add(tree, places[3], 9, origin="continuation", first=True, draw=1)  # after turn 5
    return tree


def test_tokens_are_counted_by_the_turn_that_their_rollout_starts_after() -> None:
    row = spent([forked(), prompt("skipped")])
    assert (row["pool"], row["skipped"]) == (2, 1)
    assert row["tokens_root"] == 60 and row["tokens_prefix_1"] == 5
    assert row["tokens_prefix_2"] == 7 and row["tokens_prefix_3"] == 0 and row["tokens_prefix_4"] == 9


def test_a_step_is_written_at_once_and_a_repeated_one_counts_once(tmp_path: Path) -> None:
    ctx: Any = SimpleNamespace(step=0, trees={"a": forked()})
    for forget in (True, False):
        with Spending(tmp_path, forget=forget) as watching:
            watching.progress(ctx, Ledger())
            watching.step({"step": 0.0})
            assert read_spending(tmp_path)[0]["tokens_root"] == 60
            watching.evaluated({})
            watching.step({"step": 1.0})  # nothing grown: nothing to tell
    with open(tmp_path / "spending.jsonl", "a") as file:
        file.write('{"step": 1.0, "po')
    assert [row["step"] for row in read_spending(tmp_path)] == [0.0]
    assert len((tmp_path / "spending.jsonl").read_text().splitlines()) == 3
    with Spending(tmp_path, forget=True):
        assert read_spending(tmp_path) == []
    assert read_spending(tmp_path / "nowhere") == []
