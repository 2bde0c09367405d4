"""The algorithms' page: the entry points that trace_gym declares, the papers their modules cite, and their fields.

A field's meaning is the comment beside it in the source, so that the source says it once.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
from importlib.metadata import entry_points
from typing import Any

from docs.generate.text import cell, code, prose, table, takes
from trace_gym.algorithm import Algorithm

__all__ = ["classes", "page", "settable"]

HEAD = """# Algorithms

`algorithm.name=NAME` picks one, `algorithm.FIELD=VALUE` sets a field; `trace-gym algorithms` lists those of other packages too.
[TRACE and its family](../trace.md) says how they relate, [write an algorithm](../write-an-algorithm.md) how to add yours."""

SHARED = {  # fields that several algorithms have under one meaning
    "advantage": "what a turn is credited with: [the rules](../trace.md#credit)",
    "average": "over a leaf's ancestors: plain, or by the number of leaves below each",
    "clip_low": "the probability ratio is clipped at 1 less this",
    "predictor": "who tells how likely success is; the last four are controls",
    "scale": "what advantages are divided by",
    "target": "how values are backed up for the predictor and the advantages",
    "weights": "how much a turn counts where rollouts share it: [the weights](../trace.md#credit)",
}


def page() -> str:
    """The page."""
    parts = [HEAD, "## Fields of all", _fields(Algorithm, None)]
    told: set[str] = set()
    known = classes()
    for name, cls in known.items():
        parts += [f"## {name}", prose(_summary(cls))]
        module = inspect.getmodule(cls)
        if module is not None and module.__name__ not in told:
            told.add(module.__name__)
            parts.append(prose(module.__doc__ or ""))
        parent = next((base for base in cls.__mro__[1:] if base in known.values()), Algorithm)
        if parent is not Algorithm:
            whose = next(other for other, its in known.items() if its is parent)
            parts.append(f"The fields and the paper are those of `{whose}`; other defaults:")
        parts.append(_fields(cls, parent))
    return "\n\n".join(parts)


def classes() -> dict[str, type[Algorithm]]:
    """The registered names that come with trace_gym, sorted, and their classes."""
    points = entry_points(group="trace_gym.algorithms")
    return {p.name: p.load() for p in sorted(points) if p.dist is not None and p.dist.name == "trace-gym"}


def settable(cls: type[Algorithm]) -> dict[str, Any]:
    """Every field that can be set, and its default."""
    return {f.name: f.default for f in dataclasses.fields(cls) if f.init}


def _summary(cls: type[Algorithm]) -> str:
    own = vars(cls).get("__doc__") or ""
    return "" if own.startswith(f"{cls.__name__}(") else own


def _fields(cls: type[Algorithm], parent: type[Algorithm] | None) -> str:
    """The fields that `parent` does not have, or has with another default."""
    known = settable(parent) if parent else {}
    rows = [
        [code(name), _takes(cls, name), code(str(default)), _said(cls, name)]
        for name, default in settable(cls).items()
        if name not in known or known[name] != default
    ]
    return table(["field", "takes", "default", "meaning"], rows) if rows else "It has no fields of its own."


def _owner(cls: type[Algorithm], name: str) -> type:
    return next(base for base in cls.__mro__ if name in vars(base).get("__annotations__", {}))


def _takes(cls: type[Algorithm], name: str) -> str:
    owner = _owner(cls, name)
    return takes(str(vars(owner)["__annotations__"][name]), owner.__module__)


def _said(cls: type[Algorithm], name: str) -> str:
    """The comment beside the field, of the nearest class that makes one; else what all algorithms mean by it."""
    for base in cls.__mro__:
        if name in vars(base).get("__annotations__", {}) and (said := _comments(base).get(name)):
            return cell(said)
    return SHARED.get(name, "")


def _comments(cls: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(cls))
    beside = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        ast.unparse(node.target): " ".join(
            beside[line]
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
            if line in beside
        )
        for node in body.body
        if isinstance(node, ast.AnnAssign)
    }
