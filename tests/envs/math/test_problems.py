import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import cache

import pytest

from trace_gym.envs.math.calculator import calculate, solve
from trace_gym.envs.math.problems import (
    SIZES,
    BuiltinSource,
    make_problem,
    read_difficulty,
    split_of,
    task_ids,
)
from trace_gym.envs.math.task import Problem, Step, ToolUse
from trace_gym.envs.math.templates import (
    EQUATIONS,
    LETTER_KINDS,
    LETTERS,
    PARTS,
    WORD_KINDS,
    EquationKind,
    Kind,
)
from trace_gym.errors import ConfigError, TaskError

PLACEHOLDERS = {
    "a": "[A-Z][a-z]+",
    "b": "[A-Z][a-z]+",
    "n": "[a-z]+",
    "m": "[a-z]+",
    "k": "[0-9]+",
    "part": "third|quarter|fifth",
    "u": "u",
    "v": "v",
    "eq": r"\S+",
}
NUMBER_IN_EQUATION = {"a": "[0-9]+", "b": "[0-9]+", "c": "[0-9]+"}


@cache
def pattern(wording: str, equation: bool) -> re.Pattern[str]:
    known = {**PLACEHOLDERS, **NUMBER_IN_EQUATION} if equation else PLACEHOLDERS
    parts = re.split(r"\{(\w+)\}", wording)
    seen: set[str] = set()
    for i in range(1, len(parts), 2):
        name = parts[i]
        parts[i] = f"(?P={name})" if name in seen else f"(?P<{name}>{known[name]})"
        seen.add(name)
    return re.compile("".join(part if i % 2 else re.escape(part) for i, part in enumerate(parts)))


def read_sentence(sentence: str, kinds: tuple[Kind, ...] | tuple[EquationKind, ...]) -> tuple[str, int]:
    """The kind and wording of a sentence, from the sentence alone. Fails unless exactly one fits."""
    found = [
        (kind.name, index)
        for kind in kinds
        for index, wording in enumerate(kind.wordings)
        if pattern(wording, kinds is EQUATIONS).fullmatch(sentence)
    ]
    if kinds is EQUATIONS:  # `{eq}` hides which equation it is: its form tells
        form = re.sub("[0-9]+", "N", next(iter(re.findall(r"\S+=\S+", sentence)), "")).rstrip(".")
        shown = {re.sub(r"\{\w\}", "N", kind.right): kind.name for kind in EQUATIONS if kind.slip is None}
        found = [match for match in found if not form or shown[form] == match[0]]
    assert len(found) == 1, (sentence, found)
    return found[0]


def template_of(problem: Problem) -> tuple[object, ...]:
    """What the splits must not share, read back from the text."""
    sentences = re.findall(r"[^.?]+[.?]", problem.question)
    sentences = [sentence.strip() for sentence in sentences]
    if problem.id.startswith("word"):
        read = [read_sentence(sentence, WORD_KINDS) for sentence in sentences[1:-1]]
    else:
        read = [read_sentence(sentences[0], EQUATIONS)]
        read += [
            read_sentence(re.sub(rf"\b{u}\b", "u", re.sub(rf"\b{v}\b", "v", sentence)), LETTER_KINDS)
            for sentence, u, v in zip(sentences[1:-1], LETTERS, LETTERS[1:], strict=False)
        ]
    return ("alone", *read[0]) if len(read) == 1 else tuple(name for name, _ in read)


def numbers_of(problem: Problem) -> tuple[int, ...]:
    words = {name: number for number, name in PARTS.items()}
    found = re.findall(r"[0-9]+|third|quarter|fifth", problem.question)
    return tuple(sorted(words.get(text) or int(text) for text in found))


def family(problem: Problem) -> str:
    return problem.id.split("/")[0]


def some_problems(split: str) -> list[Problem]:
    count = 1500 if split == "train" else 512
    return [make_problem(task_id) for task_id in task_ids(split, 1, 5)[:count]]


def value_of(step: Step, text: str) -> Fraction:
    use = ToolUse(step.tool, text, solve(text, "x") if step.tool == "solve" else calculate(text))
    return Fraction(use.value)


def test_ids_name_the_same_problems_for_ever() -> None:
    """Results are compared across releases by id. A change of the tables or the drawing must be meant."""
    assert {task_id: make_problem(task_id).question for task_id in GOLDEN} == GOLDEN


