import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.support.trees import add, prompt_tree
from trace_gym.algorithm import RunContext, StepContext
from trace_gym.algorithms.forecast import Network, balanced
from trace_gym.algorithms.predictor import (
    Beta,
    Place,
    Predictor,
    PredictorKind,
    PredictorSettings,
    by_task,
    calibration,
    make_predictor,
)
from trace_gym.algorithms.replay import Rows, paths_to, sample
from trace_gym.checkpoint import _to_arrays, _to_tensors
from trace_gym.errors import ConfigError
from trace_gym.tree import Tree

Values = npt.NDArray[np.float64]
VOCABULARY = 60
RUN = RunContext(seed=3, tasks=[], vocabulary=VOCABULARY)
SMALL: dict[str, Any] = {"width": 16, "layers": 1, "heads": 2}


def context(trees: Sequence[Tree], step: int = 0, run: RunContext = RUN) -> StepContext:
    return StepContext(run=run, step=step, trees={tree.task_id: tree for tree in trees})


def started(kind: PredictorKind, run: RunContext = RUN, **settings: Any) -> Predictor:
    predictor = make_predictor(kind, PredictorSettings(**settings))
    predictor.start(run)
    return predictor


def chain(task: str, turns: Sequence[Sequence[int]], prompt: Sequence[int] = (1, 2, 3)) -> Tree:
    tree, node = prompt_tree(task, prompt), 0
    for turn in turns:
        node = add(tree, node, turn)
    return tree


# ---- a task whose success probability is known ------------------------------------------------------------------------

GOOD, BAD = (20, 21, 22), (30, 31, 32)  # words of the prompt that help and hurt
LUCKY, UNLUCKY = 7, 3  # digits in a turn


def known(rng: np.random.Generator, step: int, prompts: int) -> tuple[list[Tree], dict[Place, float]]:
    """Trees of three turns and four rollouts, and the success probability of every place that is not a leaf."""
    trees, truth = [], {}
    for i in range(prompts):
        words = rng.integers(15, VOCABULARY, 6)
        tree = prompt_tree(f"{step}.{i}", words.tolist())
        logit = 1.5 * (np.isin(words, GOOD).sum() - np.isin(words, BAD).sum())
        truth[tree.task_id, 0] = 1 / (1 + np.exp(-logit))
        for _ in range(4):
            node, at = 0, logit
            for turn in range(3):
                digits = rng.integers(0, 10, 3).tolist()
                at += 1.5 * digits.count(LUCKY) - 1.5 * digits.count(UNLUCKY)
                value = 1 / (1 + np.exp(-at))
                last = turn == 2
                reward = float(rng.random() < value) if last else 0.0
                node = add(tree, node, digits, (10, 11), reward=reward, status="done" if last else "running")
                if not last:
                    truth[tree.task_id, node] = value
        trees.append(tree)
    return trees, truth


def teach(predictor: Predictor, ctx: StepContext, places: Sequence[Place]) -> dict[str, float]:
    values = {task: tree.values() for task, tree in ctx.trees.items()}
    draws = {task: tree.draws() for task, tree in ctx.trees.items()}
    return predictor.learn(
        ctx,
        places,
        np.array([values[task][node] for task, node in places]),
        np.array([float(draws[task][node]) for task, node in places]),
    )


@pytest.mark.parametrize("with_embeddings", [True, False])
def test_it_learns_which_words_and_which_digits_matter(with_embeddings: bool) -> None:
    table = np.random.default_rng(0).normal(size=(VOCABULARY, 24)).astype(np.float32)
    run = dataclasses.replace(RUN, embeddings=(lambda: table) if with_embeddings else None)
    network, rng = started("network", run, width=32), np.random.default_rng(1)
    for step in range(20):
        trees, truth = known(rng, step, 24)
        teach(network, context(trees, step, run), list(truth))
    trees, truth = known(rng, 20, 150)  # prompts never seen
    places, value = list(truth), np.array(list(truth.values()))
    predicted = network.predict(context(trees, 20, run), places)[0]
    root = np.array([node == 0 for _, node in places])
    assert calibration(predicted[root], value[root])["rank_correlation"] > 0.8
    assert calibration(predicted[~root], value[~root])["rank_correlation"] > 0.8
    # prefixes of one tree differ in their digits alone
    within = [
        calibration(predicted[own], value[own])["rank_correlation"]
        for own in (
            np.array([task == tree.task_id and node > 0 for task, node in places]) for tree in trees[:50]
        )
    ]
    assert np.mean(within) > 0.6


