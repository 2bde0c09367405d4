"""A world of HTTP tools, described by an OpenAPI document and called under `web`'s bounds.

`recorded` operations are answered from the record, so every fork sees the same answers. An `irreversible` one goes out each
time it is called, and no state after it can be forked; what is asked after it goes out too, for the service has changed.
All answers are recorded with the irreversible calls that came before them: in replay mode a whole episode can be played
again, and nothing goes out.

A task is solved when its required calls have been made, each with success, and the answer is one of those accepted (case,
spaces and a full stop at the end do not count). A service that gives no answer raises `ExternalError`: the rollout is then
lost, never scored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import msgspec
import numpy as np

from trace_gym.env import Tool
from trace_gym.envs.actions import format_answer, format_call
from trace_gym.envs.naming import split_url
from trace_gym.envs.tool_api.openapi_calls import Request, Unusable, request_of, shown, text_of
from trace_gym.envs.tool_api.openapi_document import Operation
from trace_gym.envs.tool_api.openapi_setup import Service, Task, ids_of, read_setup, with_secrets
from trace_gym.envs.tool_api.world import Called, Episode, Judged, WorldOptions
from trace_gym.errors import ConfigError, TaskError

if TYPE_CHECKING:
    from trace_gym.envs.web import Client

__all__ = ["ApiState", "OpenApiWorld", "make"]

SPARE_TURNS = 4


class ApiState(msgspec.Struct, frozen=True):
    """What has been done: required calls by place, digests of what was asked, and of the irreversible calls in order."""

    met: tuple[int, ...] = ()
    asked: tuple[str, ...] = ()
    past: str = ""


def make(rest: str, options: WorldOptions) -> OpenApiWorld:
    """The world of `openapi:FILE[#record=…,mode=…]`. Raises `ConfigError`, or `TaskError` for the tasks file."""
    if options != WorldOptions():
        raise ConfigError("source='openapi:…' takes neither difficulty nor distractors nor families")
    return OpenApiWorld(read_setup(rest))


class OpenApiWorld:
    """The operations of one service as tools. In replay mode it needs neither the service nor its secrets."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._tools = tuple(operation.tool for operation in service.operations.values())
        self._query = ""
        self._secrets: set[str] = set()
        self._client = self._connected() if service.record.mode == "live" else None
        self._episodes = {name: self._episode(task) for name, task in service.tasks.items()}

    # ---- tasks -------------------------------------------------------------------------------------------------

    @property
    def state_type(self) -> type[ApiState]:
        return ApiState

    def tasks(self, split: str) -> Sequence[str]:
        """Ids in the file's order. Raises `TaskError` for an unknown split."""
        return ids_of(self._service.tasks, split)

    def begin(self, task_id: str) -> Episode[ApiState]:
        """Raises `TaskError` for an unknown id."""
        found = self._episodes.get(task_id)
        if found is None:
            raise TaskError(f"unknown task {task_id[:80]!r}; the ids are like {next(iter(self._episodes))!r}")
        return found

    def _episode(self, task: Task) -> Episode[ApiState]:
        return Episode(
            task_id=task.id,
            state=ApiState(),
            messages=(task.question,),
            tools=self._tools,
            turn_limit=len(task.calls) + 1 + SPARE_TURNS,
            instructions=self._service.setup.instructions,
            gold=task,
        )

    def tools(self, episode: Episode[ApiState], user_turn: int) -> tuple[Tool, ...]:
        return self._tools

    # ---- calls -------------------------------------------------------------------------------------------------

    def call(
        self, episode: Episode[ApiState], state: ApiState, name: str, arguments: Mapping[str, Any]
    ) -> Called[ApiState]:
        """Raises `ExternalError` when the service, or in replay mode the record, has no answer."""
        operation = self._service.operations[name]
        try:
            request = request_of(operation, arguments)
        except Unusable as reason:
            return Called(state, f"error: {reason}", "pure")
        answer = self._answer(operation, request, state)
        met = set(state.met)
        if 200 <= answer["status"] < 300:
            met |= {
                n
                for n, call in enumerate(episode.gold.calls)
                if call.name == name and _fits(call.arguments, arguments)
            }
        digest = _digest(request.plain())
        past = _digest([state.past, digest]) if operation.tool.effect == "irreversible" else state.past
        after = ApiState(tuple(sorted(met)), tuple(sorted({*state.asked, digest})), past)
        return Called(after, shown(answer), operation.tool.effect)

    def _answer(self, operation: Operation, request: Request, state: ApiState) -> dict[str, Any]:
        effect = operation.tool.effect
        key = {"service": self._service.base, "effect": effect, "past": state.past, **request.plain()}
        same_for_all = effect == "recorded" and not state.past
        answer: dict[str, Any] = self._service.record.answer(
            key, lambda: self._ask(request, retry=effect == "recorded"), known=same_for_all
        )
        return answer

    def _ask(self, request: Request, *, retry: bool) -> dict[str, Any]:
        assert self._client is not None, "replay mode does not ask"
        joint = "&" if "?" in request.target else "?"
        url = self._service.base + request.target + (joint + self._query if self._query else "")
        reply = self._client.send(request.method, url, body=request.encoded_body(), retry=retry)
        text = text_of(reply.content_type, reply.body)
        for secret in self._secrets:
            text = text.replace(secret, "[secret]") if text is not None else None
        return {
            "status": reply.status,
            "type": reply.content_type[:200],
            "text": text,
            "too_large": reply.too_large,
        }

    def _connected(self) -> Client:
        try:
            from trace_gym.envs.web import Client, Limits
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"calling a service needs {error.name}: pip install 'trace-gym[http]'"
            ) from error
        setup = self._service.setup
        headers, secrets = with_secrets(setup.headers)
        query, more = with_secrets(setup.query)
        self._secrets, self._query = secrets | more, urlencode(query)
        host = split_url(self._service.base).hostname or ""
        limits = Limits(total_s=setup.deadline_s, answer_bytes=setup.answer_bytes)
        return Client(
            [host],
            private_hosts=setup.private_hosts,
            headers={"Accept": "application/json, text/*;q=0.8, */*;q=0.1", **headers},
            limits=limits,
        )

    # ---- judging -----------------------------------------------------------------------------------------------

    def judge(
        self, episode: Episode[ApiState], state: ApiState, user_turn: int, answer: str
    ) -> Judged[ApiState]:
        task: Task = episode.gold
        if len(state.met) < len(task.calls):
            return Judged(state, False, f"{len(state.met)} of {len(task.calls)} required calls")
        right = not task.answers or _normal(answer) in set(map(_normal, task.answers))
        return Judged(state, right, "right" if right else "another answer")

    def expert_action(self, episode: Episode[ApiState], state: ApiState, user_turn: int) -> str:
        """The first required call that is missing, or an accepted answer."""
        task: Task = episode.gold
        for place, call in enumerate(task.calls):
            if place not in state.met:
                return format_call(call.name, call.arguments)
        return format_answer(next(iter(task.answers), "done"))

    def novice_action(
        self, episode: Episode[ApiState], state: ApiState, user_turn: int, rng: np.random.Generator
    ) -> str:
        return self.expert_action(episode, state, user_turn)

    def situation(self, episode: Episode[ApiState], state: ApiState) -> object:
        return (state.met, state.asked, state.past)

    def notices(self) -> Sequence[str]:
        record = self._service.record
        return (f"answers are {'recorded in' if record.mode == 'live' else 'replayed from'} {record.path}",)

    def close(self) -> None:
        self._service.record.close()


def _fits(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether every wanted argument was given as wanted; true is not 1, but 1.0 is 1."""
    return all(name in given and _same(value, given[name]) for name, value in wanted.items())


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _normal(answer: str) -> str:
    return " ".join(answer.split()).casefold().rstrip(".")
