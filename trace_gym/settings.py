"""Settings as text: a small, predictable YAML, `a.b=value` overrides, and where each value came from.

YAML 1.1 reads `3e-4` as a word, `no` as false, `1:30` as 90 and `010` as 8. Here numbers, true/false and null are what
they are in JSON (underscores between digits allowed) and everything else is a word. Duplicate keys are refused, merge
keys mean nothing, and no tag can build an object.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trace_gym.aliases import values
from trace_gym.errors import ConfigError

__all__ = ["Settings", "flow", "setting"]

MAX_VALUES = 100_000  # whoever goes through them, if only to show them in an error, goes through every one
Key = tuple[str, ...]
_WORD = r"[A-Za-z_][A-Za-z0-9_-]*"
_OVERRIDE = re.compile(rf"({_WORD}(?:\.{_WORD})*)=(.*)", re.DOTALL)
_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    ("float", r"[-+]?(?:(?:0|[1-9][0-9_]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own declaration)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = (
        _Loader.yaml_implicit_resolvers
    )  # so that a word that looks like a number is quoted

    def ignore_aliases(self, data: object) -> bool:
        return True


for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    try:
        node.value.encode()
    except UnicodeEncodeError as error:
        raise yaml.MarkedYAMLError(problem="half a surrogate pair", problem_mark=node.start_mark) from error
    return str(node.value)


_Loader.add_constructor("tag:yaml.org,2002:str", _text)


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if text.isprintable() else '"'  # the only style that survives every character
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _quoted)


def flow(value: object) -> str:
    """A JSON-plain value as YAML on one line; reads back equal."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")


def setting(key: str, value: object) -> str:
    """The override that sets `key` to a JSON-plain value."""
    return f"{key}={flow(value)}"


@dataclass(slots=True)
class Settings:
    """Nested plain values, and the file line or override that each came from."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Settings:
        """The mapping in a YAML file; an empty file is an empty one. Raises `ConfigError`."""
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"the config file {path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"the config file {path} is not UTF-8 text") from error
        values, lines = _parse(text, str(path))
        if values is None:
            return cls()
        if not isinstance(values, dict):
            raise ConfigError(
                f"{path}: a config file holds `key: value` lines, not a {type(values).__name__}"
            )
        return cls(values, {key: f"{path}, line {line}: " for key, line in lines.items()})

    def override(self, text: str) -> None:
        """Apply `a.b=value`. Raises `ConfigError` when it is no such thing."""
        match = _OVERRIDE.fullmatch(text)
        if match is None:
            raise ConfigError(f"{text!r} is no setting; write key=value, such as optim.lr=3e-4")
        key, place = tuple(match[1].split(".")), f"override {text!r}: "
        value, _ = _parse(match[2], f"override {text!r}")
        section = self.values
        for part in key[:-1]:
            below = section.get(part)
            section[part] = section = dict(below) if isinstance(below, dict) else {}
        section[key[-1]] = value
        self.origins = {k: o for k, o in self.origins.items() if k[: len(key)] != key} | {key: place}

    def origin(self, key: Key) -> str:
        """Where the setting came from, or the section around it, or else something in it; "" if it was not given."""
        around = [self.origins[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self.origins]
        inside = [origin for other, origin in self.origins.items() if key and other[: len(key)] == key]
        return next(iter(around + inside), "")


def _parse(text: str, name: str) -> tuple[Any, dict[Key, int]]:
    """The value in `text`, and the line of every key. `name` stands in front of errors."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}
        if values(node) > MAX_VALUES:
            raise ConfigError(f"{name}: its aliases stand for more than {MAX_VALUES:,} values")
        lines = dict(_lines(node, (), set()))
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{name}{line}: {_both(error)}; quote the value if it is text") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{name} cannot be read as YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{name} is nested too deeply") from error


def _both(error: yaml.MarkedYAMLError) -> str:
    return ", ".join(part for part in (error.context, error.problem) if part)


def _lines(node: yaml.Node, path: Key, seen: set[int]) -> Iterator[tuple[Key, int]]:
    """The line of every key below `node`, each node once however often aliases repeat it."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _lines(item, (*path, str(index)), seen)
    if not isinstance(node, yaml.MappingNode):
        return
    keys: set[str] = set()
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key.start_mark)
        if key.value in keys:
            raise yaml.MarkedYAMLError(
                problem=f"the key {key.value!r} stands here twice", problem_mark=key.start_mark
            )
        keys.add(key.value)
        yield (*path, key.value), key.start_mark.line + 1
        yield from _lines(value, (*path, key.value), seen)
