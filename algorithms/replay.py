"""Paths through trees as arrays, and what is kept of them from step to step.

Invariant: a value to learn stands at one position of one row, however many paths share its node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from trace_gym.algorithm import StepContext
from trace_gym.algorithms.predictor import Place

__all__ = ["Rows", "paths_to", "sample"]

Float32Array = npt.NDArray[np.float32]


@dataclass(slots=True)
class Rows:
    """Paths through one step's trees. Row r holds turns `index[r]`; a target stands at one position of one row."""

    step: int
    turns: Float32Array  # [U, F] standardised
    pieces: npt.NDArray[np.int32]  # [U, L] buckets; 0 beyond the end
    index: npt.NDArray[np.int64]  # [R, T] into `turns`; 0 beyond the end of a path
    target: Float32Array  # [R, T]
    weight: Float32Array  # [K, R, T] by member; 0 where there is no target


def paths_to(
    ctx: StepContext, places: Sequence[Place]
) -> tuple[list[list[Place]], dict[Place, tuple[int, int]]]:
    """The fewest paths from prompts that cover the places, and where (row, position) each node on them stands first."""
    paths: list[list[Place]] = []
    where: dict[Place, tuple[int, int]] = {}
    asked: dict[str, set[int]] = {}
    for task, node in places:
        asked.setdefault(task, set()).add(node)
    for task, nodes in asked.items():
        # a child's index is larger than its parent's, so the ends of paths come first
        for node in sorted(nodes, reverse=True):
            if (task, node) not in where:
                path = [(task, i) for i in ctx.trees[task].path(node)]
                for position, place in enumerate(path):
                    where.setdefault(place, (len(paths), position))
                paths.append(path)
    return paths, where


def sample(replay: Sequence[Rows], rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
    """The newest step's rows and as many older ones, as the five arrays of one `Rows`."""
    *older, newest = replay
    sizes = [len(rows.index) for rows in older]
    picked = rng.permutation(sum(sizes))[: len(newest.index)]
    chosen = [np.sort(part) for part in _split(picked, sizes)] + [np.arange(len(newest.index))]
    length = max(rows.index.shape[1] for rows in replay)
    longest = max(rows.pieces.shape[1] for rows in replay)
    offset, parts = 0, []
    for rows, at in zip(replay, chosen, strict=True):
        pad = length - rows.index.shape[1]
        parts.append(
            (
                rows.turns,
                np.pad(rows.pieces, ((0, 0), (0, longest - rows.pieces.shape[1]))),
                np.pad(rows.index[at] + offset, ((0, 0), (0, pad))),
                np.pad(rows.target[at], ((0, 0), (0, pad))),
                np.pad(rows.weight[:, at], ((0, 0), (0, 0), (0, pad))),
            )
        )
        offset += len(rows.turns)
    turns, pieces, index, target, weight = zip(*parts, strict=True)
    return (
        torch.from_numpy(np.concatenate(turns)),
        torch.from_numpy(np.concatenate(pieces)),
        torch.from_numpy(np.concatenate(index)),
        torch.from_numpy(np.concatenate(target)),
        torch.from_numpy(np.concatenate(weight, axis=1)),
    )


def _split(picked: npt.NDArray[np.int64], sizes: Sequence[int]) -> list[npt.NDArray[np.int64]]:
    """Indices into several arrays laid end to end, as indices into each."""
    ends = np.cumsum(sizes)
    return [
        picked[(picked >= end - size) & (picked < end)] - (end - size)
        for end, size in zip(ends, sizes, strict=True)
    ]
