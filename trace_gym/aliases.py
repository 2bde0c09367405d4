"""What YAML's aliases stand for: a few lines may name a value of billions, which only whoever walks it would notice."""

from __future__ import annotations

import yaml

__all__ = ["values"]


def values(node: yaml.Node) -> int:
    """How many values a composed document holds once its aliases are followed."""
    return _count(node, {})


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values the node is once aliases are followed; inside itself it counts once."""
    if id(node) not in known:
        known[id(node)] = 1
        parts = (
            [part for pair in node.value for part in pair]
            if isinstance(node, yaml.MappingNode)
            else node.value
        )
        nested = isinstance(node, yaml.CollectionNode)
        known[id(node)] = 1 + (sum(_count(part, known) for part in parts) if nested else 0)
    return known[id(node)]
