"""The pictures of the concepts' page, and the tree of TRACE by example.

    python -m docs.generate.pictures            writes docs/pictures/*.svg

Numbers in them come from the library's own functions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from docs.generate.repository import ROOT
from docs.generate.svg import ACCENT, INK, MUTED, PALE, Picture
from trace_gym.algorithms.allocate import allocate_roots
from trace_gym.algorithms.credit import credit_trees
from trace_gym.ledger import Cost
from trace_gym.tree import Node, Status, Tree

__all__ = ["FOLDER", "PICTURES", "main"]

FOLDER = ROOT / "docs/pictures"
RUN = FOLDER / "trace_tree.json"


def fork() -> Picture:
    """One episode, a snapshot, three continuations."""
    p = Picture(
        760,
        250,
        "Snapshot and fork",
        "An episode of three turns fails. From the snapshot taken after its first turn "
        "three continuations leave; one succeeds, one of them runs in another process.",
    )
    p.text(20, 30, "the episode", fill=MUTED)
    for x, words in ((20, "prompt"), (140, "turn 1"), (300, "turn 2"), (440, "turn 3")):
        p.label(x, 60, 90, words)
    p.line([(110, 60), (138, 60)], tip=True)
    p.line([(230, 60), (298, 60)], tip=True)
    p.line([(390, 60), (438, 60)], tip=True)
    p.line([(530, 60), (576, 60)], tip=True)
    p.outcome(590, 60, 0)
    p.line([(185, 75), (185, 118)], tip=True)
    p.box(130, 120, 110, 46, fill=PALE)
    p.text(185, 139, "snapshot", at="middle", bold=True)
    p.text(185, 156, "a value", at="middle", fill=MUTED, size=11)
    for y, reward, turns in ((125, 1, 1), (168, 0, 2), (211, 0, 1)):
        p.line([(240, 143), (262, 143), (262, y), (298, y)], tip=True)
        p.label(300, y, 90, "other turn 2")
        if turns == 2:
            p.line([(390, y), (438, y)], tip=True)
            p.label(440, y, 90, "turn 3")
        end = 530 if turns == 2 else 390
        p.line([(end, y), (576, y)], tip=True)
        p.outcome(590, y, reward)
    p.box(290, 190, 326, 44, dashed=True, stroke=MUTED)
    p.text(628, 216, "in another process", fill=MUTED)
    p.text(628, 64, "fails", fill=MUTED)
    p.text(628, 129, "succeeds", fill=MUTED)
    return p


def tree() -> Picture:
    """Nodes, and the tokens along a path."""
    p = Picture(
        760,
        290,
        "Tree, nodes and tokens",
        "A prompt with two root rollouts and one continuation; below, the tokens along "
        "the path 0, 1, 5, 6: node by node what was sampled and what the environment answered.",
    )
    places = {
        0: (60, 95),
        1: (190, 55),
        2: (330, 30),
        3: (190, 140),
        4: (330, 140),
        5: (330, 85),
        6: (470, 85),
    }
    for a, b in ((0, 1), (1, 2), (0, 3), (3, 4), (1, 5), (5, 6)):
        (x, y), (u, v) = places[a], places[b]
        p.line([(x + 45, y), (u - 47, v)], tip=True, dashed=b in (5, 6))
    for node, (x, y) in places.items():
        p.label(
            x - 45,
            y,
            90,
            "0: prompt" if node == 0 else f"{node}",
            fill=PALE if node in (0, 1, 5, 6) else "#ffffff",
        )
    for node, reward in ((2, 0), (4, 0), (6, 1)):
        x, y = places[node]
        p.outcome(x + 62, y, reward)
    p.text(560, 34, "root rollout", fill=MUTED)
    p.text(560, 89, "continuation from anchor 1", fill=MUTED)
    p.text(560, 144, "root rollout", fill=MUTED)
    p.text(15, 195, "the path 0, 1, 5, 6 is what the model saw:", fill=MUTED)
    left = 15
    for node, sampled, shown in ((0, 0, 7), (1, 4, 3), (5, 5, 2), (6, 3, 0)):
        for k in range(sampled + shown):
            p.box(left + 25 * k, 207, 22, 22, fill=INK if k < sampled else "#ffffff")
        width = 25 * (sampled + shown)
        p.text(left + (width - 3) / 2, 247, f"node {node}", at="middle", size=11)
        left += width + 14
    p.box(15, 262, 14, 14, fill=INK)
    p.text(36, 274, "sampled by the policy: trained on", size=12)
    p.box(260, 262, 14, 14, fill="#ffffff")
    p.text(281, 274, "shown to it: context only", size=12)
    return p


def budget() -> Picture:
    """Spent, reserved, free."""
    p = Picture(
        760,
        200,
        "Budget and ledger",
        "Of 1,000 tokens 430 are spent, three running rollouts have 120 reserved each, 210 are "
        "free. Of three more that are planned one starts and two wait.",
    )
    left, width = 20, 700
    scale = width / 1000
    p.text(left, 30, "budget.policy_tokens=1000", mono=True)
    p.box(left, 45, 430 * scale, 44, fill=INK)
    p.text(left + 215 * scale, 72, "spent: 430", at="middle", fill="#ffffff")
    for k in range(3):
        p.box(left + (430 + 120 * k) * scale, 45, 120 * scale, 44, fill=PALE)
        p.text(left + (490 + 120 * k) * scale, 72, "≤ 120", at="middle")
    p.box(left + 790 * scale, 45, 210 * scale, 44, fill="#ffffff")
    p.text(left + 895 * scale, 72, "free: 210", at="middle")
    p.text(left + 610 * scale, 110, "reserved for three running rollouts, at worst", at="middle", fill=MUTED)
    p.text(left, 142, "plan: 3 more, of at most 120 tokens each")
    for k, words in enumerate(("starts", "waits", "waits")):
        p.label(left + 300 + 110 * k, 138, 96, words, fill="#ffffff", dashed=k > 0)
    p.text(
        left,
        182,
        "Who ends early gives back what is left; who can never start is refused, and counted.",
        fill=MUTED,
    )
    return p


PREDICTED = (0.02, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.98)


def allocation() -> Picture:
    """Counts by `allocate_roots`, nothing spread at random."""
    counts = allocate_roots(PREDICTED, 18, epsilon=0.0, rng=np.random.default_rng(0))
    p = Picture(760, 260, "Allocation", f"Predicted success {PREDICTED}; rollouts given: {counts.tolist()}.")
    p.text(20, 28, "18 rollouts for 9 prompts, as allocate_roots gives them", fill=MUTED)
    for k, (v, count) in enumerate(zip(PREDICTED, counts, strict=True)):
        x = 150 + 66 * k
        p.text(x, 236, f"{v:g}", at="middle")
        for unit in range(int(count)):
            p.box(x - 16, 190 - 26 * unit, 32, 22, fill=PALE)
        p.text(x, 208 - 26 * int(count), str(count), at="middle", bold=True)
    p.line([(110, 216), (730, 216)])
    p.text(20, 236, "predicted success", fill=MUTED, size=12)
    p.text(20, 204, "rollouts", fill=MUTED, size=12)
    return p


def _node(parent: int, reward: float | None = None) -> Node:
    status: Status = "running" if reward is None else "done"
    none = np.zeros(0, dtype=np.int32)
    return Node(
        parent=parent,
        tokens=none,
        n_action=0,
        logprobs=none.astype(np.float32),
        policy_version=0,
        action="",
        observation="",
        snapshot=None,
        state_key="",
        reward=reward or 0.0,
        status=status,
        origin="root",
        draw=0,
        cost=Cost(),
    )


def credit() -> Picture:
    """Values and `edge` advantages by `credit_trees`."""
    grown = Tree("task", [Node.prompt(np.zeros(1, dtype=np.int32), "", None)])
    for parent, reward in ((0, None), (0, 0.0), (1, 1.0), (1, 0.0), (1, 1.0), (1, 1.0)):
        grown.append(_node(parent, reward))
    values = grown.values()
    advantage = credit_trees({"task": grown}, mode="edge", weights="path", scale="none")["task"].advantage
    p = Picture(
        760,
        270,
        "Contrast and credit",
        f"Values by node: {_numbers(values)}. Edge advantages: {_numbers(advantage)}.",
    )
    places = {
        0: (90, 130),
        1: (300, 90),
        2: (300, 230),
        3: (540, 30),
        4: (540, 85),
        5: (540, 140),
        6: (540, 195),
    }
    for node in range(1, len(grown)):
        (x, y), (u, v) = places[grown[node].parent], places[node]
        p.line([(x + 60, y), (u - 62, v)], tip=True)
    for node, (x, y) in places.items():
        p.box(x - 60, y - 20, 120, 40, fill=PALE if node == 0 else "#ffffff")
        p.text(x, y - 3, f"value {values[node]:.2f}", at="middle")
        words = "the prompt" if node == 0 else f"advantage {advantage[node]:+.2f}"
        p.text(x, y + 14, words, at="middle", fill=MUTED if node == 0 else ACCENT, size=12)
    for node, (x, y) in places.items():
        if grown[node].status == "done":
            p.outcome(x + 80, y, grown[node].reward)
    p.text(638, 60, "one failed where", fill=MUTED, size=12)
    p.text(638, 76, "the others did not", fill=MUTED, size=12)
    return p


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def predictor() -> Picture:
    """Who reads the predictor, and who does not."""
    p = Picture(
        760,
        230,
        "Predictor",
        "Places go to the predictor, its predictions to the allocation, which grows trees. Backed-up "
        "values of the trees teach the predictor; advantages of the trees teach the policy. Nothing leads from the "
        "predictor to the gradient.",
    )
    for x, y, words, fill in (
        (20, 60, "places", "#ffffff"),
        (170, 60, "predictor", PALE),
        (350, 60, "allocation", "#ffffff"),
        (530, 60, "trees", "#ffffff"),
        (530, 180, "policy", PALE),
    ):
        p.label(x, y, 110, words, fill=fill)
    p.line([(130, 60), (168, 60)], tip=True)
    p.line([(280, 60), (348, 60)], tip=True)
    p.text(315, 50, "v, f", at="middle", fill=MUTED, size=12)
    p.line([(460, 60), (528, 60)], tip=True)
    p.text(494, 50, "counts", at="middle", fill=MUTED, size=12)
    p.line([(560, 75), (560, 120), (225, 120), (225, 77)], tip=True)
    p.text(390, 113, "backed-up values: it learns", at="middle", fill=MUTED, size=12)
    p.line([(600, 75), (600, 163)], tip=True)
    p.text(612, 124, "advantages", fill=MUTED, size=12)
    p.line([(528, 180), (75, 180), (75, 77)], tip=True)
    p.text(300, 172, "the tokens of a place, as the policy embeds them", at="middle", fill=MUTED, size=12)
    return p


ROW, INDENT = 30, 26


def trace_tree() -> Picture:
    """The recorded tree of TRACE by example: a row a turn, in depth-first order."""
    told = json.loads(RUN.read_text(encoding="utf-8"))
    nodes = told["nodes"]
    said_ends = max(42 + INDENT * node["depth"] + 7.6 * len(node["said"]) for node in nodes)
    columns = {
        name: said_ends + at
        for name, at in (("node", 50), ("value", 110), ("advantage", 195), ("tokens", 265))
    }
    words = f"The tree of {told['task']}: {told['summary']}."
    p = Picture(max(760, said_ends + 285), 60 + ROW * len(nodes), "A tree of TRACE", words)
    for name, at in columns.items():
        p.text(at, 24, name, at="end", fill=MUTED, size=12)
    row_of = {node["node"]: row for row, node in enumerate(nodes)}
    for row, node in enumerate(nodes):
        x, y = 24 + INDENT * node["depth"], 50 + ROW * row
        if node["parent"] >= 0:
            up = 60 + ROW * row_of[node["parent"]]
            corner = [(x - INDENT, up), (x - INDENT, y), (x - 11, y)]
            p.line(corner, dashed=node["origin"] == "continuation")
        if node["reward"] is None:
            p.box(x - 10, y - 10, 20, 20, fill=PALE if node["anchor"] else "#ffffff")
        else:
            p.outcome(x, y, node["reward"])
        p.text(x + 18, y + 4.5, node["said"], size=12.5, mono=True)
        for name, at in columns.items():
            p.text(at, y + 4.5, str(node[name]), at="end", size=12.5)
    return p


PICTURES: dict[str, Callable[[], Picture]] = {
    "allocation": allocation,
    "budget": budget,
    "credit": credit,
    "fork": fork,
    "predictor": predictor,
    "trace_tree": trace_tree,
    "tree": tree,
}


def main() -> None:
    """Write them all."""
    for name, draw in PICTURES.items():
        Path(FOLDER / f"{name}.svg").write_text(str(draw()), encoding="utf-8")


if __name__ == "__main__":
    main()
