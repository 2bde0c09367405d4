"""The loop: exact tokens, keyed randomness, budgets, deadlines, faults, and plans made while looking."""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.walk import RENDERER, WalkEnv, random_walk, walker
from trace_gym.algorithm import Algorithm, Branch, Credit, RunContext, StepContext
from trace_gym.engine import Completion, Request, ScriptedEngine
from trace_gym.errors import EngineError, PluginError
from trace_gym.ledger import Budget, Cost, Ledger
from trace_gym.rollout import RolloutSettings, grow_trees, plant_trees
from trace_gym.tree import Node, Tree, same_tree

SETTINGS = RolloutSettings(max_tokens=16, threads=2)


class Plan(Algorithm):
    """Base of the test algorithms: no credit."""

    def credit(self, ctx: StepContext) -> Mapping[str, Credit]:
        return {}


class Star(Plan):
    """Four rollouts of every task, all at the start."""

    count = 4

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        return [] if ctx.idle else [Branch(task, count=self.count) for task in ctx.pool]


class ForkMidway(Plan):
    """Two rollouts of every task; as soon as a tree is idle, three continuations of its first anchor."""

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        if not ctx.idle:
            return [Branch(task, count=2) for task in ctx.pool]
        fresh = [t for t in ctx.idle if all(n.origin != "continuation" for n in ctx.trees[t].nodes)]
        return [Branch(t, node=ctx.trees[t].anchors()[0], count=3) for t in fresh if ctx.trees[t].anchors()]


class Resample(Plan):
    """DAPO's dynamic sampling: two more rollouts for trees that do not hold both outcomes yet, four rounds at most."""

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        if not ctx.idle:
            return [Branch(task, count=2) for task in ctx.pool]
        poor = [t for t in ctx.idle if not ctx.trees[t].mixed() and len(ctx.trees[t].outcomes()) < 8]
        return [Branch(t, count=2) for t in poor]


def grow(
    algorithm: Algorithm,
    engine: Any = None,
    *,
    env: WalkEnv | None = None,
    seed: int = 0,
    budget: Budget | None = None,
    settings: RolloutSettings = SETTINGS,
    ledger: Ledger | None = None,
) -> StepContext:
    env = env or WalkEnv()
    engine = engine or ScriptedEngine(walker(random_walk))
    run = RunContext(seed=seed, tasks=env.tasks("train"))
    ctx = plant_trees(env, run.tasks, RENDERER, run, 0, budget or Budget())
    return grow_trees(
        algorithm,
        ctx,
        engine=engine,
        renderer=RENDERER,
        env=env,
        settings=settings,
        ledger=ledger or Ledger(),
    )


