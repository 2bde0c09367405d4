"""Options that several environments have: which split `reset` draws from, and one turn limit for all tasks."""

from __future__ import annotations

from trace_gym.errors import ConfigError

__all__ = ["SPLITS", "check_max_turns", "check_split"]

SPLITS = ("train", "dev", "test", "all")


def check_split(split: str) -> None:
    """Raises `ConfigError` for a split that there is not."""
    if split not in SPLITS:
        raise ConfigError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")


def check_max_turns(max_turns: int | None) -> None:
    """Raises `ConfigError` unless it is a whole number from 1, or None: each task has a limit of its own."""
    if max_turns is not None and (type(max_turns) is not int or max_turns < 1):
        raise ConfigError(f"max_turns is a whole number from 1, not {max_turns!r}")
