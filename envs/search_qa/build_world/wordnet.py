"""Instances in WordNet's noun file: people, places and other things with a gloss of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Instance", "read_instances"]

KINDS = {"15": "place", "17": "place", "18": "person"}  # by lexicographer file
_QUOTED = re.compile(r';?\s*"[^"]*"')
_YEARS = re.compile(
    r"\s*\((?:(?P<born>\d{4})-(?P<died>\d{4})|born in (?P<only>\d{4})|(?:died |about |circa |\?|\d)[^()]*)\)"
)


@dataclass(frozen=True, slots=True)
class Instance:
    """One named thing. `classes` says what it is an instance of; `containers` are keys of what it is part of."""

    key: str
    kind: str  # person, place or thing
    names: tuple[str, ...]
    classes: tuple[str, ...]
    gloss: str  # without examples and without years of life
    born: str = ""
    died: str = ""
    containers: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The usual full name: of a person the shortest one that has a first name, else the first name given."""
        first = self.names[0]
        if self.kind == "person":
            full = [n for n in self.names if " " in n and n.split()[-1] == first.split()[-1]]
            return min(full, key=len, default=first)
        return first


def read_instances(folder: Path) -> dict[str, Instance]:
    """Every noun synset that is an instance, by its offset. Raises `OSError` when there is no `data.noun`."""
    text = (folder / "data.noun").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("  ")]
    class_names = {line.split()[0]: line.split()[4].replace("_", " ") for line in lines}
    instances = (_read(line, class_names) for line in lines)
    return {instance.key: instance for instance in instances if instance is not None}


def _read(line: str, class_names: Mapping[str, str]) -> Instance | None:
    data, _, gloss = line.partition("|")
    fields = data.split()
    count = int(fields[3], 16)
    names = tuple(dict.fromkeys(name.replace("_", " ") for name in fields[4 : 4 + 2 * count : 2]))
    at = 5 + 2 * count
    pointers = [(fields[i], fields[i + 1], fields[i + 2]) for i in range(at, at + 4 * int(fields[at - 1]), 4)]
    classes = tuple(class_names[key] for symbol, key, _ in pointers if symbol == "@i")
    if not classes:
        return None
    containers = tuple(key for symbol, key, part in pointers if symbol == "#p" and part == "n")
    kind = KINDS.get(fields[1], "thing")
    gloss = _QUOTED.sub("", gloss).strip().strip(";").strip()
    years = _YEARS.search(gloss) if kind == "person" else None
    born, died = "", ""
    if years is not None:
        gloss = (gloss[: years.start()] + gloss[years.end() :]).strip()
        born, died = years["born"] or years["only"] or "", years["died"] or ""
    return Instance(fields[0], kind, names, classes, gloss, born, died, containers)
