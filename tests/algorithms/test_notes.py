"""What algorithms note for people: predictions as they were when the plan was made, reasons that are true, and no effect."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.support.growing import grow
from tests.support.trees import add, prompt_tree
from tests.support.walk import WalkEnv
from trace_gym.algorithm import Notes, RunContext, StepContext, check_notes
from trace_gym.algorithms.grpo import GRPO
from trace_gym.algorithms.notes import Notebook
from trace_gym.algorithms.pcl import PCL
from trace_gym.algorithms.predictor import Constant, Place
from trace_gym.algorithms.trace import TRACE
from trace_gym.errors import PluginError
from trace_gym.tree import Tree


class Rising(Constant):
    """Says 0.1 the first time it is asked, then 0.2, …; two members that disagree by 0.1."""

    asked = 0

    def predict(self, ctx: StepContext, places: Sequence[Place]) -> np.ndarray[Any, np.dtype[np.float64]]:
        self.asked += 1
        return np.repeat([[0.1 * self.asked - 0.05], [0.1 * self.asked + 0.05]], len(places), axis=1)


def context(*trees: Tree, step: int = 0) -> StepContext:
    return StepContext(
        run=RunContext(seed=0, tasks=()), step=step, trees={tree.task_id: tree for tree in trees}
    )


def forked() -> Tree:
    """Two rollouts of two turns; two continuations of node 1, one of node 3, whose own rollout was not scored."""
    tree = prompt_tree("task")
    one = add(tree, 0)
    add(tree, one, status="done", reward=1.0)
    three = add(tree, 0, draw=1)
    add(tree, three, status="failed", reward=float("nan"))
    for parent, draw in ((one, 1), (one, 2), (three, 1)):
        add(tree, parent, status="done", origin="continuation", draw=draw)
    return tree


def test_the_first_answer_of_a_step_is_kept_and_all_are_passed_on() -> None:
    notebook, predictor, ctx = Notebook(), Rising(), context(forked())
    assert notebook.predict(predictor, ctx, [("task", 0)]).ravel().tolist() == pytest.approx([0.05, 0.15])
    assert notebook.predict(predictor, ctx, [("task", 0), ("task", 1)]).mean() == pytest.approx(0.2)
    predicted = notebook.notes(ctx, roots="", prefixes="")["task"].predicted
    assert predicted[:2].tolist() == pytest.approx([0.1, 0.2]) and np.isnan(predicted[2:]).all()


def test_predictions_are_judged_as_they_were_when_the_plan_was_made() -> None:
    """Success of the prompt was predicted as 0.1 when the step was planned; asked again, the predictor says 0.2."""
    algorithm = TRACE(rollouts=8, predictor="constant", warmup_steps=0)
    algorithm._predictor = Rising()
    tree = prompt_tree("task")
    for reward in (1.0, 0.0):
        add(tree, 0, status="done", reward=reward)
    ctx = context(tree)
    algorithm._notebook.predict(algorithm._predictor, ctx, [("task", 0)])
    assert algorithm.observe(ctx)["root_brier"] == pytest.approx((0.1 - 0.5) ** 2)


def test_a_new_step_begins_a_new_page() -> None:
    notebook, predictor = Notebook(), Rising()
    notebook.predict(predictor, context(forked()), [("task", 0)])
    later = context(forked(), step=1)
    assert np.isnan(notebook.notes(later, roots="", prefixes="")["task"].predicted).all()
    notebook.predict(predictor, later, [("task", 3)])
    predicted = notebook.notes(later, roots="", prefixes="")["task"].predicted
    assert predicted[3] == pytest.approx(0.2) and np.isnan(predicted[0])


def test_reasons_count_what_began_at_a_node() -> None:
    notebook, ctx = Notebook(), context(forked(), prompt_tree("left out"))
    notebook.predict(Rising(), ctx, [("task", 0), ("task", 1), ("left out", 0)])
    notes = notebook.notes(ctx, roots="by A", prefixes="by B")
    assert notes["task"].why == {
        0: "by A: 2 rollouts, success predicted 0.10",
        1: "by B: 2 continuations, success predicted 0.10; the rollout it lies on succeeded",
        3: "by B: 1 continuation",
    }
    assert notes["left out"].why == {0: "by A: skipped, success predicted 0.10"}


@pytest.mark.parametrize(
    ("algorithm", "roots", "prefixes"),
    [
        (
            TRACE(predictor="beta", rollouts=16, pool=4, warmup_steps=0, prefix_stage="active"),
            "by prediction",
            "by prediction",
        ),
        (
            TRACE(predictor="beta", rollouts=16, pool=4, warmup_steps=9, prefix_stage="active"),
            *["at random, to warm up"] * 2,
        ),
        (
            TRACE(predictor="beta", rollouts=16, pool=4, root_stage="uniform", prefix_stage="uniform"),
            *["at random"] * 2,
        ),
        (
            TRACE(predictor="beta", rollouts=16, pool=4, warmup_steps=0, budget_rule="joint"),
            *["by the price"] * 2,
        ),
        (
            TRACE(
                predictor="beta",
                rollouts=4,
                pool=4,
                selection="greedy",
                root_stage="off",
                prefix_stage="active",
                warmup_steps=0,
            ),
            "one each",
            "by prediction",
        ),
        (PCL(predictor="beta", prompts=2, pool=4, warmup_steps=0), "nearest to one half", None),
        (PCL(predictor="beta", prompts=2, pool=4, warmup_steps=1), "at random, to warm up", None),
    ],
)
def test_an_algorithms_notes_fit_its_trees_and_name_its_rule(
    algorithm: TRACE | PCL, roots: str, prefixes: str | None
) -> None:
    ctx = grow(algorithm)
    algorithm.observe(ctx)
    notes = algorithm.notes(ctx)
    check_notes(ctx, notes, "it")
    assert set(notes) == set(ctx.trees)
    why = [(node, text) for note in notes.values() for node, text in note.why.items()]
    assert {text.split(":")[0] for node, text in why if node == 0} == {roots}
    assert {text.split(":")[0] for node, text in why if node} == ({prefixes} if prefixes else set())
    opened = [task for task, tree in ctx.trees.items() if len(tree) > 1]
    assert opened and all(0 < notes[task].predicted[0] < 1 for task in opened)


def test_looking_at_the_notes_changes_nothing() -> None:
    def plans(look: bool) -> list[Any]:
        algorithm, seen = (
            TRACE(predictor="beta", rollouts=16, pool=4, warmup_steps=0, prefix_stage="active"),
            [],
        )
        for step in range(3):
            ctx = grow(algorithm, step=step, started=step > 0)
            algorithm.observe(ctx)
            if look:
                algorithm.notes(ctx)
            seen.append([tree.parents().tolist() for tree in ctx.trees.values()])
        return seen

    assert plans(look=True) == plans(look=False)


def test_other_algorithms_have_no_notes() -> None:
    assert GRPO().notes(grow(GRPO(group=2), env=WalkEnv())) == {}


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ([], "returned a list"),
        ({"other": Notes(np.zeros(3))}, "tasks of the step's pool"),
        ({"task": 3}, "return Notes"),
        ({"task": Notes(np.zeros(2))}, "each of the tree's 8 nodes"),
        ({"task": Notes(np.full(8, np.inf))}, "each of the tree's 8 nodes"),
        ({"task": Notes(np.zeros(8), {8: "x"})}, "maps nodes of the tree to texts"),
        ({"task": Notes(np.zeros(8), {0: 1})}, "maps nodes of the tree to texts"),  # type: ignore[dict-item]
    ],
)
def test_notes_of_a_plug_in_that_do_not_fit_are_refused(notes: object, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        check_notes(context(forked()), notes, "Mine")
