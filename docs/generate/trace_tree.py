"""The tree of TRACE by example, taken out of a recorded run by a rule, not by taste.

    trace-gym warmup --option difficulty=1-5 --seed 0 --out policies/seed-0
    trace-gym train policy.path=policies/seed-0 name=tree env.options.difficulty=1-5 algorithm.name=trace \
        algorithm.selection=greedy algorithm.prefix_stage=active algorithm.rollouts=32 rollout.max_tokens=32 \
        optim.lr=1e-4 budget.steps=6 eval.tasks=0 deterministic=true
    python -m docs.generate.trace_tree runs/tree          writes docs/pictures/trace_tree.json
    python -m docs.generate.pictures                      draws it

The rule: of the steps that the predictor planned, the first tree in which a continuation ended otherwise than a rollout
that it shares its anchor with, of at most `LARGEST` nodes.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from docs.generate.pictures import RUN
from trace_gym.runs import RunFolder
from trace_gym.tree import Tree

__all__ = ["chosen", "main", "told"]

LARGEST = 20  # nodes, for the picture's sake
PLANNED = 2  # the first step after the uniform ones (algorithm.warmup_steps)
SHOWN = 58  # characters of a turn


def main() -> None:
    """Write the tree of the run named on the command line."""
    run = RunFolder.open(Path(sys.argv[1]))
    step, place, tree = chosen(run)
    RUN.write_text(
        json.dumps(told(run, step, place, tree), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    print(f"step {step}, tree {place}: {tree.task_id}")


def chosen(run: RunFolder) -> tuple[int, int, Tree]:
    """Step, place and tree by the rule. Raises `LookupError`."""
    step = PLANNED
    while run.trees_path(step).exists():
        for place, tree in enumerate(run.load_trees(step)):
            if len(tree) <= LARGEST and _contrast(tree):
                return step, place, tree
        step += 1
    raise LookupError(f"{run.path} holds no such tree")


def _contrast(tree: Tree) -> bool:
    """Do the draws at some turn differ in outcome, one of them a continuation?"""
    values, below = tree.values(), tree.children()
    return any(
        max(values[c] for c in below[i]) > min(values[c] for c in below[i])
        for i in tree.anchors()
        if any(tree[c].origin == "continuation" for c in below[i])
    )


def told(run: RunFolder, step: int, place: int, tree: Tree) -> dict[str, Any]:
    """What the picture and the page show."""
    with pq.ParquetFile(run.trees_path(step)) as file:
        rows = file.read(columns=["tree", "node", "advantage"]).to_pylist()
    advantage = {row["node"]: row["advantage"] for row in rows if row["tree"] == place}
    values, depths, below = tree.values(), tree.depths(), tree.children()
    outcomes = tree.outcomes()
    return {
        "task": tree.task_id,
        "step": step,
        "summary": f"{len(outcomes)} rollouts, {sum(outcomes):g} of them right, {tree.cost().rollout_units:g} rollout units",
        "question": tree[0].observation,
        "nodes": [
            {
                "node": i,
                "parent": tree[i].parent,
                "depth": int(depths[i]),
                "origin": tree[i].origin,
                # the first turn of a continuation is a later draw at its anchor; its further turns are first draws
                "anchor": any(tree[c].origin == "continuation" and tree[c].draw > 0 for c in below[i]),
                "reward": tree[i].reward if tree[i].status != "running" else None,
                "value": _number(values[i], ".2f"),
                "advantage": "" if i == 0 else _number(advantage[i], "+.2f").replace("+0.00", "0.00"),
                "tokens": str(tree[i].n_action) if i else "",
                "said": _said(tree, i),
            }
            for i in tree.walk()
        ],
    }


def _number(value: float | None, form: str) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:{form}}"


def _said(tree: Tree, node: int) -> str:
    """A turn in one line: the call's arguments or the answer, then what the environment showed."""
    if node == 0:
        return "the question"
    action = tree[node].action
    if "<tool_call>" in action:
        try:
            call = json.loads(action.partition("<tool_call>")[2].partition("</tool_call>")[0])
            action = ", ".join(map(str, call["arguments"].values()))
        except (ValueError, KeyError, AttributeError):
            pass
    else:
        action = action.replace("<answer>", "answer ").replace("</answer>", "")
    text = " ".join(f"{action} → {tree[node].observation}".split())
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


if __name__ == "__main__":
    main()
