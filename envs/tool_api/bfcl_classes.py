"""The API classes of BFCL: loaded from the data folder under private names, and held as plain data between calls.

`dump` turns an instance into a flat list of nodes that refer to each other by number, `load` makes an instance again:
what the instance shares or cycles through (directories and their parents, copies of directories) comes back so. `run`
calls a method with plain arguments. Text of a model is only ever an argument: it never reaches `eval`, and the method
is looked up among those that the class documents.

Invariant: nothing of a call outlives it but the instance it was made on. The classes' own leaks are closed here: default
arguments that are lists are made anew for each call, mpmath's precision is a context of their own, decimal's is local,
today is a fixed day, and numbers that would make a call endless are refused.
"""

from __future__ import annotations

import array
import copy
import datetime
import decimal
import importlib.util
import inspect
import json
import random
import sys
import threading
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

__all__ = ["CLASS_FILES", "dump", "load", "load_classes", "new_instance", "run", "same_public_state"]

CLASS_FILES = {  # class -> module of it, and of its documentation
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TwitterAPI": "posting_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "VehicleControlAPI": "vehicle_control",
}
STATELESS = ("MathAPI",)
SOURCES = "bfcl_eval.eval_checker.multi_turn_eval.func_source_code"
TODAY = datetime.datetime(2026, 3, 23)  # the day of the data's release
MAX_PRECISION = 1_000  # digits
MAX_POWER_BITS = 20_000
MAX_TREE = 100_000  # files and folders of a file system, counted through every way to them
NOT_KEPT = ("_api_description", "_last_modified")  # attributes that no method reads

_loading = threading.Lock()
_calling = threading.Lock()  # their modules hold dictionaries that calls write to


# ---- loading -------------------------------------------------------------------------------------------------------


@cache
def load_classes(folder: Path) -> Mapping[str, type]:
    """The API classes and what their instances are made of, by name, from the data folder. `sys.path` and
    `sys.modules` are left as they were."""
    source = folder.joinpath(*SOURCES.split("."))
    shared = f"{SOURCES}.long_context"
    with _loading:
        before = sys.modules.get(shared)
        sys.modules[shared] = _load_module(source / "long_context.py")
        try:
            modules = {name: _load_module(source / f"{file}.py") for name, file in CLASS_FILES.items()}
        finally:
            del sys.modules[shared]
            if before is not None:
                sys.modules[shared] = before
    _close_leaks(modules)
    files = modules["GorillaFileSystem"]
    parts = {name: getattr(files, name) for name in ("File", "Directory")}
    return {name: getattr(module, name) for name, module in modules.items()} | parts


def _load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_trace_gym_bfcl_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _FixedDay(datetime.datetime):
    @classmethod
    def today(cls) -> _FixedDay:
        return cls(*TODAY.timetuple()[:3])


def _close_leaks(modules: Mapping[str, Any]) -> None:
    import mpmath

    own = mpmath.MPContext()
    modules["MathAPI"].mpmath = SimpleNamespace(mp=own, log=own.log)
    modules["TravelAPI"].datetime = _FixedDay


def new_instance(classes: Mapping[str, type], name: str, config: Mapping[str, Any], *, long: bool) -> object:
    """An instance of the class with a scenario loaded."""
    instance = classes[name]()
    if name not in STATELESS:
        instance._load_scenario(copy.deepcopy(config), long_context=long)
    return instance


# ---- calling -------------------------------------------------------------------------------------------------------


def run(instance: object, name: str, arguments: Mapping[str, Any]) -> str:
    """What BFCL's executor would show for this call; whatever goes wrong is told in the text."""
    method = getattr(instance, name)
    with _calling, decimal.localcontext():
        try:
            _refuse_endless(name, arguments)
            bound = inspect.signature(method).bind(**arguments)
            bound.apply_defaults()
            # Copies: some methods keep what they are given, or their default lists, and change it later.
            own = {key: copy.deepcopy(value) for key, value in bound.arguments.items()}
            return _as_text(method(**own))
        except Exception as error:  # a stranger's method on a model's arguments: anything may come out of it
            return f"Error during execution: {error}"


def _as_text(result: object) -> str:
    if isinstance(result, str):
        return result
    if type(result) is dict:
        try:
            return json.dumps(result)
        except (TypeError, ValueError):
            return str(result)
    return str(result)


def _refuse_endless(name: str, arguments: Mapping[str, Any]) -> None:
    for key in ("precision", "decimal_places"):
        value = arguments.get(key)
        if isinstance(value, int | float) and abs(value) > MAX_PRECISION:
            raise ValueError(f"{key} must lie within {MAX_PRECISION}")
    base, exponent = arguments.get("base"), arguments.get("exponent")
    whole = isinstance(base, int) and isinstance(exponent, int)
    if name == "power" and whole and abs(exponent) * abs(base).bit_length() > MAX_POWER_BITS:  # type: ignore[arg-type]
        raise ValueError("the result is too large")


