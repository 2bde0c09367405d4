"""The multi-turn tasks of the Berkeley Function-Calling Leaderboard v4 (Patil et al. 2025), with states that fork.

Four categories of 200 tasks: `base`, `miss_func` (a function is there only from a later turn on), `miss_param` (a
request lacks a parameter that the next message gives) and `long_context`. Data and API classes come from the package
`bfcl-eval`; of its code nothing else is used.

The verdict is BFCL's own: after each user turn whose gold calls are not none, some call was made, all public attributes
of all API instances equal those of instances that the gold calls drove, and the results of the gold calls of the turn
are among all results so far, counted. A turn that falls short ends the episode, as nothing after it could change that.

Where we differ: one call per action, tools that are not offered cannot be called, no state is shared between model and
gold (see `bfcl_classes`), and a user turn is closed by a message.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trace_gym.data import folder_of
from trace_gym.env import Tool
from trace_gym.envs.actions import format_answer, format_call
from trace_gym.envs.tool_api.bfcl_classes import (
    CLASS_FILES,
    MAX_TREE,
    dump,
    load,
    load_classes,
    new_instance,
    run,
    same_public_state,
    unfolded,
)
from trace_gym.envs.tool_api.world import Called, Episode, Judged, WorldOptions
from trace_gym.errors import ConfigError, TaskError

__all__ = ["CATEGORIES", "BfclState", "BfclWorld", "Gold", "GoldCall", "make", "raw_entry", "read_call"]

CATEGORIES = ("base", "miss_func", "miss_param", "long_context")
TASKS = 200  # of each category
TEST_TASKS = 40  # of them
MORE_TOOLS = "There are more functions now. Can you do it with them?"
INSTRUCTIONS = (
    "Do what the user asks with the functions, one call per turn, and read each result. When a request is done, or "
    "when no function can do it or something is missing for it, say so in plain words: the next message follows."
)
_TYPES = {"dict": "object", "float": "number", "tuple": "array"}  # of their schemas, in JSON schema's words

Nodes = list[Any]


class BfclState(msgspec.Struct, frozen=True):
    """The API instances as plain data (`bfcl_classes.dump`), in the order of the task's classes, and what the verdict
    needs of the past."""

    instances: tuple[Any, ...]
    seen: tuple[
        int, ...
    ]  # how often each of the task's gold results was seen, up to as often as it is needed
    turn: int = 0  # the open user turn
    made: int = 0  # gold calls of the open user turn made so far, in their order
    acted: bool = False  # whether any call was made in the open user turn


@dataclass(frozen=True, slots=True)
class GoldCall:
    """A call with its arguments by name."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Gold:
    """What a task's gold calls lead to, turn by turn."""

    folder: Path
    classes: tuple[str, ...]
    owner: Mapping[str, int]  # function -> place of its class
    tools: tuple[tuple[Tool, ...], ...]  # of each user turn
    calls: tuple[tuple[GoldCall, ...], ...]  # of each user turn
    results: tuple[str, ...]  # different ones
    needed: tuple[tuple[int, ...], ...]  # of each user turn: how often each result
    after: tuple[tuple[Nodes, ...], ...]  # the instances after each user turn


def make(rest: str, options: WorldOptions) -> BfclWorld:
    """The world of `source="bfcl:base"` and so on; `bfcl:all` is all four. Raises `ConfigError`."""
    if rest not in (*CATEGORIES, "all"):
        raise ConfigError(
            f"bfcl has no category {rest[:40]!r}; write bfcl:{', bfcl:'.join(CATEGORIES)} or bfcl:all"
        )
    return BfclWorld(folder_of("bfcl"), CATEGORIES if rest == "all" else (rest,))


