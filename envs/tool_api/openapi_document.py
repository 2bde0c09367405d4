"""Operations of an OpenAPI 3 document as tools.

A document may come from anywhere, so reading it is bounded (size, references, nodes) and nothing in it chooses where
requests go. Invariant: an operation is read completely or refused, with its name and the feature that is not supported;
what becomes part of a URL or a body is described by the tool's JSON schema, with every local `$ref` put in place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import msgspec
import yaml

from trace_gym.aliases import values
from trace_gym.env import Effect, Tool, clean_text
from trace_gym.errors import ConfigError

__all__ = ["BODY", "Operation", "Parameter", "operations", "read_document", "read_yaml"]

BODY = "body"  # the argument that holds a JSON body
MAX_FILE_BYTES = 8 << 20
MAX_VALUES = 1_000_000  # of a document, aliases followed
MAX_DEPTH = 32  # of a schema, and of references to references
MAX_NODES = 5000  # of one operation's schemas, references put in place
MAX_DESCRIPTION_CHARS = 1024

METHODS = ("get", "put", "post", "delete", "patch")
OTHER_METHODS = ("head", "options", "trace")
TYPES = frozenset({"string", "number", "integer", "boolean", "array", "object", "null"})
_SCALARS = frozenset({"string", "number", "integer", "boolean"})
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PATH = re.compile(r"(/([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2}|\{[^{}/]+\})*)+")
_SLOT = re.compile(r"\{([^{}/]+)\}")
# What of a schema helps to write an argument; `properties` and the like are walked.
_KEPT = frozenset(
    {
        "type",
        "enum",
        "const",
        "required",
        "format",
        "pattern",
        "default",
        "minimum",
        "maximum",
        "exclusiveMinimum",
    }
    | {"exclusiveMaximum", "multipleOf", "minLength", "maxLength", "minItems", "maxItems", "uniqueItems"}
)
_WALKED = frozenset({"items", "additionalProperties", "oneOf", "anyOf", "allOf"})


@dataclass(frozen=True, slots=True)
class Parameter:
    """An argument that goes into the URL."""

    name: str
    where: Literal["path", "query"]
    explode: bool  # of an array in the query: `a=1&a=2`, else `a=1,2`


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation: how it is called, and the tool that it is for the agent."""

    tool: Tool
    method: str  # in capitals
    path: str  # with `{name}` slots, below the server's URL
    parameters: tuple[Parameter, ...]
    has_body: bool


class _Unsupported(Exception):
    """A feature that is not supported."""


# ---- files ---------------------------------------------------------------------------------------------------------


def read_yaml(path: Path) -> Any:
    """The plain data of a YAML or JSON file. Raises `ConfigError`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(f"{path} has more than {MAX_FILE_BYTES:,} bytes")
        text = data.decode("utf-8-sig")
        value = json.loads(text) if path.suffix == ".json" else _from_yaml(text, path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{path} is not valid {'JSON' if path.suffix == '.json' else 'YAML'}: {reason}"
        ) from error
    return value


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML's safe loader, with dates left as the text they are."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _from_yaml(text: str, path: Path) -> Any:
    """What YAML's safe loader makes of the text. Raises `ConfigError` where aliases make much of little."""
    loader = _Loader(text)
    node = loader.get_single_node()
    if node is None:
        return None
    if values(node) > MAX_VALUES:
        raise ConfigError(f"{path}: its aliases stand for more than {MAX_VALUES:,} values")
    return loader.construct_document(node)


def read_document(path: Path) -> dict[str, Any]:
    """An OpenAPI 3 document. Raises `ConfigError` where it is another."""
    document = read_yaml(path)
    if not isinstance(document, dict) or not isinstance(document.get("paths"), dict):
        raise ConfigError(f"{path} is no OpenAPI document: it has no 'paths'")
    version = str(document.get("openapi", document.get("swagger", "none")))
    if not re.fullmatch(r"3\.[01](\.\d+)?", version):
        raise ConfigError(f"{path} is of OpenAPI version {version[:20]!r}; 3.0 and 3.1 are read: convert it")
    return document


