"""Built-in tasks of the office, each a pure function of its id, so that nothing is stored.

An id reads `family/split/depth/index`, such as `office/train/3/17`. The depth is the number of user turns, 1 to 6.
Families: a service's name (requests to it alone), `office` (to all), `asking` (one request lacks a parameter that no
tool can tell: ask, and the next message gives it; from depth 2) and `missing` (one request has no tool: say so). The
id keys a stream of choices (`trace_gym.envs.draws`), repeated until template and values belong to the id's split:

- template: the sequence of kinds and wordings of the requests, placed by a stable hash. At depth 1 the first wording
  of a kind is in train, the second in dev, the third in test;
- values: all that the texts state (names, words, numbers), sorted, placed by a stable hash.

So a task of one split shares neither with any task of another, while every kind and, from depth 2 on, every wording
occurs in train.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from typing import Literal

from trace_gym.envs.draws import Draw, split_of
from trace_gym.envs.tool_api.office import Office, Scene
from trace_gym.envs.tool_api.request_kinds import KINDS, Drawn, Fact, Kind, Question, apply
from trace_gym.envs.tool_api.scenes import draw_scene
from trace_gym.envs.tool_api.services import SERVICES
from trace_gym.errors import ConfigError, TaskError

__all__ = [
    "FAMILIES",
    "MAX_DEPTH",
    "SIZES",
    "Request",
    "Task",
    "TaskName",
    "make_task",
    "read_difficulty",
    "read_families",
    "task_ids",
]

MAX_DEPTH = 6
SIZES = {"train": 8192, "dev": 512, "test": 512}
PRESETS = {"easy": (1, 2), "medium": (2, 4), "hard": (4, 6)}
BY_SERVICE = tuple(dict.fromkeys(kind.service for kind in KINDS.values()))
FAMILIES = ("office", "asking", "missing", *BY_SERVICE)
MIXED = ("office", "office", "asking", "missing")  # what "all" takes turns in
SALT = (
    "office"  # of the templates' hash: chosen so that every family has tasks of every split from depth 2 on
)

_ID = re.compile(rf"({'|'.join(FAMILIES)})/(train|dev|test)/([1-{MAX_DEPTH}])/(0|[1-9][0-9]{{0,8}})")

Expected = Literal["done", "value", "cannot", "ask"]


@dataclass(frozen=True, slots=True)
class Request:
    """One message of the user: what it says, what has to stand afterwards, and what answer it wants."""

    text: str
    expected: Expected
    facts: tuple[Fact, ...] = ()
    slip: tuple[Fact, ...] | None = None
    question: Question | None = None
    lacks: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """A scene, its office at the start, and the requests in order. `required[i]`: the office after request i."""

    id: str
    scene: Scene
    office: Office
    requests: tuple[Request, ...]
    required: tuple[Office, ...]
    tools: tuple[str, ...]  # in a fixed order, distractors not among them
    template: tuple[str, ...]  # kind and wording of each request
    gone: str = ""  # the tool that a request would need and that there is not


@dataclass(frozen=True, slots=True)
class TaskName:
    """What an id says."""

    family: str
    split: str
    depth: int
    index: int

    @classmethod
    def parse(cls, task_id: str) -> TaskName:
        """Raises `TaskError` for anything that is not an id."""
        match = _ID.fullmatch(task_id)
        if match is None:
            raise TaskError(
                f"unknown task {task_id[:80]!r}: ids read family/split/depth/index, such as office/train/3/17; "
                f"families are {', '.join(FAMILIES)}, splits {', '.join(SIZES)}, depths 1 to {MAX_DEPTH}"
            )
        name = cls(match[1], match[2], int(match[3]), int(match[4]))
        if name.family == "asking" and name.depth == 1:
            raise TaskError(
                f"unknown task {task_id!r}: asking takes two user turns, so its depth is 2 or more"
            )
        return name


def read_difficulty(text: str) -> tuple[int, int]:
    """The least and the greatest depth of `text`: "3", "1-4", easy, medium or hard. Raises `ConfigError`."""
    if text in PRESETS:
        return PRESETS[text]
    match = re.fullmatch(rf"([1-{MAX_DEPTH}])(?:-([1-{MAX_DEPTH}]))?", text)
    lowest, highest = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if lowest > highest:
        raise ConfigError(
            f"difficulty {text[:40]!r}: write a number of user turns from 1 to {MAX_DEPTH} such as '3', a range such "
            f"as '1-3', or one of {', '.join(PRESETS)}"
        )
    return lowest, highest


def read_families(text: str) -> tuple[str, ...]:
    """The families that "all" or a list such as "orders,messages" names. Raises `ConfigError`."""
    if text == "all":
        return MIXED
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in FAMILIES:
            raise ConfigError(f"unknown family {name[:40]!r}; there are {', '.join(FAMILIES)} and all")
    return names


@lru_cache(maxsize=64)
def task_ids(split: str, lowest: int, highest: int, families: tuple[str, ...]) -> tuple[str, ...]:
    """The fixed list of a split's tasks. Depths and families take turns, so that every stretch holds all of them."""
    width = highest - lowest + 1
    ids = []
    for place in range(SIZES[split]):
        index, offset = divmod(place, width)
        family, depth = families[index % len(families)], lowest + offset
        if family == "asking" and depth == 1:
            family = "office"
        ids.append(f"{family}/{split}/{depth}/{index}")
    return tuple(ids)


