"""Text to token ids where the text may be hostile.

A control token is a special token of the tokenizer, or an added token that its chat template writes
(`</tool_response>`). Invariant: text from outside never becomes a control token, whatever it spells, and
still decodes to itself: where it spells one it is cut in two and the parts are encoded apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Protocol

__all__ = ["ChatTokenizer", "TextEncoder"]

_TAGS = frozenset(f"<{end}{tag}>" for tag in ("tool_call", "tool_response", "answer") for end in ("", "/"))


class ChatTokenizer(Protocol):
    """What is used of a Hugging Face tokenizer (and of `added_tokens_decoder`, where it has one)."""

    chat_template: Any
    eos_token_id: Any

    def apply_chat_template(self, conversation: Any, tools: Any = None, **options: Any) -> Any: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> Any: ...


class _Ban:
    """Tokens that must not come out of a text, and where to cut the text so that it spells none."""

    def __init__(self, tokens: Mapping[int, str]) -> None:
        self.ids = frozenset(tokens)
        spelled = sorted(re.escape(text) for text in set(tokens.values()) if len(text) > 1)
        self._pattern = re.compile(f"(?={'|'.join(spelled)})") if spelled else None

    def cut(self, text: str) -> list[str]:
        """`text` in parts, none of which holds a whole banned token."""
        cuts = [match.start() + 1 for match in self._pattern.finditer(text)] if self._pattern else []
        return [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]


class TextEncoder:
    """Ids of text of three degrees of trust: `trusted`, `instructions` and `untrusted`."""

    controls: dict[int, str]  # id -> text

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        special, self.controls = _controls(tokenizer)
        self._special = _Ban({i: text for i, text in special.items() if text not in _TAGS})
        self._control = _Ban(self.controls)
        self._lead = self._find_lead(special)

    def trusted(self, text: str) -> list[int]:
        """Ids of text that a template wrote: control tokens are what they spell."""
        if not text:
            return []
        ids = self._tokenizer.encode(self._lead + text, add_special_tokens=False)
        return list(ids[1:] if self._lead else ids)

    def instructions(self, text: str) -> list[int]:
        """Ids of an environment's instructions: they may show how a call is written, and end no turn."""
        return self._without(self._special, text)

    def untrusted(self, text: str) -> list[int]:
        """Ids of an observation, no control token among them."""
        return self._without(self._control, text)

    def defuse(self, value: Any) -> Any:
        """Plain data with a space inside every special token, for what a template writes out itself."""
        if isinstance(value, str):
            return " ".join(self._special.cut(value))
        if isinstance(value, Mapping):
            return {self.defuse(key): self.defuse(item) for key, item in value.items()}
        return [self.defuse(item) for item in value] if isinstance(value, list | tuple) else value

    def _without(self, ban: _Ban, text: str) -> list[int]:
        ids = [i for part in ban.cut(text) for i in self.trusted(part)]
        if ban.ids.isdisjoint(ids):
            return ids
        # A tokenizer that normalises text may still find a control token in a look-alike.
        return [i for character in text for i in self.trusted(character) if i not in ban.ids]

    def _find_lead(self, special: Mapping[int, str]) -> str:
        """A token to write before each piece if the tokenizer would begin it with a space, else nothing."""
        alone = self._tokenizer.encode("a", add_special_tokens=False)
        for i, text in special.items():
            ids = self._tokenizer.encode(text + "a", add_special_tokens=False)
            if ids[:1] == [i]:
                return "" if ids[1:] == alone else text
        return ""


def _controls(tokenizer: ChatTokenizer) -> tuple[dict[int, str], dict[int, str]]:
    """id -> text of the special tokens, and of all control tokens."""
    template = str(tokenizer.chat_template)
    decoder = getattr(tokenizer, "added_tokens_decoder", {})
    added = {i: (str(token), token.special) for i, token in decoder.items()}
    unknown = getattr(tokenizer, "unk_token_id", None)  # any character may become it
    special = {i: text for i, (text, is_special) in added.items() if is_special and i != unknown}
    if tokenizer.eos_token_id is not None:
        special.setdefault(tokenizer.eos_token_id, str(tokenizer.decode([tokenizer.eos_token_id])))
    written = {i: text for i, (text, _) in added.items() if text.strip() and text in template}
    return special, {**special, **written}
