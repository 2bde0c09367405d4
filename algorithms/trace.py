"""TRACE: predict, skip, branch, contrast (Tree Rollout Allocation for Contrastive Exploration, arXiv 2606.11119).

One step over a pool of P prompts, at a cost of M (1 + N/2) rollout units:

    v_i    = predicted success from the prompt of task i
    m      = argmax  sum_i V_root(v_i, m_i)          sum m_i = M       m_i = 0 skips the prompt
             m_i rollouts of prompt i; as soon as they have ended, with no barrier across prompts:
    k      = argmax  sum_t V_pref(f_t, k_t)          sum k_t = m_i N   f_t: chance that a continuation from prefix t ends
             otherwise than the rollout it leaves
    learn    backed-up node values -> predictor; node advantages -> policy

The paper's full text was not at hand. From two independent notes on it: the two objectives, one shared predictor that only the
allocator uses, M=1024 and N=2, leaf-weighted targets. Ours, each a field: leave-one-out edge advantages (`advantage`), path
weights, `draw` targets (the paper's `leaf` is biased by the allocation itself), exploration `epsilon`, uniform warm-up steps,
`selection` of whole groups or by drawing, and `budget_rule="joint"` (see joint.py).

`trace_published` is the published allocation: greedy counts, both stages, no exploration, leaf targets. The defaults of `trace`
are whole groups for the prompts that most probably hold both outcomes, no continuations: ahead of GRPO in sampled success on
Math-v0's broad mix over ten starting policies, not on the hard one, and not in greedy success (benchmarks/results/trace).
`prefix_stage=active` brings the continuations back; on Relay forks are ahead with the credit that docs/trace.md names, not
shown to be so by prediction.

    trace-gym train policy.path=POLICY algorithm.name=trace
    trace-gym train policy.path=POLICY algorithm.name=trace_published algorithm.rollouts=32
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from trace_gym.algorithm import Algorithm, Branch, Credit, Metrics, Notes, RunContext, StepContext
from trace_gym.algorithms.allocate import (
    allocate_prefixes,
    allocate_roots,
    prefix_value,
    root_value,
    sample_roots,
    select_groups,
)
from trace_gym.algorithms.credit import (
    CreditMode,
    NodeWeights,
    Scaling,
    TargetWeighting,
    credit_trees,
    node_values,
    own_returns,
)
from trace_gym.algorithms.joint import JointRule
from trace_gym.algorithms.notes import Notebook
from trace_gym.algorithms.predictor import (
    Place,
    Predictor,
    PredictorKind,
    PredictorSettings,
    by_task,
    calibration,
    make_predictor,
)
from trace_gym.errors import ConfigError
from trace_gym.tree import Tree

__all__ = ["TRACE", "PublishedTRACE", "allocate_prefixes", "allocate_roots", "prefix_value", "root_value"]

Stage = Literal["active", "uniform", "off"]
SOLVED = 0.5  # a return above it is a success


@dataclass(kw_only=True)
class TRACE(Algorithm):
    """Rollouts where a success and a failure are both likely: at prompts, and at turns inside attempts."""

    pool: int = 64  # tasks to choose from: P
    rollouts: int = 64  # from prompts, per step: M
    continuations: int = 2  # from prefixes, per rollout, where there is a prefix stage: N
    root_stage: Stage = "active"  # uniform: equal groups; off: one rollout of M prompts each
    prefix_stage: Stage = "off"  # of continuations; uniform: prefixes at random
    budget_rule: Literal["stages", "joint"] = "stages"  # joint: instead of both stages, selection and epsilon
    selection: Literal["greedy", "group", "sample"] = "group"  # of prompts; greedy is as published
    group: int = (
        8  # rollouts of a prompt where not allocated: uniform, group, sample; joint: enough at an anchor
    )
    floor: float = 0.1  # of sample's score sqrt(v (1-v)) + floor
    inverse_weights: bool = False  # sample: divide a prompt's weight by its probability
    cap: int = 16  # rollouts of one prompt, at most
    epsilon: float = 0.1  # share of M that is spread uniformly; 0 is as published
    warmup_steps: int = 2  # first steps, allocated uniformly
    predictor: PredictorKind = "network"
    thompson: bool = False  # ensemble: one member's prediction, drawn, instead of all
    width: int = 128  # of the predictor
    prior_rollouts: float = 4.0  # joint: rollouts that a prediction counts for beside what was seen
    discount: float = 0.5  # joint: worth of a further contrast in a tree that holds one
    coverage: float = 0.1  # joint: worth of opening a prompt, whatever is predicted
    waves: int = 4  # joint: plans per tree, at most
    target: TargetWeighting = "draw"
    advantage: CreditMode = "edge"
    weights: NodeWeights = "path"
    scale: Scaling = "none"
    _predictor: Predictor = field(init=False, repr=False)
    _joint: JointRule = field(init=False, repr=False)
    _notebook: Notebook = field(init=False, repr=False, compare=False, default_factory=Notebook)
    _chances: dict[str, float] = field(
        init=False, repr=False, default_factory=dict
    )  # of this step's prompts to be drawn

    def __post_init__(self) -> None:
        if self.rollouts < 2 or self.continuations < 0 or self.cap < 2 or self.group < 2:
            raise ConfigError(
                "algorithm trace: rollouts, cap and group are at least 2, continuations at least 0"
            )
        if not 0 <= self.epsilon <= 1:
            raise ConfigError(f"algorithm.epsilon={self.epsilon}: a share of the rollouts, from 0 to 1")
        if self.root_stage == "off" and self.prefix_stage == "off":
            raise ConfigError("algorithm trace: with both stages off no prompt ever shows two outcomes")
        if (
            min(self.prior_rollouts, self.coverage, self.floor) < 0
            or not 0 <= self.discount <= 1
            or self.waves < 1
        ):
            raise ConfigError(
                "algorithm trace: prior_rollouts, coverage and floor are at least 0, discount from 0 to 1, waves at least 1"
            )
        if self.inverse_weights and self.selection != "sample":
            raise ConfigError(
                "algorithm.inverse_weights needs selection=sample: no other rule draws prompts with known probabilities"
            )
        if self.selection != "greedy" and self.rollouts < self.group:
            raise ConfigError(
                f"algorithm.selection={self.selection} takes whole groups: rollouts={self.rollouts} is less than one of "
                f"group={self.group}, and no prompt would ever be opened"
            )
        self._predictor = make_predictor(
            self.predictor, PredictorSettings(width=self.width, thompson=self.thompson)
        )
        self._joint = JointRule(
            prior_rollouts=self.prior_rollouts,
            discount=self.discount,
            coverage=self.coverage,
            waves=self.waves,
            enough=self.group,
        )

    def start(self, ctx: RunContext) -> None:
        self._predictor.start(ctx)

    # ---- where to spend -------------------------------------------------------------------------------------

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        joint = self.budget_rule == "joint" and ctx.step >= self.warmup_steps
        if not ctx.idle:
            if joint:
                v = self._notebook.predict(self._predictor, ctx, [(task, 0) for task in ctx.pool])
                return self._joint.open(ctx, v.mean(axis=0), self.units)
            return self._plan_roots(ctx)
        if joint:
            places = [(task, node) for task in ctx.idle for node in (0, *ctx.trees[task].anchors())]
            return self._joint.deepen(
                ctx, places, self._notebook.predict(self._predictor, ctx, places).mean(axis=0)
            )
        return self._plan_prefixes(ctx)

    @property
    def units(self) -> float:
        """Rollout units of a step; a continuation counts half."""
        forks = self.budget_rule == "joint" or self.prefix_stage != "off"
        return self.rollouts * (1 + self.continuations / 2 * forks)

    def _plan_roots(self, ctx: StepContext) -> list[Branch]:
        """Stage 1: how many rollouts of each prompt."""
        self._chances = {}
        counts = self._root_counts(ctx)
        return [Branch(task, count=int(m)) for task, m in zip(ctx.pool, counts, strict=True) if m]

    def _root_counts(self, ctx: StepContext) -> np.ndarray[Any, np.dtype[np.int64]]:
        rng, pool = ctx.rng("roots"), ctx.pool
        if self.root_stage == "off":
            return (rng.permutation(len(pool)) < self.rollouts).astype(np.int64)
        if self.root_stage == "uniform" or ctx.step < self.warmup_steps:
            return _equal_groups(len(pool), self.rollouts, self.group, rng)
        v = self._notebook.predict(self._predictor, ctx, [(task, 0) for task in pool])
        if self.selection == "greedy":
            return allocate_roots(v, self.rollouts, cap=self.cap, epsilon=self.epsilon, rng=rng)
        if self.selection == "group":
            return select_groups(v, self.rollouts, group=self.group, epsilon=self.epsilon, rng=rng)
        counts, chances = sample_roots(v, self.rollouts, group=self.group, floor=self.floor, rng=rng)
        self._chances = dict(zip(pool, chances.tolist(), strict=True))
        return counts

    def _plan_prefixes(self, ctx: StepContext) -> list[Branch]:
        """Stage 2 of every tree whose own rollouts have just ended: continuations of its prefixes."""
        if self.prefix_stage == "off" or self.continuations == 0:
            return []
        fresh = [task for task in ctx.idle if not _continued(ctx.trees[task])]
        flips = _flip_places(ctx, fresh)
        active = self.prefix_stage == "active" and ctx.step >= self.warmup_steps
        v = (
            self._notebook.predict(self._predictor, ctx, [place for place, _ in flips])
            if active and flips
            else None
        )
        branches: list[Branch] = []
        owned = by_task([place for place, _ in flips])
        for task in fresh:
            mine = owned.get(task, [])
            budget = len(ctx.trees[task].children()[0]) * self.continuations
            rng = ctx.rng("prefixes", task)
            if not mine:
                continue  # every rollout ended in one turn: nothing to fork, and nothing is billed
            if v is None:
                counts = rng.multinomial(budget, np.full(len(mine), 1 / len(mine)))
            else:
                solved = np.array([flips[i][1] for i in mine])
                counts = allocate_prefixes(np.where(solved, 1.0 - v[:, mine], v[:, mine]), budget, rng=rng)
            branches += [
                Branch(task, flips[i][0][1], int(k)) for i, k in zip(mine, counts, strict=True) if k > 0
            ]
        return branches

    # ---- what is learned ------------------------------------------------------------------------------------

    def observe(self, ctx: StepContext) -> Metrics:
        """Calibration of this step's predictions, then one round of learning from the backed-up values."""
        places, targets, weights, expanded = _lessons(ctx, self.target)
        metrics: Metrics = {}
        if self._joint.learn(ctx, self.units) and self.budget_rule == "joint":
            metrics["price"] = self._joint.price
        if not places:
            return metrics
        self._notebook.predict(self._predictor, ctx, places)  # of the prefixes that nobody asked about
        before = self._notebook.first(ctx, places)
        root = np.array([node == 0 for _, node in places])
        for name, rows, realised in (
            ("root", root, targets),
            ("prefix", ~root, targets),
            ("expanded", ~np.isnan(expanded), expanded),
        ):
            found = calibration(before[rows], realised[rows])
            metrics |= {f"{name}_{key}": value for key, value in found.items()}
        return metrics | self._predictor.learn(ctx, places, targets, weights)

    def credit(self, ctx: StepContext) -> Mapping[str, Credit]:
        credits = credit_trees(
            ctx.trees, mode=self.advantage, weights=self.weights, scale=self.scale, target=self.target
        )
        if not (self.inverse_weights and self._chances):
            return credits
        return {task: Credit(c.advantage, c.weight / self._chances[task]) for task, c in credits.items()}

    def notes(self, ctx: StepContext) -> Mapping[str, Notes]:
        warm = ctx.step < self.warmup_steps
        if self.budget_rule == "joint" and not warm:
            return self._notebook.notes(ctx, roots="by the price", prefixes="by the price")
        chosen = {"active": "at random, to warm up" if warm else "by prediction", "uniform": "at random"}
        roots, prefixes = (chosen.get(stage, "one each") for stage in (self.root_stage, self.prefix_stage))
        return self._notebook.notes(ctx, roots=roots, prefixes=prefixes)

    def state_dict(self) -> dict[str, Any]:
        return {"predictor": self._predictor.state_dict(), "joint": self._joint.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._predictor.load_state_dict(state["predictor"])
        self._joint.load_state_dict(state["joint"])


@dataclass(kw_only=True)
class PublishedTRACE(TRACE):
    """The published allocation: greedy counts for prompts, then continuations of their prefixes."""

    rollouts: int = 32  # with two continuations each, the cost of 64 rollouts
    prefix_stage: Stage = "active"
    selection: Literal["greedy", "group", "sample"] = "greedy"
    epsilon: float = 0.0
    target: TargetWeighting = "leaf"


def _equal_groups(
    prompts: int, rollouts: int, group: int, rng: np.random.Generator
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """[P] groups of `group` for prompts drawn at random, that sum to min(rollouts, prompts * group); the last may be less."""
    counts = np.zeros(prompts, dtype=np.int64)
    order = rng.permutation(prompts)
    whole, rest = divmod(min(rollouts, prompts * group), group)
    counts[order[:whole]] = group
    if rest:
        counts[order[whole]] = rest
    return counts


def _continued(tree: Tree) -> bool:
    return any(node.origin == "continuation" for node in tree.nodes)


def _flip_places(ctx: StepContext, tasks: Sequence[str]) -> list[tuple[Place, bool]]:
    """The prefixes that can be forked, each with whether its own rollout succeeded; unscored rollouts have none."""
    places: list[tuple[Place, bool]] = []
    for task in tasks:
        tree = ctx.trees[task]
        ends = own_returns(tree)
        places += [
            ((task, node), bool(ends[node] > SOLVED)) for node in tree.anchors() if not np.isnan(ends[node])
        ]
    return places


def _lessons(
    ctx: StepContext, target: TargetWeighting
) -> tuple[list[Place], np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Places with a value, the values, how many draws each rests on, and for prefixes that were expanded the mean outcome of
    their continuations alone (nan elsewhere), which their selection did not depend on (save later looks of `joint`)."""
    places: list[Place] = []
    values: list[float] = []
    weights: list[float] = []
    expanded: list[float] = []
    for task, tree in ctx.trees.items():
        backed_up, fresh, draws = node_values(tree, target), node_values(tree, "fresh"), tree.draws()
        for node in (0, *tree.anchors()):
            if not np.isnan(backed_up[node]):
                places.append((task, node))
                values.append(float(backed_up[node]))
                weights.append(float(draws[node]))
                expanded.append(float(fresh[node]) if node and draws[node] > 1 else np.nan)
    return places, np.array(values), np.array(weights), np.array(expanded)
