"""Built-in problems: stories and equations, each a pure function of its id, so that nothing is stored.

An id reads `family/split/depth/index`, such as `word/train/3/17`: family `word` or `equation`, depth 1 to 5
tool calls before the answer. The id's SHA-256 keys the raw words of a PCG64 generator (a stream that numpy
keeps), whose draws are repeated until template and numbers both belong to the id's split:

- template: the sequence of clause kinds (of one kind and its wording at depth 1, where a kind's first wording
  is always in train), placed by a stable hash;
- numbers: all numbers that the text states, sorted, placed by a stable hash.

So a task of one split shares neither its template nor its numbers (not even in another order) with any task
of another, while every kind of clause occurs in train. Hashes give train six tenths of either, dev and test
two each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from trace_gym.envs.draws import Draw, split_of
from trace_gym.envs.math.task import Problem, Step
from trace_gym.envs.math.templates import (
    EQUATIONS,
    LETTER_KINDS,
    LETTERS,
    NAMES,
    NOUNS,
    OPENINGS,
    OPERATIONS,
    PARTS,
    WORD_KINDS,
    EquationKind,
    Kind,
)
from trace_gym.errors import ConfigError, TaskError

__all__ = [
    "MAX_DEPTH",
    "SIZES",
    "BuiltinSource",
    "TaskName",
    "make_problem",
    "read_difficulty",
    "split_of",
    "task_ids",
]

MAX_DEPTH = 5
MAX_VALUE = 999  # of a running value
SIZES = {"train": 8192, "dev": 512, "test": 512}
PRESETS = {"easy": (1, 2), "medium": (2, 3), "hard": (4, 5)}
EQUATION_EVERY = 6  # one task in six is an equation
WORD_QUESTIONS = ("How many {n} does {a} have now?", "How many {n} has {a} in the end?")
LETTER_QUESTIONS = ("What is {u}?", "Find {u}.")

_ID = re.compile(r"(word|equation)/(train|dev|test)/([1-5])/(0|[1-9][0-9]{0,8})")


@dataclass(frozen=True, slots=True)
class TaskName:
    """What a built-in id says."""

    family: str
    split: str
    depth: int
    index: int

    @classmethod
    def parse(cls, task_id: str) -> TaskName:
        """Raises `TaskError` for anything that is not an id."""
        match = _ID.fullmatch(task_id)
        if match is None:
            raise TaskError(
                f"unknown task {task_id[:80]!r}: built-in ids read family/split/depth/index, "
                f"such as word/train/3/17; the splits are {', '.join(SIZES)}"
            )
        return cls(match[1], match[2], int(match[3]), int(match[4]))


def read_difficulty(text: str) -> tuple[int, int]:
    """The least and the greatest depth of `text`: "3", "1-4", easy, medium or hard. Raises `ConfigError`."""
    if text in PRESETS:
        return PRESETS[text]
    match = re.fullmatch(r"([1-5])(?:-([1-5]))?", text)
    lowest, highest = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if lowest > highest:
        raise ConfigError(
            f"difficulty {text[:40]!r}: write a depth from 1 to {MAX_DEPTH} such as '3', a range such as "
            f"'1-4', or one of {', '.join(PRESETS)}"
        )
    return lowest, highest


@dataclass(frozen=True, slots=True)
class BuiltinSource:
    """The built-in problems whose depth lies between `lowest` and `highest`. Any id of theirs can be asked
    for."""

    lowest: int
    highest: int

    def tasks(self, split: str) -> Sequence[str]:
        """The fixed list of a split (`SIZES`), or of `all`. Raises `TaskError` for an unknown split."""
        if split == "all":
            return [task_id for each in SIZES for task_id in self.tasks(each)]
        if split not in SIZES:
            raise TaskError(f"unknown split {split!r}; there are {', '.join(SIZES)} and all")
        return task_ids(split, self.lowest, self.highest)

    def problem(self, task_id: str) -> Problem:
        """Raises `TaskError` for anything that is not an id."""
        return make_problem(task_id)


@lru_cache(maxsize=64)
def task_ids(split: str, lowest: int, highest: int) -> tuple[str, ...]:
    """The fixed list of a split's tasks. Depths take turns, so that every stretch of the list holds all of
    them."""
    width = highest - lowest + 1
    ids = []
    for place in range(SIZES[split]):
        index, offset = divmod(place, width)
        family = "equation" if index % EQUATION_EVERY == EQUATION_EVERY - 1 else "word"
        ids.append(f"{family}/{split}/{lowest + offset}/{index}")
    return tuple(ids)


@lru_cache(maxsize=4096)
def make_problem(task_id: str) -> Problem:
    """The problem that the id names. Raises `TaskError` for anything that is not an id."""
    name = TaskName.parse(task_id)
    draw = Draw(task_id)
    attempt = _draw_word if name.family == "word" else _draw_equation
    for _ in range(10_000):
        found = attempt(draw, name)
        if found is not None:
            sentences, start, steps = found
            return Problem(
                id=task_id,
                question=" ".join(sentences),
                answer=steps[-1].result,
                start=start,
                steps=tuple(steps),
            )
    raise AssertionError(f"no template and numbers found for {task_id}")


# ---- drawing -------------------------------------------------------------------------------------------

_Told = tuple[list[str], str, list[Step]]  # sentences, the running value at the start, steps


def _draw_word(draw: Draw, name: TaskName) -> _Told | None:
    kinds = draw.some(WORD_KINDS, name.depth)
    wordings = [draw.below(len(kind.wordings)) for kind in kinds]
    if _template_split("word", [kind.name for kind in kinds], wordings) != name.split:
        return None
    for _ in range(60):
        start = 2 + draw.below(98)
        numbers = _draw_numbers(draw, kinds, start)
        if numbers is not None and _number_split([start, *_stated(kinds, numbers)]) == name.split:
            return (
                _tell_word(draw, kinds, wordings, start, numbers),
                str(start),
                _steps(kinds, start, numbers),
            )
    return None


def _draw_equation(draw: Draw, name: TaskName) -> _Told | None:
    equation = draw.one(EQUATIONS)
    kinds = draw.some(LETTER_KINDS, name.depth - 1)
    wordings = [draw.below(len(texts)) for texts in (equation.wordings, *(kind.wordings for kind in kinds))]
    if _template_split("equation", [equation.name, *(kind.name for kind in kinds)], wordings) != name.split:
        return None
    for _ in range(60):
        x, a, b = 2 + draw.below(48), 2 + draw.below(8), 2 + draw.below(48)
        c = equation.third(x, a, b)
        if c is None or not 2 <= c <= 99 or (equation.slip and b % a):  # the slip has a whole solution too
            continue
        numbers = _draw_numbers(draw, kinds, x)
        if numbers is not None and _number_split([a, b, c, *numbers]) == name.split:
            sentences = _tell_equation(draw, equation, kinds, wordings, (a, b, c), numbers)
            return sentences, "", [_solve_step(equation, x, (a, b, c)), *_steps(kinds, x, numbers)]
    return None


def _template_split(family: str, kinds: Sequence[str], wordings: Sequence[int]) -> str:
    if len(kinds) > 1:
        return split_of(f"{family}: {', '.join(kinds)}")
    if wordings[0] == 0:
        return "train"
    return split_of(f"{family}: {kinds[0]} {wordings[0]}")


def _number_split(numbers: Sequence[int]) -> str:
    return split_of(" ".join(map(str, sorted(numbers))))


def _stated(kinds: Sequence[Kind], numbers: Sequence[int]) -> list[int]:
    return [k for kind, k in zip(kinds, numbers, strict=True) if kind.states_number]


def _draw_numbers(draw: Draw, kinds: Sequence[Kind], start: int) -> list[int] | None:
    """A number for each clause such that every running value is whole and in bounds, or None after a few
    tries."""
    numbers: list[int] = []
    x = start
    for kind in kinds:
        tries = (draw.one(kind.numbers) for _ in range(8))
        k = next((k for k in tries if _fits(kind, x, k)), None)
        if k is None:
            return None
        numbers.append(k)
        x = OPERATIONS[kind.right].value(x, k) or 0
    return numbers


def _fits(kind: Kind, x: int, k: int) -> bool:
    """Whether both readings give a plausible count, and not the same."""
    right = OPERATIONS[kind.right].value(x, k)
    if right is None or not 2 <= right <= MAX_VALUE:
        return False
    slip = OPERATIONS[kind.slip].value(x, k) if kind.slip else 1
    return slip is not None and slip >= 1 and slip != right


# ---- telling -------------------------------------------------------------------------------------------


def _tell_word(
    draw: Draw, kinds: Sequence[Kind], wordings: Sequence[int], start: int, numbers: Sequence[int]
) -> list[str]:
    owner, *others = draw.some(NAMES, len(kinds) + 1)
    noun = draw.one(NOUNS)
    sentences = [draw.one(OPENINGS).format(a=owner, x=start, n=noun)]
    for kind, wording, k, other in zip(kinds, wordings, numbers, others, strict=True):
        becomes = draw.one(kind.becomes) if kind.becomes else noun
        text = kind.wordings[wording]
        sentences.append(text.format(a=owner, b=other, n=noun, m=becomes, k=k, part=PARTS.get(k)))
        owner, noun = other if kind.names_other else owner, becomes
    return [*sentences, draw.one(WORD_QUESTIONS).format(a=owner, n=noun)]


def _tell_equation(
    draw: Draw,
    equation: EquationKind,
    kinds: Sequence[Kind],
    wordings: Sequence[int],
    abc: tuple[int, int, int],
    numbers: Sequence[int],
) -> list[str]:
    a, b, c = abc
    shown = equation.right.format(a=a, b=b, c=c)
    sentences = [equation.wordings[wordings[0]].format(a=a, b=b, c=c, eq=shown)]
    for place, (kind, wording, k) in enumerate(zip(kinds, wordings[1:], numbers, strict=True)):
        sentences.append(kind.wordings[wording].format(u=LETTERS[place], v=LETTERS[place + 1], k=k))
    return [*sentences, draw.one(LETTER_QUESTIONS).format(u=LETTERS[len(kinds)])]


def _solve_step(equation: EquationKind, x: int, abc: tuple[int, int, int]) -> Step:
    a, b, c = abc
    slip = equation.slip.format(a=a, b=b, c=c) if equation.slip else None
    return Step("solve", equation.right.format(a=a, b=b, c=c), str(x), slip)


def _steps(kinds: Sequence[Kind], start: int, numbers: Sequence[int]) -> list[Step]:
    steps: list[Step] = []
    x = start
    for kind, k in zip(kinds, numbers, strict=True):
        operation = OPERATIONS[kind.right]
        x = operation.value(x, k) or 0  # whole: `_fits` saw to it
        slip = OPERATIONS[kind.slip].expression.replace("{k}", str(k)) if kind.slip else None
        steps.append(Step("calculator", operation.expression.replace("{k}", str(k)), str(x), slip))
    return steps
