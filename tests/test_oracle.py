"""Oracles: exact ones against the table, sampled ones against exact ones, and that asking changes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from tests.test_tabular import Forks, config, grow, numbers, plant
from trace_gym.actor import build_actor, make_engine
from trace_gym.algorithm import Branch, Credit, StepContext
from trace_gym.exact import success_table
from trace_gym.ledger import Ledger
from trace_gym.observer import Silent
from trace_gym.oracle import ExactOracle, NoOracle, SampledOracle, make_oracle
from trace_gym.train import train
from trace_gym.tree import same_tree


def places_of(ctx: StepContext) -> list[tuple[str, int]]:
    return [(task, node) for task, tree in ctx.trees.items() for node in range(len(tree))]


def test_the_exact_oracle_knows_every_place() -> None:
    actor = build_actor(config())
    ctx = grow(actor, Forks())
    oracle = make_oracle(config(), actor)
    assert isinstance(oracle, ExactOracle)
    ledger, places = Ledger(), places_of(ctx)
    ask = oracle.of(ctx, ledger)
    assert ask is not None
    values = ask(places)
    table = success_table(actor.model.spec, actor.model.probabilities())
    for value, (task, node) in zip(values, places, strict=True):
        found = ctx.trees[task][node]
        if found.snapshot is None:
            assert value == ctx.trees[task].returns()[node]
        else:
            left = found.snapshot.turn_limit - found.snapshot.turn
            assert value == table[left, actor.model.spec.state(found.observation)]
    assert set(ledger.seconds) == {"oracle"} and ledger.total == Ledger().total
    assert ask([]).tolist() == []


def test_the_exact_oracle_follows_the_policy() -> None:
    actor = build_actor(config())
    ctx = grow(actor, Forks())
    ask = ExactOracle(actor.model, 1.0).of(ctx, Ledger())
    assert ask is not None
    place = [(next(iter(ctx.trees)), 0)]
    before = float(ask(place)[0])
    actor.model.logits.data.zero_()
    assert float(ask(place)[0]) != before


def test_the_sampled_oracle_agrees_with_the_exact_one_and_leaves_the_step_alone() -> None:
    """Restoring a place with fresh seeds gives the exact value on average, noise of the environment included."""
    actor = build_actor(config())
    ctx, untouched = grow(actor, Forks()), grow(actor, Forks())
    places = places_of(ctx)[::8]
    draws = 40
    sampled = SampledOracle(actor, make_engine(config(), actor.learner), draws)
    ledger = Ledger()
    ask, know = sampled.of(ctx, ledger), ExactOracle(actor.model, 1.0).of(ctx, Ledger())
    assert ask is not None and know is not None
    found, true = ask(places), know(places)
    error = np.sqrt(true * (1 - true) / draws)
    assert (np.abs(found - true) <= 4.5 * error + 1e-12).all()
    open_ = error > 0
    pooled = float((found - true)[open_].sum() / np.sqrt((error[open_] ** 2).sum()))
    assert open_.sum() > 20 and abs(pooled) < 4
    assert all(same_tree(a, b) for a, b in zip(ctx.trees.values(), untouched.trees.values(), strict=True))
    assert ledger.total == Ledger().total and set(ledger.seconds) == {"oracle"}
    spent = sampled.metrics()
    assert spent["oracle_policy_tokens"] == spent["oracle_env_steps"] > draws * open_.sum()
    assert ask(places).tolist() == found.tolist() and sampled.metrics() == spent  # from memory


def test_a_sampled_oracle_does_not_foresee_the_draws_of_the_step() -> None:
    actor = build_actor(config())
    ctx = plant(actor, 40)
    sampled = SampledOracle(actor, make_engine(config(), actor.learner), 1)
    ask = sampled.of(ctx, Ledger())
    assert ask is not None
    foreseen = ask([(task, 0) for task in ctx.trees])
    grown = grow(actor, Forks(roots=1, anchors=0), tasks=40)
    outcomes = np.array([tree.outcomes()[0] for tree in grown.trees.values()])
    assert (foreseen != outcomes).any()


@dataclass(kw_only=True)
class Asking(Forks):
    """Asks about every place whenever it may, or never."""

    asks: bool = True
    answers: ClassVar[list[np.ndarray[tuple[int], np.dtype[np.float64]]]] = []
    kept: list[int] = field(default_factory=list)

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        self._ask(ctx)
        return super().plan(ctx)

    def credit(self, ctx: StepContext) -> Mapping[str, Credit]:
        self._ask(ctx)
        return super().credit(ctx)

    def _ask(self, ctx: StepContext) -> None:
        if self.asks:
            assert ctx.oracle is not None
            self.answers.append(ctx.oracle(places_of(ctx)))


@pytest.mark.parametrize("kind", ["exact", "sampled"])
def test_asking_changes_no_number_of_a_run(tmp_path: Path, kind: str) -> None:
    runs = []
    for asks in (True, False):
        own = f"algorithm={{name: '{__name__}:Asking', asks: {str(asks).lower()}, roots: 2}}"
        words = ("deterministic=true", "budget.steps=2", "rollout.prompts_per_step=4", f"oracle.kind={kind}")
        runs.append(train(config(f"out={tmp_path}", *words, "oracle.draws=2", own), Silent()))
    asked, silent = [
        [{k: v for k, v in row.items() if not k.startswith("oracle_")} for row in numbers(run)]
        for run in runs
    ]
    assert asked == silent
    assert Asking.answers and all(((a >= 0) & (a <= 1)).all() for a in Asking.answers)
    last = runs[0].metrics()[-1]
    assert float(last["seconds_oracle"]) > 0
    assert ("oracle_policy_tokens" in last) == (kind == "sampled") and ("exact_success" in last) == (
        kind == "exact"
    )


def test_a_language_model_has_no_exact_oracle_and_can_be_sampled(policy: Path, tmp_path: Path) -> None:
    setup = config(
        "env.id=trace_gym/Math-v0",
        "env.options={difficulty: '1-2'}",
        f"policy.path={policy}",
        "oracle.draws=2",
    )
    actor = build_actor(setup)
    oracle = make_oracle(setup, actor)
    ctx = grow(actor, Forks(roots=1, anchors=1, more=1), tasks=2)
    assert isinstance(oracle, NoOracle) and oracle.of(ctx, Ledger()) is None and oracle.metrics() == {}
    sampled = SampledOracle(actor, make_engine(setup, actor.learner), 2)
    ask = sampled.of(ctx, Ledger())
    assert ask is not None
    values = ask(places_of(ctx))
    assert set(values) <= {0.0, 0.5, 1.0} and sampled.metrics()["oracle_policy_tokens"] > 0
    sampled.close()
    actor.engine.close()
