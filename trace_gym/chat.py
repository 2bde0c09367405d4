"""Any Hugging Face chat template, used turn by turn.

A template is asked once what it writes around a message: it renders a dummy conversation that holds probes,
and the result is cut at the probes. What the template wrote is trusted and may hold control tokens; what
takes a probe's place (observations, instructions) is encoded apart and cannot.

Invariant: no history is ever rendered again, so what a template would do to earlier turns has no effect.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trace_gym.encoder import ChatTokenizer, TextEncoder
from trace_gym.engine import IntArray
from trace_gym.errors import RenderError
from trace_gym.text import clean_text

__all__ = ["BARE", "ChatRenderer", "ToolRole"]

BARE = "{#- bare -#}"  # in a template: it leaves instructions and tools out, and they go nowhere else either

ToolRole = Literal["auto", "tool", "ipython", "user"]
Schemas = Sequence[Mapping[str, Any]]
TextMap = Callable[[str], str]

# White space at a probe's ends shows whether a template trims, the quotation mark whether it writes JSON.
_SYSTEM = '\t trace-gym"system \t'
_CONTENT = '\t trace-gym"content \t'
_ACTION = "trace-gym-action"
_NO_ROLE = "trace-gym-role"
_NO_TOOL = {"name": "trace_gym_tool", "description": "", "parameters": {"type": "object", "properties": {}}}
_WRAPPED = "<tool_response>\n{}\n</tool_response>"  # a tool's result in a user turn


def _as_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


_TRIMS: tuple[TextMap, ...] = (str, str.lstrip, str.rstrip, str.strip)
_ENCODINGS: tuple[TextMap, ...] = (str, _as_json)


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a template writes around a message, and what it does to the message's own text."""

    before: str
    after: str
    trim: TextMap
    encode: TextMap

    def shaped(self, content: str) -> str:
        """`content` as the template would write it."""
        return self.encode(self.trim(clean_text(content)))

    @classmethod
    def of(cls, text: str, probe: str) -> _Frame | None:
        """The surroundings of `probe` in a rendered `text`, or None unless it stands there exactly once."""
        for encode in _ENCODINGS:
            for trim in _TRIMS:
                before, found, after = text.partition(encode(trim(probe)))
                if found and found not in after:
                    return cls(before, after, trim, encode)
        return None


@dataclass(frozen=True, slots=True)
class _Turn:
    """A message that follows an assistant's turn, ready but for its content."""

    frame: _Frame
    open: list[int]  # what precedes the content
    closed: list[int]  # the same without the token that ends the assistant's turn
    after: list[int]