def test_the_first_answer_after_a_look_is_near_the_mean_and_before_it_a_half() -> None:
    network = started("network", **SMALL, epochs=1, lr=1e-9, wide_lr=1e-9)
    trees = [chain(f"t{i}", [[4], [5]], prompt=[i]) for i in range(4)]
    places = [(tree.task_id, 0) for tree in trees]
    np.testing.assert_array_equal(network.predict(context(trees), places), 0.5)
    network.learn(context(trees), places, np.array([1.0, 0.0, 0.0, 0.0]), np.array([1.0, 1.0, 1.0, 5.0]))
    np.testing.assert_allclose(network.predict(context(trees), places), 1 / 8, atol=1e-3)


# ---- what an answer may depend on -------------------------------------------------------------------------------------


def trained(kind: PredictorKind = "network", steps: int = 2, **settings: Any) -> Predictor:
    predictor, rng = started(kind, **(SMALL | settings)), np.random.default_rng(5)
    for step in range(steps):
        trees, truth = known(rng, step, 6)
        teach(predictor, context(trees, step), list(truth))
    return predictor


def test_an_answer_depends_on_the_history_alone_and_not_on_later_turns_or_other_places() -> None:
    network = trained()
    first = chain("a", [[1, 7], [2, 7], [3, 3]], prompt=[20, 40])
    other = chain("a", [[1, 7], [2, 7], [9, 9], [8]], prompt=[20, 40])
    far = chain("b", [[4]] * 6)
    alone = network.predict(context([first]), [("a", 2)])
    np.testing.assert_allclose(
        network.predict(context([other]), [("a", 4), ("a", 2)])[:, 1:], alone, atol=1e-6
    )
    both = context([first, far])
    np.testing.assert_array_equal(  # to the bit: a plan must not depend on which trees became idle together
        network.predict(both, [("b", 6), ("a", 1), ("a", 2)])[:, 1:],
        network.predict(both, [("a", 1), ("a", 2)]),
    )
    changed = chain("a", [[1, 3], [2, 7], [3, 3]], prompt=[20, 40])
    assert network.predict(context([changed]), [("a", 2)]) != alone


def test_order_within_a_turn_is_seen() -> None:
    one, other = chain("a", [[4, 9]]), chain("a", [[9, 4]])
    network = trained(replay_steps=1)
    ctx = context([one, chain("b", [[9, 4]])], 5)
    for step in range(5, 15):
        ctx.step = step
        network.learn(ctx, [("a", 1), ("b", 1)], np.array([1.0, 0.0]), np.ones(2))
    assert network.predict(context([one]), [("a", 1)]) > network.predict(context([other]), [("a", 1)]) + 0.2


def test_places_may_repeat_and_come_in_any_order() -> None:
    network, tree = trained(), chain("a", [[1], [2], [3]])
    places = [("a", 2), ("a", 0), ("a", 3), ("a", 2)]
    found = network.predict(context([tree]), places)
    again = network.predict(context([tree]), places[::-1])
    assert found.shape == (1, 4) and found[0, 0] == found[0, 3]
    np.testing.assert_array_equal(found, again[:, ::-1])
    assert network.predict(context([tree]), []).shape == (1, 0)


