"""What `check_env` drives an environment with: fixed episodes, what they showed, and ways to make new instances.

Invariant: everything recorded is a plain copy, so that nothing the environment does later can change it, and all
choices come from one seeded generator, so that two checks of one environment ask the same questions.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import msgspec
import numpy as np

from trace_gym.check.rules import Unexercised
from trace_gym.env import ForkableEnv, Snapshot
from trace_gym.errors import ConfigError, EnvironmentContractError, IrreversibleError, TraceGymError

__all__ = [
    "GARBAGE",
    "NOT_PLAIN",
    "AnyEnv",
    "Episode",
    "Given",
    "Maker",
    "Policy",
    "Shown",
    "Subject",
    "ToolCall",
    "difference",
    "expert",
    "play",
    "record",
    "scripted",
    "snapshot_if_allowed",
    "stumbling",
    "tool_calls",
]

AnyEnv = ForkableEnv[Any]
Maker = Callable[[], gymnasium.Env[str, str]]
Given = str | gymnasium.Env[str, str] | Maker

GARBAGE = ("", "no such thing", "<tool_call>{not json}</tool_call>")
NOT_PLAIN = "not plain data:"
MAX_TURNS = 10  # of a recorded episode; longer ones are left unfinished
SEED = 20


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """What one call of `reset`, `restore` or `step` returned, as plain data."""

    observation: Any
    info: Any
    reward: Any = 0.0
    terminated: Any = False
    truncated: Any = False

    @classmethod
    def first(cls, returned: tuple[str, dict[str, Any]]) -> Shown:
        return cls(observation=_plain(returned[0]), info=_plain(returned[1]))

    @classmethod
    def next(cls, returned: tuple[Any, ...]) -> Shown:
        observation, reward, terminated, truncated, info = map(_plain, returned)
        return cls(
            observation=observation, info=info, reward=reward, terminated=terminated, truncated=truncated
        )

    @property
    def ended(self) -> bool:
        return bool(self.terminated or self.truncated)


def _plain(value: object) -> Any:
    if isinstance(value, str):
        return value
    try:
        return msgspec.msgpack.decode(msgspec.msgpack.encode(value, enc_hook=_stand_in))
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.DecodeError) as error:
        return f"{NOT_PLAIN} {error}"


def _stand_in(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else f"{NOT_PLAIN} {type(value).__name__}"


def difference(actual: Sequence[Shown], wanted: Sequence[Shown], *, turn: int = 0) -> str:
    """The first difference between two courses of events, in words; "" when there is none."""
    for number, (got, want) in enumerate(zip(actual, wanted, strict=False), start=turn):
        for name in Shown.__struct_fields__:
            left, right = getattr(got, name), getattr(want, name)
            if left != right and repr(left) != repr(right):  # nan differs from itself
                return f"turn {number} shows the {name} {_apart(left, right)}"
    if len(actual) != len(wanted):
        return f"it ends after {turn + len(actual) - 1} turns instead of {turn + len(wanted) - 1}"
    return ""


def _apart(left: object, right: object) -> str:
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted(left.keys() | right.keys(), key=str):
            if left.get(key, _NOTHING) != right.get(key, _NOTHING):
                return f"{key!r}: {_apart(left.get(key, _NOTHING), right.get(key, _NOTHING))}"
    return f"{_brief(left)} instead of {_brief(right)}"


_NOTHING = type("Nothing", (), {"__repr__": lambda self: "nothing"})()


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:60]}…{text[-30:]}"


@dataclass(frozen=True, slots=True)
class Episode:
    """A recorded episode: `actions` [n] led to `shown`, `snapshots`, `digests` and `keys` [n + 1]."""

    task: str
    seed: int
    actions: tuple[str, ...]
    shown: tuple[Shown, ...]
    snapshots: tuple[Snapshot | None, ...]  # None past an irreversible tool call
    digests: tuple[str, ...]  # as of the turn; "" without a snapshot
    keys: tuple[str, ...]

    @property
    def ended(self) -> bool:
        return self.shown[-1].ended

    def forks(self) -> Iterator[tuple[int, Snapshot]]:
        """(turn, snapshot) at the start, in the middle and before the last action."""
        last = max(len(self.actions) - 1, 0)
        for turn in sorted({0, last // 2, last}):
            if (snapshot := self.snapshots[turn]) is not None:
                yield turn, snapshot

    def at(self, turn: int) -> str:
        return f"task {self.task!r:.60}, seed {self.seed}, turn {turn}"


Policy = Callable[[AnyEnv, Sequence[Shown]], str]  # given what was shown so far


def play(env: AnyEnv, actions: Iterable[str]) -> list[Shown]:
    """What `env` shows for `actions`, from where it stands, up to the end of the episode."""
    shown: list[Shown] = []
    for action in actions:
        shown.append(Shown.next(env.step(action)))
        if shown[-1].ended:
            break
    return shown


def record(env: AnyEnv, task: str, seed: int, policy: Policy, *, max_turns: int = MAX_TURNS) -> Episode:
    """Play one episode and keep everything."""
    shown = [Shown.first(env.reset(seed=seed, options={"task": task}))]
    actions: list[str] = []
    snapshots = [snapshot_if_allowed(env)]
    digests, keys = [_digest(snapshots[0])], [env.state_key()]
    while not shown[-1].ended and len(actions) < max_turns:
        actions.append(policy(env, shown))
        shown += play(env, actions[-1:])
        snapshots.append(snapshot_if_allowed(env))
        digests.append(_digest(snapshots[-1]))
        keys.append(env.state_key())
    return Episode(task, seed, tuple(actions), tuple(shown), tuple(snapshots), tuple(digests), tuple(keys))


def snapshot_if_allowed(env: AnyEnv) -> Snapshot | None:
    """A snapshot; None past an irreversible tool call."""
    try:
        return env.snapshot()
    except IrreversibleError:
        return None


def _digest(snapshot: Snapshot | None) -> str:
    return snapshot.digest if snapshot else ""


# ---- policies ----------------------------------------------------------------------------------------------


def expert(env: AnyEnv, shown: Sequence[Shown]) -> str:
    """The scripted solution. Raises `Unexercised` where the environment has none."""
    try:
        return env.expert_action()
    except (NotImplementedError, ConfigError) as error:
        raise Unexercised(f"there is no scripted solution ({type(error).__name__}: {error})") from error


def scripted(episode: Episode) -> Policy:
    """What was done in `episode`."""
    return lambda env, shown: episode.actions[len(shown) - 1]


def stumbling(env: AnyEnv, shown: Sequence[Shown]) -> str:
    """A wasted turn, then the scripted solution."""
    return GARBAGE[0] if len(shown) == 1 else expert(env, shown)


def wandering(rng: np.random.Generator, skill: float, known: Sequence[str]) -> Policy:
    """With chance `skill` the scripted solution; else a tool call with arguments of the right types, a word that
    was shown, a `known` action from another situation, or garbage."""

    def act(env: AnyEnv, shown: Sequence[Shown]) -> str:
        if rng.random() < skill:
            with contextlib.suppress(Unexercised, TraceGymError):  # there is no solution, or none any more
                return expert(env, shown)
        calls = [call.text for call in tool_calls(env, rng)]
        words = [word.strip(".,:;?!") for one in shown for word in str(one.observation).split()[:50]]
        kinds = [kind for kind in (calls, words, known, GARBAGE) if kind]
        kind = kinds[int(rng.integers(len(kinds)))]
        return kind[int(rng.integers(len(kind)))]

    return act


class ToolCall(NamedTuple):
    name: str
    arguments: dict[str, Any]

    @property
    def text(self) -> str:
        """The call in the Hermes form."""
        return f"<tool_call>{json.dumps(self._asdict())}</tool_call>"


def tool_calls(env: AnyEnv, rng: np.random.Generator) -> list[ToolCall]:
    """A call of each tool that there is now, with arguments made up from its JSON schema."""
    words = (*env.instructions(env.state).split()[:50], "0")
    calls = []
    for tool in env.tools(env.state):
        properties = tool.parameters.get("properties", {})
        arguments = {name: _argument(schema, words, rng) for name, schema in properties.items()}
        calls.append(ToolCall(tool.name, arguments))
    return calls


def _argument(schema: dict[str, Any], words: Sequence[str], rng: np.random.Generator) -> Any:
    if choices := schema.get("enum"):
        return choices[int(rng.integers(len(choices)))]
    number = int(rng.integers(1, 4))
    made: dict[str, Any] = {"integer": number, "number": number, "boolean": True, "array": [], "object": {}}
    kind = schema.get("type")
    return made.get(kind if isinstance(kind, str) else "", words[int(rng.integers(len(words)))])


# ---- the environment under test ----------------------------------------------------------------------------


class Subject:
    """The environment under test, the means to make more of it, and the episodes recorded from it."""

    def __init__(self, given: Given, *, max_tasks: int) -> None:
        self.given = given
        self.maker, self.no_maker = _maker(given)
        self.outer = given if isinstance(given, gymnasium.Env) else self._made()
        self.env = _forkable(self.outer)
        self.max_tasks = max_tasks
        self._to_close: list[gymnasium.Env[str, str]] = []
        self._recorded: tuple[list[Episode], Exception | None] | None = None

    def new(self) -> AnyEnv:
        """An instance that has not been used. Raises `Unexercised` where none can be made."""
        if self.maker is None:
            raise Unexercised(self.no_maker)
        made = self._made()
        self._to_close.append(made)
        return _forkable(made)

    def another(self) -> AnyEnv:
        """A new instance where one can be made, else the one there is."""
        return self.env if self.maker is None else self.new()

    def close(self) -> None:
        """Close every instance that was made here."""
        made = self._to_close if self.outer is self.given else [*self._to_close, self.outer]
        for env in made:
            env.close()

    def some_tasks(self) -> list[str]:
        """The first and last tasks of the train split, and the first of the test split if there is one."""
        train = list(self.env.tasks("train"))
        picked = [*train[: (self.max_tasks + 1) // 2], *train[::-1][: self.max_tasks // 2]]
        with contextlib.suppress(TraceGymError):
            picked += list(self.env.tasks("test"))[:1]
        if not picked:
            raise Unexercised("there are no tasks")
        return list(dict.fromkeys(picked))

    @property
    def episodes(self) -> list[Episode]:
        """Those that could be played. Raises `Unexercised` when none could."""
        episodes, _ = self.recorded()
        if not episodes:
            raise Unexercised("no episode could be played")
        return episodes

    def recorded(self) -> tuple[list[Episode], Exception | None]:
        """Four per task: solved, solved after a wasted turn (both where there is a solution), two wandering;
        and the first error that ended one."""
        if self._recorded is None:
            self._recorded = self._record()
        return self._recorded

    def _record(self) -> tuple[list[Episode], Exception | None]:
        rng = np.random.default_rng(SEED)
        episodes: list[Episode] = []
        failure: Exception | None = None
        tasks = self.some_tasks()
        for way in (expert, stumbling, 0.5, 0.0):
            known = sorted({action for episode in episodes for action in episode.actions})
            policy = wandering(rng, way, known) if isinstance(way, float) else way
            for task in tasks:
                try:
                    episodes.append(record(self.env, task, SEED + len(episodes), policy))
                except Unexercised:
                    continue
                except Exception as error:
                    failure = failure or error
        return episodes, failure

    def _made(self) -> gymnasium.Env[str, str]:
        assert self.maker is not None
        try:
            return self.maker()
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise ConfigError(f"{self.given!r} cannot be made: {error}") from error


def _maker(given: Given) -> tuple[Maker | None, str]:
    """What makes further instances; or None and the reason."""
    if isinstance(given, str):
        return lambda: gymnasium.make(given), ""
    if not isinstance(given, gymnasium.Env):
        return given, ""
    if (spec := given.spec) is not None:
        return lambda: gymnasium.make(spec), ""
    cls = type(given)
    if not inspect.signature(cls).parameters:
        return cls, ""
    return (
        None,
        f"{cls.__name__} takes arguments: pass its id, or a function that makes one, instead of an instance",
    )


def _forkable(env: gymnasium.Env[str, str]) -> AnyEnv:
    inner = env.unwrapped
    if isinstance(inner, ForkableEnv):
        return inner
    name = type(inner).__name__
    raise EnvironmentContractError(
        f"{name} is no ForkableEnv; trace_gym.ReplayEnv makes one of a seeded text env"
    )
