"""Rollout trees as a table, a row per node: readable by pandas, DuckDB and `datasets`, and back into trees.

Invariant: `read_trees(tree_table(step, trees, credits))` gives trees equal to the ones kept, snapshots included; a
table that breaks a rule of trees raises `RunError` and never gives a tree.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from trace_gym.algorithm import Credit, Notes
from trace_gym.errors import RunError, SnapshotError
from trace_gym.ledger import Cost
from trace_gym.snapshot import Snapshot
from trace_gym.text import clean_text
from trace_gym.tree import NO_PARENT, Node, Origin, Status, Tree

__all__ = ["OUTLINE", "SCHEMA", "read_outlines", "read_trees", "tree_table"]


ROWS = 4096  # as Python objects at a time: they take many times the room of a table


def _given(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_TEXT = ("action", "observation", "state_key", "reason")
_AS_IS = (
    "parent",
    "n_action",
    "policy_version",
    "reward",
    "status",
    "origin",
    "draw",
    "format_error",
    "success",
)
_COSTS = tuple(f.name for f in fields(Cost))

SCHEMA = pa.schema(
    [
        _given("step", pa.int64()),
        _given("tree", pa.int32()),  # place in the step's pool
        _given("task_id", pa.string()),
        _given("node", pa.int32()),
        _given("parent", pa.int32()),  # -1 for the prompt
        _given("tokens", pa.list_(_given("item", pa.int32()))),  # sampled, then the observation's
        _given("n_action", pa.int32()),
        _given("logprobs", pa.list_(_given("item", pa.float32()))),  # [n_action]
        _given("policy_version", pa.int64()),
        _given("action", pa.string()),
        _given("observation", pa.string()),
        pa.field("snapshot", pa.binary()),  # Snapshot.to_bytes()
        _given("state_key", pa.string()),
        _given("reward", pa.float64()),  # nan: not scored
        _given("status", pa.string()),
        _given("origin", pa.string()),
        _given("draw", pa.int32()),
        _given("reason", pa.string()),
        _given("format_error", pa.bool_()),
        pa.field("success", pa.bool_()),  # null where no episode ended
        *(_given(name, pa.float64() if name == "rollout_units" else pa.int64()) for name in _COSTS),
        pa.field(
            "advantage", pa.float64()
        ),  # null: the tree got no credit; nan: the turn is left out of the loss
        pa.field("weight", pa.float64()),
        pa.field("predicted", pa.float64()),  # success probability from here; null: nobody asked
        pa.field("why", pa.string()),  # rollouts were started here, or were not; null: nothing to say
    ]
)
_LATER = ("predicted", "why")  # columns that files of earlier releases lack
OUTLINE = [name for name in SCHEMA.names if name not in ("tokens", "logprobs", "snapshot")]


def tree_table(
    step: int,
    trees: Mapping[str, Tree],
    credits: Mapping[str, Credit],
    notes: Mapping[str, Notes] | None = None,
) -> pa.Table:
    """The step's trees, what they taught and what was noted about them, by task, as a table of `SCHEMA`."""
    notes = notes or {}
    rows = (
        {"step": step, "tree": place, **row}
        for place, (task, tree) in enumerate(trees.items())
        for row in _tree_rows(tree, credits.get(task), notes.get(task))
    )
    batches = iter(lambda: list(itertools.islice(rows, ROWS)), [])
    return pa.Table.from_batches(
        [pa.RecordBatch.from_pylist(batch, schema=SCHEMA) for batch in batches], schema=SCHEMA
    )


def _tree_rows(tree: Tree, credit: Credit | None, notes: Notes | None) -> Iterator[dict[str, Any]]:
    for index, node in enumerate(tree.nodes):
        yield {
            "task_id": clean_text(tree.task_id),
            "node": index,
            "tokens": node.tokens,
            "logprobs": node.logprobs,
            "snapshot": None if node.snapshot is None else node.snapshot.to_bytes(),
            **{name: clean_text(getattr(node, name)) for name in _TEXT},
            **{name: getattr(node, name) for name in _AS_IS},
            **asdict(node.cost),
            "advantage": None if credit is None else float(credit.advantage[index]),
            "weight": None if credit is None else float(credit.weight[index]),
            **({} if notes is None else _noted(notes, index)),
        }