# ---- operations ----------------------------------------------------------------------------------------------------


def operations(
    document: Mapping[str, Any],
    *,
    only: Collection[str] | None,
    effects: Mapping[str, Effect],
    headers: Collection[str],
    query: Collection[str],
) -> dict[str, Operation]:
    """The operations called `only` (all where None), by name. GET is `recorded` and everything else `irreversible`
    unless `effects` says otherwise. Parameters among the configured `headers` and `query` are not the agent's.

    Raises `ConfigError` for an operation that cannot be offered, and for a name that no operation has.
    """
    fixed = frozenset(name.lower() for name in headers), frozenset(query)
    found: dict[str, Operation] = {}
    names: set[str] = set()
    for path, method, item, raw in _raw_operations(document):
        name = _name(method, path, raw)
        if name in names:
            raise ConfigError(f"two operations are called {name!r}; give them different operationIds")
        names.add(name)
        if only is not None and name not in only:
            continue
        try:
            reader = _Reader(document)
            found[name] = _operation(reader, name, method, path, item, raw, effects.get(name), fixed)
        except _Unsupported as reason:
            raise ConfigError(
                f"the operation {name} ({method.upper()} {path[:100]}) cannot be a tool: {reason}. "
                "To leave it out, list the ones you want under 'operations'"
            ) from None
    for name in (*(only or ()), *effects):
        if name not in names:
            raise ConfigError(f"no operation is called {name!r}; there are {', '.join(sorted(names))[:400]}")
    if not found:
        raise ConfigError("the document has no operation to offer")
    return found


def _raw_operations(
    document: Mapping[str, Any],
) -> Iterator[tuple[str, str, Mapping[str, Any], Mapping[str, Any]]]:
    reader = _Reader(document)
    for path, item in document["paths"].items():
        try:
            item = reader.resolved(item)
        except _Unsupported as reason:
            raise ConfigError(f"the path {path!r:.100} cannot be read: {reason}") from None
        for method in (*METHODS, *OTHER_METHODS):
            if isinstance(item, dict) and isinstance(item.get(method), dict):
                yield str(path), method, item, item[method]


def _name(method: str, path: str, raw: Mapping[str, Any]) -> str:
    given = raw.get("operationId")
    text = given if isinstance(given, str) and given else f"{method}_{path}"
    return re.sub(r"_+", "_", re.sub(r"[^A-Za-z0-9_.-]", "_", text)).strip("_")[:64]


def _operation(
    reader: _Reader,
    name: str,
    method: str,
    path: str,
    item: Mapping[str, Any],
    raw: Mapping[str, Any],
    effect: Effect | None,
    fixed: tuple[Collection[str], Collection[str]],
) -> Operation:
    if name == "answer" or not _NAME.fullmatch(name):
        raise _Unsupported(f"a tool cannot be called {name!r}; give it another operationId")
    if method in OTHER_METHODS:
        raise _Unsupported(f"the method {method.upper()} is not offered")
    if raw.get("servers") or item.get("servers"):
        raise _Unsupported("it has servers of its own")
    properties: dict[str, Any] = {}
    required: list[str] = []
    parameters = []
    for raw_parameter in _parameters(reader, item, raw):
        read = _parameter(reader, raw_parameter, fixed)
        if read is None:
            continue
        parameter, schema, needed = read
        if parameter.name in properties:
            raise _Unsupported(f"two parameters are called {parameter.name!r}")
        properties[parameter.name] = schema
        required += [parameter.name] if needed else []
        parameters.append(parameter)
    _check_path(path, {p.name for p in parameters if p.where == "path"})
    body = _body(reader, raw.get("requestBody"))
    if body is not None:
        if BODY in properties:
            raise _Unsupported(f"a parameter is called {BODY!r}, as the argument for its body is")
        properties[BODY], needed = body
        required += [BODY] if needed else []
    text = " ".join(str(raw[key]) for key in ("summary", "description") if isinstance(raw.get(key), str))
    tool = Tool(
        name=name,
        description=clean_text(" ".join(text.split()))[:MAX_DESCRIPTION_CHARS] or f"{method.upper()} {path}",
        parameters={"type": "object", "properties": properties, "required": required},
        effect=effect or ("recorded" if method == "get" else "irreversible"),
    )
    return Operation(
        tool=tool, method=method.upper(), path=path, parameters=tuple(parameters), has_body=body is not None
    )


