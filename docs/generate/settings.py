"""The settings' page, from the model that checks them."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from docs.generate.text import cell, code, table
from trace_gym.config import TrainConfig
from trace_gym.settings import flow

__all__ = ["page", "settings"]

HEAD = """# Settings

A run is a YAML file, then single settings, the later before the earlier:

```
trace-gym train run.yaml optim.lr=1e-4 env.options.difficulty=2-3
trace-gym train --print-config > run.yaml
```

Numbers, `true`, `false` and `null` are read as in JSON (`3e-4` is a number, `no` is a word, `100_000` is 100,000); all else is
a word. An unknown or impossible setting is an error that names the file's line or the override. `algorithm` holds the fields of
the [algorithm](algorithms.md), `env.options` those of the [environment](environments.md).
"""
BOUNDS = {Ge: ("ge", "from"), Gt: ("gt", "above"), Le: ("le", "to"), Lt: ("lt", "below")}


def page() -> str:
    """The page."""
    parts = [HEAD]
    for name, section in _sections(TrainConfig):
        rows = [
            [
                code(f"{name}.{key}" if name else key),
                cell(_kind(field)),
                code(_default(section, key)),
                cell(said),
            ]
            for key, field in type(section).model_fields.items()
            if (said := field.description)
        ]
        summary = (type(section).__doc__ or "").strip()
        title = name or "the run"
        parts.append(
            f"## {title}\n\n{cell(summary)}\n\n{table(['setting', 'takes', 'default', 'meaning'], rows)}"
        )
    return "\n\n".join(parts)


def settings() -> list[str]:
    """Every key that can be set, sections left out."""
    return [
        f"{name}.{key}" if name else key
        for name, section in _sections(TrainConfig)
        for key in type(section).model_fields
        if not isinstance(getattr(section, key), BaseModel)
    ]


def _sections(model: type[BaseModel]) -> Iterator[tuple[str, BaseModel]]:
    """Name and defaults of every section, the run's own first."""
    todo: list[tuple[str, BaseModel]] = [("", model())]
    while todo:
        name, section = todo.pop(0)
        yield name, section
        inner = [(key, getattr(section, key)) for key in type(section).model_fields]
        todo[:0] = [
            (f"{name}.{key}".lstrip("."), value) for key, value in inner if isinstance(value, BaseModel)
        ]


def _default(section: BaseModel, key: str) -> str:
    value = section.model_dump(mode="json")[key]
    return flow(value) or '""'


def _kind(field: FieldInfo) -> str:
    bounds = [
        f"{word} {getattr(bound, attribute):g}"
        for bound in field.metadata
        for kind, (attribute, word) in BOUNDS.items()
        if isinstance(bound, kind) and getattr(bound, attribute) < 2**53
    ]
    return " ".join([_type(field.annotation), *bounds])


def _type(annotation: Any) -> str:
    """A type in a reader's words."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(part) for part in parts)
    if origin is typing.Annotated:
        return _type(parts[0])
    if origin is tuple:
        return "list"
    if origin is dict:
        return "mapping"
    words = {
        int: "whole number",
        float: "number",
        str: "word",
        bool: "`true` or `false`",
        type(None): "`null`",
    }
    return words.get(annotation, str(annotation))
