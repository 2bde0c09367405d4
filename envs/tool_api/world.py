"""What a world of tools has to provide, and how `source=` finds one.

A world is a set of pure functions over a frozen state. It owns no episode: the environment keeps the state, the open
user turn and the turn count, so that one world serves any number of forks at once, in any thread.

Invariant: equal arguments give equal results, whatever was called before, in this process or another. A world whose
tools are external keeps this with a record of answers, and says `recorded` (or `irreversible`) in `Called.effect`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol

import numpy as np

from trace_gym.env import Effect, Tool
from trace_gym.errors import ConfigError
from trace_gym.snapshot import StateT

__all__ = ["WORLDS", "Called", "Episode", "Judged", "World", "WorldOptions", "make_world"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode(Generic[StateT]):
    """What a task is, apart from how far it has come. A pure function of the task's id, never stored in a snapshot.

    `gold` is the world's own: what it judges and demonstrates by.
    """

    task_id: str
    state: StateT  # of the world, at the start
    messages: tuple[
        str, ...
    ]  # of the user, at least one; each but the first answers the agent's last message
    tools: tuple[Tool, ...]  # at the start; see `World.tools`
    turn_limit: int  # of the environment: actions, tool calls and messages alike; with room for wasted ones
    instructions: str
    checks_types: bool = (
        True  # False where a tool's own answer to arguments of a wrong type is part of the task
    )
    gold: Any = None


@dataclass(frozen=True, slots=True)
class Called(Generic[StateT]):
    """What a tool call led to. `effect` is what it did this time: a `stateful` tool that answered with an error
    had none (`pure`). After `irreversible` the episode cannot be forked."""

    state: StateT
    observation: str
    effect: Effect


@dataclass(frozen=True, slots=True)
class Judged(Generic[StateT]):
    """The verdict on a finished user turn. `success` is None while the outcome is open and there are messages left;
    a bool ends the episode. `reason` is for people, a few words, and does not show the solution."""

    state: StateT
    success: bool | None
    reason: str = ""


class World(Protocol[StateT]):
    """Tasks, tools and a judge. `episode` is always what `begin` gave for the task; `user_turn` counts from 0.

    No method changes its arguments. `call` and `judge` raise nothing, whatever the text and the arguments; any
    failure of a tool is an observation.
    """

    @property
    def state_type(self) -> type[StateT]:
        """The frozen msgspec struct of the state."""

    def tasks(self, split: str) -> Sequence[str]:
        """Ids of train, dev, test or all, in a fixed order. Raises `TaskError` for a split that there is not."""

    def begin(self, task_id: str) -> Episode[StateT]:
        """The task of this id; asked for at every step, so cache it. Raises `TaskError` when there is none."""

    def tools(self, episode: Episode[StateT], user_turn: int) -> tuple[Tool, ...]:
        """The tools there are in `user_turn`; mostly `episode.tools`. Equal tools must be the same objects."""

    def call(
        self, episode: Episode[StateT], state: StateT, name: str, arguments: Mapping[str, Any]
    ) -> Called[StateT]:
        """Call a tool. The environment has checked that there is such a tool now, and its arguments against the
        schema (`actions.check_arguments`: required ones, names, and if the episode `checks_types`, types and enums).
        A world behind a service raises `ExternalError` where there is no answer to be had."""

    def judge(self, episode: Episode[StateT], state: StateT, user_turn: int, answer: str) -> Judged[StateT]:
        """The agent closed `user_turn` with the message `answer`. In the last turn `success` must be a bool."""

    def expert_action(self, episode: Episode[StateT], state: StateT, user_turn: int) -> str:
        """An action towards success while `state` is still solvable. Raises `ConfigError` where there is none."""

    def novice_action(
        self, episode: Episode[StateT], state: StateT, user_turn: int, rng: np.random.Generator
    ) -> str:
        """What a fallible demonstrator does; `expert_action` where there is no better."""

    def situation(self, episode: Episode[StateT], state: StateT) -> object:
        """What of `state` matters for what is to come, as plain data: equal for equal situations (`state_key`)."""

    def notices(self) -> Sequence[str]:
        """What a person should know about the tasks, a line each."""

    def close(self) -> None:
        """Let go of files and connections; called when the environment is closed. Forks may still use the world,
        so it opens again what it needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldOptions:
    """The environment's options that concern a world; one that knows better refuses what it cannot use."""

    difficulty: str = "1-3"
    distractors: int | None = None
    families: str = "all"


WORLDS: dict[
    str, str
] = {  # what stands before the colon in `source` -> module:function(rest, options) -> World
    "builtin": "trace_gym.envs.tool_api.builtin:make",
    "bfcl": "trace_gym.envs.tool_api.bfcl:make",
    "openapi": "trace_gym.envs.tool_api.openapi:make",
}


def make_world(source: str, options: WorldOptions) -> World[Any]:
    """The world that `source` names, such as "builtin", "bfcl:base" or "openapi:FILE". Raises `ConfigError`."""
    prefix, _, rest = source.partition(":")
    if prefix not in WORLDS:
        raise ConfigError(f"unknown source {source[:80]!r}; there are {', '.join(WORLDS)}")
    module, _, name = WORLDS[prefix].partition(":")
    make: Callable[[str, WorldOptions], World[Any]] = getattr(importlib.import_module(module), name)
    return make(rest, options)