class BfclWorld:
    """The tasks of some categories. A fifth of the 200 scenarios, the same in every category, is the test split."""

    state_type = BfclState

    def __init__(self, folder: Path, categories: tuple[str, ...]) -> None:
        self._folder, self._categories = folder, categories

    def tasks(self, split: str) -> Sequence[str]:
        places = _split_places(split)
        return [f"multi_turn_{category}_{place}" for category in self._categories for place in places]

    def begin(self, task_id: str) -> Episode[BfclState]:
        category, _, place = task_id.removeprefix("multi_turn_").rpartition("_")
        known = category in self._categories and place.isdecimal() and place.isascii()
        if not known or task_id != f"multi_turn_{category}_{int(place)}" or int(place) >= TASKS:
            raise TaskError(
                f"unknown task {task_id[:80]!r}: ids read multi_turn_CATEGORY_NUMBER, the numbers go to {TASKS - 1}, "
                f"the categories here are {', '.join(self._categories)}"
            )
        return _episode(self._folder, category, int(place))

    def tools(self, episode: Episode[BfclState], user_turn: int) -> tuple[Tool, ...]:
        gold: Gold = episode.gold
        return gold.tools[user_turn]

    def call(
        self, episode: Episode[BfclState], state: BfclState, name: str, arguments: Mapping[str, Any]
    ) -> Called[BfclState]:
        gold: Gold = episode.gold
        place = gold.owner.get(name)
        if place is None:
            return Called(state, f"Error during execution: name {name!r} is not defined", "pure")
        try:
            instance = load(load_classes(gold.folder), state.instances[place])
        except Exception as error:  # only a state that nobody's call made
            return Called(state, f"error: the snapshot's state is damaged ({type(error).__name__})", "pure")
        result = run(instance, name, arguments)
        after = dump(instance)
        if name in ("cp", "mv") and unfolded(after) >= MAX_TREE:
            result, after = f"error: {name} would nest folders without end", state.instances[place]
        changed = after != state.instances[place]
        instances = state.instances
        if changed:
            instances = (*instances[:place], after, *instances[place + 1 :])
        fields = {"seen": _counted(gold, state.seen, result), "acted": True}
        due = gold.calls[state.turn]
        if state.made < len(due) and due[state.made] == GoldCall(name, dict(arguments)):
            fields["made"] = state.made + 1
        after_call = msgspec.structs.replace(state, instances=instances, **fields)
        return Called(after_call, result, "stateful" if changed else "pure")

    def judge(
        self, episode: Episode[BfclState], state: BfclState, user_turn: int, answer: str
    ) -> Judged[BfclState]:
        gold: Gold = episode.gold
        if gold.calls[user_turn]:
            if not state.acted:
                return Judged(state, False, "no call")
            if any(seen < needed for seen, needed in zip(state.seen, gold.needed[user_turn], strict=True)):
                return Judged(state, False, "a result is missing")
            if not _same_states(gold, state.instances, gold.after[user_turn]):
                return Judged(state, False, "another state")
        if user_turn + 1 == len(gold.calls):
            return Judged(state, True, "all done")
        return Judged(msgspec.structs.replace(state, turn=user_turn + 1, made=0, acted=False), None)

    def expert_action(self, episode: Episode[BfclState], state: BfclState, user_turn: int) -> str:
        """The next gold call of the turn that was not made yet, in their order, or a message when all were. Where other
        calls changed what the gold calls build on, this need not lead to success."""
        gold: Gold = episode.gold
        due = gold.calls[user_turn][state.made :]
        if due:
            return format_call(due[0].name, due[0].arguments)
        return format_answer("done" if gold.calls[user_turn] else "cannot")

    def novice_action(
        self, episode: Episode[BfclState], state: BfclState, user_turn: int, rng: np.random.Generator
    ) -> str:
        return self.expert_action(episode, state, user_turn)

    def situation(self, episode: Episode[BfclState], state: BfclState) -> object:
        return state

    def notices(self) -> Sequence[str]:
        return ()

    def close(self) -> None:
        pass


def _counted(gold: Gold, seen: tuple[int, ...], result: str) -> tuple[int, ...]:
    if result not in gold.results:
        return seen
    place = gold.results.index(result)
    most = max(needed[place] for needed in gold.needed)
    return (*seen[:place], min(seen[place] + 1, most), *seen[place + 1 :])


def _same_states(gold: Gold, instances: Sequence[Nodes], wanted: Sequence[Nodes]) -> bool:
    classes = load_classes(gold.folder)
    for one, other in zip(instances, wanted, strict=True):
        try:
            if one != other and not same_public_state(load(classes, one), load(classes, other)):
                return False
        except Exception:  # a damaged state
            return False
    return True


# ---- tasks ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _split_places(split: str) -> tuple[int, ...]:
    """Numbers of the scenarios of a split, in order; which are in test is decided by a stable hash."""
    by_hash = sorted(range(TASKS), key=lambda place: hashlib.sha256(f"bfcl {place}".encode()).digest())
    places = {"test": by_hash[:TEST_TASKS], "train": by_hash[TEST_TASKS:], "all": by_hash}
    if split not in places:
        raise TaskError(f"bfcl has no split {split!r}; there are {', '.join(sorted(places))}")
    return tuple(sorted(places[split]))


@lru_cache(maxsize=8)
def _entries(folder: Path, category: str) -> tuple[tuple[dict[str, Any], list[list[str]]], ...]:
    """Each task of a category with its gold calls."""
    name = f"BFCL_v4_multi_turn_{category}.json"
    data = folder / "bfcl_eval" / "data"
    lines = [
        path.read_text(encoding="utf-8").splitlines()
        for path in (data / name, data / "possible_answer" / name)
    ]
    return tuple((json.loads(one), json.loads(two)["ground_truth"]) for one, two in zip(*lines, strict=True))


