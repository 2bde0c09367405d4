"""What an agent's text does: call a tool or give the final answer.

    <tool_call>{"name":"calculator","arguments":{"expression":"3*4"}}</tool_call>
    <answer>12</answer>

Reading is total: every string is a `Call`, an `Answer` or a `Malformed` with one line for the agent, in
time linear in the text. Text around the tags is thought and ignored, and so is everything inside
`<think>…</think>` (a `</think>` without an opening closes a thought that the prompt opened; a thought never
closed hides the rest). The first tag that is closed wins; what follows it is ignored. `<answer>` and a call
of the tool `answer` with the one argument `answer` are the same. Strings that come out hold no lone
surrogates and no control characters but tab and line breaks.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

__all__ = [
    "HERMES",
    "SEARCH_R1",
    "Action",
    "Answer",
    "Call",
    "Malformed",
    "check_arguments",
    "format_answer",
    "format_call",
    "format_tool_result",
    "parse_action",
    "plain_text",
]

MAX_BODY_CHARS = 16_384
MAX_JSON_DEPTH = 16
CALL_FORM = '<tool_call>{"name": "…", "arguments": {…}}</tool_call>'

_UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_THINK = re.compile("</?think>")
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call. Whether the tool exists and takes these arguments is the environment's to say."""

    name: str
    arguments: dict[str, Any]  # plain JSON values, integers within 64 bits, no nan or infinity


@dataclass(frozen=True, slots=True)
class Answer:
    """The final answer, stripped and not empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Malformed:
    """No action. `message` tells the agent what to write instead."""

    message: str


Action = Call | Answer | Malformed
Reader = Callable[[str], Action]


def parse_action(text: str, *, tags: Mapping[str, Reader] | None = None) -> Action:
    """The action in `text`; never raises. `tags` maps a tag's name to the reader of its body (`HERMES`)."""
    tags = HERMES if tags is None else tags
    text = _without_thought(text)
    ends = {tag: text.rfind(f"</{tag}>") for tag in tags}
    unclosed = None
    for opening in _openings(tuple(tags)).finditer(text):
        tag = opening[1]
        if opening.end() <= ends[tag]:
            body = text[opening.end() : text.index(f"</{tag}>", opening.end())]
            if len(body) > MAX_BODY_CHARS:
                return Malformed(f"<{tag}> holds {len(body)} characters; write at most {MAX_BODY_CHARS}")
            return tags[tag](body)
        unclosed = unclosed or tag
    if unclosed:
        return Malformed(f"<{unclosed}> is not closed; end it with </{unclosed}>")
    return Malformed(f"no action found; write {CALL_FORM} to call a tool or <answer>…</answer> to finish")


def plain_text(text: str, *, tags: Mapping[str, Reader] | None = None) -> str:
    """What `text` says to a person: clean, without thought. "" where it says nothing or begins any of the tags, closed or
    not, for then it was meant to be an action."""
    said = _without_thought(text)
    meant = any(
        mark in said for tag in (HERMES if tags is None else tags) for mark in (f"<{tag}", f"</{tag}")
    )
    return "" if meant else _clean(said).strip()


def format_call(name: str, arguments: Mapping[str, Any]) -> str:
    """The canonical text of a call. Raises `ValueError` when `parse_action` would not read it back."""
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False, separators=(",", ":"))
    if re.search(r"</?(think|tool_call|answer)>", body):
        body = body.replace("<", "\\u003c")
    text = f"<tool_call>{body}</tool_call>"
    action = parse_action(text)
    if isinstance(action, Malformed):
        raise ValueError(f"{name}: {action.message}")
    if name != "answer" and action != Call(name, dict(arguments)):
        raise ValueError(f"{name}: these arguments are not plain JSON text and numbers")
    return text


def format_answer(answer: str) -> str:
    """The canonical text of an answer. Raises `ValueError` when `parse_action` would not read it back."""
    text = f"<answer>{answer}</answer>"
    if parse_action(text) != Answer(answer.strip()):
        raise ValueError(f"this text cannot stand in <answer>: {answer[:80]!a}")
    return text


def format_tool_result(result: str) -> str:
    """What the agent sees of a tool's result, without `<tool_response>`, which the chat template adds."""
    return _clean(result).strip() or "(no output)"


