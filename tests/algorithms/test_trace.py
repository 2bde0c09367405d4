"""TRACE at work: what a step spends and where, what it learns from, and that a step leaves nothing behind."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import growing
from tests.support.growing import Moody, WideWalk, credits_of, grow, stroll
from tests.support.walk import RENDERER, walker
from trace_gym.actor import build_actor
from trace_gym.algorithm import Branch, Metrics, RunContext, StepContext
from trace_gym.algorithms.allocate import allocate_prefixes, allocate_roots, sample_roots
from trace_gym.algorithms.credit import node_values, node_weights, own_returns
from trace_gym.algorithms.predictor import Constant, Place, calibration
from trace_gym.algorithms.trace import TRACE, PublishedTRACE
from trace_gym.config import TrainConfig, load_config
from trace_gym.engine import Completion
from trace_gym.errors import ConfigError
from trace_gym.ledger import Budget, Cost, Ledger
from trace_gym.observer import Silent
from trace_gym.oracle import make_oracle
from trace_gym.plugins import make_algorithm
from trace_gym.rollout import grow_trees, plant_trees
from trace_gym.runs import RunFolder
from trace_gym.train import train
from trace_gym.tree import Tree, same_tree

POOL = tuple("123456789")
STEP = 5  # past the warm-up


def guess(places: Sequence[Place]) -> Any:
    """An oracle with an opinion of its own about every place."""
    return np.array([np.random.default_rng([int(task), node]).uniform(0.05, 0.95) for task, node in places])


def trace(**fields: Any) -> TRACE:
    """Both stages, counts by greed."""
    stages = {"selection": "greedy", "prefix_stage": "active", "continuations": 2}
    return TRACE(**{"rollouts": 20, "predictor": "oracle", **stages, **fields})


def step_of(algorithm: TRACE, **fields: Any) -> StepContext:
    return grow(algorithm, **{"pool": POOL, "step": STEP, "oracle": guess, **fields})


def bare(tree: Tree) -> int:
    """Rollouts from the prompt."""
    return len(tree.children()[0])


def before_continuations(tree: Tree) -> Tree:
    """The tree as it stood when its own rollouts had ended."""
    first = [i for i, node in enumerate(tree.nodes) if node.origin == "continuation"]
    return Tree(tree.task_id, tree.nodes[: first[0]] if first else list(tree.nodes))


def continued(tree: Tree) -> dict[int, int]:
    """How many rollouts started at each prefix."""
    return dict(Counter(node.parent for node in tree.nodes if node.cost.rollout_units == 0.5))


# ---- where it spends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rollouts", "cap", "epsilon"), [(20, 16, 0.1), (7, 4, 0.0), (90, 6, 0.5)])
def test_stage_one_is_allocate_roots_on_the_predictions_of_prompts(
    rollouts: int, cap: int, epsilon: float
) -> None:
    ctx = step_of(trace(rollouts=rollouts, cap=cap, epsilon=epsilon))
    counts = [bare(tree) for tree in ctx.trees.values()]
    v = guess([(task, 0) for task in POOL])
    expected = allocate_roots(v, rollouts, cap=cap, epsilon=epsilon, rng=ctx.rng("roots"))
    assert counts == expected.tolist()
    assert sum(counts) == min(rollouts, cap * len(POOL))


@pytest.mark.parametrize("continuations", [1, 3])
def test_stage_two_spends_its_share_of_a_tree_on_flips_of_what_was_seen(continuations: int) -> None:
    ctx = step_of(trace(continuations=continuations))
    forked = 0
    for task, tree in ctx.trees.items():
        seen = before_continuations(tree)
        places = [node for node in seen.anchors() if not np.isnan(own_returns(seen)[node])]
        assert all(seen.children()[node] for node in places)  # a prefix is no leaf
        v = guess([(task, node) for node in places])
        f = np.where(own_returns(seen)[places] > 0.5, 1.0 - v, v)
        budget = bare(tree) * continuations
        expected = allocate_prefixes(
            f, budget, rng=ctx.rng("prefixes", task)
        )  # none where there is no prefix
        assert continued(tree) == {node: k for node, k in zip(places, expected, strict=True) if k}
        assert sum(continued(tree).values()) == (budget if places else 0)
        forked += bool(places)
    assert forked > 3
    outcomes = [o > 0.5 for tree in ctx.trees.values() for o in before_continuations(tree).outcomes()]
    assert any(outcomes) and not all(outcomes)  # both kinds of flip were looked for


def test_there_is_no_second_wave() -> None:
    """Whatever the continuations showed, the step has then ended: each of them starts at a turn of a bare rollout."""
    ctx = step_of(trace(continuations=4))
    for tree in ctx.trees.values():
        assert all(node < len(before_continuations(tree)) for node in continued(tree))
    assert ctx.purse.spent.rollout_units <= 20 * (1 + 4 / 2)


HELD = "7"


class NamedWalk(WideWalk):
    """Prompts tell tasks apart."""

    def begin(self, task_id: str, rng: np.random.Generator) -> Any:
        return dataclasses.replace(super().begin(task_id, rng), observation=f"task {task_id}")


class Keeping(Moody):
    """Serves the requests of one task only when there are no others."""

    def poll(self, timeout_s: float) -> list[Completion]:
        name = RENDERER.encode(f"task {HELD}")[:6]
        mine = [i for i, request in self._waiting.items() if _holds(request.tokens.tolist(), list(name))]
        others = [i for i in self._waiting if i not in mine]
        return [self._complete(i) for i in others or mine]


def _holds(text: list[int], part: list[int]) -> bool:
    return any(text[i : i + len(part)] == part for i in range(len(text)))


def test_no_prompt_waits_for_the_rollouts_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one prompt's rollouts are held back, all others run to the end of their second stage."""
    lockstep = dataclasses.replace(
        growing.SETTINGS, lockstep=True
    )  # else it waits for environments, and all looks idle
    monkeypatch.setattr(growing, "SETTINGS", lockstep)
    algorithm = trace(root_stage="uniform", rollouts=36, group=4)
    seen: list[dict[str, int]] = []
    plan = algorithm.plan

    def watching(ctx: StepContext) -> Sequence[Branch]:
        if HELD in ctx.idle and not seen:
            seen.append({task: len(continued(tree)) for task, tree in ctx.trees.items()})
        return plan(ctx)

    algorithm.plan = watching  # type: ignore[method-assign]
    ctx = step_of(algorithm, engine=Keeping(walker(stroll)), env=NamedWalk())
    (when_it_ended,) = seen
    assert when_it_ended.pop(HELD) == 0 and len(continued(ctx.trees[HELD])) > 0
    assert when_it_ended == {task: len(continued(ctx.trees[task])) for task in POOL if task != HELD}
    assert sum(when_it_ended.values()) > 5