def raw_entry(folder: Path, task_id: str) -> tuple[dict[str, Any], list[list[str]]]:
    """A task as it stands in the data, and its gold calls."""
    category, _, place = task_id.removeprefix("multi_turn_").rpartition("_")
    return _entries(folder, category)[int(place)]


@cache
def _documented(folder: Path, class_name: str) -> tuple[Tool, ...]:
    """The functions of a class, their schemas in JSON schema's words."""
    path = folder / "bfcl_eval" / "data" / "multi_turn_func_doc" / f"{CLASS_FILES[class_name]}.json"
    docs = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return tuple(
        Tool(
            name=doc["name"],
            description=doc["description"],
            parameters=_json_schema(doc["parameters"]),
            effect="stateful",
        )
        for doc in docs
    )


def _json_schema(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_json_schema(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    if not isinstance(kind, str):  # a parameter may be called "type"
        return {key: _json_schema(value) for key, value in schema.items()}
    kept = {key: _json_schema(value) for key, value in schema.items() if key != "type"}
    return kept if kind == "any" else {"type": _TYPES.get(kind, kind), **kept}


def read_call(text: str, classes: Mapping[str, type], owners: Mapping[str, str]) -> GoldCall:
    """A call as BFCL writes it, such as `sort('a.txt')`: a name and literal arguments, nothing else."""
    node = ast.parse(text, mode="eval").body
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name), text
    name = node.func.id
    positional = [ast.literal_eval(value) for value in node.args]
    named = {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg}
    signature = inspect.signature(getattr(classes[owners[name]], name))
    arguments = dict(signature.bind(None, *positional, **named).arguments)
    del arguments["self"]
    return GoldCall(name, arguments)


@lru_cache(maxsize=1024)
def _episode(folder: Path, category: str, place: int) -> Episode[BfclState]:
    entry, gold_texts = _entries(folder, category)[place]
    names = tuple(entry["involved_classes"])
    classes = load_classes(folder)
    functions = {tool.name: (name, tool) for name in names for tool in _documented(folder, name)}
    owners = {key: name for key, (name, _) in functions.items()}
    calls = tuple(tuple(read_call(text, classes, owners) for text in turn) for turn in gold_texts)
    long = category == "long_context"
    start = tuple(
        dump(new_instance(classes, name, entry["initial_config"].get(name, {}), long=long)) for name in names
    )
    owner = {key: names.index(name) for key, name in owners.items()}
    after, results = _drive(classes, owner, start, calls)
    distinct = tuple(dict.fromkeys(result for turn in results for result in turn))
    counts = [Counter(turn) for turn in results]
    tools = _tools_by_turn(entry, [tool for _, tool in functions.values()], calls)
    gold = Gold(
        folder=folder,
        classes=names,
        owner=owner,
        tools=tools,
        calls=calls,
        results=distinct,
        needed=tuple(tuple(count[result] for result in distinct) for count in counts),
        after=after,
    )
    return Episode(
        task_id=entry["id"],
        state=BfclState(start, (0,) * len(distinct)),
        messages=tuple(turn[0]["content"] if turn else MORE_TOOLS for turn in entry["question"]),
        tools=tools[0],
        turn_limit=2 * sum(map(len, calls)) + len(calls) + 4,
        instructions=INSTRUCTIONS,
        checks_types=False,  # a wrong type is for their functions to answer to
        gold=gold,
    )


def _drive(
    classes: Mapping[str, type],
    owner: Mapping[str, int],
    start: tuple[Nodes, ...],
    calls: tuple[tuple[GoldCall, ...], ...],
) -> tuple[tuple[tuple[Nodes, ...], ...], list[list[str]]]:
    """The instances after each user turn of gold calls, and the calls' results."""
    instances = [load(classes, nodes) for nodes in start]
    after, results = [], []
    for turn in calls:
        results.append([run(instances[owner[call.name]], call.name, call.arguments) for call in turn])
        after.append(tuple(dump(instance) for instance in instances))
    return tuple(after), results


def _tools_by_turn(
    entry: Mapping[str, Any], tools: list[Tool], calls: tuple[tuple[GoldCall, ...], ...]
) -> tuple[tuple[Tool, ...], ...]:
    """The functions of each user turn: one that is missed is there from the turn on that names it, or that the gold
    calls first use it in (in one task that is earlier)."""
    first = {name: int(turn) for turn, names in entry.get("missed_function", {}).items() for name in names}
    for turn, due in enumerate(calls):
        first.update({call.name: min(turn, first.get(call.name, 0)) for call in due})
    return tuple(tuple(t for t in tools if first.get(t.name, 0) <= turn) for turn in range(len(calls)))
