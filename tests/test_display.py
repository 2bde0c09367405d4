"""What people see: lines where there is no terminal, a live region where there is one, and no text that acts."""

import io
import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.support.trees import star
from trace_gym.algorithm import RunContext, StepContext
from trace_gym.display import LiveDisplay
from trace_gym.ledger import Cost, Ledger
from trace_gym.observer import Observer, Silent, printable

METRICS = {
    "step": 4.0,
    "success": 0.4375,
    "effective_ratio": 0.5,
    "format_error_rate": 0.125,
    "policy_tokens": 12345.0,
    "tokens_per_s": 2100.4,
    "loss": -0.01234,
    "budget_used": 0.25,
}
EVALUATION = {
    "step": 5.0,
    "eval_success": 0.5,
    "eval_low": 0.4,
    "eval_high": 0.6,
    "eval_greedy_success": 0.75,
}


def shown(width: int = 140, *, terminal: bool) -> tuple[LiveDisplay, io.StringIO]:
    out = io.StringIO()
    return LiveDisplay(Console(file=out, width=width, force_terminal=terminal, color_system=None)), out


def context() -> StepContext:
    tree = star([0.0, 1.0])
    return StepContext(
        run=RunContext(seed=0, tasks=["a"]), step=7, trees={"a": tree, "b": type(tree)("b", tree.nodes[:1])}
    )


def test_without_a_terminal_a_step_is_a_line() -> None:
    display, out = shown(terminal=False)
    with display:
        display.progress(context(), Ledger())
        display.step(METRICS)
        display.evaluated(EVALUATION)
        display.note("[bold]saved[/bold]")
    step, evaluation, note = out.getvalue().splitlines()
    for part in ("step 4", "success 0.438", "effective 0.500", "12,345", "2,100", "25%", "left 0:0"):
        assert part in step
    assert evaluation == "held-out success at step 5: 0.500 (0.400 to 0.600), greedy 0.750"
    assert note == "[bold]saved[/bold]"


def test_a_line_is_not_wrapped() -> None:
    display, out = shown(40, terminal=False)
    display.step(METRICS)
    assert len(out.getvalue().splitlines()) == 1


def test_on_a_terminal_the_present_step_is_drawn_over_itself() -> None:
    display, out = shown(terminal=True)
    with display:
        display.progress(context(), Ledger(Cost(policy_tokens=1500)))
        display.step(METRICS)
        display.evaluated(EVALUATION)
        display.note("a note")
    text = out.getvalue()
    assert "1 of 2 trees, 1,500 tokens so far" in text
    assert "0.438" in text and "25%" in text and "a note" in text and "0.500 (0.400 to 0.600)" in text
    assert "\x1b[" in text  # the cursor moves


def test_progress_throttles_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    display, out = shown(terminal=True)
    with display:
        clock = [1000.0]
        monkeypatch.setattr("trace_gym.display.time.monotonic", lambda: clock[0])
        display.progress(context(), Ledger())
        size = len(out.getvalue())
        for _ in range(100):
            display.progress(context(), Ledger())
        assert len(out.getvalue()) == size
        clock[0] += 1.0
        display.progress(context(), Ledger())
        assert len(out.getvalue()) > size


def test_the_terminal_is_given_back_after_an_error() -> None:
    display, out = shown(terminal=True)
    with pytest.raises(RuntimeError), display:
        display.step(METRICS)
        raise RuntimeError
    assert out.getvalue().count("\x1b[?25h") >= 1  # the cursor is visible again


@pytest.mark.parametrize(
    "metrics", [{}, {"success": math.nan, "budget_used": 0.0}, {"budget_used": 1.7, "step": 1.0}]
)
@pytest.mark.parametrize("terminal", [True, False])
def test_missing_and_odd_numbers_are_shown_as_unknown(metrics: Mapping[str, float], terminal: bool) -> None:
    display, out = shown(terminal=terminal)
    with display:
        display.step(metrics)
        display.evaluated(metrics)
    assert "success" in out.getvalue() and "nan" not in out.getvalue()


def test_time_left_is_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("trace_gym.display.time.monotonic", lambda: clock[0])
    display, out = shown(terminal=False)
    with display:
        clock[0] = 100.0
        display.step(METRICS)  # a quarter took 100 s
        clock[0] = 7300.0
        display.step(METRICS | {"budget_used": 0.5})
    first, second = out.getvalue().splitlines()
    assert first.endswith("left 5:00") and second.endswith("left 2:01:40")


def test_hostile_text_does_nothing() -> None:
    display, out = shown(terminal=False)
    display.note("\x1b]0;title\x07 [link=file:///]x[/link] \x9b31m \u202e \ud800 \r")
    text = out.getvalue()
    assert "[link=file:///]x[/link]" in text
    assert not set(text) & set("\x1b\x07\x9b\u202e\ud800\r")


@given(st.text(st.characters()))
def test_printable_text_has_no_control_characters_and_can_be_encoded(text: str) -> None:
    clean = printable(text)
    assert len(clean) == len(text)
    clean.encode()
    assert all(c == "\n" or c.isprintable() or c.isspace() or ord(c) > 0x9F for c in clean)
    assert "\x1b" not in clean and "\r" not in clean


def test_both_observers_keep_the_protocol() -> None:
    observers: list[Observer] = [Silent(), LiveDisplay()]
    for observer in observers:
        observer.note("") if isinstance(observer, Silent) else None
    Silent().progress(context(), Ledger())
    Silent().step({})
    Silent().evaluated({})
