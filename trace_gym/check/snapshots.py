"""The rules about snapshots: restored anywhere they go on the same, whatever happens elsewhere."""

from __future__ import annotations

import contextlib
import pickletools
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import msgspec
import numpy as np

from trace_gym.check.probe import (
    GARBAGE,
    AnyEnv,
    Episode,
    Shown,
    Subject,
    difference,
    play,
    record,
    scripted,
    snapshot_if_allowed,
)
from trace_gym.check.process import Course, continue_elsewhere, recipe_of
from trace_gym.check.rules import Broken, Unexercised, expect, refuses, rule
from trace_gym.env import ForkableEnv, Snapshot
from trace_gym.errors import IrreversibleError, TraceGymError

__all__: list[str] = []

SEEDS = range(6)


# ---- restoring --------------------------------------------------------------------------------------------


@rule
def plain_state(subject: Subject) -> None:
    """The state is a frozen msgspec struct of plain data, and holds no pickle."""
    declared = subject.env.state_type
    expect(issubclass(declared, msgspec.Struct), f"state_type {declared.__name__} is no msgspec.Struct")
    expect(
        declared.__struct_config__.frozen, f"{declared.__name__} is not frozen: declare it with frozen=True"
    )
    subject.env.reset(seed=0, options={"task": subject.some_tasks()[0]})
    subject.env.snapshot().to_bytes()
    for episode, turn, snapshot in _forks(subject):
        kind = type(snapshot.state).__name__
        expect(isinstance(snapshot.state, declared), f"{episode.at(turn)}: the state is of type {kind}")
        pickled = any(map(_is_pickle, _byte_strings(msgspec.msgpack.decode(snapshot.to_bytes()))))
        expect(not pickled, f"{episode.at(turn)}: the state holds pickled bytes")


@rule
def restore(subject: Subject) -> None:
    """The instance that a snapshot was taken from, restored to it, shows the same and goes on the same."""
    env = subject.env
    for episode in subject.episodes:
        again = record(env, episode.task, episode.seed, scripted(episode), max_turns=len(episode.actions))
        for turn, snapshot in reversed(list(again.forks())):
            _goes_on(env, snapshot, episode, turn)


@rule
def restore_from_bytes(subject: Subject) -> None:
    """A snapshot equals what comes back from its bytes, and the snapshot taken after restoring that."""
    env = subject.env
    for episode, turn, snapshot in _forks(subject):
        decoded = Snapshot.from_bytes(snapshot.to_bytes())
        expect(decoded == snapshot, f"{episode.at(turn)}: the snapshot differs from its decoded bytes")
        env.restore(decoded)
        changed = ", ".join(_changed_fields(snapshot, env.snapshot()))
        expect(not changed, f"{episode.at(turn)}: restoring the bytes changes {changed}")
        _goes_on(env, decoded, episode, turn)


@rule
def new_instance(subject: Subject) -> None:
    """A new instance, restored to a snapshot, shows the same and goes on the same."""
    for episode in subject.episodes:
        env = subject.new()
        for turn, snapshot in episode.forks():
            _goes_on(env, Snapshot.from_bytes(snapshot.to_bytes()), episode, turn)


@rule
def new_process(subject: Subject) -> None:
    """A new process, reset or restored to a snapshot, shows the same and goes on the same."""
    recipe = recipe_of(subject)
    resets = [(episode, 0, None) for episode in subject.episodes]
    places = [*resets, *_forks(subject)]
    results, keys = continue_elsewhere(recipe, [_course_elsewhere(*place) for place in places])
    for (episode, turn, snapshot), shown, key in zip(places, results, keys, strict=True):
        how = "restored to" if snapshot else "reset to"
        if different := difference(shown, _expected(episode, turn), turn=turn):
            raise Broken(f"{how} {episode.at(turn)}: {different}{_hint(subject.env, episode)}")
        expect(key == episode.keys[-1], f"{how} {episode.at(turn)}: state_key() differs at the end")


def _course_elsewhere(episode: Episode, turn: int, snapshot: Snapshot | None) -> Course:
    data = snapshot.to_bytes() if snapshot else None
    return Course(episode.task, episode.seed, episode.actions[turn:], data)


@rule
def restore_with_seed(subject: Subject) -> None:
    """`restore(seed=)` is fixed by its seed and replaces the generator; without it the stored noise goes on."""
    env = subject.env
    for episode, turn, snapshot in _forks(subject):
        first, other, again = (_fresh(env, snapshot, seed, episode.actions[turn:]) for seed in (1, 2, 1))
        different = difference(again[1], first[1])
        expect(not different, f"{episode.at(turn)}, seed 1 again: {different}")
        expect(first[0] != other[0], f"{episode.at(turn)}: two seeds leave np_random in the same state")
        _goes_on(env, snapshot, episode, turn)


