"""The other process of `check_env`: make the environment there, reset it or restore snapshots, and go on.

What travels is how to import the class, plain arguments, snapshot bytes and actions; never pickled objects.
"""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import gymnasium
import msgspec

from trace_gym.check.probe import Shown, Subject, play
from trace_gym.check.rules import Broken, Unexercised
from trace_gym.env import ForkableEnv, Snapshot

__all__ = ["Course", "Recipe", "continue_elsewhere", "recipe_of", "serve"]

TIMEOUT_S = 120.0
PROGRAM = "from trace_gym.check.process import serve; serve()"


class Recipe(msgspec.Struct, frozen=True):
    """How to make the environment where only imports and plain data are at hand."""

    module: str
    name: str  # attribute path in the module
    kwargs: dict[str, Any] = {}


class Course(msgspec.Struct, frozen=True):
    """What to do from a snapshot, or from a reset where there is none."""

    task: str
    seed: int
    actions: tuple[str, ...]
    snapshot: bytes | None = None


class _Job(msgspec.Struct, frozen=True):
    recipe: Recipe
    courses: list[Course]


class _Result(msgspec.Struct, frozen=True):
    """`shown` [courses][1 + actions]: first and after each action; `keys` [courses]: the last state_key."""

    not_made: str = ""
    failed: str = ""
    shown: list[list[Shown]] = []
    keys: list[str] = []


def recipe_of(subject: Subject) -> Recipe:
    """How another process can make the environment. Raises `Unexercised` when it cannot be told."""
    spec = subject.outer.spec
    given = subject.given
    source = spec.entry_point if spec else type(given) if isinstance(given, gymnasium.Env) else given
    if spec is None and subject.maker is None:
        raise Unexercised(subject.no_maker)
    kwargs = dict(spec.kwargs) if spec else {}
    recipe = _address(source, kwargs)
    try:
        same = msgspec.msgpack.decode(msgspec.msgpack.encode(kwargs)) == kwargs
    except (TypeError, ValueError, OverflowError) as error:
        raise Unexercised(f"its arguments are not plain data: {error}") from error
    if not same:
        raise Unexercised("its arguments are not plain data (tuples count as lists)")
    return recipe


def _address(source: object, kwargs: dict[str, Any]) -> Recipe:
    if isinstance(source, str):
        module, _, name = source.partition(":")
        return Recipe(module, name, kwargs)
    module, name = getattr(source, "__module__", ""), getattr(source, "__qualname__", "")
    try:
        importable = module != "__main__" and _resolve(module, name) is source
    except (ImportError, AttributeError, ValueError):
        importable = False
    if not importable:
        raise Unexercised(
            f"another process cannot import {name or source!r}: define it at the top of a module"
        )
    return Recipe(module, name, kwargs)


def _resolve(module: str, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


def continue_elsewhere(recipe: Recipe, courses: Sequence[Course]) -> tuple[list[list[Shown]], list[str]]:
    """Run `courses` in a new process, last first. Raises `Unexercised` where it cannot make the environment."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    salt = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"  # so that sets have another order there
    job = msgspec.msgpack.encode(_Job(recipe, list(courses)))
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", PROGRAM],
            input=job,
            capture_output=True,
            timeout=TIMEOUT_S,
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": salt},
            check=True,
        )
        result = msgspec.msgpack.decode(done.stdout, type=_Result)
    except subprocess.TimeoutExpired as error:
        raise Unexercised(f"the other process took more than {TIMEOUT_S:.0f} s") from error
    except (subprocess.CalledProcessError, msgspec.DecodeError) as error:
        said = getattr(error, "stderr", b"") or b""
        last = (said.decode("utf-8", "replace").strip().splitlines() or [str(error)])[-1]
        raise Broken(f"another process fails: {last}") from error
    if result.not_made:
        raise Unexercised(f"another process cannot make it: {result.not_made}")
    if result.failed:
        raise Broken(f"in another process: {result.failed}")
    return result.shown, result.keys


def serve() -> None:
    """The other process: read a job from standard input, write the result to standard output."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the environment prints must not mix with the result
    job = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=_Job)
    with out:
        out.write(msgspec.msgpack.encode(_run(job)))


def _run(job: _Job) -> _Result:
    try:
        env = _resolve(job.recipe.module, job.recipe.name)(**job.recipe.kwargs).unwrapped
        assert isinstance(env, ForkableEnv)
    except Exception as error:
        return _Result(not_made=f"{type(error).__name__}: {error}")
    shown, keys = [], []
    for course in reversed(job.courses):  # so that what episodes leave behind is something else than here
        try:
            if course.snapshot is None:
                start = env.reset(seed=course.seed, options={"task": course.task})
            else:
                start = env.restore(Snapshot.from_bytes(course.snapshot))
            shown.append([Shown.first(start), *play(env, course.actions)])
            keys.append(env.state_key())
        except Exception as error:
            return _Result(failed=f"{type(error).__name__}: {error}")
    return _Result(shown=shown[::-1], keys=keys[::-1])
