"""What a predictor sees of a turn: a frozen vector, and its pieces.

The vector holds
    words   sum over the turn's tokens of a frozen table, over the square root of their number: the policy's own input
            embeddings as they were at the start, centred and randomly projected to `width`
    place   depth, turns left and whether that is known, and the logarithm of the number of tokens
The pieces are hashed ids of the turn's tokens and of its pairs of neighbours [ours]: a sum of embeddings blurs which words are
there and knows no order; with pairs, `12` is not `21`.
Invariant: both depend on the run's seed, the starting policy and the turn, never on what else is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from trace_gym.algorithm import RunContext, StepContext
from trace_gym.algorithms.predictor import Place
from trace_gym.engine import IntArray
from trace_gym.seeding import keyed_rng
from trace_gym.tree import Node

__all__ = ["TurnEmbedder"]

Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]
BUCKETS = 8192  # of the hash; bucket 0 is padding
LONGEST = 256  # tokens of a turn that are hashed
PLACE_FEATURES = 4
UNKNOWN_VOCABULARY = 4096  # rows of the random table where the run names neither embeddings nor a vocabulary


class TurnEmbedder:
    """`start` builds the table; `turns` gives vectors, each computed once while a step lasts."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.features = width + PLACE_FEATURES
        self._step = -1
        # vector and pieces of the present step's nodes, which are equal only to themselves
        self._known: dict[Node, tuple[Float32Array, Int32Array]] = {}

    def start(self, run: RunContext) -> None:
        self._table = torch.from_numpy(_table(run, self.width))
        self._known = {}

    def embed(self, ctx: StepContext, places: Sequence[Place]) -> None:
        """Make what `turns` will be asked for; one call for many is faster than many calls."""
        if ctx.step != self._step:
            self._step, self._known = ctx.step, {}
        nodes = {ctx.trees[task][node]: (task, node) for task, node in places}
        fresh = {node: place for node, place in nodes.items() if node not in self._known}
        if fresh:
            depths = {task: ctx.trees[task].depths() for task in {task for task, _ in fresh.values()}}
            made = self._embed(list(fresh), [int(depths[task][node]) for task, node in fresh.values()])
            for node, vector in zip(fresh, made, strict=True):
                self._known[node] = vector, _pieces(node.tokens)

    def turns(self, ctx: StepContext, places: Sequence[Place]) -> tuple[Float32Array, Int32Array]:
        """[n, F] the vector of the turn that each place's node adds, and [n, L] its pieces, padded with 0."""
        self.embed(ctx, places)
        known = [self._known[ctx.trees[task][node]] for task, node in places]
        pieces = np.zeros((len(known), max(len(own) for _, own in known)), dtype=np.int32)
        for row, (_, own) in zip(pieces, known, strict=True):
            row[: len(own)] = own
        return np.stack([vector for vector, _ in known]), pieces

    def _embed(self, nodes: list[Node], depths: list[int]) -> Float32Array:
        tokens = [node.tokens.astype(np.int64) for node in nodes]
        words = _bags(self._table, [ids % len(self._table) for ids in tokens])
        place = np.array(
            [_place(node, depth) for node, depth in zip(nodes, depths, strict=True)], dtype=np.float32
        )
        return np.concatenate([words, place], axis=1)


def _table(run: RunContext, width: int) -> Float32Array:
    """[vocabulary, width] with entries of mean 0 and variance near 1."""
    rng = keyed_rng(run.seed, "predictor", "table")
    if run.embeddings is None:
        return rng.standard_normal((run.vocabulary or UNKNOWN_VOCABULARY, width)).astype(np.float32)
    embeddings = np.asarray(run.embeddings(), dtype=np.float32)
    centred = embeddings - embeddings.mean(axis=0)
    projection = rng.standard_normal((centred.shape[1], width)).astype(np.float32)
    typical = float(np.sqrt(np.mean(centred**2) * centred.shape[1]))  # root mean square length of a row
    return np.asarray(centred @ (projection / max(typical, 1e-12)), dtype=np.float32)


def _bags(table: torch.Tensor, bags: list[npt.NDArray[np.int64]]) -> Float32Array:
    """[n, width] sum of the rows in each bag over the square root of their number; 0 for an empty bag."""
    lengths = np.array([len(bag) for bag in bags])
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    sums = F.embedding_bag(
        torch.from_numpy(np.concatenate(bags)), table, torch.from_numpy(offsets), mode="sum"
    )
    return np.asarray(sums.numpy() / np.sqrt(np.maximum(lengths, 1))[:, None], dtype=np.float32)


def _pieces(tokens: IntArray) -> Int32Array:
    """Buckets, from 1, of the first `LONGEST` tokens and of their pairs of neighbours."""
    ids = tokens[:LONGEST].astype(np.int64)
    pairs = (ids[:-1] + 1) * 1_000_003 + ids[1:] + 1
    mixed = np.concatenate([ids, pairs]).astype(np.uint64) * np.uint64(
        0x9E3779B97F4A7C15
    )  # wraps: a multiplicative hash
    return 1 + ((mixed >> np.uint64(40)) % np.uint64(BUCKETS - 1)).astype(np.int32)


def _place(node: Node, depth: int) -> tuple[float, float, float, float]:
    snapshot = node.snapshot
    left = 0 if snapshot is None else snapshot.turn_limit - snapshot.turn
    return depth / 10, left / 10, float(snapshot is not None), float(np.log1p(len(node.tokens)))