GOLDEN = {
    "equation/test/3/1": (
        "The sum of x and 14, times 2, is 70. x is 11 less than y. y is 21 more than z. What is z?"
    ),
    "equation/train/1/2": ("Solve 3x+38=x+98 for x. What is x?"),
    "word/dev/2/7": (
        "At first Ivy has 88 marbles. Then a quarter of them break. Eva owns 9 times that number. "
        "How many marbles does Eva have now?"
    ),
    "word/test/4/3": (
        "At first Gus has 55 nuts. Then 80 percent of them are sold. Eva has 9 fewer nuts than Gus."
        " Eva gets half as many nuts again. For each of them Eva gets 3 tickets. How many tickets "
        "does Eva have now?"
    ),
    "word/train/1/0": (
        "Ben starts with 30 stickers. Dan has 15 more than Ben. How many stickers has Dan in the end?"
    ),
}


@pytest.mark.parametrize("split", SIZES)
def test_the_right_readings_lead_to_the_answer(split: str) -> None:
    for problem in some_problems(split):
        results = [value_of(step, problem.right_reading(i)) for i, step in enumerate(problem.steps)]
        assert results == [int(step.result) for step in problem.steps], problem
        assert problem.answer == problem.steps[-1].result
        assert all(2 <= result <= 999 for result in results), problem


MEANING: dict[str, Callable[[Fraction, int], Fraction]] = {
    "buy": lambda x, k: x + k,
    "find": lambda x, k: x + k,
    "give": lambda x, k: x - k,
    "lose": lambda x, k: x - k,
    "double": lambda x, k: 2 * x,
    "times": lambda x, k: k * x,
    "more": lambda x, k: x + k,
    "fewer": lambda x, k: x - k,
    "piles": lambda x, k: x / k,
    "half": lambda x, k: x / 2,
    "trade": lambda x, k: k * x,
    "is more": lambda x, k: x - k,
    "is fewer": lambda x, k: x + k,
    "is times": lambda x, k: x / k,
    "pack": lambda x, k: x / k,
    "percent sold": lambda x, k: x * (1 - Fraction(k, 100)),
    "percent more": lambda x, k: x * (1 + Fraction(k, 100)),
    "half again": lambda x, k: x * Fraction(3, 2),
    "part lost": lambda x, k: x * (1 - Fraction(1, k)),
    "join": lambda x, k: x + (x + k),
    "one each": lambda x, k: x - k,
}


def test_the_answer_follows_from_the_text_alone() -> None:
    """Sentence by sentence: who is spoken of, what they hold, how many."""
    for problem in (p for p in some_problems("train") if family(p) == "word"):
        opening, *clauses, question = [s.strip() for s in re.findall(r"[^.?]+[.?]", problem.question)]
        start = re.fullmatch(r"(?:At first )?(?P<a>\w+) (?:has|starts with) (?P<x>\d+) (?P<n>\w+)\.", opening)
        assert start is not None, opening
        owner, noun, x = start["a"], start["n"], Fraction(start["x"])
        for clause in clauses:
            name, wording = read_sentence(clause, WORD_KINDS)
            kind = next(kind for kind in WORD_KINDS if kind.name == name)
            match = pattern(kind.wordings[wording], False).fullmatch(clause)
            assert match is not None
            said = match.groupdict()
            assert said.get("a", owner) == owner != said.get("b"), problem.question
            assert said.get("n", noun) == noun, problem.question
            x = MEANING[name](
                x, int(said.get("k") or {"third": 3, "quarter": 4, "fifth": 5}.get(said.get("part", ""), 0))
            )
            owner = (
                said["b"]
                if re.search(r"(more|fewer|times).*(than|as|what|that)", clause) and "b" in said
                else owner
            )
            noun = said.get("m", noun)
        assert question in (
            f"How many {noun} does {owner} have now?",
            f"How many {noun} has {owner} in the end?",
        )
        assert x == int(problem.answer), problem


def test_a_slip_is_plausible_and_wrong() -> None:
    for problem in some_problems("train"):
        for index, step in enumerate(problem.steps):
            if step.slip is None:
                continue
            value = problem.steps[index - 1].result if index else problem.start
            result = value_of(step, step.reading(value, slip=True))
            assert result != int(step.result)
            assert result.denominator == 1
            assert result >= 1 or step.tool == "solve"