def _check_path(path: str, declared: set[str]) -> None:
    if not _PATH.fullmatch(path) or any(part in (".", "..") for part in unquote(path).split("/")):
        raise _Unsupported(f"its path {path!r:.100} is not one; it starts with / and is percent-encoded")
    slots = _SLOT.findall(path)
    if set(slots) != declared or len(slots) != len(declared):
        raise _Unsupported(f"its path has the slots {slots}, its path parameters are {sorted(declared)}")


def _parameters(reader: _Reader, item: Mapping[str, Any], raw: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Parameters of the path and of the operation, which replace those of the path."""
    merged: dict[tuple[object, object], Mapping[str, Any]] = {}
    for source in (item, raw):
        listed = source.get("parameters", [])
        if not isinstance(listed, list):
            raise _Unsupported("its parameters are not a list")
        for entry in map(reader.resolved, listed):
            if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
                raise _Unsupported("a parameter has no name")
            merged[str(entry.get("in")), entry["name"]] = entry
    return list(merged.values())


def _parameter(
    reader: _Reader, raw: Mapping[str, Any], fixed: tuple[Collection[str], Collection[str]]
) -> tuple[Parameter, dict[str, Any], bool] | None:
    """The parameter, its schema, and whether it is required; None where it is not the agent's to give."""
    name, where, needed = raw["name"], raw.get("in"), raw.get("required") is True
    if where in ("header", "cookie"):
        set_by_us = where == "header" and name.lower() in fixed[0]
        if needed and not set_by_us and name.lower() not in ("accept", "content-type", "authorization"):
            raise _Unsupported(
                f"it needs the {where} {name!r:.80}; give it under 'headers', for the agent sets none"
            )
        return None
    if where == "query" and name in fixed[1]:
        return None
    if where not in ("path", "query"):
        raise _Unsupported(f"the parameter {name!r:.80} is in {where!r:.40}")
    if "content" in raw or not isinstance(raw.get("schema"), dict):
        raise _Unsupported(f"the parameter {name!r:.80} has no schema of its own ('content' is not read)")
    style = raw.get("style", "simple" if where == "path" else "form")
    if style != ("simple" if where == "path" else "form") or raw.get("allowReserved") is True:
        raise _Unsupported(f"the parameter {name!r:.80} has the style {style!r:.40}, or allowReserved")
    schema = reader.schema(raw["schema"])
    _check_flat(name, schema, array=where == "query")
    if isinstance(raw.get("description"), str):
        schema = {**schema, "description": _described(raw)}
    return Parameter(name, where, raw.get("explode", True) is True), schema, needed or where == "path"


def _check_flat(name: str, schema: Mapping[str, Any], *, array: bool) -> None:
    """Raises `_Unsupported` unless values can be written into a URL."""
    kinds = schema.get("type", "string")
    kinds = {kinds} if isinstance(kinds, str) else set(kinds)
    if array and kinds - {"null"} == {"array"}:
        items = schema.get("items", {})
        kinds = {items.get("type", "string")} if isinstance(items.get("type", "string"), str) else {"array"}
    if {"oneOf", "anyOf", "allOf"} & schema.keys() or not kinds <= (
        _SCALARS | ({"null"} if array else set())
    ):
        raise _Unsupported(f"the parameter {name!r:.80} is neither text, number nor true/false")


def _body(reader: _Reader, raw: Any) -> tuple[dict[str, Any], bool] | None:
    if raw is None:
        return None
    raw = reader.resolved(raw)
    content = raw.get("content") if isinstance(raw, dict) else None
    content = content if isinstance(content, dict) else {}
    kinds = {str(kind).partition(";")[0].strip().lower(): media for kind, media in content.items()}
    media = kinds.get("application/json")
    if not isinstance(media, dict):
        raise _Unsupported(
            f"its body is {', '.join(sorted(kinds))[:100] or 'not described'}, not application/json"
        )
    return reader.schema(media.get("schema", {})), raw.get("required") is True


def _described(raw: Mapping[str, Any]) -> str:
    return clean_text(" ".join(str(raw["description"]).split()))[:MAX_DESCRIPTION_CHARS]


# ---- references and schemas ----------------------------------------------------------------------------------------


class _Reader:
    """Puts local references in place, for one operation."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._nodes = 0

    def resolved(self, value: Any) -> Any:
        """`value`, or what its `$ref` refers to in the end."""
        for _ in range(MAX_DEPTH):
            if not isinstance(value, dict) or "$ref" not in value:
                return value
            value = self._target(value["$ref"])
        raise _Unsupported(f"a reference leads through more than {MAX_DEPTH} others")

    def _target(self, reference: Any) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#/"):
            raise _Unsupported(f"the reference {reference!r:.100} leads out of the document")
        place: Any = self._document
        for part in reference[2:].split("/"):
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(place, dict) and key in place:
                place = place[key]
            elif isinstance(place, list) and key.isascii() and key.isdigit() and int(key[:9]) < len(place):
                place = place[int(key)]
            else:
                raise _Unsupported(f"the reference {reference!r:.100} leads nowhere")
        return place

    def schema(self, raw: Any, room: int = MAX_DEPTH) -> dict[str, Any]:
        """A JSON schema with its references in place, of what helps to write a value."""
        self._nodes += 1
        if room == 0 or self._nodes > MAX_NODES:
            raise _Unsupported("a schema is nested too deeply, refers to itself, or is too large")
        raw = self.resolved(raw)
        if isinstance(raw, bool):
            return {}
        if not isinstance(raw, dict):
            raise _Unsupported("a schema is not an object")
        kept: dict[str, Any] = {key: _plain(value) for key, value in raw.items() if key in _KEPT}
        if isinstance(raw.get("description"), str):
            kept["description"] = _described(raw)
        for key in _WALKED & raw.keys():
            kept[key] = self._inner(raw[key], room - 1)
        if isinstance(raw.get("properties"), dict):
            kept["properties"] = self._properties(raw["properties"], room)
        return _typed(kept, nullable=raw.get("nullable") is True)

    def _inner(self, raw: Any, room: int) -> Any:
        if isinstance(raw, bool):
            return raw
        return [self.schema(one, room) for one in raw] if isinstance(raw, list) else self.schema(raw, room)

    def _properties(self, raw: Mapping[Any, Any], room: int) -> dict[str, Any]:
        """Properties without those that only an answer has."""
        written = {str(name): value for name, value in raw.items()}
        return {
            clean_text(name): self.schema(value, room - 1)
            for name, value in written.items()
            if not (isinstance(value, dict) and value.get("readOnly") is True)
        }


def _typed(schema: dict[str, Any], *, nullable: bool) -> dict[str, Any]:
    """The schema with a checked `type`, a list where null is allowed too."""
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not isinstance(kinds, list) or not all(isinstance(kind, str) and kind in TYPES for kind in kinds):
        raise _Unsupported(f"the type {schema.get('type')!r:.80} is none of JSON schema's")
    if not isinstance(schema.get("enum", []), list):
        raise _Unsupported("an enum is not a list")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise _Unsupported("'required' is not a list of names")
    if "properties" in schema and "required" in schema:
        schema["required"] = [name for name in required if name in schema["properties"]]
    if kinds:
        kinds = [*kinds, "null"] if nullable and "null" not in kinds else kinds
        schema["type"] = kinds[0] if len(kinds) == 1 else kinds
    return schema


def _plain(value: Any) -> Any:
    """`value` as JSON has it, its text clean. Raises `_Unsupported`."""
    try:
        return json.loads(
            clean_text(json.dumps(msgspec.to_builtins(value), ensure_ascii=False, allow_nan=False))
        )
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise _Unsupported("a schema holds a value that JSON does not have") from error