def test_rollouts_of_one_turn_leave_nothing_to_fork_and_nothing_is_billed() -> None:
    ctx = step_of(trace(), choose=lambda rng: "stop")
    assert ctx.purse.spent.rollout_units == 20 and ctx.purse.spent.restores == 0 and ctx.refused == 0


@pytest.mark.parametrize("root_stage", ["active", "uniform", "off"])
@pytest.mark.parametrize("prefix_stage", ["active", "uniform", "off"])
def test_every_pair_of_stages_spends_what_it_says(root_stage: Any, prefix_stage: Any) -> None:
    if root_stage == prefix_stage == "off":
        with pytest.raises(ConfigError, match="both stages off"):
            trace(root_stage=root_stage, prefix_stage=prefix_stage)
        return
    algorithm = trace(root_stage=root_stage, prefix_stage=prefix_stage, rollouts=6, group=3)
    ctx = step_of(algorithm)
    counts = [bare(tree) for tree in ctx.trees.values()]
    assert sum(counts) == 6
    if root_stage != "active":
        assert set(counts) == {0, 3 if root_stage == "uniform" else 1}
    for tree in ctx.trees.values():
        budget = bare(tree) * 2 if before_continuations(tree).anchors() and prefix_stage != "off" else 0
        assert sum(continued(tree).values()) == budget
    credits_of(algorithm, ctx)


