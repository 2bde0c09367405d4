"""Two scripted agents: an expert that always succeeds, and a novice that misreads some kinds of clause.

Both are functions of the situation alone (problem, calls so far, turns left), so they can take over from any
agent at any state. The novice's errors are mostly systematic: where a clause has a tempting wrong reading, it
takes that reading with one fixed probability, and then goes on with the wrong value as if it were right. An
agent trained on its demonstrations therefore has decisions to improve, not only noise to lose.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trace_gym.envs.actions import format_answer, format_call
from trace_gym.envs.math.task import Problem, Step, ToolUse

__all__ = ["expert_action", "novice_action"]


def expert_action(problem: Problem, uses: Sequence[ToolUse], turns_left: int) -> str:
    """The next right step that is still missing, or the answer once all are done or one turn is left."""
    index = _steps_known(problem, uses)
    if turns_left <= 1 or index >= len(problem.steps):
        return format_answer(problem.answer)
    return _call(problem.steps[index], problem.right_reading(index))


def novice_action(
    problem: Problem,
    uses: Sequence[ToolUse],
    turns_left: int,
    rng: np.random.Generator,
    *,
    slip: float,
    noise: float,
) -> str:
    """The step after the latest one, from the latest result, by the wrong reading with probability `slip`
    where there is one; with probability `noise` a random mistake instead. Where a source gives no steps, the
    expert's action.
    """
    if not problem.steps:
        return expert_action(problem, uses, turns_left)
    index, value = _position(problem, uses)
    if turns_left <= 1 or index >= len(problem.steps):
        return format_answer(value or "0")
    if rng.random() < noise:
        return _mistake(problem, index, value, rng)
    step = problem.steps[index]
    return _call(step, step.reading(value, slip=rng.random() < slip))


def _call(step: Step, text: str) -> str:
    if step.tool == "solve":
        return format_call("solve", {"equation": text, "variable": "x"})
    return format_call("calculator", {"expression": text})


def _steps_known(problem: Problem, uses: Sequence[ToolUse]) -> int:
    """How many steps need no more work: the last one whose result was obtained (or that was tried in vain)
    counts."""
    known = 0
    for use in uses:
        for index in range(known, len(problem.steps)):
            if use.value == problem.steps[index].result or use.text == problem.right_reading(index):
                known = index + 1
                break
    return known


def _position(problem: Problem, uses: Sequence[ToolUse]) -> tuple[int, str]:
    """The index of the step after the latest one, and the latest result.

    A call that is no reading of any step to come (an operand was mistaken) stands for the next one.
    """
    index, value = 0, problem.start
    for use in uses:
        if not use.value:
            continue
        ahead = range(index, len(problem.steps))
        index = 1 + next((i for i in ahead if use.text in _readings(problem.steps[i], value)), index)
        value = use.value
    return index, value


def _readings(step: Step, value: str) -> tuple[str, str]:
    return step.reading(value), step.reading(value, slip=True)


def _mistake(problem: Problem, index: int, value: str, rng: np.random.Generator) -> str:
    """Answering early, leaving out a step, or mistaking a digit; the last where the others are impossible."""
    kind = int(rng.integers(3))
    if kind == 0 and value:
        return format_answer(value)
    if kind == 1 and value and index + 1 < len(problem.steps):
        return _call(problem.steps[index + 1], problem.steps[index + 1].reading(value))
    step = problem.steps[index]
    return _call(step, _with_wrong_digit(step.reading(value), rng))


def _with_wrong_digit(text: str, rng: np.random.Generator) -> str:
    places = [place for place, character in enumerate(text) if character in "0123456789"]
    if not places:
        return text
    place = places[int(rng.integers(len(places)))]
    others = [digit for digit in "123456789" if digit != text[place]]
    return text[:place] + others[int(rng.integers(len(others)))] + text[place + 1 :]
