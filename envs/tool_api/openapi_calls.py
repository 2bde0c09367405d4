"""From arguments to a request, and from an answer to an observation.

Invariant: whatever the arguments hold, the request's method, host, path structure, query names and headers are those of
the operation. A path argument is one path segment, or part of one: it may not be empty, hold a slash (however often
percent-encoded) or make a segment `.` or `..`, for servers read paths in more ways than one.
"""

from __future__ import annotations

import contextlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from trace_gym.env import clean_text
from trace_gym.envs.tool_api.openapi_document import BODY, Operation, Parameter

__all__ = ["Request", "Unusable", "request_of", "shown", "text_of"]

MAX_PATH_VALUE_CHARS = 1000
MAX_KEPT_CHARS = 65_536  # of an answer; an observation shows an eighth of that
_TEXTUAL = re.compile(r"(text/.*|application/(.*\+)?(json|xml|yaml|javascript)|application/x-.*(json|yaml))?")


class Unusable(Exception):
    """Why no request can be made of the arguments: a line for the agent."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent, below the server's URL and apart from what the configuration adds."""

    method: str
    target: str  # path and query, percent-encoded
    body: Any  # JSON, None where there is none
    has_body: bool

    def plain(self) -> dict[str, Any]:
        """The request as the record keeps it."""
        return {"method": self.method, "target": self.target, "body": self.body, "has_body": self.has_body}

    def encoded_body(self) -> bytes | None:
        return json.dumps(self.body, allow_nan=False).encode() if self.has_body else None


def request_of(operation: Operation, arguments: Mapping[str, Any]) -> Request:
    """The request for arguments that fit the tool's schema. Raises `Unusable`."""
    path = operation.path
    pairs: list[str] = []
    for parameter in operation.parameters:
        value = arguments.get(parameter.name)
        if parameter.where == "path":
            path = path.replace(f"{{{parameter.name}}}", _path_part(parameter.name, value))
        elif value is not None:
            pairs += _query_pairs(parameter, value)
    if any(_decoded(part) in (".", "..") for part in path.split("/")):
        raise Unusable("the path arguments do not make a path; write plain names or numbers")
    has_body = operation.has_body and BODY in arguments
    target = path + ("?" + "&".join(pairs) if pairs else "")
    return Request(operation.method, target, arguments.get(BODY) if has_body else None, has_body)


def _path_part(name: str, value: Any) -> str:
    text = _text(name, value)
    if any(c in "/\\" or unicodedata.category(c) == "Cc" for c in text + _decoded(text)):
        raise Unusable(f"the argument {name!r} may hold no slash, backslash or control character")
    if not text or len(text) > MAX_PATH_VALUE_CHARS:
        raise Unusable(f"the argument {name!r} must have 1 to {MAX_PATH_VALUE_CHARS} characters")
    return quote(text, safe="")


def _decoded(text: str) -> str:
    """`text` percent-decoded as often as any server might."""
    for _ in range(8):
        text = unquote(text)
    return text


def _query_pairs(parameter: Parameter, value: Any) -> list[str]:
    name = quote(parameter.name, safe="")
    if not isinstance(value, list):
        return [f"{name}={quote(_text(parameter.name, value), safe='')}"]
    parts = [quote(_text(parameter.name, item), safe="") for item in value]
    if parameter.explode:
        return [f"{name}={part}" for part in parts]
    return [f"{name}={','.join(parts)}"] if parts else []


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        return clean_text(value)
    raise Unusable(f"the argument {name!r} must be text, a number or true/false")


# ---- answers -------------------------------------------------------------------------------------------------------


def text_of(content_type: str, body: bytes) -> str | None:
    """A body as text, JSON without its spaces; None where it is no text."""
    if not _TEXTUAL.fullmatch(content_type):
        return None
    if "json" in content_type or not content_type:
        # What is broken, too deep, or holds numbers beyond 64 bits is shown as it came.
        with contextlib.suppress(msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
            body = msgspec.json.encode(msgspec.json.decode(body))
    return body.decode("utf-8", "replace")[:MAX_KEPT_CHARS]


def shown(answer: Mapping[str, Any]) -> str:
    """What the agent sees of a recorded answer."""
    status, text = answer["status"], answer["text"]
    if answer["too_large"]:
        text = "the answer is too large to be read; ask for less"
    elif text is None:
        text = f"the answer is {answer['type'][:80]}, which is no text"
    if 200 <= status < 300 and not answer["too_large"]:
        return str(text) if text.strip() else f"(done, HTTP {status})"
    if 300 <= status < 400:
        text = "a redirect, which is not followed"
    return f"error: HTTP {status}: {text}" if text.strip() else f"error: HTTP {status}"
