"""An action's text for people: what was thought, what was done, and that on one line.

Invariant: `split_action` loses nothing but white space at the seams; `brief` is for looking at, never for carrying out.
"""

from __future__ import annotations

from trace_gym.envs.actions import SEARCH_R1, Answer, Call, parse_action

__all__ = ["brief", "split_action"]

ACTION_STARTS = ("<tool_call>", "<answer>", "<search>")


def split_action(text: str) -> tuple[str, str]:
    """What was thought and what was done, as environments read it: thought is whatever lies inside `<think>…</think>`, and
    what comes before the first tag of an action."""
    said = text.rfind("</think>") + len("</think>") if "</think>" in text else 0
    starts = [at for tag in ACTION_STARTS if (at := text.find(tag, said)) >= 0]
    if "<think>" in text[said:]:  # never closed: it hides the rest
        return text.strip(), ""
    at = min(starts, default=said)
    return text[:at].strip(), text[at:].strip()


def brief(text: str) -> str:
    """An action on one line: `tool(value, …)` for a call, `= answer` for an answer, else its text."""
    action = parse_action(text, tags=SEARCH_R1)
    if isinstance(action, Call):
        text = f"{action.name}({', '.join(map(str, action.arguments.values()))})"
    elif isinstance(action, Answer):
        text = f"= {action.text}"
    return " ".join(text.split())