@lru_cache(maxsize=4096)
def make_task(task_id: str) -> Task:
    """The task that the id names. Raises `TaskError` for anything that is not an id."""
    name = TaskName.parse(task_id)
    draw = Draw(task_id)
    for _ in range(20_000):
        plan = _draw_plan(draw, name)
        if plan is None:
            continue
        for _ in range(20):
            task = _fill(draw, name, task_id, plan)
            if task is not None:
                return task
    raise AssertionError(f"no template and values found for {task_id}")


# ---- drawing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """Kinds and wordings, before any value. `special`: the place of the request that lacks something, or -1."""

    kinds: tuple[str, ...]
    wordings: tuple[int, ...]
    special: int = -1

    @property
    def steps(self) -> tuple[str, ...]:
        return tuple(f"{kind} {wording}" for kind, wording in zip(self.kinds, self.wordings, strict=True))


def _draw_plan(draw: Draw, name: TaskName) -> _Plan | None:
    """A plan whose template belongs to the split, or None."""
    count = name.depth - 1 if name.family == "asking" else name.depth
    pool = [key for key, kind in KINDS.items() if kind.service == name.family] or list(KINDS)
    kinds = tuple(draw.one(pool) for _ in range(count))
    wordings = tuple(draw.below(len(KINDS[key].wordings)) for key in kinds)
    special = -1
    if name.family in ("asking", "missing"):
        special = draw.below(count)
        chosen = KINDS[kinds[special]]
        if not (chosen.short if name.family == "asking" else chosen.sole):
            return None
        others = (KINDS[key] for place, key in enumerate(kinds) if place != special)
        if name.family == "missing" and any(chosen.sole in kind.tools for kind in others):
            return None
    plan = _Plan(kinds, wordings, special)
    return plan if _template_split(plan) == name.split else None


def _template_split(plan: _Plan) -> str:
    if len(plan.kinds) == 1:
        return tuple(SIZES)[plan.wordings[0]]
    return split_of(f"{SALT}: {', '.join(plan.steps)}")


def _fill(draw: Draw, name: TaskName, task_id: str, plan: _Plan) -> Task | None:
    """The plan with values in a scene of its own, or None where they do not fit or belong to another split."""
    scene, office = draw_scene(draw)
    requests: list[Request] = []
    required: list[Office] = []
    values: list[str] = []
    now = office
    for place, (key, wording) in enumerate(zip(plan.kinds, plan.wordings, strict=True)):
        kind = KINDS[key]
        drawn = kind.draw(draw, now, scene)
        if drawn is None:
            return None
        values += map(str, drawn.slots.values())
        for request in _messages(name.family if place == plan.special else "", kind, wording, drawn):
            now = reduce(apply, request.facts, now)
            requests.append(request)
            required.append(now)
    if len({request.text for request in requests}) < len(requests):
        return None
    if split_of(" ".join(sorted(values))) != name.split:
        return None
    requests[0] = replace(requests[0], text=f"Day {scene.today}. {requests[0].text}")
    gone = KINDS[plan.kinds[plan.special]].sole if name.family == "missing" else ""
    return Task(
        id=task_id,
        scene=scene,
        office=office,
        requests=tuple(requests),
        required=tuple(required),
        tools=_tools(plan, gone),
        template=plan.steps,
        gone=gone,
    )


def _messages(special: str, kind: Kind, wording: int, drawn: Drawn) -> list[Request]:
    text = kind.wordings[wording].format(**drawn.slots)
    if special == "missing":
        return [Request(text, "cannot")]
    if special == "asking":
        return [
            Request(kind.short.format(**drawn.slots), "ask", lacks=kind.lacks),
            Request(kind.supply.format(**drawn.slots), "done", drawn.facts, drawn.slip),
        ]
    if drawn.question is not None:
        return [Request(text, "value", question=drawn.question)]
    return [Request(text, "done", drawn.facts, drawn.slip)]


def _tools(plan: _Plan, gone: str) -> tuple[str, ...]:
    """All tools of the services that are needed, less the one that is missing."""
    needed = {tool for key in plan.kinds for tool in KINDS[key].tools}
    services = [tools for tools in SERVICES.values() if needed.intersection(tools)]
    return tuple(tool for tools in services for tool in tools if tool != gone)
