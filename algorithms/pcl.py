"""PCL: groups for the prompts whose predicted success is nearest to one half (Gao et al. 2025, arXiv 2510.01135).

    a step:  of the pool's prompts take the `prompts` with the least |V(x) - 1/2|; `group` rollouts each; policy update;
             V learns (V(x) - mean of the group's rewards)^2 on these prompts, for the next step

The value model sees prompts only and never enters the gradient; no continuation is made. |V - 1/2| and V (1-V) rank alike, so
this is TRACE's first stage with equal counts. Equal predictions are taken in random order.

Deviations: the paper's value model is a language model of its own; here it is one of `predictor.py`. The first `warmup_steps`
take prompts at random, as TRACE does here. Groups are scaled by their deviation as in GRPO; whether the paper does was not
seen. Checked against summaries of the paper, its full text was not at hand.

    trace-gym train policy.path=POLICY algorithm.name=pcl algorithm.prompts=8 algorithm.pool=32
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from trace_gym.algorithm import Algorithm, Branch, Credit, Metrics, Notes, RunContext, StepContext
from trace_gym.algorithms.credit import Scaling, credit_trees
from trace_gym.algorithms.notes import Notebook
from trace_gym.algorithms.predictor import (
    Predictor,
    PredictorKind,
    PredictorSettings,
    calibration,
    make_predictor,
)
from trace_gym.algorithms.waves import at_least_two
from trace_gym.errors import ConfigError

__all__ = ["PCL"]


@dataclass(kw_only=True)
class PCL(Algorithm):
    """Uniform groups for prompts of middling predicted difficulty."""

    pool: int = 32  # tasks to choose from in a step
    prompts: int = 8  # of them opened
    group: int = 8  # rollouts of each
    predictor: PredictorKind = "network"
    width: int = 128  # of the predictor
    warmup_steps: int = 2  # first steps, with prompts at random
    scale: Scaling = "group_std"
    _predictor: Predictor = field(init=False, repr=False, compare=False)
    _notebook: Notebook = field(init=False, repr=False, compare=False, default_factory=Notebook)

    def __post_init__(self) -> None:
        at_least_two(self.group)
        if self.prompts < 1 or self.warmup_steps < 0:
            raise ConfigError("algorithm pcl: prompts is at least 1, warmup_steps at least 0")
        self._predictor = make_predictor(self.predictor, PredictorSettings(width=self.width))

    def start(self, ctx: RunContext) -> None:
        self._predictor.start(ctx)

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        if ctx.idle:
            return []
        order = ctx.rng("prompts").permutation(len(ctx.pool))
        if ctx.step >= self.warmup_steps:
            off = np.abs(self._success(ctx) - 0.5)
            order = order[np.argsort(off[order], kind="stable")]
        chosen = np.sort(order[: self.prompts])
        return [Branch(ctx.pool[i], count=self.group) for i in chosen]

    def _success(self, ctx: StepContext) -> npt.NDArray[np.float64]:
        """[P] predicted success of the pool's prompts."""
        predicted = self._notebook.predict(self._predictor, ctx, [(task, 0) for task in ctx.pool])  # [K, P]
        return np.asarray(predicted.mean(axis=0))

    def observe(self, ctx: StepContext) -> Metrics:
        realised = np.array(
            [tree.values()[0] for tree in ctx.trees.values()]
        )  # [P], nan: not opened or not scored
        metrics = calibration(self._success(ctx), realised)
        opened = np.flatnonzero(~np.isnan(realised))
        if not len(opened):
            return metrics
        places = [(ctx.pool[i], 0) for i in opened]
        counts = np.array([float(ctx.trees[task].draws()[0]) for task, _ in places])
        return metrics | self._predictor.learn(ctx, places, realised[opened], counts)

    def credit(self, ctx: StepContext) -> Mapping[str, Credit]:
        return credit_trees(ctx.trees, mode="group", weights="turn", scale=self.scale)

    def notes(self, ctx: StepContext) -> Mapping[str, Notes]:
        how = "nearest to one half" if ctx.step >= self.warmup_steps else "at random, to warm up"
        return self._notebook.notes(ctx, roots=how, prefixes="")

    def state_dict(self) -> dict[str, Any]:
        return {"predictor": self._predictor.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._predictor.load_state_dict(state["predictor"])