def test_turns_left_are_seen() -> None:
    from trace_gym.plugins import make_env

    env = make_env("trace_gym/Math-v0", {"difficulty": "2"})
    env.reset(seed=0, options={"task": env.tasks("train")[0]})
    snapshot = env.snapshot()
    trees = []
    for name, limit in (("a", 3), ("b", 9)):
        tree = chain(name, [])
        tree.nodes[0] = dataclasses.replace(
            tree[0],
            snapshot=type(snapshot)(
                **{f: getattr(snapshot, f) for f in snapshot.__struct_fields__} | {"turn_limit": limit}
            ),
        )
        trees.append(tree)
    network, ctx = started("network", **SMALL), context(trees)
    for step in range(30):
        ctx.step = step
        network.learn(ctx, [("a", 0), ("b", 0)], np.array([0.0, 1.0]), np.ones(2))
    short, long = network.predict(ctx, [("a", 0), ("b", 0)])[0]
    assert short < long - 0.2


@pytest.mark.parametrize("kind", ["network", "ensemble", "beta", "shuffled"])
def test_no_global_generator_is_read_or_written(kind: PredictorKind) -> None:
    tree, answers = chain("a", [[1], [2]]), []
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]  # noqa: NPY002
            answers.append(trained(kind, thompson=True).predict(context([tree], 2), [("a", 0), ("a", 1)]))
            assert torch.equal(torch.get_rng_state(), before[0])
            assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]  # noqa: NPY002
            assert random.getstate() == before[2]
    np.testing.assert_array_equal(answers[0], answers[1])


