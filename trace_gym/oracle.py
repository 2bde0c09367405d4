"""The success probability of the present policy from any place in a step's trees, for algorithms that ask (`ctx.oracle`).

    exact     read off the solved table, where the policy offers that (`oracle`, `exact_metrics`: see `tabular`); else none
    sampled   the mean outcome of `draws` rollouts from the place, by an engine of its own over the same weights

Invariants: asking changes nothing in the step, its trees and streams included; the run's ledger sees seconds only, in a phase
of their own; sampled rollouts share no random stream with training, so they never foresee its draws. A place where an episode
has ended has its return; one that cannot be continued has nan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from trace_gym.actor import Actor, make_local_engine
from trace_gym.algorithm import Algorithm, Branch, Credit, Metrics, Oracle, Place, RunContext, StepContext
from trace_gym.config import TrainConfig
from trace_gym.engine import Engine
from trace_gym.ledger import Ledger
from trace_gym.rollout import grow_trees
from trace_gym.seeding import derive_seed
from trace_gym.tree import Tree

__all__ = ["ExactOracle", "NoOracle", "SampledOracle", "StepOracle", "make_oracle"]

Floats = npt.NDArray[np.float64]


class StepOracle(Protocol):
    """Gives every step its oracle."""

    def of(self, ctx: StepContext, ledger: Ledger) -> Oracle | None:
        """What the step may ask; seconds go to the ledger's phase `oracle`."""

    def metrics(self) -> Metrics:
        """Once a step, after the update: what is known of the policy, or what asking has cost."""

    def close(self) -> None:
        """Free everything."""


def make_oracle(config: TrainConfig, actor: Actor) -> StepOracle:
    """The oracle that `config.oracle` asks for."""
    if config.oracle.kind == "sampled":
        return SampledOracle(actor, make_local_engine(config, actor.learner), config.oracle.draws)
    if hasattr(actor.model, "oracle"):
        return ExactOracle(actor.model, config.rollout.temperature)
    return NoOracle()


class NoOracle:
    """Nothing is known."""

    def of(self, ctx: StepContext, ledger: Ledger) -> Oracle | None:
        return None

    def metrics(self) -> Metrics:
        return {}

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ExactOracle:
    """Asks the model, which is to offer `oracle` and `exact_metrics`."""

    model: Any
    temperature: float

    def of(self, ctx: StepContext, ledger: Ledger) -> Oracle | None:
        def ask(places: Sequence[Place]) -> Floats:
            with ledger.timed("oracle"):
                values, open_ = _ended(ctx.trees, places)
                snapshots = [ctx.trees[task][node].snapshot for task, node in (places[i] for i in open_)]
                values[open_] = self.model.oracle(self.temperature)(snapshots)
                return values

        return ask

    def metrics(self) -> Metrics:
        return dict(self.model.exact_metrics(self.temperature))

    def close(self) -> None: ...


@dataclass(slots=True)
class SampledOracle:
    """See the module. Places asked for again in a step are answered from memory."""

    actor: Actor
    engine: Engine
    draws: int
    spent: Ledger = field(default_factory=Ledger)  # of the present step

    def of(self, ctx: StepContext, ledger: Ledger) -> Oracle | None:
        self.spent = Ledger()
        self.engine.load(self.actor.model.named_parameters(), ctx.step)
        known: dict[Place, float] = {}

        def ask(places: Sequence[Place]) -> Floats:
            with ledger.timed("oracle"):
                values, open_ = _ended(ctx.trees, places)
                wanted = [places[i] for i in open_]
                new = [place for place in dict.fromkeys(wanted) if place not in known]
                known.update(zip(new, self._sample(ctx, new), strict=True))
                values[open_] = [known[place] for place in wanted]
                return values

        return ask

    def _sample(self, ctx: StepContext, places: Sequence[Place]) -> list[float]:
        """The mean return of `draws` rollouts from each place, grown on copies of the trees."""
        trees = {task: Tree(task, list(ctx.trees[task].nodes)) for task, _ in places}
        run = RunContext(seed=derive_seed(ctx.run.seed, "oracle"), tasks=ctx.run.tasks)
        copy = StepContext(run=run, step=ctx.step, trees=trees)
        grow_trees(
            _Continue(places=tuple(places), draws=self.draws),
            copy,
            engine=self.engine,
            renderer=self.actor.renderer,
            env=self.actor.env,
            settings=self.actor.settings,
            ledger=self.spent,
        )
        return [_mean_return(trees[task], node, first=len(ctx.trees[task])) for task, node in places]

    def metrics(self) -> Metrics:
        total = self.spent.total
        return {
            "oracle_policy_tokens": float(total.policy_tokens),
            "oracle_env_steps": float(total.env_steps),
        }

    def close(self) -> None:
        self.engine.close()


@dataclass(kw_only=True)
class _Continue(Algorithm):
    """`draws` rollouts from each place."""

    places: tuple[Place, ...]
    draws: int

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        return [] if ctx.idle else [Branch(task, node, self.draws) for task, node in self.places]

    def credit(self, ctx: StepContext) -> Mapping[str, Credit]:
        return {}


def _ended(trees: Mapping[str, Tree], places: Sequence[Place]) -> tuple[Floats, list[int]]:
    """Returns where episodes have ended, nan elsewhere; and the indices of places that can be continued."""
    returns = {task: trees[task].returns() for task in {task for task, _ in places}}
    values = np.array([returns[task][node] for task, node in places], dtype=np.float64)
    nodes = [trees[task][node] for task, node in places]
    return values, [i for i, n in enumerate(nodes) if n.status == "running" and n.snapshot is not None]


def _mean_return(tree: Tree, node: int, *, first: int) -> float:
    """Over the scored rollouts that start at `node` with a turn whose index is at least `first`; nan without any."""
    values = tree.values()
    drawn = [values[i] for i in range(first, len(tree)) if tree[i].parent == node]
    scored = [value for value in drawn if not np.isnan(value)]
    return float(np.mean(scored)) if scored else float("nan")
