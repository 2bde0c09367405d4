"""What the viewer knows of runs: plain data, read anew when a file has changed.

A run's files are whole or absent (see `runs`), so a run that is still going on is read like any other. Invariants: nothing is
written; a file is named by a step number that was found in the folder, never by text from outside; what comes out has no nan,
which JSON does not know (None instead).
"""

from __future__ import annotations

import math
import os
import re
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trace_gym.errors import ConfigError, RunError, TraceGymError
from trace_gym.ledger import Cost
from trace_gym.runs import RunFolder
from trace_gym.tree import Node, Tree
from trace_gym.treefile import OUTLINE, read_outlines
from trace_gym.view.actions import brief, split_action

__all__ = ["Recorded", "RunReader"]

Data = dict[str, Any]
STEP_FILE = re.compile(r"step-(\d{1,12})\.parquet")
KEPT_STEPS = 6  # read most recently
EXCERPT = 160  # characters of an action that a tree's drawing gets
LEAST_CHANCE = 0.05  # of a prediction, when it is asked how surprising an outcome is


@dataclass(frozen=True, slots=True)
class Recorded:
    """A tree with what stands beside it in the file; lists are [N]."""

    tree: Tree
    advantage: Sequence[float | None]
    weight: Sequence[float | None]
    predicted: Sequence[float | None]
    why: Sequence[str | None]
    forkable: Sequence[bool]

    def summary(self, number: int) -> Data:
        """What a list of trees shows."""
        tree, outcomes = self.tree, self.tree.outcomes()
        leaves = tree.leaves()
        counts = Counter(outcomes)
        return {
            "tree": number,
            "task": tree.task_id,
            "nodes": len(tree),
            "leaves": len(leaves),
            "outcomes": [[_number(outcome), counts[outcome]] for outcome in sorted(counts, reverse=True)],
            "unscored": sum(tree[leaf].status in ("failed", "censored") for leaf in leaves),
            "unsolved": sum(tree[leaf].scored and not _solved(tree[leaf]) for leaf in leaves),
            "mixed": tree.mixed(),
            "forks": sum(node.origin == "continuation" and node.draw > 0 for node in tree.nodes),
            "predicted": self.predicted[0],
            "realised": _number(float(tree.values()[0])),
            "surprise": max((s for s in self.surprises() if s is not None), default=None),
            "policy_tokens": tree.cost().policy_tokens,
        }

    def surprises(self) -> list[float | None]:
        """[N] standard errors between predicted p and realised success over n draws, |p - v| / sqrt(p (1 - p) / n); None where
        nothing was predicted or scored. p counts as at least 0.05 and at most 0.95 below the root."""
        values, draws = self.tree.values(), self.tree.draws()
        return [_surprise(p, float(v), int(n)) for p, v, n in zip(self.predicted, values, draws, strict=True)]

    def drawing(self) -> Data:
        """The tree as it is drawn: a list per field, [N] each."""
        tree = self.tree
        return {
            "task": tree.task_id,
            "parent": [node.parent for node in tree.nodes],
            "value": [_number(float(v)) for v in tree.values()],
            "draws": tree.draws().tolist(),
            "predicted": list(self.predicted),
            "surprise": self.surprises(),
            "advantage": [_number(a) for a in self.advantage],
            "status": [node.status for node in tree.nodes],
            "solved": [_solved(node) if node.scored else None for node in tree.nodes],
            "origin": [node.origin for node in tree.nodes],
            "draw": [node.draw for node in tree.nodes],
            "tokens": [node.cost.policy_tokens for node in tree.nodes],
            "excerpt": [_excerpt(node) for node in tree.nodes],
        }

    def node(self, index: int) -> Data:
        """Everything about a node, and the text of the path to it."""
        tree, node = self.tree, self.tree[index]
        return {
            "node": index,
            "task": tree.task_id,
            "turn": len(tree.path(index)) - 1,
            "parent": node.parent,
            "children": tree.children()[index],
            "realised": _number(float(tree.values()[index])),
            "draws": int(tree.draws()[index]),
            "predicted": self.predicted[index],
            "surprise": self.surprises()[index],
            "advantage": _number(self.advantage[index]),
            "weight": _number(self.weight[index]),
            "why": self.why[index],
            "forkable": self.forkable[index] and node.status == "running",
            "cost": {f.name: _number(getattr(node.cost, f.name)) for f in fields(Cost)},
            "reward": _number(node.reward),
            **{
                name: getattr(node, name) for name in ("policy_version", "status", "origin", "draw", "reason")
            },
            **{name: getattr(node, name) for name in ("format_error", "success", "state_key")},
            "path": [_turn(tree, step) for step in tree.path(index)],
        }


