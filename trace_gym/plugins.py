"""Algorithms and environments by name: the only place where a string becomes code.

An algorithm is an entry point of the group `trace_gym.algorithms` (the built-in ones too) or a `module:Class` string;
an environment is a gymnasium id, `module:namespace/Name-v0` where a module has to be imported first. Invariant: a
plug-in that cannot be used is an error that names its distribution, and a setting that nobody reads is an error that
names the setting.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import sys
import typing
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from types import SimpleNamespace
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from trace_gym.algorithm import Algorithm
from trace_gym.env import ForkableEnv
from trace_gym.errors import ConfigError, PluginError, TraceGymError

__all__ = [
    "algorithm_class",
    "algorithm_fields",
    "algorithm_names",
    "describe_fields",
    "environment_specs",
    "gymnasiums_own",
    "make_algorithm",
    "make_env",
    "make_env_as_registered",
    "suggestion",
]

GROUP = "trace_gym.algorithms"


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known word nearest to `wrong`, or an empty string."""
    near = difflib.get_close_matches(wrong, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


# ---- algorithms -----------------------------------------------------------------------------------------------------


def algorithm_names() -> dict[str, str]:
    """The distribution behind each registered name, sorted. Raises `PluginError` when two claim one name."""
    return {name: _distribution(_only(name, points)) for name, points in sorted(_registered().items())}


def algorithm_class(name: str) -> type[Algorithm]:
    """The class behind an entry-point name or a `module:Class` string.

    Raises `ConfigError` for an unknown name, `PluginError` when what it names cannot be used.
    """
    if ":" in name:
        return _load(EntryPoint(name, name, GROUP), f"algorithm {name!r}")
    registered = _registered()
    if name not in registered:
        raise ConfigError(_unknown(name, registered))
    point = _only(name, registered[name])
    return _load(point, f"algorithm {name!r} of distribution {_distribution(point)!r}")


def make_algorithm(name: str, fields: Mapping[str, Any]) -> Algorithm:
    """The algorithm with these hyper-parameters, checked against its fields' types.

    Raises `ConfigError`, one line per wrong field, the last with the fields there are; else as `algorithm_class`.
    """
    cls = algorithm_class(name)
    values, wrong = _checked_fields(cls, fields)
    if wrong:
        wrong[-1] += f" (its fields are {describe_fields(cls)})"
        raise ConfigError("\n".join(f"algorithm {name}: {line}" for line in wrong))
    try:
        return cls(**values)
    except TraceGymError:
        raise
    except ValueError as error:
        raise ConfigError(f"algorithm {name}: {error}; its fields are {describe_fields(cls)}") from error
    except Exception as error:
        raise PluginError(f"algorithm {name} cannot be constructed: {_brief(error)}") from error


def describe_fields(cls: type[Algorithm]) -> str:
    """`name=default, …` for every field that can be set."""
    return ", ".join(f"{f.name}={_default(f)}" for f in _settable(cls).values())


def algorithm_fields(algorithm: Algorithm) -> dict[str, Any]:
    """Every field that can be set and its value as JSON-plain data; `make_algorithm` makes an equal one of them."""
    return {
        name: TypeAdapter(Any).dump_python(getattr(algorithm, name), mode="json")
        for name in _settable(type(algorithm))
    }


def _registered() -> dict[str, list[EntryPoint]]:
    points: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        points.setdefault(point.name, []).append(point)
    return points


def _unknown(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    if not names:
        return f"no algorithm is registered, {name!r} neither: trace_gym is not installed here; run `pip install -e .`"
    hint = suggestion(name, names) or ";"
    return f"there is no algorithm {name!r}{hint} registered are {', '.join(names)}, and `module:Class` names any other"


def _only(name: str, points: list[EntryPoint]) -> EntryPoint:
    if len(points) > 1:
        owners = " and ".join(sorted(repr(_distribution(point)) for point in points))
        raise PluginError(
            f"the algorithm name {name!r} is claimed by distributions {owners}; uninstall all but one"
        )
    return points[0]


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "unknown"


def _load(point: EntryPoint, label: str) -> type[Algorithm]:
    """The class that `point` names, once it is sure to be a usable algorithm."""
    try:
        cls = point.load()
    except ModuleNotFoundError as error:
        hint = "; is the package installed, or the module in the folder that the command runs in?"
        raise PluginError(f"{label} ({point.value}) cannot be imported: {_brief(error)}{hint}") from error
    except Exception as error:  # it is a stranger's module: anything may come out of it
        raise PluginError(f"{label} ({point.value}) cannot be imported: {_brief(error)}") from error
    if not (isinstance(cls, type) and issubclass(cls, Algorithm)):
        raise PluginError(f"{label} ({point.value}) is not a subclass of trace_gym.Algorithm")
    missing = [hook for hook in ("plan", "credit") if getattr(cls, hook) is getattr(Algorithm, hook)]
    if missing:
        raise PluginError(f"{label} ({point.value}) does not implement {' and '.join(missing)}")
    return cls


def _settable(cls: type[Algorithm]) -> dict[str, dataclasses.Field[Any]]:
    return {f.name: f for f in dataclasses.fields(cls) if f.init}


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    return repr(field.default_factory()) if field.default_factory is not dataclasses.MISSING else "(required)"


def _checked_fields(cls: type[Algorithm], given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The given values, converted to their fields' types, and a line for each that could not be.

    Fields are checked one by one, so private state of any type (`init=False`) never concerns the check.
    """
    known, values, wrong = _settable(cls), {}, []
    for name, value in given.items():
        if name not in known:
            wrong.append(f"unknown field {name!r}{suggestion(name, known)}{_undecorated(cls, name)}")
            continue
        try:
            values[name] = _adapter(cls, name).validate_python(value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            inside = "".join(f"[{part}]" for part in first["loc"])
            wrong.append(f"{name}{inside}: {first['msg']}, not {value!r}")
    wrong += [
        f"{name} must be given"
        for name, f in known.items()
        if _default(f) == "(required)" and name not in given
    ]
    return values, wrong


def _undecorated(cls: type[Algorithm], name: str) -> str:
    """A hint for the easiest mistake to make: annotated fields in a class that is no dataclass itself."""
    annotated = any(name in vars(base).get("__annotations__", {}) for base in cls.__mro__)
    return f" ({cls.__name__} must be decorated with @dataclass(kw_only=True))" if annotated else ""


def _adapter(cls: type[Algorithm], name: str) -> TypeAdapter[Any]:
    owner = next(base for base in cls.__mro__ if name in vars(base).get("__annotations__", {}))
    alone = SimpleNamespace(__annotations__={name: vars(owner)["__annotations__"][name]})
    scope = vars(sys.modules[owner.__module__])
    try:
        hint = typing.get_type_hints(alone, scope, dict(vars(owner)), include_extras=True)[name]
        return TypeAdapter(hint)
    except (NameError, TypeError, PydanticUserError) as error:
        raise PluginError(
            f"{cls.__name__}.{name} has a type that no setting can be checked against: {_brief(error)}"
        ) from error


def _brief(error: BaseException) -> str:
    """The exception on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


# ---- environments ---------------------------------------------------------------------------------------------------


def environment_specs() -> list[EnvSpec]:
    """What is registered, by id, less what came with gymnasium."""
    return [spec for _, spec in sorted(gymnasium.registry.items()) if not gymnasiums_own(spec)]


def gymnasiums_own(spec: EnvSpec) -> bool:
    """Whether the id came with gymnasium: its control problems are no text environments."""
    entry = spec.entry_point
    module = entry if isinstance(entry, str) else getattr(entry, "__module__", "")
    return entry is None or module.startswith(("gymnasium.", "shimmy."))


def make_env(env_id: str, options: Mapping[str, Any] | None = None) -> ForkableEnv[Any]:
    """`gymnasium.make(env_id, **options)` without wrappers, with errors a user can act on.

    Raises `ConfigError` for an unknown id or option, `PluginError` when what it names is not forkable or breaks.
    """
    env: ForkableEnv[Any] = make_env_as_registered(env_id, options).unwrapped  # type: ignore[assignment]
    return env


def make_env_as_registered(env_id: str, options: Mapping[str, Any] | None = None) -> gymnasium.Env[Any, Any]:
    """As `make_env`, with whatever wrappers the registration asks for: what `check` has to see."""
    options = dict(options or {})
    reserved = sorted(options.keys() & (inspect.signature(gymnasium.make).parameters.keys() - {"kwargs"}))
    if reserved:
        raise ConfigError(
            f"env.options.{reserved[0]} is gymnasium.make's own argument; an option is the environment's"
        )
    try:
        env = gymnasium.make(env_id, **options)
    except TraceGymError:
        raise
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        brief = " ".join(str(error).split())
        raise ConfigError(
            f"env.id {env_id!r}: {_suggested_id(env_id, brief)} `trace-gym envs` lists the ids"
        ) from error
    except (TypeError, ValueError) as error:
        raise ConfigError(_wrong_options(env_id, options, error)) from error
    except Exception as error:  # a stranger's constructor: anything may come out of it
        raise PluginError(f"{env_id} cannot be made: {_brief(error)}") from error
    if not isinstance(env.unwrapped, ForkableEnv):
        raise PluginError(
            f"{env_id} is not a ForkableEnv; wrap it in trace_gym.ReplayEnv and register the result"
        )
    return env


def _suggested_id(env_id: str, brief: str) -> str:
    """Gymnasium's complaint and the id nearest to `env_id`, whose namespace, version and capitals may be missing."""
    ids = {
        part.lower(): spec.id
        for spec in environment_specs()
        for part in (spec.name, f"{spec.name}-v{spec.version}", spec.id)
    }
    near = difflib.get_close_matches(env_id.lower(), ids, n=1)
    if not near:
        return f"{brief.removesuffix('.')};"
    return f"{brief.partition(' Did you mean')[0].removesuffix('.')}; did you mean {ids[near[0]]!r}?"


def _wrong_options(env_id: str, options: Mapping[str, Any], error: Exception) -> str:
    """What is wrong with the options, and which ones there are, where that can be told."""
    takes = _env_parameters(env_id)
    known = ", ".join(f"{p.name}={p.default!r}" for p in takes if p.default is not p.empty)
    unknown = options.keys() - {p.name for p in takes}
    if not known or not unknown or any(p.kind is p.VAR_KEYWORD for p in takes):
        return f"env.options of {env_id}: {_brief(error)}"
    name = min(unknown)
    hint = suggestion(name, [p.name for p in takes])
    return f"{env_id} has no option {name!r}{hint}; its options are {known}"


def _env_parameters(env_id: str) -> list[inspect.Parameter]:
    entry = gymnasium.spec(env_id).entry_point
    maker = load_env_creator(entry) if isinstance(entry, str) else entry
    try:
        return list(inspect.signature(maker).parameters.values()) if maker is not None else []
    except (TypeError, ValueError):
        return []