def test_uniform_prefixes_are_drawn_and_active_ones_chosen() -> None:
    """With one prefix of certain flip and others of none, active takes it alone; uniform spreads."""

    def certain(places: Sequence[Place]) -> Any:
        return np.array([0.5 if node == 0 else 1.0 if node == 1 else 0.0 for _, node in places])

    def ramble(rng: np.random.Generator) -> str:
        return "-"  # never arrives: every rollout fails, and f = v

    spread = {}
    for stage in ("active", "uniform"):
        algorithm = trace(prefix_stage=stage, epsilon=0.0, rollouts=16, cap=2)
        ctx = step_of(algorithm, oracle=certain, choose=ramble)
        spread[stage] = [node for tree in ctx.trees.values() for node in continued(tree)]
    first_waves = [1] * sum(1 for _ in range(8))
    assert spread["active"].count(1) == len(first_waves)
    assert len(set(spread["uniform"])) > 5


@pytest.mark.parametrize("selection", ["greedy", "group", "sample"])
def test_selections(selection: Any) -> None:
    algorithm = trace(selection=selection, rollouts=12, group=4, prefix_stage="off", epsilon=0.0)
    ctx = step_of(algorithm)
    counts = np.array([bare(tree) for tree in ctx.trees.values()])
    assert counts.sum() == 12
    v = guess([(task, 0) for task in POOL])
    if selection == "group":  # nearest 0.5
        assert set(np.flatnonzero(counts)) == set(np.argsort(abs(v - 0.5))[:3])
    if selection == "sample":
        expected, _ = sample_roots(v, 12, group=4, floor=0.1, rng=ctx.rng("roots"))
        assert counts.tolist() == expected.tolist()


def test_inverse_weights_keep_the_uniform_objective() -> None:
    """Averaged over draws, every prompt weighs the same, however likely it is to be drawn."""
    algorithm = trace(selection="sample", inverse_weights=True, rollouts=12, group=4, floor=0.02)
    ctx = step_of(algorithm)
    credits = algorithm.credit(ctx)
    _, chances = sample_roots(guess([(t, 0) for t in POOL]), 12, group=4, floor=0.02, rng=ctx.rng("roots"))
    chance = dict(zip(POOL, chances, strict=True))
    assert len(credits) == 3 and len({round(chance[t], 6) for t in POOL}) > 5
    for task, credit in credits.items():
        np.testing.assert_allclose(credit.weight, node_weights(ctx.trees[task]) / chance[task])
    total, steps = dict.fromkeys(POOL, 0.0), 500
    planted = planted_at(STEP)
    for step in range(STEP, STEP + steps):
        drawn = algorithm.plan(dataclasses.replace(planted, step=step))
        for branch in drawn:
            total[branch.task] += 1.0 / algorithm._chances[branch.task]
    mean = np.array(list(total.values())) / steps
    error = np.sqrt((1.0 / np.array([chance[t] for t in POOL]) - 1.0) / steps)
    assert (abs(mean - 1.0) < 4 * error + 1e-9).all()
    plain = trace(selection="sample", rollouts=12, group=4, floor=0.02)
    np.testing.assert_array_equal(
        next(iter(plain.credit(ctx).values())).weight, node_weights(ctx.trees[next(iter(credits))])
    )


def planted_at(step: int, **fields: Any) -> StepContext:
    """A step's prompts, with nothing grown."""
    env = WideWalk()
    run = RunContext(seed=0, tasks=POOL)
    ctx = plant_trees(env, POOL, RENDERER, run, step, Budget())
    return dataclasses.replace(ctx, oracle=guess, **fields)