class RunReader:
    """One run. Safe to use from several threads; methods raise `TraceGymError` for what is absent or corrupt."""

    def __init__(self, path: str | Path) -> None:
        self._folder = RunFolder.open(path)
        self.path = str(path)
        self._lock = threading.Lock()
        self._steps: dict[int, tuple[_Stamp, list[Recorded]]] = {}  # oldest use first
        self._tasks: dict[int, tuple[_Stamp, list[str]]] = {}

    def facts(self) -> Data:
        """Name, environment and algorithm."""
        config = self._folder.config()
        return {
            "path": self.path,
            "name": Path(self.path).resolve().name,
            "env": config.env.id,
            "algorithm": str(config.algorithm["name"]),
            "seed": config.seed,
            "policy": config.policy.path,
        }

    def steps(self) -> list[int]:
        """The steps whose trees were kept, in order."""
        try:
            names = os.listdir(self._folder.trees_path(0).parent)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunError(f"cannot read the trees of {self.path}: {error.strerror}") from error
        found = (STEP_FILE.fullmatch(name) for name in names)
        numbers = {int(match[1]) for match in found if match}
        return sorted(n for n in numbers if self._folder.trees_path(n).name in names)

    def progress(self) -> list[Data]:
        """The kept steps: each with a stamp of its file, and its success and share of mixed trees where the rows tell."""
        try:
            rows = {int(row["step"]): row for row in RunFolder(self._folder.path).metrics()}
        except (KeyError, ValueError, TraceGymError):  # the trees can be looked at without
            rows = {}
        wanted = ("success", "effective_ratio", "policy_tokens")
        return [
            {
                "step": step,
                "stamp": str(_Stamp.of(self._folder.trees_path(step))),
                **{name: _number(rows.get(step, {}).get(name)) for name in wanted},
            }
            for step in self.steps()
        ]

    def trees(self, step: int) -> list[Recorded]:
        """The step's trees. Kept until the file changes or other steps were asked for."""
        path, stamp = self._kept(step)
        with self._lock:
            known = self._steps.pop(step, None)
            if known is not None and known[0] == stamp:
                self._steps[step] = known
                return known[1]
        trees = _read(path)
        with self._lock:
            self._steps[step] = stamp, trees
            while len(self._steps) > KEPT_STEPS:
                self._steps.pop(next(iter(self._steps)))
        return trees

    def tree(self, step: int, number: int) -> Recorded:
        """One tree of a step."""
        trees = self.trees(step)
        if not 0 <= number < len(trees):
            raise ConfigError(
                f"step {step} has {len(trees)} trees; {number} is not among 0 to {len(trees) - 1}"
            )
        return trees[number]

    def node(self, step: int, number: int, index: int) -> Data:
        """One node of a tree."""
        recorded = self.tree(step, number)
        if not 0 <= index < len(recorded.tree):
            raise ConfigError(
                f"tree {number} of step {step} has nodes 0 to {len(recorded.tree) - 1}, not {index}"
            )
        return recorded.node(index)

    def places_of(self, task: str) -> list[Data]:
        """Where the task was rolled out: step and tree, in order."""
        found = []
        for step in self.steps():
            try:
                tasks = self._task_ids(step)
            except RunError:
                continue  # a file that cannot be read has nothing to offer
            found += [{"step": step, "tree": number} for number, one in enumerate(tasks) if one == task]
        return found

    def _task_ids(self, step: int) -> list[str]:
        path, stamp = self._kept(step)
        with self._lock:
            known = self._tasks.get(step)
        if known is None or known[0] != stamp:
            table = _table(path, ["node", "task_id"])
            nodes, tasks = table["node"].to_pylist(), table["task_id"].to_pylist()
            known = stamp, [task for node, task in zip(nodes, tasks, strict=True) if node == 0]
            with self._lock:
                self._tasks[step] = known
        return known[1]

    def _kept(self, step: int) -> tuple[Path, _Stamp]:
        """The step's file and its stamp. Raises `ConfigError` where no trees of the step were kept."""
        steps = self.steps()
        if step not in steps:
            has = f"it has steps {steps[0]} to {steps[-1]}" if steps else "it has none so far"
            raise ConfigError(f"no trees of step {step} were kept; {has} (see log.trees_every_steps)")
        path = self._folder.trees_path(step)
        return path, _Stamp.of(path)


