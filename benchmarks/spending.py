"""Where a step's budget went: prompts passed over, tokens of rollouts from prompts, tokens of continuations by depth.

A watcher of a training run. It changes nothing and writes a line of JSON per step, flushed, so that a run that is killed and
resumed loses none; of two lines of one step the later counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from trace_gym.algorithm import StepContext
from trace_gym.ledger import Ledger
from trace_gym.tree import Tree

__all__ = ["DEEPEST", "FILE", "Spending", "read_spending", "spent"]

FILE = "spending.jsonl"
DEEPEST = 4  # continuations from turn 4 and later are counted together
Row = dict[str, float]


class Spending:
    """An `Observer` and a context manager around one run."""

    def __init__(self, folder: Path, *, forget: bool) -> None:
        self._path, self._mode = folder / FILE, "w" if forget else "a"
        self._file: IO[str] | None = None
        self._ctx: StepContext | None = None

    def __enter__(self) -> Self:
        self._file = open(self._path, self._mode, encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()

    def progress(self, ctx: StepContext, ledger: Ledger) -> None:
        self._ctx = ctx

    def step(self, metrics: Mapping[str, float]) -> None:
        assert self._file is not None
        if self._ctx is not None and self._ctx.step == metrics["step"]:
            row = {"step": metrics["step"], **spent(self._ctx.trees.values())}
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        self._ctx = None

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        self._ctx = None  # its rollouts are no step's

    def note(self, text: str) -> None:
        print(text, flush=True)


def spent(trees: Iterable[Tree]) -> Row:
    """Of a step's trees: `pool` and `skipped` prompts, sampled tokens `tokens_root` of rollouts from the prompt and
    `tokens_prefix_1`, … of continuations, by the turn that they start after."""
    row: Row = {"pool": 0.0, "skipped": 0.0, "tokens_root": 0.0}
    row |= {f"tokens_prefix_{depth}": 0.0 for depth in range(1, DEEPEST + 1)}
    for tree in trees:
        row["pool"] += 1
        row["skipped"] += len(tree) == 1
        depths, forked = (
            tree.depths(),
            [0] * len(tree),
        )  # forked: the turn after which the node's rollout started
        for index, node in enumerate(tree.nodes[1:], 1):
            if node.origin == "root":
                row["tokens_root"] += node.n_action
                continue
            first = node.cost.rollout_units > 0  # billed once a rollout, to its first turn
            forked[index] = int(depths[node.parent]) if first else forked[node.parent]
            row[f"tokens_prefix_{min(forked[index], DEEPEST)}"] += node.n_action
    return row


def read_spending(folder: Path) -> list[dict[str, Any]]:
    """The rows in a cell's folder, by step."""
    path = folder / FILE
    if not path.exists():
        return []
    rows: dict[float, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # cut off by a kill
            continue
        rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]
