"""The file behind `source="openapi:FILE"`: which document, which service, which tasks, what may happen.

    document: petstore.yaml               # OpenAPI 3, YAML or JSON; paths are relative to this file
    tasks: tasks.jsonl                    # {"question": …, "answer": …, "calls": [{"name": …, "arguments": {…}}]} a line
    server: https://petstore.example/v1   # default: the document's own, if its host is among `hosts`
    operations: [listPets, addPet]        # default: all of the document's
    effects: {searchPets: recorded}       # default: GET recorded, everything else irreversible
    headers: {Authorization: "Bearer ${PETSTORE_TOKEN}"}
    record: petstore.sqlite
    mode: live                            # or replay

`${NAME}` is an environment variable: a secret, which is sent and never shown, recorded or part of a state.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

import msgspec

from trace_gym.env import Effect, clean_text
from trace_gym.envs.actions import check_arguments, format_answer, format_call
from trace_gym.envs.naming import split_name, split_url
from trace_gym.envs.options import SPLITS
from trace_gym.envs.record import Mode, Record, default_path
from trace_gym.envs.tool_api.openapi_document import Operation, operations, read_document, read_yaml
from trace_gym.errors import ConfigError, TaskError

__all__ = ["Call", "Service", "Setup", "Task", "ids_of", "read_setup", "read_tasks", "with_secrets"]

INSTRUCTIONS = "Use the tools to do what the user asks, one call a turn. When you are done, finish with <answer>…</answer>."
MIN_SECRET_CHARS = 8  # a shorter one could not be kept out of answers
MAX_TASKS_BYTES = 64 << 20
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class Setup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file's settings; the module says what they mean."""

    document: str
    tasks: str
    server: str | None = None
    hosts: tuple[str, ...] = ()
    private_hosts: tuple[str, ...] = ()  # names among them that may stand for private addresses
    operations: tuple[str, ...] | None = None
    effects: dict[str, Literal["recorded", "irreversible"]] = {}
    headers: dict[str, str] = {}
    query: dict[str, str] = {}  # added to every request
    record: str | None = None
    mode: Mode = "live"
    deadline_s: float = 30.0
    answer_bytes: int = 1 << 20
    instructions: str = INSTRUCTIONS


class Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call that a task requires; arguments that it does not name are free."""

    name: str
    arguments: dict[str, Any] = {}


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line of the tasks file: what is asked, an accepted answer or several, and calls that must have been made."""

    question: str
    id: str = ""
    answer: str | tuple[str, ...] = ()
    calls: tuple[Call, ...] = ()
    split: Literal["train", "dev", "test"] = "train"

    @property
    def answers(self) -> tuple[str, ...]:
        return (self.answer,) if isinstance(self.answer, str) else self.answer


@dataclass(frozen=True, slots=True)
class Service:
    """Everything that the file names, read."""

    setup: Setup
    base: str  # the server's URL without a slash at its end
    operations: Mapping[str, Operation]
    tasks: Mapping[str, Task]
    record: Record


def read_setup(source: str) -> Service:
    """What `FILE[#record=…,mode=…]` names. Raises `ConfigError`, or `TaskError` for the tasks."""
    name, options = split_name(source, ("record", "mode"))
    if not name:
        raise ConfigError("source='openapi:' needs a file: openapi:FILE")
    path = Path(name)
    raw = read_yaml(path)
    if isinstance(raw, dict) and ("openapi" in raw or "swagger" in raw):
        raise ConfigError(
            f"{path} is an OpenAPI document; name a file that says 'document: {path.name}' and 'tasks: FILE' instead"
        )
    try:
        setup = msgspec.convert(raw, Setup)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not 0 < setup.deadline_s <= 3600 or not 0 < setup.answer_bytes <= 64 << 20:
        raise ConfigError(f"{path}: deadline_s is up to 3600, answer_bytes up to {64 << 20}")
    document = read_document(path.parent / setup.document)
    effects = cast(Mapping[str, Effect], setup.effects)
    offered = operations(
        document, only=setup.operations, effects=effects, headers=setup.headers, query=setup.query
    )
    record = options.get("record") or (str(path.parent / setup.record) if setup.record else None)
    return Service(
        setup=setup,
        base=_server(setup, document, path),
        operations=offered,
        tasks=read_tasks(path.parent / setup.tasks, offered),
        record=Record(
            record or default_path(f"openapi-{path.stem}"), mode=cast(Mode, options.get("mode", setup.mode))
        ),
    )


