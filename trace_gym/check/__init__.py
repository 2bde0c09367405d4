"""`check_env`: does an environment keep the contract of `ForkableEnv`?

It plays a few fixed episodes and tries every rule on them: gymnasium's own, round trips in memory, through bytes,
in a new instance and in a new process, isolation of siblings and of random generators, aliasing, hostile
actions. It names every broken rule at once, and says which rules it could not exercise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import trace_gym.check.playing
import trace_gym.check.snapshots  # noqa: F401  (both fill RULES)
from trace_gym.check.probe import Given, Subject
from trace_gym.check.rules import RULES, Broken, Rule, Unexercised
from trace_gym.errors import ConfigError, EnvironmentContractError

__all__ = ["RULES", "Report", "check_env"]


@dataclass(frozen=True, slots=True)
class Report:
    """What was found out about an environment that broke no rule. `str(report)` is for people."""

    env_id: str
    exercised: tuple[str, ...]  # names of the rules that were tried and kept
    unexercised: dict[str, str]  # rule -> why it could not be tried
    warnings: tuple[str, ...] = ()  # what breaks no rule and may surprise

    def __str__(self) -> str:
        lines = [f"{self.env_id} keeps all {len(self.exercised)} rules that could be exercised."]
        lines += [f"  ok  {name}: {_demand(name)}" for name in self.exercised]
        lines += [f"  --  {name}: not exercised: {reason}" for name, reason in self.unexercised.items()]
        lines += [f"  !!  {warning}" for warning in self.warnings]
        return "\n".join(lines)


def check_env(env: Given, *, max_tasks: int = 2) -> Report:
    """Check an environment against the whole contract.

    `env` is a registered id, a class or function that makes one, or an instance (best one that `gymnasium.make`
    made, so that more can be made). `max_tasks` of the train split and one of the test split are played. Takes a
    second or two for an environment whose steps are quick, most of it to start another process.

    Raises `EnvironmentContractError` with one line per broken rule.
    """
    if max_tasks < 1:
        raise ConfigError(f"check_env needs at least one task, not max_tasks={max_tasks}")
    subject = Subject(env, max_tasks=max_tasks)
    exercised: list[str] = []
    unexercised: dict[str, str] = {}
    broken: dict[str, str] = {}
    with contextlib.closing(subject):
        for name, rule in RULES.items():
            try:
                rule(subject)
                exercised.append(name)
            except Unexercised as reason:
                unexercised[name] = _one_line(reason)
            except Broken as error:
                broken[name] = _one_line(error)
            except Exception as error:
                broken[name] = f"{type(error).__name__}: {_one_line(error)}"
    env_id = subject.env.env_id
    if broken:
        lines = "".join(f"\n  {name}: {message}" for name, message in broken.items())
        rules = "1 rule" if len(broken) == 1 else f"{len(broken)} rules"
        raise EnvironmentContractError(f"{env_id} breaks {rules} of the environment contract:{lines}")
    return Report(env_id, tuple(exercised), unexercised, tuple(_warnings(subject)))


def _warnings(subject: Subject) -> Iterator[str]:
    spec, env_id = subject.outer.spec, subject.env.env_id
    if spec is not None and spec.id != env_id:
        yield (
            f"registered as {spec.id}, its env_id is {env_id}: snapshots and reports bear the latter, and are "
            "refused by whatever has another; unless that is meant, make them equal"
        )


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 400 else f"{text[:400]}…"


def _demand(name: str) -> str:
    rule: Rule = RULES[name]
    return (rule.__doc__ or "").strip().splitlines()[0]
