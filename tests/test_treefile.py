"""Trees as tables: equal after the round trip, readable by others, refused when a rule of trees is broken."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.trees import prompt_tree, random_trees, star
from tests.support.walk import RENDERER, WalkEnv, random_walk, walker
from trace_gym.algorithm import Algorithm, Branch, Credit, Notes, RunContext, StepContext
from trace_gym.engine import ScriptedEngine
from trace_gym.errors import TraceGymError
from trace_gym.ledger import Budget, Ledger
from trace_gym.rollout import RolloutSettings, grow_trees, plant_trees
from trace_gym.tree import Node, Tree, same_tree
from trace_gym.treefile import OUTLINE, SCHEMA, read_outlines, read_trees, tree_table


class Fork(Algorithm):
    """Three rollouts of every task, then two from the first anchor of each."""

    def plan(self, ctx: StepContext) -> list[Branch]:
        if not ctx.idle:
            return [Branch(task, count=3) for task in ctx.pool]
        fresh = [t for t in ctx.idle if len(ctx.trees[t].nodes[0:]) and not _forked(ctx.trees[t])]
        return [Branch(t, ctx.trees[t].anchors()[0], 2) for t in fresh if ctx.trees[t].anchors()]


def _forked(tree: Tree) -> bool:
    return any(node.origin == "continuation" for node in tree.nodes)


def grown_trees(seed: int = 0) -> dict[str, Tree]:
    """Trees of a real environment, with snapshots and forks."""
    env = WalkEnv()
    run = RunContext(seed=seed, tasks=env.tasks("train"))
    ctx = plant_trees(env, run.tasks, RENDERER, run, 0, Budget())
    settings = RolloutSettings(max_tokens=16, threads=2)
    engine = ScriptedEngine(walker(random_walk))
    return grow_trees(
        Fork(), ctx, engine=engine, renderer=RENDERER, env=env, settings=settings, ledger=Ledger()
    ).trees


def round_trip(trees: dict[str, Tree]) -> list[Tree]:
    return read_trees(tree_table(3, trees, {}), "file")


def test_every_field_of_a_real_tree_comes_back() -> None:
    trees = grown_trees()
    assert any(_forked(tree) for tree in trees.values())
    back = round_trip(trees)
    assert [tree.task_id for tree in back] == list(trees)
    for one, other in zip(trees.values(), back, strict=True):
        assert same_tree(one, other)
        for a, b in zip(one.nodes, other.nodes, strict=True):
            assert (a.snapshot is None) == (b.snapshot is None)
            assert a.snapshot is None or b.snapshot is None or a.snapshot.digest == b.snapshot.digest
            for name in ("cost", "policy_version", "format_error"):
                assert getattr(a, name) == getattr(b, name)
            assert (a.tokens.dtype, a.logprobs.dtype) == (b.tokens.dtype, b.logprobs.dtype)


def test_trees_longer_than_a_batch_of_rows_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trace_gym.treefile.ROWS", 2)
    trees = grown_trees()
    assert max(len(tree) for tree in trees.values()) > 4
    back = round_trip(trees)
    assert all(same_tree(one, other) for one, other in zip(trees.values(), back, strict=True))


def test_a_loaded_snapshot_can_be_continued() -> None:
    back = round_trip(grown_trees())[0]
    anchor = back.anchors()[0]
    snapshot = back[anchor].snapshot
    assert snapshot is not None
    env = WalkEnv()
    observation, info = env.restore(snapshot)
    assert (observation, info["task_id"]) == (back[anchor].observation, back.task_id)
    assert env.state_key() == back[anchor].state_key


@given(st.lists(random_trees(), max_size=4))
def test_any_trees_come_back_equal(trees: list[Tree]) -> None:
    named = {f"task {i}": tree for i, tree in enumerate(trees)}
    for name, tree in named.items():
        tree.task_id = name
    back = round_trip(named)
    assert len(back) == len(trees)
    assert all(same_tree(one, other) for one, other in zip(trees, back, strict=True))


def test_credits_stand_beside_their_nodes() -> None:
    trees = {"a": star([0.0, 1.0]), "b": star([1.0])}
    for name, tree in trees.items():
        tree.task_id = name
    credit = Credit(np.array([np.nan, -1.0, 1.0]), np.array([0.0, 1.0, 2.0]))
    rows = tree_table(3, trees, {"a": credit}).to_pylist()
    assert [row["weight"] for row in rows] == [0.0, 1.0, 2.0, None, None]
    assert np.isnan(rows[0]["advantage"]) and [row["advantage"] for row in rows[1:]] == [
        -1.0,
        1.0,
        None,
        None,
    ]
    assert {row["step"] for row in rows} == {3}


@given(st.text(st.characters(), max_size=20))
def test_any_text_is_kept_or_replaced(text: str) -> None:
    tree = prompt_tree()
    node = dataclasses.replace(
        tree[0], action=text + "\x00", observation="\ud800" + text, reason=text, state_key=text
    )
    tree = Tree("task\udfff", [node])
    back = round_trip({tree.task_id: tree})[0]
    encodable = text.encode("utf-8", "replace").decode()
    assert back.task_id == "task?"
    assert (back[0].action, back[0].observation) == (encodable + "\x00", "?" + encodable)


def test_notes_stand_beside_their_nodes_and_old_files_lack_them() -> None:
    tree = star([0.0, 1.0])
    note = Notes(np.array([0.25, np.nan, 0.5]), {0: "chosen\ud800"})
    table = tree_table(3, {"task": tree}, {}, {"task": note})
    assert table["predicted"].to_pylist() == [0.25, None, 0.5]
    assert table["why"].to_pylist() == ["chosen?", None, None]
    old = table.drop_columns(["predicted", "why"])
    assert same_tree(read_trees(old, "file")[0], tree)
    with pytest.raises(TraceGymError, match="does not have the columns"):
        read_trees(table.rename_columns(["hint" if name == "why" else name for name in SCHEMA.names]), "file")


def test_an_outline_is_the_tree_without_tokens_and_snapshots() -> None:
    trees = grown_trees()
    table = tree_table(0, trees, {})
    for whole, outline in zip(trees.values(), read_outlines(table.select(OUTLINE), "file"), strict=True):
        assert np.array_equal(outline.values(), whole.values(), equal_nan=True)
        for a, b in zip(whole.nodes, outline.nodes, strict=True):
            assert (a.parent, a.action, a.status, a.cost, a.draw) == (
                b.parent,
                b.action,
                b.status,
                b.cost,
                b.draw,
            )
            assert b.snapshot is None and len(b.tokens) == 0
    with pytest.raises(TraceGymError, match="does not have the columns"):
        read_outlines(table, "file")
    with pytest.raises(TraceGymError, match="cannot have the parent 5"):
        read_outlines(changed(1, parent=5).select(OUTLINE), "file")


# ---- files that are wrong -------------------------------------------------------------------------------------------


def changed(row: int, **values: Any) -> pa.Table:
    rows = tree_table(0, {"task": star([0.0, 1.0])}, {}).to_pylist()
    rows[row] |= values
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (changed(1, parent=5), "cannot have the parent 5"),
        (changed(1, parent=1), "cannot have the parent 1"),
        (changed(1, parent=-1), "cannot have the parent -1"),
        (changed(1, parent=-2), "cannot have the parent -2"),
        (changed(0, parent=0), "cannot have the parent 0"),
        (changed(2, parent=1), "is the end of an episode"),
        (changed(1, node=7), "out of order"),
        (changed(1, tree=7), "out of order"),
        (changed(0, tree=7), "out of order"),
        (changed(0, tree=-1), "out of order"),
        (changed(1, tree=-1), "out of order"),
        (changed(0, tree=-1), "out of order"),
        (changed(1, task_id="other"), "out of order"),
        (changed(1, n_action=1), "1 sampled tokens, 2 log-probs"),
        (changed(1, n_action=-1), "-1 sampled tokens"),
        (changed(1, n_action=3, logprobs=[0.0] * 3), "3 log-probs, 2 tokens"),
        (changed(1, status="won"), "unknown status 'won'"),
        (changed(1, origin="nowhere"), "origin 'nowhere'"),
        (changed(1, snapshot=b"\x80\x04\x95pickle?"), "not a snapshot"),
        (changed(1, snapshot=b""), "not a snapshot"),
        (changed(1).drop_columns(["reward"]), "does not have the columns"),
        (pa.table({"a": [1]}), "does not have the columns"),
    ],
)
def test_a_table_that_breaks_a_rule_is_refused(table: pa.Table, message: str) -> None:
    with pytest.raises(TraceGymError, match=message) as caught:
        read_trees(table, "some.parquet")
    assert "some.parquet" in str(caught.value) and "\n" not in str(caught.value)


def test_node_and_schema_have_the_same_fields() -> None:
    """A field added to `Node` must be kept too."""
    flat = {field.name for field in dataclasses.fields(Node)} - {"cost"}
    assert flat <= set(SCHEMA.names)
