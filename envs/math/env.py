"""`trace_gym/Math-v0`: a problem, two exact tools, one answer.

    calculator(expression)      solve(equation, variable)      <answer>…</answer>

A task needs 2 to 6 turns and allows two more than it needs. The frozen state holds the problem itself and the
calls made so far: it can be judged, continued and demonstrated from wherever it is restored. No tool has an
effect and nothing is random after the task is drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np

from trace_gym.env import ForkableEnv, Opening, Tool, Turn
from trace_gym.envs.actions import Answer, Malformed, check_arguments, parse_action
from trace_gym.envs.math.calculator import CalculatorError, calculate, solve
from trace_gym.envs.math.demonstrators import expert_action, novice_action
from trace_gym.envs.math.judge import default_judge
from trace_gym.envs.math.problems import BuiltinSource, read_difficulty
from trace_gym.envs.math.sources import load_source
from trace_gym.envs.math.task import Problem, Source, ToolName, ToolUse
from trace_gym.envs.options import check_max_turns, check_split
from trace_gym.envs.taskfiles import BadLine, OnBadLine, skipped_lines
from trace_gym.errors import TaskError

__all__ = ["MathEnv", "MathState"]

SPARE_TURNS = 2  # that a task allows beyond those it needs
MOST_STEPS = 5  # tool calls that a task is taken to need at most
KEPT_CHARS = 400  # of a call, in the state: the tools read no more

CALCULATOR = Tool(
    name="calculator",
    description="The exact value of an expression, such as 3*(4+5)/2 or sqrt(16).",
    parameters={
        "type": "object",
        "properties": {"expression": {"type": "string"}},
        "required": ["expression"],
    },
)
SOLVE = Tool(
    name="solve",
    description="The solutions of an equation in one variable, such as 3x+5=20 for x.",
    parameters={
        "type": "object",
        "properties": {"equation": {"type": "string"}, "variable": {"type": "string"}},
        "required": ["equation", "variable"],
    },
)
TOOLS = {tool.name: tool for tool in (CALCULATOR, SOLVE)}

INSTRUCTIONS = (
    "Solve the problem in steps. Make one tool call per turn, such as "
    '<tool_call>{"name":"calculator","arguments":{"expression":"3*4"}}</tool_call>, '
    "and read its result. When you know the answer, finish with it alone, such as <answer>12</answer>."
)


class MathState(msgspec.Struct, frozen=True):
    """The problem and every call that reached a tool, in order."""

    problem: Problem
    uses: tuple[ToolUse, ...] = ()


class MathEnv(ForkableEnv[MathState]):
    """Mathematics in several turns. `info` tells of every turn whether its action could not be used
    (`format_error`), and at the end how the answer was judged (`judged_by`).

    `source`: "builtin", a `.jsonl` or `.parquet` file, or "hf:NAME[:config[:split]]" (see `sources`).
    `split`: which of train, dev, test and all `reset` draws from; `tasks` lists any of them, and any known id
    can be asked for. `difficulty`: tool calls that built-in tasks need, "1" to "5", a range, easy (1-2),
    medium (2-3) or hard (4-5); files ignore it. `max_turns`: one turn limit for all tasks instead of what
    each needs and two more. `on_bad_line`: "error" refuses a file with a bad line, "skip" lists it under
    `skipped`. `question_field`, `answer_field`: where a file calls them neither `question` or `problem` nor
    `answer` or `solution`.

    Raises `ConfigError` for a setting, `TaskError` for a file that cannot be used.
    """

    env_id: ClassVar[str] = "trace_gym/Math-v0"
    state_type: ClassVar[type[msgspec.Struct]] = MathState

    def __init__(
        self,
        source: str | Path = "builtin",
        split: str = "train",
        *,
        difficulty: str | int = "1-4",
        max_turns: int | None = None,
        on_bad_line: OnBadLine = "error",
        question_field: str | None = None,
        answer_field: str | None = None,
    ) -> None:
        super().__init__()
        check_split(split)
        check_max_turns(max_turns)
        self._split = split
        self._max_turns = max_turns
        lowest, highest = read_difficulty(str(difficulty))
        self.skipped: tuple[BadLine, ...] = ()  # bad lines of the file, each with its reason
        self._source: Source = BuiltinSource(lowest, highest)
        if str(source) != "builtin":
            found = load_source(
                str(source), on_bad_line=on_bad_line, question_field=question_field, answer_field=answer_field
            )
            self._source, self.skipped = found, found.skipped

    # ---- tasks -----------------------------------------------------------------------------------------

    def tasks(self, split: str) -> Sequence[str]:
        """Ids of train, dev, test or all, in a fixed order. Raises `TaskError` for another split."""
        return self._source.tasks(split)

    def notices(self) -> Sequence[str]:
        """The skipped lines of the file, the first twenty by name."""
        return skipped_lines(self.skipped)

    def _draw_task(self) -> str:
        ids = self.tasks(self._split)
        if not ids:
            raise TaskError(f"{self.env_id}: the source's split {self._split!r} is empty; pass split='all'")
        return ids[int(self.np_random.integers(len(ids)))]

    def begin(self, task_id: str, rng: np.random.Generator) -> Opening[MathState]:
        problem = self._source.problem(task_id)
        steps = min(len(problem.steps), MOST_STEPS) or MOST_STEPS
        limit = self._max_turns or steps + 1 + SPARE_TURNS
        return Opening(MathState(problem), problem.question, limit, {"format_error": False})

    # ---- turns -----------------------------------------------------------------------------------------

    def advance(self, state: MathState, action: str, rng: np.random.Generator) -> Turn[MathState]:
        act = parse_action(action)
        if isinstance(act, Answer):
            return _judged(state, act.text)
        if isinstance(act, Malformed):
            return _unusable(state, act.message)
        tool = TOOLS.get(act.name)
        if tool is None:
            return _unusable(state, f"there is no tool {act.name!r}; the tools are {' and '.join(TOOLS)}")
        wrong = check_arguments(tool.parameters, act.arguments)
        if wrong is not None:
            return _unusable(state, f"{tool.name}: {wrong}")
        use = _use(tool, act.arguments)
        after = MathState(state.problem, (*state.uses, use))
        shown = f"error: {use.result}" if use.failed else use.result
        return Turn.go(after, shown, extra={"format_error": False})

    def instructions(self, state: MathState) -> str:
        return INSTRUCTIONS

    def tools(self, state: MathState) -> Sequence[Tool]:
        return tuple(TOOLS.values())

    # ---- what is known of a situation ------------------------------------------------------------------

    def state_key(self) -> str:
        """Problem, results known in the order they came, turns left, and how it ended.

        How a result was asked for does not matter, nor a call made twice, nor a turn that gave no result (but
        for the turn it cost).
        """
        now = self._episode()
        known = [use.result for use in dict.fromkeys(self.state.uses) if not use.failed]
        problem = self.state.problem
        situation = (
            problem.id,
            problem.question,
            problem.answer,
            known,
            self._turns_left,
            now.status,
            now.success,
        )
        return hashlib.sha256(msgspec.json.encode(situation)).hexdigest()

    def expert_action(self) -> str:
        """The next right call, or the answer when all are made or one turn is left."""
        return expert_action(self.state.problem, self.state.uses, self._turns_left)

    def novice_action(self, rng: np.random.Generator, *, slip: float = 0.65, noise: float = 0.03) -> str:
        """A fallible demonstrator's action. `slip`: how often it takes a clause's tempting wrong reading;
        `noise`: how often per step it makes a random mistake."""
        return novice_action(
            self.state.problem, self.state.uses, self._turns_left, rng, slip=slip, noise=noise
        )

    @property
    def _turns_left(self) -> int:
        now = self._episode()
        return now.turn_limit - now.turn


def _judged(state: MathState, answer: str) -> Turn[MathState]:
    verdict = default_judge().verify(state.problem.answer, answer)
    extra = {"format_error": False, "judged_by": verdict.method}
    return Turn.end(state, "correct" if verdict.correct else "wrong", success=verdict.correct, extra=extra)


def _unusable(state: MathState, message: str) -> Turn[MathState]:
    return Turn.go(state, f"error: {message}", extra={"format_error": True})


def _use(tool: Tool, arguments: dict[str, Any]) -> ToolUse:
    name: ToolName = "solve" if tool is SOLVE else "calculator"
    text: str = arguments["equation"] if tool is SOLVE else arguments["expression"]
    kept = text[:KEPT_CHARS]
    try:
        return ToolUse(name, kept, solve(text, arguments["variable"]) if tool is SOLVE else calculate(text))
    except CalculatorError as error:
        return ToolUse(name, kept, str(error), failed=True)
