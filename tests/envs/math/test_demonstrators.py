import numpy as np
import pytest

from trace_gym.envs.actions import format_answer, format_call
from trace_gym.envs.math.calculator import calculate, solve
from trace_gym.envs.math.demonstrators import expert_action, novice_action
from trace_gym.envs.math.task import Problem, Step, ToolUse

STORY = Problem(
    id="story",
    question="Finn has 61 pens. That is 56 more than Ann has. She loses 3 and finds 64. How many has she?",
    answer="66",
    start="61",
    steps=(
        Step("calculator", "{x}-56", "5", slip="{x}+56"),
        Step("calculator", "{x}-3", "2"),
        Step("calculator", "{x}+64", "66"),
    ),
)
EQUATION = Problem(
    id="equation",
    question="3 times the sum of x and 6 is 24. y is 7 more than x. What is y?",
    answer="9",
    steps=(Step("solve", "3(x+6)=24", "2", slip="3x+6=24"), Step("calculator", "{x}+7", "9")),
)
BARE = Problem(id="bare", question="What is pi?", answer="\\pi")


def calc(expression: str) -> str:
    return format_call("calculator", {"expression": expression})


def used(*expressions: str) -> list[ToolUse]:
    return [ToolUse("calculator", text, calculate(text)) for text in expressions]


def solved(equation: str) -> ToolUse:
    return ToolUse("solve", equation, solve(equation, "x"))


def novice(
    problem: Problem, uses: list[ToolUse], *, turns: int = 5, slip: float = 0.0, noise: float = 0.0
) -> str:
    return novice_action(problem, uses, turns, np.random.default_rng(0), slip=slip, noise=noise)


FAILED = ToolUse("calculator", "1/0", "division by zero", failed=True)

# ---- the expert ------------------------------------------------------------------------------------------


def test_the_expert_takes_the_steps_in_order() -> None:
    texts = ["61-56", "5-3", "2+64"]
    for done in range(3):
        assert expert_action(STORY, used(*texts[:done]), 5) == calc(texts[done])
    assert expert_action(STORY, used(*texts), 5) == format_answer("66")
    assert expert_action(EQUATION, [], 5) == format_call("solve", {"equation": "3(x+6)=24", "variable": "x"})
    assert expert_action(EQUATION, [solved("3(x+6)=24")], 5) == calc("2+7")
    assert expert_action(BARE, [], 5) == format_answer("\\pi")


def test_the_expert_skips_what_is_known_however_it_was_found() -> None:
    assert expert_action(STORY, used("10-8"), 5) == calc("2+64")
    assert expert_action(STORY, used("61+56", "100-34"), 5) == format_answer("66")
    assert expert_action(STORY, used("61+56", "117-3"), 5) == calc("61-56"), "wrong results are no steps"
    assert expert_action(EQUATION, used("1+1"), 5) == calc("2+7")


def test_the_expert_does_not_repeat_a_step_that_the_tool_refused() -> None:
    odd = Problem(
        id="odd",
        question="?",
        answer="9",
        steps=(Step("calculator", "4 apples", "4"), Step("calculator", "4+5", "9")),
    )
    assert expert_action(odd, [], 5) == calc("4 apples")
    assert expert_action(odd, [ToolUse("calculator", "4 apples", "unknown name", failed=True)], 5) == calc(
        "4+5"
    )


def test_the_expert_answers_when_one_turn_is_left() -> None:
    assert expert_action(STORY, [], 1) == format_answer("66")


# ---- the novice ------------------------------------------------------------------------------------------


def test_the_novice_slips_where_a_clause_tempts_and_nowhere_else() -> None:
    assert novice(STORY, [], slip=0.0) == calc("61-56")
    assert novice(STORY, [], slip=1.0) == calc("61+56")
    assert novice(STORY, used("61-56"), slip=1.0) == calc("5-3")


@pytest.mark.parametrize("probability", [0.2, 0.55])
def test_it_slips_with_the_given_probability(probability: float) -> None:
    rng = np.random.default_rng(7)
    slips = [
        novice_action(STORY, [], 5, rng, slip=probability, noise=0.0) == calc("61+56") for _ in range(4000)
    ]
    assert abs(np.mean(slips) - probability) < 0.03


def test_it_goes_on_with_a_wrong_value() -> None:
    assert novice(STORY, used("61+56")) == calc("117-3")
    assert novice(STORY, used("61+56", "117-3")) == calc("114+64")
    assert novice(STORY, used("61+56", "117-3", "114+64")) == format_answer("178")
    assert novice(EQUATION, [solved("3x+6=25")]) == calc("(19/3)+7")
    assert novice(STORY, used("61-65")) == calc("(-4)-3"), "a mistaken operand stands for the next step"


def test_it_knows_a_step_that_was_left_out() -> None:
    assert novice(STORY, used("61-56", "5+64")) == format_answer("69")
    assert novice(STORY, used("61-3")) == calc("58+64")


def test_what_gave_no_number_is_nothing_to_it() -> None:
    assert novice(STORY, [*used("61-56"), FAILED]) == calc("5-3")
    for equation in ("0x=1", "x=x"):
        assert novice(EQUATION, [solved(equation)]) == novice(EQUATION, [])
    assert novice(EQUATION, [solved("x^2=16")]) == calc("(-4)+7"), "the first of two solutions"


def test_it_answers_with_what_it_has_when_one_turn_is_left() -> None:
    assert novice(STORY, used("61+56"), turns=1) == format_answer("117")
    assert novice(EQUATION, [FAILED], turns=1) == format_answer("0")
    assert novice(BARE, []) == format_answer("\\pi"), "without steps it does as the expert"


def test_random_mistakes_are_of_three_kinds() -> None:
    def mistakes(problem: Problem, uses: list[ToolUse]) -> set[str]:
        return {
            novice_action(problem, uses, 5, np.random.default_rng(seed), slip=0.0, noise=1.0)
            for seed in range(400)
        }

    digits = {calc(f"{a}-3") for a in range(1, 10)} | {calc(f"5-{b}") for b in range(1, 10)}
    assert mistakes(STORY, used("61-56")) == {format_answer("5"), calc("5+64"), *digits} - {calc("5-3")}
    assert all('"name":"solve"' in action for action in mistakes(EQUATION, [])), (
        "there is no value to answer yet"
    )
