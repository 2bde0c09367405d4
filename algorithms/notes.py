"""What was predicted and why rollouts were started where they were, for people who look at the trees later.

A `Notebook` stands between an algorithm and its predictor, passes every question on and remembers the answers of the present
step: for each place the first one, which is what the allocation acted on. Invariant: an answer is what the predictor gave, and
nothing that an algorithm decides or learns reads the notebook; what judges the predictions does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trace_gym.algorithm import Notes, StepContext
from trace_gym.algorithms.credit import own_returns
from trace_gym.algorithms.predictor import Place, Predictor
from trace_gym.tree import Tree

__all__ = ["Notebook"]

Floats = npt.NDArray[np.float64]
SOLVED = 0.5  # a return above it is a success


class Notebook:
    """See the module."""

    def __init__(self) -> None:
        self._step = -1
        self._answers: dict[Place, float] = {}

    def predict(self, predictor: Predictor, ctx: StepContext, places: Sequence[Place]) -> Floats:
        """[K, n] what `predictor.predict` says; the mean over its K members is remembered."""
        answers = predictor.predict(ctx, places)
        if ctx.step != self._step:
            self._step, self._answers = ctx.step, {}
        for place, mean in zip(places, answers.mean(axis=0).tolist(), strict=True):
            self._answers.setdefault(place, mean)
        return answers

    def first(self, ctx: StepContext, places: Sequence[Place]) -> Floats:
        """[n] the first answer of this step for each place; nan where it was not asked for."""
        known = self._answers if ctx.step == self._step else {}
        return np.array([known.get(place, np.nan) for place in places])

    def notes(self, ctx: StepContext, *, roots: str, prefixes: str) -> dict[str, Notes]:
        """The step's notes by task. `roots` and `prefixes` say how prompts and prefixes were chosen."""
        made = {}
        for task, tree in ctx.trees.items():
            predicted = self.first(ctx, [(task, node) for node in range(len(tree))])
            made[task] = Notes(predicted, _reasons(tree, predicted, roots, prefixes))
        return made


def _reasons(tree: Tree, predicted: Floats, roots: str, prefixes: str) -> dict[int, str]:
    """Of the prompt, opened or not, and of every prefix that was continued."""
    starts: dict[int, int] = {0: 0}  # node -> rollouts that began there
    for node in tree.nodes[1:]:
        if node.parent == 0 or node.draw > 0:  # draw 0 of a prefix is the rollout it lies on
            starts[node.parent] = starts.get(node.parent, 0) + 1
    own = own_returns(tree)
    return {
        node: _root_reason(count, predicted[0], roots)
        if node == 0
        else _prefix_reason(count, predicted[node], own[node], prefixes)
        for node, count in starts.items()
    }


def _root_reason(count: int, predicted: float, how: str) -> str:
    told = "" if np.isnan(predicted) else f", success predicted {predicted:.2f}"
    return f"{how}: {_counted(count, 'rollout') if count else 'skipped'}{told}"


def _prefix_reason(count: int, predicted: float, own: float, how: str) -> str:
    told = "" if np.isnan(predicted) else f", success predicted {predicted:.2f}"
    ended = "" if np.isnan(own) else f"; the rollout it lies on {'succeeded' if own > SOLVED else 'failed'}"
    return f"{how}: {_counted(count, 'continuation')}{told}{ended}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