def test_no_template_and_no_numbers_stand_in_two_splits() -> None:
    problems = {split: some_problems(split) for split in SIZES}
    for first, second in (("train", "dev"), ("train", "test"), ("dev", "test")):
        for of in (template_of, numbers_of):
            seen = {(family(p), of(p)) for p in problems[first]}
            unseen = {(family(p), of(p)) for p in problems[second]}
            assert len(unseen) > 40
            assert not seen & unseen, (first, second, of.__name__)


@pytest.mark.parametrize("split", SIZES)
def test_the_numbers_of_every_text_belong_to_its_split(split: str) -> None:
    for problem in some_problems(split):  # chance alone would hide a leak: few numbers meet again
        assert split_of(" ".join(map(str, numbers_of(problem)))) == split, problem


def test_the_numbers_are_those_that_the_text_states() -> None:
    problem = Problem(id="word/train/2/0", question="Ann has 9 nuts. Then a third of them break.", answer="6")
    assert numbers_of(problem) == (3, 9)


def test_every_kind_of_clause_occurs_in_train_alone_and_in_chains() -> None:
    problems = [make_problem(task_id) for task_id in task_ids("train", 1, 2)[:2000]]
    templates = [template_of(p) for p in problems]
    alone = {template[1] for template in templates if template[0] == "alone"}
    chained = {name for template in templates if template[0] != "alone" for name in template}
    assert alone == {kind.name for kind in (*WORD_KINDS, *EQUATIONS)}
    assert chained == alone | {kind.name for kind in LETTER_KINDS}


@pytest.mark.parametrize("split", SIZES)
def test_a_list_mixes_depths_and_families(split: str) -> None:
    ids = task_ids(split, 1, 4)
    assert len(set(ids)) == len(ids) == SIZES[split]
    depths = Counter(task_id.split("/")[2] for task_id in ids)
    assert set(depths) == set("1234")
    assert max(depths.values()) - min(depths.values()) <= 1
    assert 0.15 <= sum(task_id.startswith("equation") for task_id in ids) / len(ids) <= 0.20
    assert all(len(make_problem(task_id).steps) == int(task_id.split("/")[2]) for task_id in ids[:200])


def test_nearly_all_problems_of_a_list_differ() -> None:
    for split in SIZES:
        problems = some_problems(split)
        assert len({problem.question for problem in problems}) >= 0.99 * len(problems)


def test_the_language_is_small_and_every_sentence_short() -> None:
    problems = some_problems("train")
    assert len({word for p in problems for word in re.findall("[A-Za-z]+", p.question)}) <= 150
    for problem in problems:
        assert all(2 <= number <= 99 for number in numbers_of(problem))
        assert max(len(s.split()) for s in re.split("[.?]", problem.question)) <= 12, problem.question


def test_two_steps_in_five_offer_a_slip() -> None:
    steps = [step for problem in some_problems("train") for step in problem.steps]
    assert 0.38 <= sum(step.slip is not None for step in steps) / len(steps) <= 0.48


@pytest.mark.parametrize(
    ("text", "depths"),
    [("3", (3, 3)), ("1-4", (1, 4)), ("easy", (1, 2)), ("medium", (2, 3)), ("hard", (4, 5)), ("5-5", (5, 5))],
)
def test_difficulty_is_read(text: str, depths: tuple[int, int]) -> None:
    assert read_difficulty(text) == depths


@pytest.mark.parametrize("text", ["", "0", "6", "4-1", "1-6", "1-", "Easy", "1–4", "1 - 4", "x" * 999])
def test_any_other_difficulty_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"difficulty .*'1-4'") as caught:
        read_difficulty(text)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    "task_id",
    [
        "",
        "word/train/3",
        "word/train/0/1",
        "word/train/6/1",
        "word/all/3/1",
        "word/train/3/01",
        "word/train/3/-1",
        "Word/train/3/1",
        "word/train/3/1\n",
        "word/train/3/1234567890",
        "story/train/3/1",
        "word/train/3/\u0967",
        "a" * 10_000,
    ],
)
def test_an_unknown_id_is_a_task_error(task_id: str) -> None:
    with pytest.raises(TaskError, match="such as word/train/3/17") as caught:
        make_problem(task_id)
    assert len(str(caught.value)) < 250


def test_splits_are_listed_by_name() -> None:
    source = BuiltinSource(1, 4)
    assert list(source.tasks("all")) == [*source.tasks("train"), *source.tasks("dev"), *source.tasks("test")]
    with pytest.raises(TaskError, match="unknown split 'validation'"):
        source.tasks("validation")
