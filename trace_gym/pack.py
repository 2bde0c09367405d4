"""Trees to training rows, and rows to packs.

`flatten` gives one row per leaf, holding its whole path. A node that several leaves share is trained in the first row that
reaches it and is context in the others, so every sampled token enters the loss exactly once.

`pack` lays rows out as one sequence in which what they begin with alike stands once: a depth-first walk of their prefix tree.
The rows of a tree so become the tree again, whatever else begins like them (another task's instructions, a rollout sampled
twice) is shared too, and a set of rows cut anywhere is a pack with its root paths as context.

Alignment: the arrays of a row have one entry per token; entry t belongs to the token at t, whose log-prob is read from the
logits at t - 1. Token 0 is always the prompt's, so it never needs one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trace_gym.algorithm import Credit, Normalise
from trace_gym.engine import FloatArray, IntArray
from trace_gym.tree import Tree

__all__ = ["Pack", "Row", "flatten", "pack", "subtrees", "token_weights"]

Weights = npt.NDArray[np.float64]
Ids = npt.NDArray[np.integer[Any]]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One sequence. All arrays are [T]."""

    tokens: IntArray
    advantage: FloatArray
    weight: FloatArray  # 0 for tokens that are not trained here
    behaviour: FloatArray  # log-probs they were sampled under; 0 where weight is 0

    def __len__(self) -> int:
        return len(self.tokens)


def token_weights(
    trees: Mapping[str, Tree], credits: Mapping[str, Credit], normalise: Normalise, constant_tokens: int = 256
) -> dict[str, Weights]:
    """Weight of every sampled token of a node, [N] per tree: the node's own weight times the normaliser.

    `token`: divided by the step's weighted number of sampled tokens, so that long rollouts count more (DAPO, arXiv
    2503.14476). `sequence`: each rollout's tokens share one vote (GRPO, arXiv 2402.03300); a shared node takes the mean over
    the rollouts through it. `constant`: divided by rollouts x `constant_tokens` (Dr. GRPO, arXiv 2503.20783).
    Nodes whose advantage is nan weigh nothing. A step without scored tokens gives zeros.
    """
    raw = {task: np.where(np.isnan(c.advantage), 0.0, c.weight) for task, c in credits.items()}
    rollouts = max(1, sum(len(trees[task].outcomes()) for task in credits))
    if normalise == "sequence":
        return {task: w * _votes(trees[task]) / rollouts for task, w in raw.items()}
    if normalise == "constant":
        return {task: w / (rollouts * constant_tokens) for task, w in raw.items()}
    total = sum(float(w @ _sampled(trees[task])) for task, w in raw.items())
    return {task: w / total if total > 0 else np.zeros_like(w) for task, w in raw.items()}


def _sampled(tree: Tree) -> Weights:
    return np.array([node.n_action for node in tree.nodes], dtype=np.float64)


def _votes(tree: Tree) -> Weights:
    """[N] mean over the scored rollouts through a node of 1 / (their sampled tokens); 0 where there is none."""
    length = _sampled(tree)
    for index, parent in enumerate(tree.parents()):
        if parent >= 0:
            length[index] += length[parent]
    scored = ~np.isnan(tree.returns())
    vote = np.where(scored, 1.0 / np.maximum(length, 1.0), 0.0)
    count = scored.astype(np.float64)
    for index in range(len(tree) - 1, 0, -1):
        parent = tree[index].parent
        vote[parent] += vote[index]
        count[parent] += count[index]
    return vote / np.maximum(count, 1.0)


def flatten(
    trees: Mapping[str, Tree],
    credits: Mapping[str, Credit],
    weights: Mapping[str, Weights],
    *,
    keep_zero: bool = False,
) -> list[Row]:
    """Rows of the flat layout. Rows that carry no gradient (every advantage 0) are left out unless `keep_zero`, which a
    KL term needs."""
    rows: list[Row] = []
    for task, credit in credits.items():
        tree, weight = trees[task], weights[task]
        advantage = np.nan_to_num(credit.advantage, nan=0.0)
        trained = (weight > 0) & (keep_zero | (advantage != 0.0))
        taken: set[int] = set()
        for leaf in tree.leaves():
            path = tree.path(leaf)
            own = {i for i in path if trained[i] and i not in taken and tree[i].n_action > 0}
            if own:
                taken |= own
                rows.append(_row(tree, path, own, advantage, weight))
    return rows