def _noted(notes: Notes, index: int) -> dict[str, Any]:
    predicted, why = float(notes.predicted[index]), notes.why.get(index)
    return {
        "predicted": None if math.isnan(predicted) else predicted,
        "why": None if why is None else clean_text(why),
    }


def read_trees(table: pa.Table, name: str) -> list[Tree]:
    """The trees in a table that `tree_table` made. `name` is the file, for errors. Raises `RunError`."""
    _check_columns(table, SCHEMA.names, name)
    return _trees(_rows(table), name)


def read_outlines(table: pa.Table, name: str) -> list[Tree]:
    """The same trees without tokens, log-probs and snapshots, quickly: from a table of the columns `OUTLINE` alone.

    Every node has `n_action` 0; its cost still tells how many tokens were sampled. Raises `RunError`.
    """
    _check_columns(table, OUTLINE, name)
    bare = {"tokens": (), "logprobs": (), "n_action": 0, "snapshot": None}
    return _trees((row | bare for row in _rows(table)), name)


def _check_columns(table: pa.Table, names: Sequence[str], file: str) -> None:
    """Raise `RunError` unless these are the table's columns; those that earlier releases did not write may be absent."""
    present = [name for name in names if name not in _LATER or name in table.column_names]
    if not table.schema.equals(pa.schema([SCHEMA.field(name) for name in present])):
        raise RunError(
            f"{file} does not have the columns of a tree file; it is no tree file or of another release"
        )


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    return (row for batch in table.to_batches(max_chunksize=ROWS) for row in batch.to_pylist())


def _trees(rows: Iterable[dict[str, Any]], name: str) -> list[Tree]:
    trees: list[Tree] = []
    for row in rows:
        place, index = row["tree"], row["node"]
        if index == 0 and place == len(trees):
            trees.append(Tree(row["task_id"]))
        try:
            _append(trees[-1] if trees and place == len(trees) - 1 else None, row)
        except (ValueError, SnapshotError) as error:
            raise RunError(f"{name} is corrupt at node {index} of tree {place}: {error}") from error
    return trees


def _append(tree: Tree | None, row: dict[str, Any]) -> None:
    """Append the row's node. Checks what `Tree` and `Node` assert, for a file is no promise. Raises `ValueError`."""
    if tree is None or row["node"] != len(tree) or row["task_id"] != tree.task_id:
        raise ValueError("the rows are out of order")
    if (row["parent"] == NO_PARENT) != (row["node"] == 0) or not NO_PARENT <= row["parent"] < row["node"]:
        raise ValueError(f"it cannot have the parent {row['parent']}")
    if row["parent"] != NO_PARENT and tree[row["parent"]].status != "running":
        raise ValueError(f"its parent {row['parent']} is the end of an episode")
    if len(row["logprobs"]) != row["n_action"] or row["n_action"] > len(row["tokens"]):
        raise ValueError(
            f"{row['n_action']} sampled tokens, {len(row['logprobs'])} log-probs, {len(row['tokens'])} tokens"
        )
    if row["status"] not in get_args(Status) or row["origin"] not in get_args(Origin):
        raise ValueError(f"unknown status {row['status']!r} or origin {row['origin']!r}")
    snapshot = row["snapshot"]
    node = Node(
        tokens=np.array(row["tokens"], dtype=np.int32),
        logprobs=np.array(row["logprobs"], dtype=np.float32),
        snapshot=None if snapshot is None else Snapshot.from_bytes(snapshot),
        cost=Cost(**{name: row[name] for name in _COSTS}),
        **{name: row[name] for name in (*_TEXT, *_AS_IS)},
    )
    tree.append(node)