class ChatRenderer:
    """A `Renderer` for the chat template of `tokenizer`.

    `template_args` go to the template (`{"enable_thinking": False}`, `{"date_string": …}`). `tool_role` is
    the role that tool results get: by default the template's own (`tool` or `ipython`) where it treats one
    specially, else a user turn with the result in `<tool_response>`. Tools are described by the template if
    it asks for calls in the form environments read (`<tool_call>{"name": …, "arguments": …}</tool_call>`),
    else at the end of the instructions. Instructions precede the first message where a template has no system
    role.

    Raises `RenderError` if the template is missing, fails, or does not show messages as they are.
    """

    stop: tuple[int, ...]

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        *,
        template_args: Mapping[str, Any] | None = None,
        tool_role: ToolRole = "auto",
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
            raise RenderError(f"{name}: the tokenizer has no chat template; use an instruct model or set one")
        self._tokenizer = tokenizer
        self._args = dict(template_args or {})
        self._bare = BARE in str(tokenizer.chat_template)
        self._encoder = TextEncoder(tokenizer)
        self.stop = self._find_stop()
        self._takes_system = self._shows_system()
        self._takes_tools = self._asks_for_hermes_calls()
        self._turns = {"user": self._turn("user"), "tool": self._tool_turn(tool_role)}

    @classmethod
    def from_folder(
        cls, path: str, *, template_args: Mapping[str, Any] | None = None, tool_role: ToolRole = "auto"
    ) -> ChatRenderer:
        """The renderer of a model folder or hub name. Raises `RenderError` when it holds no tokenizer."""
        from transformers import AutoTokenizer  # heavy, and the core does not need it

        try:
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        except Exception as error:  # transformers and the hub's client each raise their own
            where = path if Path(path).exists() else f"{path} (no folder here, so a name on the hub)"
            raise RenderError(f"no tokenizer could be read from {where}: {_line(error)}") from error
        return cls(tokenizer, template_args=template_args, tool_role=tool_role)

    # ---- Renderer ---------------------------------------------------------------------------------------

    def prompt(self, observation: str, *, system: str = "", tools: Sequence[dict[str, Any]] = ()) -> IntArray:
        """Token ids [n] of instructions, tools and first observation, up to where the policy begins."""
        schemas = self._encoder.defuse(list(tools))
        if self._bare:
            system, schemas = "", []
        elif schemas and not self._takes_tools:
            system, schemas = f"{system}\n\n{_describe(schemas)}".lstrip(), []
        text = self._render(*_opening(system, self._takes_system), tools=schemas)
        encoder, ids = self._encoder, list[int]()
        if system:
            frame = _expect(text, _SYSTEM, "the instructions")
            ids += encoder.trusted(frame.before) + encoder.instructions(frame.shaped(system))
            text = frame.after
        frame = _expect(text, _CONTENT, "the first message")
        ids += encoder.trusted(frame.before) + encoder.untrusted(frame.shaped(observation))
        return np.array(ids + encoder.trusted(frame.after), dtype=np.int32)

    def delta(self, observation: str, *, role: str, closed: bool) -> IntArray:
        """Token ids [n] from after an action's last sampled token to where the policy writes next."""
        if role not in self._turns:
            raise RenderError(f"an observation has the role 'user' or 'tool', not {role!r}")
        turn = self._turns[role]
        content = self._encoder.untrusted(turn.frame.shaped(observation))
        return np.array([*(turn.closed if closed else turn.open), *content, *turn.after], dtype=np.int32)

    def action(self, tokens: IntArray) -> str:
        """The text of sampled tokens without the stop token; other special tokens are part of it."""
        ids = [int(token) for token in tokens]
        if ids and ids[-1] in self.stop:
            ids.pop()
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    # ---- what the template does -------------------------------------------------------------------------

    def _render(self, *messages: tuple[str, str], tools: Schemas = (), generate: bool = True) -> str:
        """The text of messages (role, content)."""
        conversation = [{"role": role, "content": content} for role, content in messages]
        options = {**self._args, "tokenize": False, "add_generation_prompt": generate}
        try:
            return str(self._tokenizer.apply_chat_template(conversation, list(tools) or None, **options))
        except Exception as error:  # a template may raise anything
            raise RenderError(f"the chat template failed: {_line(error)}") from error

    def _after_action(self, *message: tuple[str, str]) -> str:
        """What the template writes after an assistant's text: its end, then the next message if any."""
        text = self._render(("user", "x"), ("assistant", _ACTION), *message, generate=bool(message))
        return _expect(text, _ACTION, "the assistant's text").after

    def _find_stop(self) -> tuple[int, ...]:
        """The token that the template ends an assistant's turn with, and the tokenizer's eos."""
        ids = self._encoder.trusted(self._after_action().lstrip())[:1]
        ends = [i for i in (*ids, self._tokenizer.eos_token_id) if i in self._encoder.controls]
        if not ends:
            raise RenderError(
                "the chat template ends no turn with a special token and the tokenizer has no eos"
            )
        return tuple(dict.fromkeys(ends))

    def _shows_system(self) -> bool:
        try:
            frame = _Frame.of(self._render(*_opening(_SYSTEM, True)), _SYSTEM)
        except RenderError:
            return False
        return frame is not None and _Frame.of(frame.after, _CONTENT) is not None

    def _asks_for_hermes_calls(self) -> bool:
        try:
            text = self._render(*_opening("", True), tools=[{"type": "function", "function": _NO_TOOL}])
        except RenderError:
            return False
        return all(part in text for part in ("trace_gym_tool", "<tool_call>", '"arguments"'))

    def _turn(self, role: str, content: str = _CONTENT) -> _Turn:
        frame = _expect(self._after_action((role, content)), _CONTENT, f"a message of role {role!r}")
        opened = self._encoder.trusted(frame.before)
        rest = frame.before.lstrip()
        ends = (self._encoder.controls[i] for i in self.stop)
        closed = next((rest.removeprefix(end) for end in ends if rest.startswith(end)), frame.before)
        return _Turn(frame, opened, self._encoder.trusted(closed), self._encoder.trusted(frame.after))

    def _tool_turn(self, role: str) -> _Turn:
        if role == "auto":
            role = next((known for known in ("tool", "ipython") if self._knows(known)), "user")
        return self._turn(role, _WRAPPED.format(_CONTENT) if role == "user" else _CONTENT)

    def _knows(self, role: str) -> bool:
        """Whether the template shows messages of `role`, and not just as it would show any role's."""
        try:
            text = self._after_action((role, _CONTENT))
        except RenderError:
            return False
        try:
            as_any_role = self._after_action((_NO_ROLE, _CONTENT)).replace(_NO_ROLE, role)
        except RenderError:
            as_any_role = ""
        return _Frame.of(text, _CONTENT) is not None and text != as_any_role


def _expect(text: str, probe: str, what: str) -> _Frame:
    frame = _Frame.of(text, probe)
    if frame is None:
        raise RenderError(f"the chat template does not show {what} once and unchanged; use another template")
    return frame


def _opening(system: str, has_role: bool) -> list[tuple[str, str]]:
    """The first messages (role, content), with probes for contents."""
    if system and has_role:
        return [("system", _SYSTEM), ("user", _CONTENT)]
    return [("user", f"{_SYSTEM}\n\n{_CONTENT}" if system else _CONTENT)]


def _describe(tools: Schemas) -> str:
    schemas = [json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools]
    call = '<tool_call>{"name":"TOOL","arguments":{"ARGUMENT":VALUE}}</tool_call>'
    return "\n".join(
        [
            "You have these tools, one JSON schema a line:",
            *schemas,
            f"To use one write {call} and wait for its result.",
            "Give your final answer as <answer>ANSWER</answer>.",
        ]
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