@pytest.mark.parametrize("rule", ["stages", "joint"])
def test_warm_up_is_uniform_and_asks_no_predictor(rule: Any) -> None:
    algorithm = trace(rollouts=21, group=4, warmup_steps=3, budget_rule=rule)
    for step in range(3):
        ctx = step_of(algorithm, step=step, oracle=refuse)
        counts = sorted(bare(tree) for tree in ctx.trees.values())
        assert counts == [0, 0, 0, 1, 4, 4, 4, 4, 4][-len(counts) :]
        assert sum(sum(continued(tree).values()) for tree in ctx.trees.values()) > 0
    with pytest.raises(AssertionError, match="asked"):
        step_of(algorithm, step=3, oracle=refuse)


def refuse(places: Sequence[Place]) -> Any:
    raise AssertionError("asked")


def test_without_exploration_hopeless_prompts_get_nothing() -> None:
    def split(places: Sequence[Place]) -> Any:
        return np.array([0.5 if int(task) % 2 else 0.0 for task, _ in places])

    spent = {}
    for epsilon in (0.0, 0.4):
        shares = []
        for step in range(STEP, STEP + 12):
            branches = trace(epsilon=epsilon).plan(
                dataclasses.replace(planted_at(STEP), step=step, oracle=split)
            )
            shares.append(sum(b.count for b in branches if int(b.task) % 2 == 0) / 20)
        spent[epsilon] = float(np.mean(shares))
    assert spent[0.0] == 0.0 and 0.08 < spent[0.4] < 0.3


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"selection": "group", "rollouts": 4, "group": 8}, "no prompt would ever be opened"),
        ({"selection": "sample", "rollouts": 7}, "group=8"),
        ({"waves": 0}, "waves"),
        ({"discount": 1.5}, "discount"),
        ({"prior_rollouts": -1.0}, "prior_rollouts"),
        ({"epsilon": 1.5}, "epsilon"),
        ({"rollouts": 1}, "at least 2"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        trace(**fields)


@pytest.mark.parametrize(
    ("fields", "units"),
    [
        ({"cap": 3, "continuations": 0}, 27),
        ({"root_stage": "uniform", "group": 3, "prefix_stage": "off"}, 27),
        ({"root_stage": "off", "continuations": 0, "prefix_stage": "uniform"}, 9),
    ],
)
def test_more_rollouts_than_the_pool_can_take_are_not_spent(fields: dict[str, Any], units: int) -> None:
    assert step_of(trace(rollouts=80, **fields)).purse.spent.rollout_units == units


# ---- order of arrival -----------------------------------------------------------------------------------------------

PREDICTORS = ("oracle", "beta", "network", "shuffled")


@pytest.mark.parametrize("rule", ["stages", "joint"])
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_trees_do_not_depend_on_the_order_of_completions(rule: Any, predictor: Any) -> None:
    found = []
    for order in (None, 1):
        algorithm = trace(budget_rule=rule, predictor=predictor, width=8, rollouts=16, warmup_steps=0)
        found.append(step_of(algorithm, order=order))
    one = found[0].trees
    assert any(continued(tree) for tree in one.values())
    for other in found[1:]:
        assert all(same_tree(one[task], other.trees[task]) for task in POOL)


# ---- faults ---------------------------------------------------------------------------------------------------------


def risky(rng: np.random.Generator) -> str:
    return str(rng.choice(["+", "+", "-", "stop", "raise", "+"]))


@pytest.mark.parametrize("rule", ["stages", "joint"])
def test_rollouts_that_broke_are_neither_forked_nor_learned_as_failures(rule: Any) -> None:
    lessons: dict[Place, float] = {}

    class Listening(Guess):
        def learn(self, ctx: StepContext, places: Sequence[Place], targets: Any, weights: Any) -> Metrics:
            lessons.update(zip(places, targets, strict=True))
            return {}

    algorithm = trace(budget_rule=rule, rollouts=36)
    algorithm._predictor = Listening()
    ctx = step_of(algorithm, choose=risky)
    broken = 0
    credits = credits_of(algorithm, ctx)
    for task, tree in ctx.trees.items():
        returns = tree.returns()
        lost = [i for i in tree.leaves() if np.isnan(returns[i])]
        broken += len(lost)
        if task in credits:
            assert np.isnan(credits[task].advantage[lost]).all()
        values = node_values(tree)
        for node in (0, *tree.anchors()):
            below = [returns[i] for i in tree.leaves() if node in tree.path(i) and not np.isnan(returns[i])]
            assert ((task, node) in lessons) == bool(below)
            if below:
                assert lessons[task, node] == values[node] and min(below) <= values[node] <= max(below)
        if rule == "stages":
            ends = own_returns(before_continuations(tree))
            assert not np.isnan([ends[node] for node in continued(tree)]).any()
    assert broken > 5


def test_a_step_whose_rollouts_all_broke_teaches_nothing() -> None:
    for rule in ("stages", "joint"):
        algorithm = trace(budget_rule=rule)
        ctx = step_of(algorithm, choose=lambda rng: "raise")
        assert credits_of(algorithm, ctx) == {} and not any(continued(t) for t in ctx.trees.values())


@pytest.mark.parametrize("rule", ["stages", "joint"])
@pytest.mark.parametrize("units", [0.0, 1.0, 9.5, 25.5])
def test_a_budget_that_ends_in_the_middle_of_a_plan_breaks_nothing(rule: Any, units: float) -> None:
    algorithm = trace(budget_rule=rule, rollouts=36)
    ctx = step_of(algorithm, budget=Budget(rollout_units=units))  # which checks ledger and purse
    spent = Cost()
    for tree in ctx.trees.values():
        spent = spent + tree.cost()
    assert spent == ctx.purse.spent and ctx.purse.reserved == Cost()
    assert spent.rollout_units <= units < spent.rollout_units + 1 and ctx.refused > 0
    credits_of(algorithm, ctx)
    after = step_of(algorithm, step=STEP + 1, started=True)
    assert after.refused == 0 and after.purse.spent.rollout_units > 20


# ---- learning -------------------------------------------------------------------------------------------------------


class Guess(Constant):
    """`guess` until it has learned, then 0.99."""

    def __init__(self) -> None:
        self.learned = 0

    def predict(self, ctx: StepContext, places: Sequence[Place]) -> Any:
        return guess(places)[None] if not self.learned else np.full((1, len(places)), 0.99)

    def learn(self, ctx: StepContext, places: Sequence[Place], targets: Any, weights: Any) -> Metrics:
        self.learned += 1
        return {}


def test_calibration_is_of_the_predictions_made_before_learning() -> None:
    algorithm = trace(target="leaf")
    algorithm._predictor = Guess()
    ctx = step_of(algorithm)
    metrics = algorithm.observe(ctx)
    assert algorithm._predictor.learned == 1
    grown = {task: tree for task, tree in ctx.trees.items() if len(tree) > 1}
    values = {task: node_values(tree, "leaf") for task, tree in grown.items()}
    roots = calibration(guess([(t, 0) for t in grown]), np.array([values[t][0] for t in grown]))
    assert metrics["root_brier"] == pytest.approx(roots["brier"])
    prefixes = [(t, node) for t, tree in grown.items() for node in tree.anchors() if not np.isnan(values[t][node])]  # fmt: skip
    rest = calibration(guess(prefixes), np.array([values[t][node] for t, node in prefixes]))
    assert metrics["prefix_ece"] == pytest.approx(rest["ece"])
    # the expanded are judged by their continuations alone, which the choice did not depend on
    expanded = [(t, node) for t, tree in grown.items() for node in continued(tree)]
    alone = []
    for t, node in expanded:
        below = [i for i in grown[t].children()[node] if grown[t][i].origin == "continuation"]
        alone.append(np.mean([node_values(grown[t])[i] for i in below]))
    assert len(expanded) > 3
    assert metrics["expanded_brier"] == pytest.approx(calibration(guess(expanded), np.array(alone))["brier"])


def test_metrics_are_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "runs.md").read_text()
    for rule in ("stages", "joint"):
        algorithm = trace(budget_rule=rule, predictor="network", width=8, rollouts=8)
        metrics = algorithm.observe(step_of(algorithm))
        assert len(metrics) > 9
        for name in metrics:
            first, _, rest = name.partition("_")
            assert f"`{name}`" in page or (f"`{first}_…`" in page and f"`{rest}`" in page), name