def _server(setup: Setup, document: Mapping[str, Any], path: Path) -> str:
    url = setup.server
    if url is None:
        servers = document.get("servers")
        first = servers[0] if isinstance(servers, list) and servers else {}
        url = first.get("url") if isinstance(first, dict) else None
        host = urlsplit(url).hostname if isinstance(url, str) and "{" not in url else None
        if not isinstance(url, str) or not host:
            raise ConfigError(
                f"{path}: say where the service is, for its document does not: server: https://…"
            )
        if host.lower() not in {name.lower() for name in setup.hosts}:
            raise ConfigError(
                f"{path}: the document's server is {host[:100]}; if you trust it, add it to 'hosts'"
            )
    parts = split_url(url)
    if parts.query or parts.fragment or "{" in url:
        raise ConfigError(f"{path}: the server's URL ends with its path, and holds no {{variable}}")
    return url.rstrip("/")


def with_secrets(values: Mapping[str, str]) -> tuple[dict[str, str], set[str]]:
    """`values` with `${NAME}` replaced by environment variables, and those secrets. Raises `ConfigError`."""
    secrets: set[str] = set()

    def secret(match: re.Match[str]) -> str:
        value = os.environ.get(match[1], "")
        if len(value) < MIN_SECRET_CHARS:
            raise ConfigError(
                f"the environment variable {match[1]} is not set, or has fewer than {MIN_SECRET_CHARS} characters; "
                "set it, or use mode=replay"
            )
        secrets.add(value)
        return value

    return {name: _VARIABLE.sub(secret, value) for name, value in values.items()}, secrets


# ---- tasks ---------------------------------------------------------------------------------------------------------


def read_tasks(path: Path, offered: Mapping[str, Operation]) -> dict[str, Task]:
    """The tasks of a JSONL file by id, which is `name/line` unless given. Raises `TaskError`, naming the line."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TASKS_BYTES + 1)
    except OSError as error:
        raise TaskError(f"cannot read the task file {path}: {error.strerror}; check the path") from error
    if len(data) > MAX_TASKS_BYTES:
        raise TaskError(f"{path} has more than {MAX_TASKS_BYTES:,} bytes")
    tasks: dict[str, Task] = {}
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if not line.strip():
            continue
        try:
            task = msgspec.json.decode(line, type=Task)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise TaskError(f"{path}, line {number}: {error}") from error
        wrong = _wrong(task, offered)
        if wrong is not None:
            raise TaskError(f"{path}, line {number}: {wrong}")
        task_id = task.id or f"{path.stem}/{number}"
        if task_id in tasks:
            raise TaskError(f"{path}, line {number}: the id {task_id[:80]!r} stands twice")
        tasks[task_id] = msgspec.structs.replace(task, id=task_id)
    if not tasks:
        raise TaskError(f"{path} holds no task")
    return tasks


def _wrong(task: Task, offered: Mapping[str, Operation]) -> str | None:
    if not task.question.strip() or task.question != clean_text(task.question):
        return "the question is empty, or not clean text"
    if not task.answers and not task.calls:
        return "it has neither an answer nor calls to judge by"
    for call in task.calls:
        operation = offered.get(call.name)
        if operation is None:
            return f"there is no operation {call.name[:64]!r}; there are {', '.join(offered)[:300]}"
        wrong = check_arguments(operation.tool.parameters, call.arguments)
        if wrong is not None:
            return f"{call.name}: {wrong}"
    try:
        for answer in task.answers:
            format_answer(answer)
        for call in task.calls:
            format_call(call.name, call.arguments)
    except ValueError as error:
        return str(error)
    return None


def ids_of(tasks: Mapping[str, Task], split: str) -> Sequence[str]:
    """The ids of a split in the file's order. Raises `TaskError` for an unknown one."""
    if split not in SPLITS:
        raise TaskError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    return tuple(name for name, task in tasks.items() if split in ("all", task.split))
