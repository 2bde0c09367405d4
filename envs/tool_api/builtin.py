"""The built-in world: tasks in the office, judged by the office that they leave behind and by the answers.

A task is a success when, after its last user turn, the office holds just what the requests require (in whatever way
that came about; anything more or less is a failure), and every user turn was closed with a right answer. A wrong answer
ends the episode, for nothing after it can make it a success.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

from trace_gym.env import Tool
from trace_gym.envs.actions import Answer, Call, parse_action
from trace_gym.envs.draws import Draw
from trace_gym.envs.tool_api.office import Office, Scene
from trace_gym.envs.tool_api.plan import expert_action, novice_action
from trace_gym.envs.tool_api.services import BALANCE_SHOWN, TOOLS, call
from trace_gym.envs.tool_api.tasks import (
    SIZES,
    Request,
    Task,
    make_task,
    read_difficulty,
    read_families,
    task_ids,
)
from trace_gym.envs.tool_api.world import Called, Episode, Judged, WorldOptions
from trace_gym.errors import ConfigError, TaskError

__all__ = ["BuiltinWorld", "OfficeState", "answers", "make"]

INSTRUCTIONS = (
    "Do what the user asks with the tools, one call per turn, such as "
    '<tool_call>{"name":"find_contact","arguments":{"name":"Ann"}}</tool_call>, and read its result. Look ids up; '
    "do nothing that was not asked for. When a request is done, answer <answer>done</answer>, or with what was asked "
    "for alone; the next request follows. If no tool can do it, answer <answer>cannot</answer>. If it lacks something "
    "that no tool can tell, ask for it, such as <answer>which day?</answer>. Day 3 in 2 days is day 5."
)
SPARE_TURNS = 2  # that a task allows beyond those it needs, and one more per user turn
MAX_DISTRACTORS = 12
SLIP, NOISE = 0.5, 0.03  # of the novice

_REFUSAL = re.compile(
    r"\b(can ?not|can't|could not|couldn't|unable|not able|impossible|not possible|no tool)\b"
)
_ASKS = {
    "amount": re.compile(r"\b(amount|how much|how many|number|quantity)\b"),
    "day": re.compile(r"\b(day|date|when)\b"),
    "person": re.compile(r"\b(person|who|whom|name|contact|recipient)\b"),
    "city": re.compile(r"\b(city|where|town)\b"),
}


class OfficeState(msgspec.Struct, frozen=True):
    """The office, and the ids that lookups have shown (sorted): what an agent need not look up again."""

    office: Office
    seen: tuple[int, ...] = ()


def make(rest: str, options: WorldOptions) -> BuiltinWorld:
    """The world of `source="builtin"`. Raises `ConfigError`."""
    if rest:
        raise ConfigError(f"the source 'builtin' takes nothing after it, not {rest[:40]!r}")
    return BuiltinWorld(options)


class BuiltinWorld:
    """Tasks of the depths and families that the options name. Any built-in id can be asked for."""

    state_type = OfficeState

    def __init__(self, options: WorldOptions) -> None:
        self._depths = read_difficulty(options.difficulty)
        self._families = read_families(options.families)
        count = options.distractors
        if count is not None and (type(count) is not int or not 0 <= count <= MAX_DISTRACTORS):
            raise ConfigError(f"distractors is a whole number from 0 to {MAX_DISTRACTORS}, not {count!r}")
        self._distractors = count

    def tasks(self, split: str) -> Sequence[str]:
        if split == "all":
            return [task_id for each in SIZES for task_id in self.tasks(each)]
        if split not in SIZES:
            raise TaskError(f"unknown split {split!r}; there are {', '.join(SIZES)} and all")
        return task_ids(split, *self._depths, self._families)

    def begin(self, task_id: str) -> Episode[OfficeState]:
        return _episode(task_id, self._distractors)

    def tools(self, episode: Episode[OfficeState], user_turn: int) -> tuple[Tool, ...]:
        return episode.tools

    def call(
        self, episode: Episode[OfficeState], state: OfficeState, name: str, arguments: Mapping[str, Any]
    ) -> Called[OfficeState]:
        task: Task = episode.gold
        result = call(state.office, task.scene, name, arguments)
        seen = state.seen
        if result.office is not state.office:
            seen = tuple(known for known in seen if known != BALANCE_SHOWN)  # it may be another one now
        if not set(result.shown) <= set(seen):
            seen = tuple(sorted({*seen, *result.shown}))
        after = state
        if result.office is not state.office or seen != state.seen:
            after = OfficeState(result.office, seen)
        return Called(after, result.text, result.effect)

    def judge(
        self, episode: Episode[OfficeState], state: OfficeState, user_turn: int, answer: str
    ) -> Judged[OfficeState]:
        task: Task = episode.gold
        if not answers(task.requests[user_turn], answer):
            return Judged(state, False, "wrong answer")
        if user_turn + 1 < len(task.requests):
            return Judged(state, None)
        if situation(state.office, task.scene) != situation(task.required[-1], task.scene):
            return Judged(state, False, "not what was asked for")
        return Judged(state, True, "all done")

    def expert_action(self, episode: Episode[OfficeState], state: OfficeState, user_turn: int) -> str:
        return expert_action(episode.gold, state.office, state.seen, user_turn)

    def novice_action(
        self,
        episode: Episode[OfficeState],
        state: OfficeState,
        user_turn: int,
        rng: np.random.Generator,
        *,
        slip: float = SLIP,
        noise: float = NOISE,
    ) -> str:
        return novice_action(episode.gold, state.office, state.seen, user_turn, rng, slip=slip, noise=noise)

    def situation(self, episode: Episode[OfficeState], state: OfficeState) -> object:
        return state

    def notices(self) -> Sequence[str]:
        return ()

    def close(self) -> None:
        pass


def answers(request: Request, text: str) -> bool:
    """Whether `text` is a right answer to the request, apart from what was done."""
    said = " ".join(text.casefold().replace("’", "'").split())
    refuses = _REFUSAL.search(said) is not None
    match request.expected:
        case "cannot":
            return refuses
        case "ask":
            return not refuses and _ASKS[request.lacks].search(said) is not None
        case "value":
            return not refuses and _tells(request, said)
    return not refuses


def _tells(request: Request, said: str) -> bool:
    """Whether the value is in the text as a word and none beside it that could have been meant instead."""
    question = request.question
    assert question is not None
    words = set(re.findall(r"\w+", said))
    if question.value.isdigit():
        return {word for word in words if word.isdigit()} == {question.value}
    return question.value.casefold() in words and not words.intersection(map(str.casefold, question.others))


def situation(office: Office, scene: Scene) -> tuple[object, ...]:
    """What counts of an office at the end: neither the ids of what was made, nor in which order it came about."""

    def known(row_id: int) -> int:
        return 0 if row_id in scene.fresh else row_id

    return (
        sorted((row.name, row.city) for row in office.contacts),
        sorted((row.id, row.folder, row.shared) for row in office.files),
        sorted((row.title, row.day, row.hour) for row in office.events),
        sorted((known(row.id), row.item, row.quantity, row.status) for row in office.orders),
        sorted((known(row.id), row.trip, row.status) for row in office.bookings),
        sorted((message.to, message.text) for message in office.messages),
        sorted((payment.to, payment.amount) for payment in office.payments),
    )


@lru_cache(maxsize=4096)
def _episode(task_id: str, distractors: int | None) -> Episode[OfficeState]:
    task = make_task(task_id)
    count = len(task.requests) - 1 if distractors is None else distractors
    return Episode(
        task_id=task_id,
        state=OfficeState(task.office),
        messages=tuple(request.text for request in task.requests),
        tools=_with_distractors(task, count),
        turn_limit=_turns_needed(task) + len(task.requests) + SPARE_TURNS,
        instructions=INSTRUCTIONS,
        gold=task,
    )


def _with_distractors(task: Task, count: int) -> tuple[Tool, ...]:
    """The task's tools and `count` others, in one fixed order; never the one that is missing on purpose."""
    needed = set(task.tools)
    pool = [name for name in TOOLS if name not in needed and name != task.gone]
    chosen = needed.union(Draw(f"{task.id} distractors").some(pool, min(count, len(pool))))
    return tuple(tool for name, tool in TOOLS.items() if name in chosen)


def _turns_needed(task: Task) -> int:
    """How many actions the expert takes."""
    office, seen, turns = task.office, set[int](), 0
    for user_turn in range(len(task.requests)):
        while isinstance(act := parse_action(expert_action(task, office, tuple(seen), user_turn)), Call):
            result = call(office, task.scene, act.name, act.arguments)
            if result.office is not office:
                seen.discard(BALANCE_SHOWN)
            office, turns = result.office, turns + 1
            seen.update(result.shown)
            assert turns < 100, task.id
        assert isinstance(act, Answer)
        turns += 1
    return turns
