"""Random streams of a step: every request and every environment draws from its own; and a plan says which draw is which."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tests.support.walk import RENDERER, Walk, WalkEnv, random_walk, walker
from trace_gym.algorithm import Algorithm, Branch, Credit, RunContext, StepContext
from trace_gym.engine import Request, ScriptedEngine
from trace_gym.env import Info, Opening, Snapshot
from trace_gym.ledger import Budget, Ledger
from trace_gym.rollout import RolloutSettings, grow_trees, plant_trees
from trace_gym.tree import Tree, same_tree

SETTINGS = RolloutSettings(max_tokens=16, threads=2)


class SpyEngine(ScriptedEngine):
    """Keeps the seeds it was asked to sample with."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seeds: list[int] = []

    def submit(self, request: Request) -> int:
        self.seeds.append(request.seed)
        return super().submit(request)


class SpyEnv(WalkEnv):
    """Keeps the seeds of its noise, and how often it was forked; forks write into the same lists."""

    def __init__(self, slip: float = 0.5, turn_limit: int = 8) -> None:
        super().__init__(slip, turn_limit)
        self.reset_seeds: list[int | None] = []
        self.seeds: list[int] = []
        self.forks: list[object] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, Info]:
        self.reset_seeds.append(seed)
        return super().reset(seed=seed, options=options)

    def restore(self, snapshot: Snapshot, *, seed: int | None = None) -> tuple[str, Info]:
        if seed is not None:
            self.seeds.append(seed)
        return super().restore(snapshot, seed=seed)

    def _unshare(self) -> None:
        self.forks.append(self)


class Plan(Algorithm):
    """Base of the test algorithms: no credit."""

    def credit(self, ctx: StepContext) -> Mapping[str, Credit]:
        return {}


class ForkMidway(Plan):
    """Three rollouts of every task; as soon as a tree is idle, two continuations of its first anchor."""

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        if not ctx.idle:
            return [Branch(task, count=3) for task in ctx.pool]
        fresh = [t for t in ctx.idle if all(n.origin != "continuation" for n in ctx.trees[t].nodes)]
        return [Branch(t, node=ctx.trees[t].anchors()[0], count=2) for t in fresh if ctx.trees[t].anchors()]


@dataclass(kw_only=True)
class Once(Plan):
    """The given branches, all at the start."""

    branches: Sequence[Branch]

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        return [] if ctx.idle else self.branches


def grow(
    algorithm: Algorithm,
    *,
    engine: ScriptedEngine | None = None,
    env: WalkEnv | None = None,
    step: int = 0,
    settings: RolloutSettings = SETTINGS,
    trees: dict[str, Tree] | None = None,
) -> StepContext:
    """A step from its prompts, or from `trees` that are there already."""
    env = env or WalkEnv(slip=0.5)
    run = RunContext(seed=0, tasks=env.tasks("train"))
    ctx = plant_trees(env, run.tasks, RENDERER, run, step, Budget())
    if trees is not None:
        ctx.trees = trees
    return grow_trees(
        algorithm,
        ctx,
        engine=engine or ScriptedEngine(walker(random_walk)),
        renderer=RENDERER,
        env=env,
        settings=settings,
        ledger=Ledger(),
    )


# ---- seeds ----------------------------------------------------------------------------------------------------------


def test_every_stream_of_two_steps_has_a_seed_of_its_own() -> None:
    """A seed in use twice would tie a turn's tokens to its noise, to another turn, draw or task, or to another step."""
    engine, env = SpyEngine(walker(random_walk)), SpyEnv()
    turns = rollouts = 0
    for step in (0, 1):
        trees = grow(ForkMidway(), engine=engine, env=env, step=step).trees.values()
        turns += sum(len(tree) - 1 for tree in trees)
        rollouts += sum(len(tree.leaves()) for tree in trees)
        assert any(node.origin == "continuation" for tree in trees for node in tree.nodes)
    assert len(engine.seeds) == turns > rollouts  # one a turn
    assert len(env.seeds) == rollouts  # one a rollout: the noise of its later turns follows
    assert len(env.reset_seeds) == 6  # one a tree
    used = [*engine.seeds, *env.seeds, *env.reset_seeds]
    assert len(set(used)) == len(used) and None not in used


def test_a_task_is_attempted_afresh_in_every_step() -> None:
    branches = Once(branches=[Branch("3", count=3)])
    one, other = (grow(branches, step=step).trees["3"] for step in (0, 1))
    assert [node.action for node in one.nodes] != [node.action for node in other.nodes]