# ---- runs -----------------------------------------------------------------------------------------------------------

RELAY = (
    "env.id=trace_gym/Relay-v0",
    "env.options={kinds: 6, slip: 0.1, slack: 3}",
    "policy.path=tabular",
    "deterministic=true",
    "log.tensorboard=false",
    "log.checkpoint_every_steps=2",
    "eval.tasks=0",
    "budget.steps=5",
    "algorithm={name: trace, selection: greedy, prefix_stage: active, pool: 8, rollouts: 8, group: 4, width: 8}",
    "algorithm.warmup_steps=1",
)


def relay(out: Path, *more: str) -> TrainConfig:
    return load_config(None, [*RELAY, f"out={out}", *more])


def numbers(run: RunFolder) -> list[dict[str, Any]]:
    rows = RunFolder.open(run.path).metrics()
    return [{k: v for k, v in row.items() if not k.startswith(("seconds", "tokens_per_s"))} for row in rows]


class Dying(Silent):
    """Dies after the record of a step, before its checkpoint."""

    def step(self, metrics: Mapping[str, float]) -> None:
        if metrics["step"] == 3.0:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "fields",
    [
        "predictor: network",
        "budget_rule: joint, predictor: ensemble, thompson: true",
        "selection: sample, inverse_weights: true, predictor: beta",
    ],
)
def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path: Path, fields: str) -> None:
    more = [f"algorithm.{field.replace(': ', '=')}" for field in fields.split(", ")]
    whole = train(relay(tmp_path / "whole", *more), Silent())
    with pytest.raises(KeyboardInterrupt):
        train(relay(tmp_path / "cut", *more), Dying())
    (path,) = (tmp_path / "cut").iterdir()
    assert len(RunFolder.open(path).metrics()) == 4
    resumed = train(relay(tmp_path / "cut", *more), Silent(), resume=RunFolder.open(path))
    np.testing.assert_equal(numbers(resumed), numbers(whole))