@dataclass(frozen=True, slots=True)
class _Stamp:
    """Tells one state of a file from another."""

    changed_ns: int = 0
    size: int = 0

    @classmethod
    def of(cls, path: Path) -> _Stamp:
        try:
            status = path.stat()
        except OSError:
            return cls()
        return cls(status.st_mtime_ns, status.st_size)

    def __str__(self) -> str:
        return f"{self.changed_ns}.{self.size}"


# ---- files ----------------------------------------------------------------------------------------------------------


def _table(path: Path, columns: Sequence[str]) -> pa.Table:
    """The columns that the file has."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            present = set(file.schema_arrow.names)
            table = file.read(columns=[name for name in columns if name in present])
        table.validate(full=True)  # text is UTF-8: Parquet's reader takes any bytes for it
        return table
    except (OSError, ValueError, pa.ArrowException) as error:
        brief = " ".join(str(error).split())[:200]
        raise RunError(f"{path.name} is corrupt or no Parquet file ({brief})") from error


def _read(path: Path) -> list[Recorded]:
    table = _table(path, [*OUTLINE, "snapshot"])
    if "snapshot" not in table.column_names:
        raise RunError(f"{path.name} is no tree file: it has no snapshots")
    forkable = table["snapshot"].is_valid().to_pylist()
    outline = table.drop_columns(["snapshot"])
    trees = read_outlines(outline, path.name)
    beside = {
        name: outline[name].to_pylist() if name in outline.column_names else [None] * len(outline)
        for name in ("advantage", "weight", "predicted", "why")
    }
    made, first = [], 0
    beside["predicted"] = list(map(_number, beside["predicted"]))
    for tree in trees:  # rows stand in the trees' order
        rows = slice(first, first + len(tree))
        own = {name: column[rows] for name, column in beside.items()}
        made.append(Recorded(tree, forkable=forkable[rows], **own))
        first = rows.stop
    return made


# ---- nodes ----------------------------------------------------------------------------------------------------------


def _turn(tree: Tree, index: int) -> Data:
    node = tree[index]
    thought, action = split_action(node.action)
    return {"node": index, "thought": thought, "action": action, "observation": node.observation}


def _solved(node: Node) -> bool:
    return node.reward > 0 if node.success is None else node.success


def _surprise(predicted: float | None, realised: float, draws: int) -> float | None:
    if predicted is None or draws == 0:
        return None
    p = min(1 - LEAST_CHANCE, max(LEAST_CHANCE, predicted))
    return _number(abs(predicted - realised) * math.sqrt(draws / (p * (1 - p))))


def _excerpt(node: Node) -> str:
    text = " ".join(node.observation.split()) if node.origin == "prompt" else brief(node.action)
    return text[:EXCERPT]


def _number(value: Any) -> float | None:
    """`value` where it is a finite number, else None."""
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None