@rule
def fresh_noise(subject: Subject) -> None:
    """Different seeds give different courses of events, where there is any noise."""
    env = subject.env
    for episode, turn, snapshot in _forks(subject):
        courses = [_fresh(env, snapshot, seed, episode.actions[turn:])[1] for seed in SEEDS]
        if any(difference(course, courses[0]) for course in courses):
            return
    raise Unexercised("no environment noise was seen; is it deterministic after reset?")


def _fresh(env: AnyEnv, snapshot: Snapshot, seed: int, actions: Sequence[str]) -> tuple[object, list[Shown]]:
    start = Shown.first(env.restore(snapshot, seed=seed))
    return env.snapshot().generator, [start, *play(env, actions)]


@rule
def state_keys(subject: Subject) -> None:
    """`state_key` is the same after a restore, from memory or bytes, whatever the generator."""
    env = subject.env
    for episode, turn, snapshot in _forks(subject):
        for how, value, seed in (
            ("restoring", snapshot, None),
            ("restoring its bytes", Snapshot.from_bytes(snapshot.to_bytes()), None),
            ("restoring with a seed", snapshot, 1),
        ):
            env.restore(value, seed=seed)
            expect(isinstance(env.state_key(), str), f"{episode.at(turn)}: state_key() is no string")
            expect(
                env.state_key() == episode.keys[turn], f"{episode.at(turn)}: state_key() differs after {how}"
            )


@rule
def bad_snapshots(subject: Subject) -> None:
    """Corrupt bytes, and snapshots of another environment or version, raise nothing but TraceGymError."""
    env = subject.env
    _, _, good = next(_forks(subject))
    for stranger in ({"env_id": "nobody/Knows-v0"}, {"schema_version": good.schema_version + 1}):
        strange = msgspec.structs.replace(good, **stranger)
        refuses(lambda strange=strange: env.restore(strange), f"restore() of {stranger}")  # type: ignore[misc]
    for data in _damaged(good.to_bytes()):
        try:
            env.restore(Snapshot.from_bytes(data))
        except TraceGymError:
            continue
        except Exception as error:
            raise Broken(f"damaged bytes raise {type(error).__name__}: {error}") from error


def _damaged(data: bytes) -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    for place in rng.integers(len(data), size=100):
        yield data[:place]
        yield data[:place] + bytes([data[place] ^ (1 << int(rng.integers(8)))]) + data[place + 1 :]


# ---- isolation --------------------------------------------------------------------------------------------


@rule
def forks(subject: Subject) -> None:
    """`fork` gives another instance in the same state, and is refused past an irreversible tool call."""
    env = subject.env
    for episode, turn, snapshot in _forks(subject):
        env.restore(snapshot)
        twin = env.fork()
        expect(
            twin is not env and type(twin) is type(env), f"{episode.at(turn)}: fork() gives no other instance"
        )
        expect(twin.snapshot() == snapshot, f"{episode.at(turn)}: the fork is in another state")
        different = difference(play(twin, episode.actions[turn:]), episode.shown[turn + 1 :], turn=turn + 1)
        expect(not different, f"{episode.at(turn)}, in a fork: {different}")
    for episode in (episode for episode in subject.episodes if None in episode.snapshots):
        env.reset(seed=episode.seed, options={"task": episode.task})
        play(env, episode.actions)
        with contextlib.suppress(IrreversibleError):
            env.fork()
            raise Broken(
                f"{episode.at(len(episode.actions))}: fork() past an irreversible tool call is allowed"
            )


@rule
def siblings(subject: Subject) -> None:
    """Forks stepped one after the other or by turns, and their parent after them, go on as if alone."""
    loner, parent = subject.another(), subject.env
    for episode, turn, snapshot in _forks(subject):
        ways = (episode.actions[turn:], (*GARBAGE, *reversed(episode.actions[turn:])))
        alone = [_course(loner, snapshot, way) for way in ways]
        parent.restore(snapshot)
        for order in ("first, second", "second, first", "by turns"):
            pair = [parent.fork(), parent.fork()]
            for which, course in enumerate(_together(pair, ways, order)):
                different = difference(course, alone[which], turn=turn + 1)
                expect(not different, f"{episode.at(turn)}, two forks, {order}: {different}")
        different = difference(play(parent, ways[0]), alone[0], turn=turn + 1)
        expect(not different, f"{episode.at(turn)}, after its forks: {different}")


def _course(env: AnyEnv, snapshot: Snapshot, actions: Sequence[str]) -> list[Shown]:
    env.restore(snapshot)
    return play(env, actions)