def _row(tree: Tree, path: Sequence[int], own: set[int], advantage: Weights, weight: Weights) -> Row:
    last = max(k for k, i in enumerate(path) if i in own)
    nodes = [(i, tree[i]) for i in path[: last + 1]]
    unused = len(nodes[-1][1].tokens) - nodes[-1][1].n_action  # what follows the last trained token
    tokens = np.concatenate([node.tokens for _, node in nodes])
    tokens = tokens[: len(tokens) - unused]
    columns = np.zeros((3, len(tokens)), dtype=np.float32)
    start = 0
    for i, node in nodes:
        if i in own:
            sampled = slice(start, start + node.n_action)
            columns[0, sampled] = advantage[i]
            columns[1, sampled] = weight[i]
            columns[2, sampled] = node.logprobs
        start += len(node.tokens)
    return Row(tokens, *columns)


# ---- packs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """Sequences as one. A token sees itself and what stands before it on its path: q sees k where k <= q < end[k]."""

    tokens: Ids  # [N]
    position: Places  # [N] how many tokens stand before it on its path
    end: Places  # [N] where the part of the pack ends that a token is history for
    paths: tuple[Places, ...]  # for every sequence, in the order given, where its tokens are: [T]

    def __len__(self) -> int:
        return len(self.tokens)

    def segments(self) -> list[tuple[int, int, int]]:
        """(start, stop, end): stretches without a fork. What lies between stop and end comes after the whole of one."""
        new = (self.position[1:] != self.position[:-1] + 1) | (self.end[1:] != self.end[:-1])
        start = np.concatenate([[0], np.flatnonzero(new) + 1])
        stop = np.append(start[1:], len(self))
        return [(int(a), int(b), int(self.end[a])) for a, b in zip(start, stop, strict=True)]


def pack(sequences: Sequence[Ids]) -> Pack:
    """One pack of all `sequences` (ids below 2**31)."""
    none: Places = np.zeros(0, dtype=np.int64)
    paths = [none] * len(sequences)
    tokens: list[Ids] = []
    starts: list[int] = []  # of each piece of `tokens`, how deep it begins
    before: Ids = none
    size, path = 0, none
    for index in _depth_first(sequences):
        sequence = sequences[index]
        shared = _alike(before, sequence)
        new = len(sequence) - shared
        path = np.concatenate([path[:shared], np.arange(size, size + new)])
        paths[index], before, size = path, sequence, size + new
        if new:
            tokens.append(sequence[shared:])
            starts.append(shared)
    if not tokens:
        return Pack(none, none, none, tuple(paths))
    position = np.concatenate([np.arange(a, a + len(t)) for a, t in zip(starts, tokens, strict=True)])
    return Pack(np.concatenate(tokens), position, _ends(starts, [len(t) for t in tokens]), tuple(paths))


def subtrees(rows: Sequence[Row], max_tokens: int) -> Iterator[list[int]]:
    """Indices of rows in groups whose packs hold at most `max_tokens` tokens (at least one row each).

    A tree too large is cut between subtrees, and each part begins with its own path from the root.
    """
    group: list[int] = []
    size = 0
    before: Ids = np.zeros(0, dtype=np.int32)
    for index in _depth_first([row.tokens for row in rows]):
        tokens = rows[index].tokens
        new = len(tokens) - _alike(before, tokens)
        if group and size + new > max_tokens:
            yield group
            group, size, new = [], 0, len(tokens)
        group.append(index)
        size, before = size + new, tokens
    if group:
        yield group


def _depth_first(sequences: Sequence[Ids]) -> list[int]:
    """An order in which sequences that begin alike stand together, the longer before its own beginning."""
    keys = [sequence.astype(">u4").tobytes() for sequence in sequences]
    return sorted(range(len(sequences)), key=keys.__getitem__, reverse=True)


def _alike(one: Ids, other: Ids) -> int:
    """With how many tokens two sequences begin alike."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length


def _ends(starts: Sequence[int], lengths: Sequence[int]) -> Places:
    """[N] where each token's subtree ends: at the next piece that begins no deeper than the token stands."""
    offsets = np.cumsum([0, *lengths])
    out: Places = np.empty(offsets[-1], dtype=np.int64)
    deepest = max(start + length for start, length in zip(starts, lengths, strict=True))
    following: Places = np.full(deepest, offsets[-1])  # by depth, seen from the last piece backwards
    for start, length, offset in reversed(list(zip(starts, lengths, offsets[:-1], strict=True))):
        out[offset : offset + length] = following[start : start + length]
        following[start:] = offset
    return out