# ---- plain data ----------------------------------------------------------------------------------------------------
# A node is a list that opens with its kind. A value in it is a plain one, or [number] for another node.

_PLAIN = (str, bool, int, float, type(None))


def dump(instance: object) -> list[Any]:
    """The instance as plain data, the same for instances in the same situation. Node 0 is the instance."""
    found: list[Any] = [instance]  # keeps them alive, so that ids stay theirs
    numbers = {id(instance): 0}

    def refer(value: Any) -> Any:
        if type(value) in _PLAIN:
            if type(value) is int and not -(2**63) <= value < 2**63:
                return ["int", str(value)]  # more than msgpack's integers hold
            return value
        if id(value) not in numbers:
            numbers[id(value)] = len(found)
            found.append(value)
        return [numbers[id(value)]]

    return [_node(value, refer) for value in _growing(found)]


def _growing(found: list[Any]) -> Any:
    place = 0
    while place < len(found):
        yield found[place]
        place += 1


def _node(value: Any, refer: Callable[[Any], Any]) -> list[Any]:
    kind = type(value)
    if kind is dict:
        return ["dict", *(part for key, item in value.items() for part in (refer(key), refer(item)))]
    if kind is list:
        return ["list", *map(refer, value)]
    if kind is set:
        return ["set", *map(refer, sorted(value, key=repr))]
    if kind is random.Random:
        version, words, gauss = value.getstate()
        return ["random", version, array.array("I", words).tobytes(), gauss]
    if kind.__name__ in _OBJECTS:
        kept = ((key, item) for key, item in vars(value).items() if key not in NOT_KEPT)
        return [kind.__name__, *(part for key, item in kept for part in (key, refer(item)))]
    raise TypeError(f"{kind.__name__} in an instance of BFCL")


_OBJECTS = frozenset({*CLASS_FILES, "File", "Directory"})


def load(classes: Mapping[str, type], nodes: list[Any]) -> Any:
    """A new instance from what `dump` made. Damaged data raises some exception and runs nothing."""
    made = [_empty(classes, node) for node in nodes]

    def resolve(value: Any) -> Any:
        if type(value) in _PLAIN:
            return value
        return int(value[1][:400]) if value[0] == "int" else made[value[0]]

    for shell, node in zip(made, nodes, strict=True):
        kind, values = node[0], node[1:]
        if kind == "list":
            shell.extend(map(resolve, values))
        elif kind == "set":
            shell.update(map(resolve, values))
        elif kind == "random":
            words = array.array("I", values[1])
            shell.setstate((values[0], tuple(words), values[2]))
        else:
            items = zip(map(resolve, values[::2]), map(resolve, values[1::2]), strict=True)
            (shell if kind == "dict" else vars(shell)).update(items)
    return made[0]


def _empty(classes: Mapping[str, type], node: Any) -> Any:
    match node[0]:
        case "dict":
            return {}
        case "list":
            return []
        case "set":
            return set()
        case "random":
            return random.Random(0)
        case name if name in _OBJECTS:
            return object.__new__(classes[name])
    raise ValueError(f"no kind of node: {node[0]!r:.40}")


def unfolded(nodes: list[Any]) -> int:
    """How many files and folders one meets who goes through every folder; `MAX_TREE` or more where that is endless or
    too much, for folders can be copied into each other."""
    sizes: dict[int, int] = {}

    def size(number: int, above: frozenset[int]) -> int:
        if number in above or len(above) > 500:
            return MAX_TREE
        if number not in sizes:
            inside = above | {number}
            total = 1 + sum(size(child, inside) for child in _children(nodes, number))
            sizes[number] = min(total, MAX_TREE)
        return sizes[number]

    return max(size(number, frozenset()) for number, node in enumerate(nodes) if node[0] == "Directory")


def _children(nodes: list[Any], number: int) -> list[int]:
    node = nodes[number]
    if node[0] != "Directory":
        return []
    contents = nodes[node[node.index("contents") + 1][0]]
    return [value[0] for value in contents[2::2]]


def same_public_state(one: object, gold: object) -> bool:
    """Whether every public attribute of `gold` equals the one of `one`, as BFCL compares them."""
    try:
        return all(
            getattr(one, name) == value for name, value in vars(gold).items() if not name.startswith("_")
        )
    except Exception:  # their comparisons on what a model's arguments left there
        return False