def _together(pair: Sequence[AnyEnv], ways: Sequence[Sequence[str]], order: str) -> list[list[Shown]]:
    courses: list[list[Shown]] = [[], []]
    turns = [[(0, action) for action in ways[0]], [(1, action) for action in ways[1]]]
    if order == "by turns":
        sequence = [move for both in zip_longest(*turns) for move in both if move is not None]
    else:
        sequence = turns[0] + turns[1] if order == "first, second" else turns[1] + turns[0]
    for which, action in sequence:
        if not (courses[which] and courses[which][-1].ended):
            courses[which] += play(pair[which], [action])
    return courses


@rule
def no_aliasing(subject: Subject) -> None:
    """Neither changing what was returned nor stepping on changes the environment or an earlier snapshot."""
    env = subject.env
    for episode in subject.episodes:
        returned: tuple[Any, ...] = env.reset(seed=episode.seed, options={"task": episode.task})
        shown, kept = [Shown.first((returned[0], returned[-1]))], [snapshot_if_allowed(env)]
        for action in episode.actions:
            _wipe(returned[-1])
            returned = env.step(action)
            shown.append(Shown.next(returned))
            kept.append(snapshot_if_allowed(env))
        different = difference(shown, episode.shown)
        expect(not different, f"{episode.at(0)}, after changes to the returned info: {different}")
        for turn, snapshot in enumerate(kept):
            same = snapshot is None or snapshot.digest == episode.digests[turn]
            expect(
                same, f"{episode.at(turn)}: later steps changed the snapshot; the state holds a list or dict"
            )


def _wipe(value: object) -> None:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _wipe(item)
        value.clear()


# ---- helpers ----------------------------------------------------------------------------------------------


def _forks(subject: Subject) -> Iterator[tuple[Episode, int, Snapshot]]:
    for episode in subject.episodes:
        for turn, snapshot in episode.forks():
            yield episode, turn, snapshot


def _goes_on(env: AnyEnv, snapshot: Snapshot, episode: Episode, turn: int) -> None:
    """Raise `Broken` unless `env`, restored to `snapshot`, shows what `episode` showed from `turn` on."""
    shown = [Shown.first(env.restore(snapshot)), *play(env, episode.actions[turn:])]
    if different := difference(shown, _expected(episode, turn), turn=turn):
        raise Broken(f"restored to {episode.at(turn)}: {different}{_hint(env, episode)}")


def _expected(episode: Episode, turn: int) -> list[Shown]:
    """What restoring at `turn` shows: the info of that turn, the instructions, and the tools of the day."""
    info = {"system": episode.shown[0].info.get("system"), **episode.shown[turn].info}
    for shown in episode.shown[: turn + 1]:
        info["tools"] = shown.info.get("tools", info.get("tools"))
    return [Shown(observation=episode.shown[turn].observation, info=info), *episode.shown[turn + 1 :]]


def _changed_fields(left: Snapshot, right: Snapshot) -> Iterator[str]:
    for name in Snapshot.__struct_fields__:
        before, after = (
            msgspec.msgpack.encode(getattr(s, name), order="deterministic") for s in (left, right)
        )  # equal dicts may hold their keys in another order
        if before != after:
            yield name


def _hint(env: AnyEnv, episode: Episode) -> str:
    """The attributes that an episode changes beside the state: likely what a restore cannot bring back."""
    if type(env).resume is not ForkableEnv.resume:  # it drives something that stands in its attributes
        return ""
    before = _attributes(env)
    with contextlib.suppress(Exception):
        env.reset(seed=episode.seed + 1, options={"task": episode.task})
        play(env, episode.actions)
    after = _attributes(env)
    changed = sorted(name for name, value in after.items() if before.get(name) != value)
    return f" (outside the state it changes {', '.join(changed)})" if changed else ""


class _Blank(ForkableEnv[Any]):
    """An environment with no attributes but those that all have."""


def _attributes(env: AnyEnv) -> dict[str, str]:
    """What the environment's own attributes, and those of its classes, look like now."""
    shared = {name for attributes in (*map(vars, _Blank.__mro__), vars(_Blank())) for name in attributes}
    classes = [vars(cls) for cls in type(env).__mro__ if cls not in ForkableEnv.__mro__]
    own = {name: value for attributes in (*classes, vars(env)) for name, value in attributes.items()}
    return {name: _look(value) for name, value in own.items() if name not in shared}


def _look(value: object) -> str:
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    return repr(value)[:4_000]


def _byte_strings(value: object) -> Iterator[bytes]:
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _byte_strings(item)


def _is_pickle(data: bytes) -> bool:
    if not (data.startswith(b"\x80") and data.endswith(b".")):
        return False
    try:
        return len(list(pickletools.genops(data))) > 1  # reads, never runs
    except Exception:
        return False