@pytest.mark.parametrize("kind", ["network", "ensemble", "beta", "shuffled", "inverted", "constant"])
def test_a_resumed_run_goes_on_bit_for_bit(kind: PredictorKind, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    steps = [known(rng, step, 5) for step in range(5)]
    one = started(kind, **SMALL)
    for step in range(3):
        teach(one, context(steps[step][0], step), list(steps[step][1]))
    torch.save(_to_tensors(one.state_dict()), tmp_path / "state.pt")
    two = started(kind, **SMALL)
    two.load_state_dict(_to_arrays(torch.load(tmp_path / "state.pt", weights_only=True)))
    for step in (3, 4):
        trees, truth = steps[step]
        np.testing.assert_array_equal(
            one.predict(context(trees, step), list(truth)), two.predict(context(trees, step), list(truth))
        )
        assert teach(one, context(trees, step), list(truth)) == teach(two, context(trees, step), list(truth))
    trees, truth = steps[0]
    np.testing.assert_array_equal(
        one.predict(context(trees, 5), list(truth)), two.predict(context(trees, 5), list(truth))
    )


def test_a_state_is_a_copy_and_of_one_shape() -> None:
    network = trained()
    state = network.state_dict()
    kept = {name: value.copy() for name, value in state["parameters"].items()}
    trees, truth = known(np.random.default_rng(9), 7, 4)
    teach(network, context(trees, 7), list(truth))
    for name, value in kept.items():
        np.testing.assert_array_equal(state["parameters"][name], value)
    with pytest.raises(ValueError, match="another shape"):
        started("network", **(SMALL | {"width": 32})).load_state_dict(state)


# ---- the loss ---------------------------------------------------------------------------------------------------------


def test_prompts_and_prefixes_weigh_the_same() -> None:
    weight = torch.zeros(2, 3, 4)
    weight[:, 0, 0], weight[:, 0, 1:], weight[:, 1, 2] = 4.0, 2.0, 5.0
    weight[1] *= 7.0
    shared = balanced(weight)
    torch.testing.assert_close(shared[:, :, 0].sum(1), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(shared[:, :, 1:].sum((1, 2)), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(shared[0, 1, 2] / shared[0, 0, 1], torch.tensor(2.5))
    only = torch.zeros(1, 2, 3)
    only[0, :, 0] = torch.tensor([1.0, 3.0])
    torch.testing.assert_close(balanced(only)[0, :, 0], torch.tensor([0.25, 0.75]))
    assert balanced(torch.zeros(1, 2, 3)).sum() == 0


def test_the_reported_loss_is_the_balanced_squared_error() -> None:
    network = started("network", **SMALL, epochs=1, lr=1e-9, wide_lr=1e-9, batch=1)
    ctx = context([chain("a", [[1], [2]])])
    targets, weights = np.array([0.5, 1.0, 0.0]), np.array([1.0, 1.0, 3.0])
    found = network.learn(ctx, [("a", 0), ("a", 1), ("a", 2)], targets, weights)["predictor_loss"]
    prefixes = (1.0 * 0.5**2 + 3.0 * 0.5**2) / 4.0  # the bias makes every answer the prompt's 0.5
    assert found == pytest.approx(0.5 * 0.0 + 0.5 * prefixes, abs=1e-4)


def test_replay_drops_what_is_older_than_eight_steps() -> None:
    network, trees = started("network", **SMALL, epochs=1), [chain("a", [[1]])]
    assert isinstance(network, Network)
    for step in (0, 1, 2, 9):
        network.learn(context(trees, step), [("a", 0)], np.ones(1), np.ones(1))
    assert [rows["step"] for rows in network.state_dict()["replay"]] == [2, 9]


def test_an_epoch_is_the_new_rows_and_as_many_older_ones() -> None:
    def rows(step: int, count: int) -> Rows:
        turns = np.full((count, 1), step, dtype=np.float32)
        index = np.arange(count)[:, None].repeat(
            step + 1, axis=1
        )  # later steps have longer paths and more pieces
        target = np.full(index.shape, step, dtype=np.float32)
        return Rows(step, turns, np.full((count, step + 1), 1, np.int32), index, target, target[None] + 1)

    turns, pieces, index, target, weight = sample(
        [rows(0, 9), rows(1, 2), rows(2, 4)], np.random.default_rng(0)
    )
    assert index.shape == (8, 3) and pieces.shape[1] == 3 and weight.shape == (1, 8, 3)
    np.testing.assert_array_equal(target[-4:], 2.0)
    np.testing.assert_array_equal(
        turns[index[:, 0], 0], target[:, 0]
    )  # each row still points at its own turns
    assert len({tuple(row) for row in index[:4].tolist()}) == 4  # drawn without replacement
    np.testing.assert_array_equal(weight[0] > 0, np.arange(3) <= target[:, :1].numpy())


def test_a_shared_turn_stands_in_one_row() -> None:
    tree = chain("a", [[1]])
    for digit in (2, 3):
        add(tree, add(tree, 1, [digit]), [digit])
    paths, where = paths_to(context([tree]), [("a", 0), ("a", 1), ("a", 3), ("a", 5), ("a", 4)])
    assert paths == [[("a", 0), ("a", 1), ("a", 4), ("a", 5)], [("a", 0), ("a", 1), ("a", 2), ("a", 3)]]
    assert where["a", 0] == (0, 0) and where["a", 1] == (0, 1) and where["a", 3] == (1, 3)


def test_unscored_places_teach_nothing() -> None:
    network, trees = started("network", **SMALL), [chain("a", [[1]])]
    places = [("a", 0), ("a", 1)]
    assert network.learn(context(trees), places, np.array([np.nan, 1.0]), np.array([1.0, 0.0])) == {}
    assert network.state_dict()["replay"] == []
    np.testing.assert_array_equal(network.predict(context(trees), places), 0.5)


# ---- ensemble ---------------------------------------------------------------------------------------------------------


def test_members_agree_more_about_what_they_saw() -> None:
    ensemble = started("ensemble", **SMALL, epochs=10)
    seen = [chain(f"t{i}", [[4]], prompt=[20 + i]) for i in range(8)]
    places = [(tree.task_id, 0) for tree in seen]
    targets = np.array([0.0, 1.0] * 4)
    for step in range(12):
        ensemble.learn(context(seen, step), places, targets, np.ones(8))
    unseen = [chain(f"u{i}", [[4]], prompt=[40 + i, 50, 55]) for i in range(8)]
    inside = ensemble.predict(context(seen, 12), places)
    outside = ensemble.predict(context(unseen, 12), [(tree.task_id, 0) for tree in unseen])
    assert inside.shape == (5, 8)
    assert len(np.unique(outside[:, 0])) == 5
    assert inside.std(axis=0).mean() < 0.5 * outside.std(axis=0).mean()
    np.testing.assert_allclose(inside.mean(axis=0), targets, atol=0.3)


def test_a_thompson_draw_is_one_members_answer_for_a_whole_tree() -> None:
    ensemble, draw = trained("ensemble"), trained("ensemble", thompson=True)
    trees = [chain(f"t{i}", [[1, 7], [3]]) for i in range(20)]
    places = [(tree.task_id, node) for tree in trees for node in (0, 1)]
    ctx = context(trees, 4)
    members, drawn = ensemble.predict(ctx, places), draw.predict(ctx, places)
    assert drawn.shape == (1, 40)
    which = [np.flatnonzero(members[:, i] == drawn[0, i])[0] for i in range(40)]
    assert which[::2] == which[1::2] and len(set(which)) == 5
    np.testing.assert_array_equal(draw.predict(ctx, places[6:8]), drawn[:, 6:8])
    ctx.step = 5
    assert (draw.predict(ctx, places) != drawn).any()


# ---- Beta -------------------------------------------------------------------------------------------------------------


def test_beta_is_the_discounted_posterior() -> None:
    g, prior = 0.8, 3.0
    beta = started("beta", forgetting=g, prior=prior)
    trees = [chain("a", [[1]]), chain("b", [[1]])]
    beta.learn(context(trees, 0), [("a", 0), ("a", 1)], np.array([0.25, 1.0]), np.array([8.0, 50.0]))
    beta.learn(context(trees, 2), [("a", 0), ("b", 0)], np.array([1.0, 0.5]), np.array([4.0, 2.0]))
    won, lost = 2 * g**3 + 4 * g, 6 * g**3  # at step 3
    mean = (won + g + 1) / (won + lost + 2 * g + 2)
    expected = (won + prior * mean) / (won + lost + prior)
    found = beta.predict(context(trees, 3), [("a", 0), ("a", 1), ("b", 0), ("new", 0)])
    np.testing.assert_allclose(
        found, [[expected, expected, (g + prior * mean) / (2 * g + prior), mean]], rtol=1e-12
    )


def test_beta_fades_as_the_papers_step_by_step_update() -> None:
    g, a, b = 0.7, 1.0, 1.0
    for won, lost in [(2, 1), (0, 0), (0, 3)]:
        a, b = g * a + (1 - g) * 1.0 + won, g * b + (1 - g) * 1.0 + lost
    beta = Beta(PredictorSettings(forgetting=g, prior=2.0))
    beta._running_mean = lambda: 0.5  # type: ignore[method-assign]  # the paper's prior is fixed
    tree = chain("a", [])
    for step, (won, lost) in enumerate([(2, 1), (0, 0), (0, 3)]):
        if won + lost:
            n = won + lost
            beta.learn(context([tree], step), [("a", 0)], np.array([won / n]), np.array([float(n)]))
    assert beta.predict(context([tree], 2), [("a", 0)])[0, 0] == pytest.approx(a / (a + b))


def test_beta_draws_are_the_posteriors() -> None:
    beta, tree = started("beta", thompson=True, forgetting=1.0, prior=2.0), chain("a", [[1]])
    beta.learn(context([tree], 0), [("a", 0)], np.array([0.75]), np.array([8.0]))
    drawn = [beta.predict(context([tree], step), [("a", 0), ("a", 1)])[0] for step in range(1, 800)]
    assert all(pair[0] == pair[1] for pair in drawn)
    a, b = 6 + 2 * 0.7, 2 + 2 * 0.3
    assert stats.kstest([pair[0] for pair in drawn], stats.beta(a, b).cdf).pvalue > 0.01


# ---- controls ---------------------------------------------------------------------------------------------------------


def test_shuffled_deals_out_the_same_answers_and_inverted_turns_them_over() -> None:
    trees, truth = known(np.random.default_rng(8), 3, 6)
    places, ctx = list(truth), context(trees, 3)
    answers = trained("network").predict(ctx, places)
    shuffled = trained("shuffled").predict(ctx, places)
    assert (shuffled != answers).any()
    np.testing.assert_array_equal(np.sort(shuffled), np.sort(answers))
    np.testing.assert_array_equal(shuffled, trained("shuffled").predict(ctx, places))
    np.testing.assert_array_equal(trained("inverted").predict(ctx, places), 1 - answers)


def test_constant_and_oracle() -> None:
    ctx, places = context([chain("a", [[1]])]), [("a", 0), ("a", 1)]
    np.testing.assert_array_equal(started("constant").predict(ctx, places), [[0.5, 0.5]])
    with pytest.raises(ConfigError, match="Relay"):
        started("oracle").predict(ctx, places)
    oracle: Any = lambda asked: np.array([0.25 * node for _, node in asked])  # noqa: E731
    ctx.oracle = oracle
    np.testing.assert_array_equal(started("oracle").predict(ctx, places), [[0.0, 0.25]])
    ctx.oracle = lambda asked: np.array([np.nan, 1.0])  # a sampled one, whose rollouts all broke
    np.testing.assert_array_equal(started("oracle").predict(ctx, places), [[0.5, 1.0]])


def test_settings_that_cannot_work_are_refused() -> None:
    wrong: list[dict[str, Any]] = [
        {"width": 30},
        {"epochs": 0},
        {"lr": 0.0},
        {"wide_lr": -1.0},
        {"members": 0},
    ]
    for settings in wrong:
        with pytest.raises(ConfigError, match="predictor"):
            make_predictor("ensemble", PredictorSettings(**settings))
    with pytest.raises(ConfigError, match="beta"):
        make_predictor("beta", PredictorSettings(forgetting=1.5))
    with pytest.raises(ConfigError, match="beta"):
        make_predictor("beta", PredictorSettings(prior=0.0))
    with pytest.raises(ConfigError, match="use one of network"):
        make_predictor("coach", PredictorSettings())  # type: ignore[arg-type]


# ---- calibration ------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 0.25, 0.5, 1.0])), min_size=3, max_size=30))
def test_the_rank_correlation_is_scipys(pairs: list[tuple[float, float]]) -> None:
    predicted, realised = np.array(pairs).T
    found = calibration(predicted, realised)
    if len(set(predicted)) == 1 or len(set(realised)) == 1:
        assert np.isnan(found["rank_correlation"])
    else:
        assert found["rank_correlation"] == pytest.approx(
            stats.spearmanr(predicted, realised).statistic, abs=1e-9
        )
    assert found["brier"] == pytest.approx(sum((p - y) ** 2 for p, y in pairs) / len(pairs))


def test_calibration_error_by_hand() -> None:
    predicted = np.array([0.05, 0.08, 0.55, 0.95, 1.0, 0.3])
    realised = np.array([0.0, 0.5, 1.0, 1.0, 0.5, np.nan])
    # bins: {0.05, 0.08} mean 0.065 against 0.25; {0.55} against 1; {0.95, 1} mean 0.975 against 0.75
    by_hand = (2 * 0.185 + 1 * 0.45 + 2 * 0.225) / 5
    assert calibration(predicted, realised)["ece"] == pytest.approx(by_hand)
    perfect = np.array([0.0, 1.0, 1.0])
    assert calibration(perfect, perfect) == {"brier": 0.0, "ece": 0.0, "rank_correlation": 1.0}
    assert all(np.isnan(value) for value in calibration(np.zeros(0), np.zeros(0)).values())


def test_places_by_task_keep_their_order() -> None:
    assert by_task([("b", 3), ("a", 0), ("b", 0)]) == {"b": [0, 2], "a": [1]}
    assert by_task([]) == {}
