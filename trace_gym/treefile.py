"""Rollout trees as a table, a row per node: readable by pandas, DuckDB and `datasets`, and back into trees.

Invariant: `read_trees(tree_table(step, trees, credits))` gives trees equal to the ones kept, snapshots included; a
table that breaks a rule of trees raises `RunError` and never gives a tree.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trace_gym.algorithm import Credit
from trace_gym.errors import RunError, SnapshotError
from trace_gym.ledger import Cost
from trace_gym.snapshot import Snapshot
from trace_gym.text import clean_text
from trace_gym.tree import NO_PARENT, Node, Origin, Status, Tree

__all__ = ["SCHEMA", "read_trees", "tree_table"]


def _given(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


READ_ROWS = 4096  # at a time

_LISTS = ("tokens", "logprobs")
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
    ]
)


def tree_table(step: int, trees: Mapping[str, Tree], credits: Mapping[str, Credit]) -> pa.Table:
    """The step's trees and what they taught, by task, as a table of `SCHEMA`."""
    nodes = [node for tree in trees.values() for node in tree.nodes]
    places = [place for place, tree in enumerate(trees.values()) for _ in tree.nodes]
    names = [clean_text(tree.task_id) for tree in trees.values()]
    columns: dict[
        str, Iterable[Any]
    ] = {  # each made when its turn comes, so that one of them at a time is in Python
        "step": (step for _ in nodes),
        "tree": places,
        "task_id": (names[place] for place in places),
        "node": (index for tree in trees.values() for index in range(len(tree))),
        "snapshot": (None if node.snapshot is None else node.snapshot.to_bytes() for node in nodes),
        **{name: map(clean_text, map(attrgetter(name), nodes)) for name in _TEXT},
        **{name: map(attrgetter(name), nodes) for name in _AS_IS},
        **{name: map(attrgetter(f"cost.{name}"), nodes) for name in _COSTS},
        **{name: _credit_column(name, trees, credits) for name in ("advantage", "weight")},
    }
    arrays = [
        _list_array([getattr(node, field.name) for node in nodes], field.type)
        if field.name in _LISTS
        else pa.array(columns[field.name], field.type, size=len(nodes))
        for field in SCHEMA
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _credit_column(
    name: str, trees: Mapping[str, Tree], credits: Mapping[str, Credit]
) -> Iterator[float | None]:
    for task, tree in trees.items():
        credit = credits.get(task)
        yield from [None] * len(tree) if credit is None else getattr(credit, name).tolist()


def _list_array(arrays: Sequence[npt.NDArray[Any]], kind: pa.ListType) -> pa.Array:
    """Arrays as the rows of a column, without a Python object for every token."""
    ends = np.cumsum([0, *map(len, arrays)], dtype=np.int32)
    values = np.concatenate(arrays) if arrays else np.zeros(0)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values, kind.value_type), type=kind)


def read_trees(table: pa.Table, name: str) -> list[Tree]:
    """The trees in a table that `tree_table` made. `name` is the file, for errors. Raises `RunError`."""
    if not table.schema.equals(SCHEMA):
        raise RunError(
            f"{name} does not have the columns of a tree file; it is no tree file or of another release"
        )
    trees: list[Tree] = []
    for row in _rows(table):
        place, index = row["tree"], row["node"]
        if index == 0 and place == len(trees):
            trees.append(Tree(row["task_id"]))
        try:
            _append(trees[-1] if place == len(trees) - 1 else None, row)
        except (ValueError, SnapshotError) as error:
            raise RunError(f"{name} is corrupt at node {index} of tree {place}: {error}") from error
    return trees


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The table's rows, a few at a time, for as Python objects they take many times the room."""
    for batch in table.to_batches(max_chunksize=READ_ROWS):
        lists = {name: _split(batch.column(name)) for name in _LISTS}
        rest = batch.select([name for name in batch.schema.names if name not in _LISTS]).to_pylist()
        for index, row in enumerate(rest):
            yield row | {name: arrays[index] for name, arrays in lists.items()}


def _split(column: pa.ListArray) -> list[npt.NDArray[Any]]:
    values, ends = column.values.to_numpy(), column.offsets.to_numpy()
    return [values[start:end].copy() for start, end in itertools.pairwise(ends)]


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
        snapshot=None if snapshot is None else Snapshot.from_bytes(snapshot),
        cost=Cost(**{name: row[name] for name in _COSTS}),
        **{name: row[name] for name in (*_LISTS, *_TEXT, *_AS_IS)},
    )
    tree.append(node)
