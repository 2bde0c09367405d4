"""How fast the parts are, each side by side with what one would do without it.

Whatever module here is named in `PARTS` and exists is a part. It offers `measure(*, quick) -> dict` of plain numbers, and
`page(found) -> str`, the same as Markdown. `quick` is a look at the machinery within seconds; its numbers mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from trace_gym.errors import ConfigError

__all__ = ["PARTS", "measure_parts", "parts_here", "write_page"]

PARTS = {
    "update": "speed_update",
    "engine": "speed_engine",
    "fork": "speed_fork",
    "env": "core",
    "loop": "speed_loop",
    "ahead": "speed_ahead",
    "scale": "speed_scale",
}


def parts_here() -> list[str]:
    """The parts whose modules exist."""
    return [name for name, module in PARTS.items() if find_spec(_path(module)) is not None]


def measure_parts(
    only: Sequence[str] = (), *, quick: bool = False
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(part, numbers, page) of the parts in `only`, or of all, one after another. Raises `ConfigError` for an unknown one."""
    here = parts_here()
    for name in only:
        if name not in here:
            raise ConfigError(f"there is no speed benchmark {name!r}; there are {', '.join(here)}")
    for name in here:
        if not only or name in only:
            module: ModuleType = import_module(_path(PARTS[name]))
            found = module.measure(quick=quick)
            yield name, found, module.page(found)


def write_page(folder: Path, name: str, found: Mapping[str, Any], page: str) -> None:
    """`folder/name.md` and `folder/name.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(page, encoding="utf-8")
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _path(module: str) -> str:
    return f"trace_gym.benchmarks.{module}"
