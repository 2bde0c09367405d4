"""What a rule of the contract is: a function that returns when it was kept.

It raises `Broken` when it was not, and `Unexercised` when there was nothing to try it on. Its name is the
function's, and the first line of its docstring is what it demands. Rules do not depend on one another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from trace_gym.errors import TraceGymError

if TYPE_CHECKING:
    from trace_gym.check.probe import Subject

__all__ = ["RULES", "Broken", "Rule", "Unexercised", "expect", "refuses", "rule"]


class Broken(Exception):
    """A rule is broken; the message says how."""


class Unexercised(Exception):
    """A rule could not be tried; the message says why."""


Rule = Callable[["Subject"], None]
RULES: dict[str, Rule] = {}  # by name, in the order of their definition


def rule(check: Rule) -> Rule:
    """Add `check` to the contract."""
    RULES[check.__name__.replace("_", "-")] = check
    return check


def expect(kept: bool, otherwise: str) -> None:
    """Raise `Broken(otherwise)` unless the rule was kept."""
    if not kept:
        raise Broken(otherwise)


def refuses(call: Callable[[], object], what: str) -> None:
    """Raise `Broken` unless `call` raises TraceGymError."""
    try:
        call()
    except TraceGymError:
        return
    except Exception as error:
        raise Broken(f"{what} raises {type(error).__name__} instead of a TraceGymError: {error}") from error
    raise Broken(f"{what} is allowed")