def check_arguments(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> str | None:
    """What is wrong with `arguments` for a tool with this JSON schema, as one line, or None.

    Knows the keys `properties` (each with `type`, a name or a list of names, and `enum`) and `required`; an
    unknown argument is wrong.
    """
    properties = schema.get("properties", {})
    for name in arguments:
        if name not in properties:
            known = ", ".join(properties) or "none"
            return f"unknown argument {name[:64]!r}; the arguments are: {known}"
    for name in schema.get("required", ()):
        if name not in arguments:
            return f"the argument {name!r} is missing"
    for name, value in arguments.items():
        wanted = properties[name].get("type", [])
        types = [wanted] if isinstance(wanted, str) else wanted
        if types and not any(_is_a(value, type_name) for type_name in types):
            return f"the argument {name!r} must be of type {' or '.join(types)}, not {_type_name(value)}"
        choices = properties[name].get("enum")
        if choices is not None and not any(_same(value, choice) for choice in choices):
            return f"the argument {name!r} must be one of: {', '.join(map(str, choices))}"
    return None


# ---- reading -----------------------------------------------------------------------------------------------


def _read_call(body: str) -> Action:
    try:
        value = json.loads(
            body,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_real,
            parse_constant=_constant,
            strict=False,  # a raw line break inside a string is a slip, not an ambiguity
        )
        value = _plain(value, MAX_JSON_DEPTH)
    except json.JSONDecodeError as error:
        return Malformed(
            f"the tool call is not valid JSON ({error.msg} at character {error.pos}); write {CALL_FORM}"
        )
    except RecursionError:
        return Malformed(f"the tool call is nested more than {MAX_JSON_DEPTH} levels deep")
    except ValueError as error:
        return Malformed(f"the tool call cannot be read: {error}")
    return _as_call(value)


def _as_call(value: Any) -> Action:
    if not isinstance(value, dict) or set(value) != {"name", "arguments"}:
        return Malformed(f'a tool call has exactly the keys "name" and "arguments"; write {CALL_FORM}')
    name, arguments = value["name"], value["arguments"]
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        return Malformed('"name" must be the name of a tool: at most 64 letters, digits and _ . -')
    if not isinstance(arguments, dict):
        return Malformed(f'"arguments" must be a JSON object, not {_type_name(arguments)}')
    return _call_of_answer(arguments) if name == "answer" else Call(name, arguments)


def _call_of_answer(arguments: dict[str, Any]) -> Action:
    value = arguments.get("answer")
    if len(arguments) != 1 or isinstance(value, bool) or not isinstance(value, str | int | float):
        return Malformed('the tool "answer" takes the one argument "answer", a string or a number')
    return _read_answer(str(value))


def _read_answer(body: str) -> Action:
    text = _clean(body).strip()
    return Answer(text) if text else Malformed("the answer is empty; write <answer>…</answer>")


def _read_search(body: str) -> Action:
    query = _clean(body).strip()
    return (
        Call("search", {"query": query})
        if query
        else Malformed("the query is empty; write <search>…</search>")
    )


HERMES: Mapping[str, Reader] = {"tool_call": _read_call, "answer": _read_answer}
"""The form of Hermes and Qwen. Another is another mapping of tags to readers."""

SEARCH_R1: Mapping[str, Reader] = {**HERMES, "search": _read_search}
"""Also Search-R1's `<search>query</search>` (Jin et al. 2025, arXiv 2503.09516), a call of the tool `search`."""


def _without_thought(text: str) -> str:
    kept: list[str] = []
    start, thinking = 0, False
    for tag in _THINK.finditer(text):
        if tag[0] == "<think>":
            if not thinking:
                kept.append(text[start : tag.start()])
            thinking = True
        else:
            if not thinking:
                kept.clear()  # the prompt opened this thought
            start, thinking = tag.end(), False
    return "".join(kept) if thinking else "".join([*kept, text[start:]])


@lru_cache(maxsize=16)
def _openings(tags: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(f"<({'|'.join(map(re.escape, tags))})>")


def _clean(text: str) -> str:
    return _UNSAFE.sub("\ufffd", text)


# ---- strict JSON -------------------------------------------------------------------------------------------


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = {_clean(key): item for key, item in pairs}
    if len(value) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return value


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise ValueError("an integer exceeds 64 bits; write it as a string")
    return int(digits)


def _real(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number is too large; write it as a string")
    return value


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _plain(value: Any, room: int) -> Any:
    """`value` with clean strings. Raises `RecursionError` where it is nested deeper than `room`."""
    if isinstance(value, str):
        return _clean(value)
    if not isinstance(value, dict | list):
        return value
    if room == 0:
        raise RecursionError
    if isinstance(value, dict):
        return {key: _plain(item, room - 1) for key, item in value.items()}
    return [_plain(item, room - 1) for item in value]


# ---- JSON schema -------------------------------------------------------------------------------------------

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def _is_a(value: object, type_name: str) -> bool:
    if isinstance(value, bool):
        return type_name == "boolean"
    if type_name == "integer" and isinstance(value, float):
        return value.is_integer()  # JSON schema counts 3.0 as an integer
    return isinstance(value, _TYPES[type_name])


def _type_name(value: object) -> str:
    return next(
        (name for name in ("boolean", "integer", *_TYPES) if _is_a(value, name)), type(value).__name__
    )


def _same(value: object, choice: object) -> bool:
    return value == choice and isinstance(value, bool) == isinstance(choice, bool)
