"""`trace_gym/ToolAPI-v0`: several user turns, tools with state, one action per turn of the environment.

    <tool_call>{"name":"find_contact","arguments":{"name":"Ann"}}</tool_call>      <answer>done</answer>

An action is a tool call or a message. A message, plain text or `<answer>`, closes the user turn: the next message of
the user follows, and after the last one the episode ends. The frozen state holds the world's state and which user turn
is open; what the task is follows from its id. A world (`world.py`) has the tasks, the tools and the judge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

import msgspec
import numpy as np

from trace_gym.env import ForkableEnv, Opening, Tool, Turn
from trace_gym.envs.actions import (
    Answer,
    Call,
    Malformed,
    check_arguments,
    format_tool_result,
    parse_action,
    plain_text,
)
from trace_gym.envs.options import check_max_turns, check_split
from trace_gym.envs.tool_api.world import Episode, WorldOptions, make_world
from trace_gym.errors import SnapshotError, TaskError
from trace_gym.snapshot import plain_bytes

__all__ = ["ToolAPIEnv", "ToolState", "state_type_of"]


class ToolState(msgspec.Struct, frozen=True):
    """Which task, which user turn is open (from 0), and in a subclass for each world: `world`, that world's state."""

    task_id: str
    user_turn: int


@cache
def state_type_of(source: str, world_state: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """`ToolState` with a world's state. The source is its tag, so that states of another source are refused."""
    fields: list[tuple[str, Any]] = [("world", world_state)]
    return msgspec.defstruct("ToolState", fields, bases=(ToolState,), frozen=True, tag=source)


class ToolAPIEnv(ForkableEnv[Any]):
    """Function calling over several user turns, with tools that have state. `info` tells of every turn whether its
    action could not be used (`format_error`), and at the end why it ended so (`judged`).

    `source`: "builtin", "bfcl:base" (miss_func, miss_param, long_context; after `trace-gym data get bfcl`) or
    "openapi:FILE". `split`: which of train, dev, test and all `reset` draws from. `difficulty`: user turns of built-in
    tasks, "1" to "6", a range, easy (1-2), medium (2-4) or hard (4-6). `distractors`: tools beyond those that built-in
    tasks need; by default one per further user turn. `families`: of built-in tasks, "all" or a list such as
    "orders,messages" (see `tasks`). `max_turns`: one turn limit for all tasks instead of what each needs and more.

    Raises `ConfigError` for a setting, `TaskError` for a file that cannot be used.
    """

    env_id: ClassVar[str] = "trace_gym/ToolAPI-v0"
    state_type: type[msgspec.Struct] = ToolState  # type: ignore[misc]  # each instance's own, with its world's state

    def __init__(
        self,
        source: str = "builtin",
        split: str = "train",
        *,
        difficulty: str | int = "1-3",
        distractors: int | None = None,
        families: str = "all",
        max_turns: int | None = None,
    ) -> None:
        super().__init__()
        check_split(split)
        check_max_turns(max_turns)
        self._split = split
        self._max_turns = max_turns
        options = WorldOptions(difficulty=str(difficulty), distractors=distractors, families=families)
        self._world = make_world(str(source), options)
        world_state: Any = self._world.state_type
        self.state_type = state_type_of(str(source), world_state)

    # ---- tasks -----------------------------------------------------------------------------------------

    def tasks(self, split: str) -> Sequence[str]:
        """Ids of train, dev, test or all, in a fixed order. Raises `TaskError` for another split."""
        return self._world.tasks(split)

    def notices(self) -> Sequence[str]:
        return self._world.notices()

    def _draw_task(self) -> str:
        ids = self.tasks(self._split)
        if not ids:
            raise TaskError(f"{self.env_id}: the source's split {self._split!r} is empty; pass split='all'")
        return ids[int(self.np_random.integers(len(ids)))]

    def begin(self, task_id: str, rng: np.random.Generator) -> Opening[Any]:
        episode = self._world.begin(task_id)
        state = self.state_type(task_id=task_id, user_turn=0, world=episode.state)
        limit = self._max_turns or episode.turn_limit
        return Opening(state, episode.messages[0], limit, {"format_error": False})

    def resume(self, state: Any) -> None:
        episode = self._world.begin(state.task_id)
        if not 0 <= state.user_turn < len(episode.messages):
            raise SnapshotError(f"{self.env_id}: {state.task_id} has no user turn {state.user_turn}")

    # ---- turns -----------------------------------------------------------------------------------------

    def advance(self, state: Any, action: str, rng: np.random.Generator) -> Turn[Any]:
        episode = self._world.begin(state.task_id)
        act = parse_action(action)
        if isinstance(act, Malformed) and (said := plain_text(action)):
            act = Answer(said)
        if isinstance(act, Malformed):
            return _unusable(state, act.message)
        if isinstance(act, Answer):
            return self._answered(episode, state, act.text)
        return self._called(episode, state, act)

    def _called(self, episode: Episode[Any], state: Any, act: Call) -> Turn[Any]:
        tools = self._world.tools(episode, state.user_turn)
        tool = next((tool for tool in tools if tool.name == act.name), None)
        if tool is None:
            return _unusable(state, f"there is no tool {act.name!r}")
        schema = tool.parameters if episode.checks_types else _names_only(tool.parameters)
        wrong = check_arguments(schema, act.arguments)
        if wrong is not None:
            return _unusable(state, f"{tool.name}: {wrong}")
        called = self._world.call(episode, state.world, act.name, act.arguments)
        after = state
        if called.state is not state.world:
            after = msgspec.structs.replace(state, world=called.state)
        return Turn.go(
            after,
            format_tool_result(called.observation),
            extra={"format_error": False},
            irreversible=called.effect == "irreversible",
        )

    def _answered(self, episode: Episode[Any], state: Any, text: str) -> Turn[Any]:
        judged = self._world.judge(episode, state.world, state.user_turn, text)
        if judged.success is not None:
            after = msgspec.structs.replace(state, world=judged.state)
            extra = {"format_error": False, "judged": judged.reason}
            shown = "right" if judged.success else "wrong"
            return Turn.end(after, shown, success=judged.success, role="user", extra=extra)
        after = msgspec.structs.replace(state, world=judged.state, user_turn=state.user_turn + 1)
        message = episode.messages[after.user_turn]
        return Turn.go(after, message, role="user", extra={"format_error": False})

    def instructions(self, state: Any) -> str:
        return self._world.begin(state.task_id).instructions

    def tools(self, state: Any) -> Sequence[Tool]:
        return self._world.tools(self._world.begin(state.task_id), state.user_turn)

    # ---- what is known of a situation ------------------------------------------------------------------

    def state_key(self) -> str:
        """Task, open user turn, what the world says matters of its state, turns left, and how it ended."""
        now, state = self._episode(), self.state
        situation = self._world.situation(self._world.begin(state.task_id), state.world)
        left = now.turn_limit - now.turn
        key = (state.task_id, state.user_turn, situation, left, now.status, now.success)
        return hashlib.sha256(plain_bytes(key, self.env_id)).hexdigest()

    def expert_action(self) -> str:
        """The next call that is missing, or the answer to the open user turn."""
        state = self.state
        return self._world.expert_action(self._world.begin(state.task_id), state.world, state.user_turn)

    def novice_action(self, rng: np.random.Generator) -> str:
        """A fallible demonstrator's action, where the world has one."""
        state = self.state
        return self._world.novice_action(self._world.begin(state.task_id), state.world, state.user_turn, rng)

    def close(self) -> None:
        self._world.close()
        super().close()


def _unusable(state: Any, message: str) -> Turn[Any]:
    return Turn.go(state, f"error: {message}", extra={"format_error": True})


def _names_only(schema: dict[str, Any]) -> dict[str, Any]:
    return {"properties": {key: {} for key in schema["properties"]}, "required": schema.get("required", ())}