class Recording(ScriptedEngine):
    """Keeps every prefix it was shown, with the completion that followed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[tuple[int, ...]] = []

    def _complete(self, request_id: int) -> Completion:
        prefix = self._waiting[request_id].tokens
        done = super()._complete(request_id)
        self.seen.append((*map(int, prefix), *map(int, done.tokens)))
        return done


@given(seed=st.integers(0, 2**31), burst=st.integers(1, 5))
def test_every_path_is_exactly_what_the_model_saw(seed: int, burst: int) -> None:
    engine = Recording(walker(random_walk), shuffle=np.random.default_rng(seed), burst=burst)
    trees = grow(ForkMidway(), engine, seed=seed).trees
    turns = []
    for tree in trees.values():
        for index, node in enumerate(tree.nodes):
            if index:
                before = tree.tokens(node.parent)
                turns.append((*map(int, before), *map(int, node.tokens[: node.n_action])))
    assert sorted(turns) == sorted(engine.seen)


@pytest.mark.parametrize("algorithm", [Star, ForkMidway, Resample])
@given(orders=st.lists(st.integers(0, 2**31), min_size=2, max_size=2), seed=st.integers(0, 50))
def test_the_order_of_completions_does_not_change_the_trees(
    algorithm: type[Plan], orders: list[int], seed: int
) -> None:
    grown = [
        grow(
            algorithm(),
            ScriptedEngine(walker(random_walk), shuffle=np.random.default_rng(o), burst=2),
            seed=seed,
        )
        for o in orders
    ]
    for one, other in zip(grown[0].trees.values(), grown[1].trees.values(), strict=True):
        assert same_tree(one, other)


def test_another_seed_gives_other_trees() -> None:
    one, other = (grow(Star(), seed=s).trees["2"] for s in (1, 2))
    assert not same_tree(one, other)


def test_draws_of_one_node_differ_in_policy_and_in_environment_noise() -> None:
    env = WalkEnv(slip=0.5)
    ctx = grow(Star(), ScriptedEngine(walker(lambda rng: "+")), env=env)
    paths = {
        tuple(ctx.trees["3"][i].observation for i in ctx.trees["3"].path(leaf))
        for leaf in ctx.trees["3"].leaves()
    }
    assert len(paths) > 1  # same actions everywhere, so only the environment's noise can tell them apart


def test_continuations_start_from_the_very_state() -> None:
    ctx = grow(ForkMidway(), ScriptedEngine(walker(lambda rng: "+")), env=WalkEnv(slip=0.0))
    tree = ctx.trees["3"]
    forked = tree.anchors()[0]
    below = [i for i, node in enumerate(tree.nodes) if node.parent == forked]
    assert len(below) == 4  # the original and three continuations
    assert [tree[i].draw for i in below] == [0, 1, 2, 3]
    assert {tree[i].observation for i in below} == {"at 2"}
    assert tree[below[1]].origin == "continuation" and tree[below[1]].cost.restores == 1


def test_a_plan_made_after_looking_resamples_until_both_outcomes_are_there() -> None:
    ctx = grow(Resample(), seed=3)
    assert all(tree.mixed() or len(tree.outcomes()) >= 8 for tree in ctx.trees.values())
    assert any(len(tree.outcomes()) > 2 for tree in ctx.trees.values())


def test_the_ledger_adds_up_and_equals_the_purse() -> None:
    ledger = Ledger()
    ctx = grow(ForkMidway(), ledger=ledger)
    cost = Cost()
    for tree in ctx.trees.values():
        cost = cost + tree.cost()
    assert ledger.total == cost == ctx.purse.spent
    assert ctx.purse.reserved == Cost()
    sampled = sum(node.n_action for tree in ctx.trees.values() for node in tree.nodes)
    assert cost.policy_tokens == sampled
    assert cost.env_steps == sum(len(tree) - 1 for tree in ctx.trees.values())
    roots = 2 * 3
    continuations = 3 * sum(bool(tree.anchors()) for tree in ctx.trees.values())
    assert cost.rollout_units == roots + 0.5 * continuations
    assert cost.restores == continuations


@given(limit=st.integers(0, 3000), seed=st.integers(0, 100), burst=st.integers(1, 4))
def test_a_token_budget_is_never_exceeded(limit: int, seed: int, burst: int) -> None:
    engine = ScriptedEngine(walker(random_walk), shuffle=np.random.default_rng(seed), burst=burst)
    ctx = grow(Star(), engine, seed=seed, budget=Budget(policy_tokens=limit))
    assert ctx.purse.spent.policy_tokens <= limit
    started = sum(len(t.leaves()) for t in ctx.trees.values())
    assert started + ctx.refused == 12
    worst = SETTINGS.max_tokens * 8
    assert (
        ctx.refused == 0 or limit - ctx.purse.spent.policy_tokens < worst
    )  # refused only what might not fit


def test_a_unit_budget_is_spent_exactly_in_planning_order() -> None:
    ctx = grow(Star(), budget=Budget(rollout_units=6))
    assert [len(tree.leaves()) for tree in ctx.trees.values()] == [4, 2, 0]
    assert ctx.refused == 6


def test_what_was_admitted_under_a_token_budget_does_not_depend_on_the_order_of_completions() -> None:
    counts = set()
    for order in range(8):
        engine = ScriptedEngine(walker(random_walk), shuffle=np.random.default_rng(order), burst=1)
        ctx = grow(Star(), engine, budget=Budget(policy_tokens=300))
        counts.add(tuple(len(tree.leaves()) for tree in ctx.trees.values()))
    assert len(counts) == 1


# ---- faults ---------------------------------------------------------------------------------------------------------


def sometimes(action: str) -> ScriptedEngine:
    return ScriptedEngine(walker(lambda rng: action if rng.random() < 0.3 else random_walk(rng)))


def unscored(trees: Mapping[str, Tree]) -> list[Any]:
    return [node for tree in trees.values() for node in tree.nodes if node.status in ("failed", "censored")]


def test_an_environment_that_raises_fails_its_leaf_alone() -> None:
    ctx = grow(Star(), sometimes("raise"))
    broken = unscored(ctx.trees)
    assert broken and all(np.isnan(node.reward) and "the ground opened" in node.reason for node in broken)
    assert all(node.n_action > 0 for node in broken)  # the turn that broke it is kept
    assert any(tree.outcomes() for tree in ctx.trees.values())
    assert sum(len(tree.leaves()) for tree in ctx.trees.values()) == 12


def test_an_environment_that_hangs_is_censored_at_its_deadline() -> None:
    start = time.perf_counter()
    settings = dataclasses.replace(SETTINGS, env_deadline_s=0.2)
    ctx = grow(
        Star(), ScriptedEngine(walker(lambda rng: "hang")), settings=settings, env=WalkEnv(turn_limit=2)
    )
    assert time.perf_counter() - start < 5
    assert {node.status for node in unscored(ctx.trees)} == {"censored"}
    assert len(unscored(ctx.trees)) == 12


def test_a_turn_past_its_deadline_is_censored() -> None:
    class Mute(ScriptedEngine):
        def poll(self, timeout_s: float) -> list[Completion]:
            time.sleep(min(timeout_s, 0.01))
            return []

    settings = dataclasses.replace(SETTINGS, turn_deadline_s=0.1)
    ctx = grow(Star(), Mute(walker(random_walk)), settings=settings)
    assert {node.status for node in unscored(ctx.trees)} == {"censored"}
    assert "0.1 s" in unscored(ctx.trees)[0].reason


def test_an_engine_that_dies_fails_what_it_held_and_the_step_ends() -> None:
    class Dying(ScriptedEngine):
        polls = 0

        def poll(self, timeout_s: float) -> list[Completion]:
            self.polls += 1
            if self.polls > 3:
                raise EngineError("the engine's process is gone")
            return super().poll(timeout_s)

    ledger = Ledger()
    ctx = grow(Star(), Dying(walker(lambda rng: "+")), ledger=ledger)
    assert len(unscored(ctx.trees)) == 12
    assert all("process is gone" in node.reason for node in unscored(ctx.trees))
    assert ctx.purse.reserved == Cost() and ledger.total == ctx.purse.spent


def test_a_request_that_fails_alone_fails_one_leaf() -> None:
    class Flaky(ScriptedEngine):
        def _complete(self, request_id: int) -> Completion:
            done = super()._complete(request_id)
            return (
                dataclasses.replace(done, finish="error", error="out of memory") if request_id == 2 else done
            )

    ctx = grow(Star(), Flaky(walker(random_walk)))
    (node,) = unscored(ctx.trees)
    assert node.status == "failed" and node.reason == "engine: out of memory"


def test_a_full_context_truncates_with_reward_zero() -> None:
    engine = ScriptedEngine(walker(lambda rng: "+"), max_context=40)
    ctx = grow(Star(), engine)
    leaves = [tree[leaf] for tree in ctx.trees.values() for leaf in tree.leaves()]
    assert {leaf.status for leaf in leaves} == {"truncated"}
    assert all(leaf.reward == 0.0 and leaf.n_action == 0 for leaf in leaves)
    assert all(len(tree.tokens(leaf)) <= 40 + 20 for tree in ctx.trees.values() for leaf in tree.leaves())


def test_an_unfinished_turn_is_closed_by_the_renderer() -> None:
    def ramble(request: Request, rng: np.random.Generator) -> list[int]:
        return [ord("x")] * 100

    tree = grow(Star(), ScriptedEngine(ramble)).trees["1"]
    node = tree[1]
    assert node.n_action == SETTINGS.max_tokens and node.action == "x" * 16
    assert node.tokens[node.n_action] == RENDERER.END


def test_what_ends_an_episode_is_not_shown() -> None:
    ctx = grow(Star(), ScriptedEngine(walker(lambda rng: "stop")))
    leaves = [tree[leaf] for tree in ctx.trees.values() for leaf in tree.leaves()]
    assert {leaf.observation for leaf in leaves} == {"lost"}
    assert all(len(leaf.tokens) == leaf.n_action > 0 for leaf in leaves)


def test_instances_serve_one_rollout_after_another() -> None:
    class Counted(WalkEnv):
        def fork(self) -> Any:
            forks.append(1)
            return super().fork()

    forks: list[int] = []
    grow(ForkMidway(), ScriptedEngine(walker(lambda rng: "+")), env=Counted())
    assert len(forks) <= 9  # of 15 rollouts, no more than three of each tree run at once


def test_a_step_that_is_interrupted_leaves_no_turn_running() -> None:
    class Interrupted(Star):
        def plan(self, ctx: StepContext) -> Sequence[Branch]:
            if ctx.idle:
                raise KeyboardInterrupt
            return super().plan(ctx)

    engine = ScriptedEngine(walker(lambda rng: "stop"), burst=1)
    with pytest.raises(KeyboardInterrupt):
        grow(Interrupted(), engine, settings=dataclasses.replace(SETTINGS, lockstep=True))
    assert not engine._waiting and len(engine._aborted) == 8  # one tree of three had ended


def test_no_anchor_past_an_irreversible_call() -> None:
    ctx = grow(Star(), ScriptedEngine(walker(lambda rng: "void" if rng.random() < 0.5 else "+")))
    assert not unscored(ctx.trees)  # the rollouts go on
    for tree in ctx.trees.values():
        for index in range(1, len(tree)):
            if any(tree[i].action == "void" for i in tree.path(index)):
                assert index not in tree.anchors()


@pytest.mark.parametrize(
    ("branch", "says"),
    [
        (Branch("9"), "not in the step's pool"),
        (Branch("1", node=7), "no rollout can continue"),
        (Branch("1", count=0), "at least one"),
    ],
)
def test_an_impossible_plan_is_refused(branch: Branch, says: str) -> None:
    class Wrong(Plan):
        def plan(self, ctx: StepContext) -> Sequence[Branch]:
            return [branch]

    with pytest.raises(PluginError, match=says):
        grow(Wrong())


def test_a_leaf_is_never_continued() -> None:
    class AfterTheEnd(Plan):
        def plan(self, ctx: StepContext) -> Sequence[Branch]:
            if not ctx.idle:
                return [Branch("1")]
            tree = ctx.trees["1"]
            return [Branch("1", node=tree.leaves()[0])]

    with pytest.raises(PluginError, match="anchors"):
        grow(AfterTheEnd())


# ---- plans that never have enough -----------------------------------------------------------------------------------


class Greedy(Plan):
    """Plans another round whenever it is asked."""

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        return [Branch(task) for task in (ctx.idle or ctx.pool)]


@pytest.mark.parametrize("algorithm", [Greedy, Resample])
@pytest.mark.parametrize("budget", [Budget(rollout_units=7), Budget(policy_tokens=700), Budget(env_steps=40)])
def test_a_spent_budget_ends_the_step_whatever_is_planned(algorithm: type[Plan], budget: Budget) -> None:
    ctx = grow(algorithm(), ScriptedEngine(walker(lambda rng: "+")), budget=budget)
    assert ctx.refused > 0 or algorithm is Resample  # which stops of itself after four rounds
    assert budget.covers(ctx.purse.spent)


@pytest.mark.parametrize("method", ["submit", "poll"])
def test_a_dead_engine_ends_the_step_whatever_is_planned(method: str) -> None:
    class Dead(ScriptedEngine):
        def submit(self, request: Request) -> int:
            if method == "submit":
                raise EngineError("gone")
            return super().submit(request)

        def poll(self, timeout_s: float) -> list[Completion]:
            raise EngineError("gone")

    ctx = grow(Greedy(), Dead(walker(random_walk)))
    assert all(node.reason == "engine: gone" for node in unscored(ctx.trees))
    assert len(unscored(ctx.trees)) == 3


def test_what_an_overdue_turn_had_sampled_is_kept_and_billed() -> None:
    class Slow(ScriptedEngine):
        """Gives nothing until a request is aborted, then what it had sampled so far."""

        def poll(self, timeout_s: float) -> list[Completion]:
            time.sleep(0.01)
            done = [dataclasses.replace(self._complete(i), finish="aborted") for i in self._aborted]
            self._aborted.clear()
            return done

        def abort(self, request_id: int) -> None:
            self._aborted.append(request_id)

    ledger = Ledger()
    settings = dataclasses.replace(SETTINGS, turn_deadline_s=0.1)
    ctx = grow(Star(), Slow(walker(lambda rng: "+")), settings=settings, ledger=ledger)
    late = unscored(ctx.trees)
    assert len(late) == 12 and {n.status for n in late} == {"censored"} and "0.1 s" in late[0].reason
    assert ledger.total.policy_tokens == 24 == sum(n.n_action for n in late)


def test_a_turn_is_aborted_at_its_deadline_also_after_one_that_was_aborted_too_late() -> None:
    class Unhurried(ScriptedEngine):
        """Gives nothing until a request is aborted; then a first turn whole, for it had just ended, of later ones a part."""

        def poll(self, timeout_s: float) -> list[Completion]:
            time.sleep(0.01)
            later = {i for i in self._aborted if list(self._waiting[i].tokens).count(RENDERER.AGENT) > 1}
            done = [self._complete(i) for i in self._aborted]
            self._aborted.clear()
            return [dataclasses.replace(c, finish="aborted") if c.request_id in later else c for c in done]

        def abort(self, request_id: int) -> None:
            self._aborted.append(request_id)

    settings = dataclasses.replace(SETTINGS, turn_deadline_s=0.1)
    ctx = grow(Star(), Unhurried(walker(lambda rng: "+")), settings=settings)
    late = unscored(ctx.trees)
    assert len(late) == 12 and {n.status for n in late} == {"censored"} and "0.1 s" in late[0].reason
    assert {len(tree) for tree in ctx.trees.values()} == {9}  # the prompt, and two turns of four rollouts
    assert all(n.n_action > 0 for n in late)  # what was sampled of the second turn came back


class CountedNodes(list[Node]):
    """Nodes of a tree that know how often somebody went through all of them."""

    passes = 0

    def __iter__(self) -> Iterator[Node]:
        self.passes += 1
        return super().__iter__()


class ForkMany(Plan):
    """Six rollouts of one task, then one continuation from each of the first `branches` anchors, twice over."""

    def __init__(self, branches: int) -> None:
        super().__init__()
        self.branches, self.plans = branches, 0

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        self.plans += 1
        if self.plans == 1:
            ctx.trees["1"].nodes = CountedNodes(ctx.trees["1"].nodes)
            return [Branch("1", count=6)]
        anchors = ctx.trees["1"].anchors()[: self.branches]
        return [Branch("1", node) for node in anchors * 2] if self.plans == 2 else []


def test_planning_goes_through_a_tree_as_often_for_many_branches_as_for_one() -> None:
    """Else a tree that is forked from most of its nodes would cost their number squared."""

    def passes_of(branches: int) -> int:
        tree = grow(ForkMany(branches)).trees["1"]
        assert len(tree.leaves()) == 6 + 2 * branches
        nodes = tree.nodes
        assert isinstance(nodes, CountedNodes)
        passes = nodes.passes
        assert sorted(n.draw for n in tree.nodes if n.parent == 0) == list(range(6))
        first = tree.anchors()[0]
        draws = [
            n.draw for n in tree.nodes if n.parent == first
        ]  # the rollout's own turn, then each continuation's
        assert draws == list(range(len(draws)))
        return passes

    assert passes_of(1) == passes_of(4)