def test_hopeless_tasks_are_left_alone_by_a_predictor_that_knows() -> None:
    """Half of the kinds can never be solved. After warm-up they get the explored share and no more."""
    setup = load_config(None, [*RELAY, "env.options={kinds: 8, mix: {never: 1, '0.5': 1}}"])
    actor = build_actor(setup)
    tasks = actor.env.tasks("train")
    for epsilon, most in ((0.0, 0.0), (0.2, 0.2)):
        wasted = rollouts = 0.0
        for step in range(5):
            algorithm = trace(rollouts=16, epsilon=epsilon)
            pool = tasks[16 * step : 16 * (step + 1)]
            run, ledger = RunContext(seed=0, tasks=tasks), Ledger()
            ctx = plant_trees(actor.env, pool, actor.renderer, run, STEP + step, Budget())
            ctx.oracle = make_oracle(setup, actor).of(ctx, ledger)
            grow_trees(
                algorithm,
                ctx,
                engine=actor.engine,
                renderer=actor.renderer,
                env=actor.env,
                settings=actor.settings,
                ledger=ledger,
            )
            for task, tree in ctx.trees.items():
                wasted += tree.cost().rollout_units * task.startswith("never")
                rollouts += tree.cost().rollout_units
        assert rollouts > 5 * 16
        assert wasted / rollouts <= most + 0.05


# ---- the settings that come with it ---------------------------------------------------------------------------------


def test_by_default_whole_groups_and_no_forks_as_published_both_stages() -> None:
    default, published = TRACE(predictor="constant"), make_algorithm("trace_published", {})
    assert (default.selection, default.prefix_stage, default.units) == ("group", "off", 64.0)
    assert isinstance(published, PublishedTRACE)
    assert (published.selection, published.prefix_stage) == ("greedy", "active")
    assert (published.epsilon, published.target, published.units) == (0.0, "leaf", 64.0)


def test_inverse_weights_need_a_rule_that_draws() -> None:
    with pytest.raises(ConfigError, match="needs selection=sample"):
        trace(inverse_weights=True)
