"""A person plays an environment: what was typed goes in, what to show comes out.

A line is an action; `:name` is a command, `=x` an answer and `!tool key=value` a tool call. A `Game` keeps the path from
the opening to the present as snapshots, and the forks that the person set as whole paths, so going back is `restore` and
nothing else. Invariant: the environment is in the last state of `path`; going back is exact, generator included, so the
same actions lead to the same answers.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from trace_gym.env import ForkableEnv, Info, Snapshot
from trace_gym.envs.actions import format_answer, format_call
from trace_gym.errors import ConfigError, EpisodeError, IrreversibleError, PluginError, TraceGymError
from trace_gym.text import clean_text

__all__ = ["Game", "Said"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Said:
    """Something to show: who says it (`note` is the game itself) and what."""

    label: str
    text: str


@dataclass(frozen=True, slots=True)
class _Point:
    """A state on the path."""

    snapshot: Snapshot | None  # None past an irreversible tool
    total: float = 0.0  # rewards so far
    ended: bool = False


class Game:
    """One person, one environment. `enter` and `new` give what to show; they raise `TraceGymError` for a mistake."""

    def __init__(self, env: ForkableEnv[Any], *, seed: int | None = None) -> None:
        self.env = env
        self.path: tuple[_Point, ...] = ()
        self.forks: list[tuple[_Point, ...]] = []
        self._tools: list[dict[str, Any]] = []
        self._seed = seed  # of the next reset only: later ones go on with the generator
        self._novice = np.random.default_rng(seed)

    # ---- what can be typed ------------------------------------------------------------------------------------------

    def enter(self, typed: str, *, verbatim: bool = False) -> Iterator[Said]:
        """Carry out what was typed; a verbatim entry is an action whatever it starts with."""
        text = typed.strip()
        if verbatim:
            yield from self._act(typed)
        elif text.startswith(":"):
            yield from self._command(text[1:])
        elif text.startswith("="):
            yield from self._act(_answer(text[1:].strip()), "you")
        elif text.startswith("!"):
            yield from self._act(_call(text[1:], self._tools), "you")
        elif text:
            yield from self._act(typed)

    def _command(self, text: str) -> Iterator[Said]:
        word, _, rest = text.partition(" ")
        matches = [name for name in COMMANDS if name.startswith(word)]
        if len(matches) != 1 and word not in COMMANDS:
            known = ", ".join(f":{name}" for name in matches or COMMANDS)
            raise ConfigError(f":{word} {'may be any of' if matches else 'is no command; there are'} {known}")
        argument, command = rest.strip(), COMMANDS[word if word in COMMANDS else matches[0]]
        if argument and not command.argument:
            raise ConfigError(f":{word} takes nothing after it")
        yield from command.run(self, argument)

    def new(self, task: str | None = None) -> Iterator[Said]:
        """Begin `task`, or one that the environment draws."""
        options = None if task is None else {"task": task}
        observation, info = self._asked(lambda: self.env.reset(seed=self._seed, options=options))
        self._seed = None
        self.path, self.forks = (self._point(0.0, False),), []
        yield from self._scene(observation, info)

    def reopen(self, path: Sequence[tuple[Snapshot | None, float]]) -> Iterator[Said]:
        """Enter an episode that was played before: for each turn from the opening on, its snapshot and its reward. The last
        turn is the present, whose noise goes on unless the game has a seed. Tells the setting, not what was said."""
        last, total = path[-1][0], 0.0
        assert last is not None, "an episode is entered at a snapshot"
        seed, self._seed = self._seed, None
        _, info = self._asked(lambda: self.env.restore(last, seed=seed))
        points = []
        for snapshot, reward in path:
            total += reward
            points.append(_Point(snapshot, total))
        self.path, self.forks = tuple(points), []
        yield from self._setting(info)

    def _act(self, action: str, who: str = "") -> Iterator[Said]:
        """One turn. `who` is shown to have done it, where that was not just typed."""
        self._refuse_ended()
        if who:
            yield Said(who, action)
        observation, reward, terminated, truncated, info = self._asked(
            lambda: self.env.step(clean_text(action))
        )
        total = self.path[-1].total + reward
        self.path += (self._point(total, terminated or truncated),)
        yield Said(info["role"], observation)
        if "tools" in info:
            self._tools = info["tools"]
            yield Said("note", "the tools have changed: :tools lists them")
        if terminated or truncated:
            yield self._ending(info, truncated)
        else:
            gained = f"reward {reward:g}, " if reward else ""
            yield Said("note", gained + self.turns_left())

    # ---- commands ---------------------------------------------------------------------------------------------------

    def expert(self, _: str = "") -> Iterator[Said]:
        self._refuse_ended()
        yield from self._act(self._asked(self.env.expert_action), "expert")

    def hint(self, _: str = "") -> Iterator[Said]:
        self._refuse_ended()
        yield Said("expert", self._asked(self.env.expert_action))

    def novice(self, _: str = "") -> Iterator[Said]:
        self._refuse_ended()
        yield from self._act(self._asked(lambda: self.env.novice_action(self._novice)), "novice")

    def fork(self, _: str = "") -> Iterator[Said]:
        if self.path[-1].snapshot is None:
            raise IrreversibleError("an irreversible tool was called; no state after it can be forked")
        if not self.forks or self.forks[-1] is not self.path:
            self.forks.append(self.path)
        yield Said("note", f"fork {len(self.forks)} set at turn {self._turn}; :back returns to it")

    def back(self, argument: str = "") -> Iterator[Said]:
        path = self._turns_back(argument) if argument else self._last_fork()
        snapshot = path[-1].snapshot
        if snapshot is None:
            raise IrreversibleError("an irreversible tool was called before that turn; go further back")
        observation, info = self._asked(lambda: self.env.restore(snapshot))
        self.path, self._tools = path, info["tools"]
        yield Said("note", f"back at turn {self._turn}")
        yield Said(info["role"], observation)
        yield Said("note", self.turns_left())

    def tools(self, _: str = "") -> Iterator[Said]:
        yield Said("tools", "\n".join(map(_signature, self._tools)) or "none: answer in words")

    def state(self, _: str = "") -> Iterator[Said]:
        snapshot = self._opening
        yield Said(
            "note",
            f"task {snapshot.task_id}\nturn {self._turn} of {snapshot.turn_limit}, reward so far {self.path[-1].total:g}\n"
            f"forks at turns {', '.join(str(len(path) - 1) for path in self.forks) or '(none)'}\n"
            f"state key {self._asked(self.env.state_key)}",
        )

    def help(self, _: str = "") -> Iterator[Said]:
        rows = [(f":{name} {c.argument}".rstrip(), c.help) for name, c in COMMANDS.items()]
        yield Said("help", "\n".join(f"{form:<12}  {text}" for form, text in (*TYPED, *rows)))

    # ---- helpers ----------------------------------------------------------------------------------------------------

    @property
    def _turn(self) -> int:
        return len(self.path) - 1

    @property
    def _opening(self) -> Snapshot:
        opening = self.path[0].snapshot
        assert opening is not None, "no tool was called before the opening"
        return opening

    def turns_left(self) -> str:
        """How far it is to the end, in words."""
        left = self._opening.turn_limit - self._turn
        return "the episode is over here" if self.path[-1].ended else f"{left} turn{'s' * (left != 1)} left"

    def _point(self, total: float, ended: bool) -> _Point:
        try:
            return _Point(self._asked(self.env.snapshot), total, ended)
        except IrreversibleError:
            return _Point(None, total, ended)

    def _scene(self, observation: str, info: Info) -> Iterator[Said]:
        yield from self._setting(info)
        yield Said(info["role"], observation)
        yield Said("note", self.turns_left())

    def _setting(self, info: Info) -> Iterator[Said]:
        self._tools = info["tools"]
        yield Said("note", f"{self.env.env_id}, task {info['task_id']}")
        if info["system"]:
            yield Said("system", info["system"])
        if self._tools:
            yield from self.tools()

    def _ending(self, info: Info, truncated: bool) -> Said:
        end = "solved" if info.get("success") else "cut at the turn limit" if truncated else "not solved"
        total = self.path[-1].total
        return Said(
            "note", f"the episode is over: {end}, reward {total:g}, turn {self._turn}; :back, :new or :quit"
        )

    def _refuse_ended(self) -> None:
        if self.path[-1].ended:
            raise EpisodeError(
                "the episode is over; :back goes to the last fork, :back 1 a turn back, :new to a new task"
            )

    def _turns_back(self, argument: str) -> tuple[_Point, ...]:
        if not (argument.isascii() and argument.isdecimal() and len(argument) < 9):
            raise ConfigError(f":back {argument}: it takes a number of turns, or nothing for the last fork")
        if not 1 <= int(argument) <= self._turn:
            raise ConfigError(f":back {argument}: there are {self._turn} turns to go back")
        return self.path[: -int(argument)]

    def _last_fork(self) -> tuple[_Point, ...]:
        """The last fork; the one before it when nothing was played since."""
        if len(self.forks) > 1 and self.forks[-1] is self.path:
            self.forks.pop()
        if not self.forks:
            raise ConfigError("there is no fork; :fork sets one, and :back 1 goes one turn back")
        return self.forks[-1]

    def _asked(self, question: Callable[[], T]) -> T:
        """What the environment says. Raises `PluginError` for whatever it raises that is no `TraceGymError`."""
        try:
            return question()
        except TraceGymError:
            raise
        except NotImplementedError as error:
            raise PluginError(f"{self.env.env_id} does not implement this") from error
        except Exception as error:  # a stranger's code: anything may come out of it
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise PluginError(f"{self.env.env_id} raised {text} (--debug shows where)") from error


@dataclass(frozen=True, slots=True)
class _Command:
    run: Callable[[Game, str], Iterator[Said]]
    help: str
    argument: str = ""  # as :help shows it; empty where the command takes none


COMMANDS: Mapping[str, _Command] = {
    "expert": _Command(Game.expert, "play the expert's action"),
    "hint": _Command(Game.hint, "show the expert's action without playing it"),
    "novice": _Command(Game.novice, "play what a fallible beginner does"),
    "fork": _Command(Game.fork, "mark this state"),
    "back": _Command(Game.back, "return to the last fork (again: the one before), or N turns back", "[N]"),
    "tools": _Command(Game.tools, "list the tools"),
    "state": _Command(Game.state, "task, turn, forks and the state's key"),
    "new": _Command(
        lambda game, task: game.new(task or None), "begin another task, or the one named", "[TASK]"
    ),
    "help": _Command(Game.help, "this list"),
    "quit": _Command(lambda game, _: iter(()), "stop; so does Ctrl-D"),
}
TYPED = (
    ("text", "is the action; a \\ at the end of a line goes on with the next line"),
    ("<<<", "begins an action of several lines, taken as they are; >>> on its own line ends it"),
    ("=56", "submits <answer>56</answer>"),
    ("!tool k=v", 'calls a tool; quote what has spaces: !solve equation="3x + 5 = 20" variable=x'),
)


# ---- shorthand to actions -------------------------------------------------------------------------------------------


def _answer(text: str) -> str:
    try:
        return format_answer(text)
    except ValueError as error:
        raise ConfigError(f"={text}: write an answer after =, such as =56") from error


def _call(text: str, tools: list[dict[str, Any]]) -> str:
    """The call that `tool key=value …` stands for; a value is text unless the tool's schema says otherwise."""
    try:
        name, *words = shlex.split(text) or [""]
        pairs = [word.partition("=") for word in words]
        if not name or not all(key and equals for key, equals, _ in pairs):
            raise ValueError("write !tool key=value")
        types = _types(name, tools)
        return format_call(name, {key: _value(value, types.get(key)) for key, _, value in pairs})
    except ValueError as error:
        raise ConfigError(f'!{text}: {error}; such as !search query="two words"') from error


def _value(text: str, kind: object) -> Any:
    """`text` as the JSON that the schema asks for; text where it is none, for the environment to judge."""
    if kind in (None, "string"):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _types(tool: str, tools: list[dict[str, Any]]) -> dict[str, Any]:
    """Argument -> the JSON type that the tool's schema gives it."""
    functions = {schema["function"]["name"]: schema["function"] for schema in tools}
    properties = functions.get(tool, {}).get("parameters", {}).get("properties", {})
    return {name: p.get("type") if isinstance(p, dict) else None for name, p in properties.items()}


def _signature(tool: dict[str, Any]) -> str:
    """`name(argument: type, …)  what it does`; a `?` marks an argument that may be left out."""
    function = tool["function"]
    required = function["parameters"].get("required", ())
    arguments = ", ".join(
        f"{name}{'' if name in required else '?'}: {kind if isinstance(kind, str) else json.dumps(kind or 'any')}"
        for name, kind in _types(function["name"], [tool]).items()
    )
    return f"{function['name']}({arguments})  {function['description']}"