def test_a_step_has_its_own_noise() -> None:
    """The policy always says the same here, so only the environment's noise can tell the steps apart."""
    branches = Once(branches=[Branch("3", count=3)])
    one, other = (
        [
            node.observation
            for node in grow(branches, engine=ScriptedEngine(walker(lambda rng: "+")), step=step)
            .trees["3"]
            .nodes
        ]
        for step in (0, 1)
    )
    assert one != other


# ---- draws ----------------------------------------------------------------------------------------------------------


def test_branches_that_name_a_node_twice_are_further_draws_of_it() -> None:
    engine = SpyEngine(walker(random_walk))
    tree = grow(Once(branches=[Branch("1"), Branch("1"), Branch("1", count=2)]), engine=engine).trees["1"]
    assert [node.draw for node in tree.nodes if node.parent == 0] == [0, 1, 2, 3]
    assert len(set(engine.seeds[:4])) == 4
    together = grow(Once(branches=[Branch("1", count=4)])).trees["1"]
    assert same_tree(tree, together)


def test_a_later_plan_goes_on_counting_draws() -> None:
    class OneByOne(Plan):
        def plan(self, ctx: StepContext) -> Sequence[Branch]:
            return [Branch("1")] if len(ctx.trees["1"].leaves()) < 4 else []

    one_by_one = grow(OneByOne()).trees["1"]
    assert same_tree(one_by_one, grow(Once(branches=[Branch("1", count=4)])).trees["1"])


@pytest.mark.parametrize("threads", [1, 4])
def test_siblings_grown_together_equal_each_grown_alone(threads: int) -> None:
    """Nothing of one continuation reaches another through the environment instances that they share or take over."""
    settings = RolloutSettings(max_tokens=16, threads=threads)
    env = SpyEnv()
    start = grow(Once(branches=[Branch("3", count=3)]), env=env, settings=settings)
    anchor = start.trees["3"].anchors()[0]
    before = list(start.trees["3"].nodes)

    class Siblings(Plan):
        def plan(self, ctx: StepContext) -> Sequence[Branch]:
            if not ctx.idle:
                return [Branch("3", count=3)]
            return [Branch("3", node=anchor, count=4)] if len(ctx.trees["3"].leaves()) < 4 else []

    env.forks.clear()
    together = grow(Siblings(), env=env, settings=settings).trees["3"]
    assert len(env.forks) < 3 + 4  # instances of the first wave were used again
    first = [i for i in range(len(before), len(together)) if together[i].parent == anchor]
    assert len(first) == 4
    for begin, end in zip(first, [*first[1:], len(together)], strict=True):
        so_far = {"3": Tree("3", together.nodes[:begin])}  # so that the lone one is the same draw
        alone = grow(Once(branches=[Branch("3", node=anchor)]), env=SpyEnv(), trees=so_far).trees["3"]
        assert same_tree(alone, Tree("3", together.nodes[:end]))
    shown = {tuple(n.observation for n in together.nodes[a:b]) for a, b in itertools.pairwise(first)}
    assert len(shown) > 1


# ---- what plan() sees -----------------------------------------------------------------------------------------------


class ManyTasks(WalkEnv):
    """Twelve tasks, in an order that is not the alphabet's."""

    def tasks(self, split: str) -> Sequence[str]:
        return [str(goal) for goal in (7, 3, 11, 1, 9, 5, 12, 2, 10, 4, 8, 6)]

    def begin(self, task_id: str, rng: np.random.Generator) -> Opening[Walk]:
        return Opening(Walk(0, int(task_id)), f"walk to {task_id}", turn_limit=self.turn_limit)


@dataclass(kw_only=True)
class Watch(Plan):
    """Two rounds of one rollout a task; keeps what was idle."""

    idle: list[tuple[str, ...]] = field(default_factory=list)

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        self.idle.append(ctx.idle)
        again = ctx.idle or ctx.pool
        return [Branch(task) for task in again if len(ctx.trees[task].leaves()) < 2]


@pytest.mark.parametrize("order", range(4))
def test_idle_trees_stand_in_pool_order(order: int) -> None:
    watch, env = Watch(), ManyTasks()
    engine = ScriptedEngine(walker(random_walk), shuffle=np.random.default_rng(order), burst=6)
    lockstep = RolloutSettings(max_tokens=16, threads=2, lockstep=True)  # so that several are idle at once
    grow(watch, engine=engine, env=env, settings=lockstep)
    place = list(env.tasks("train")).index
    assert watch.idle[0] == () and any(len(idle) > 1 for idle in watch.idle)
    assert all(list(idle) == sorted(idle, key=place) for idle in watch.idle)
    assert sorted(task for idle in watch.idle for task in idle) == sorted([*env.tasks("train")] * 2)
