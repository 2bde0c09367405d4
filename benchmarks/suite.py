"""A suite: what a YAML file says a benchmark is, and the cells it comes to.

    cell = one training run (or one warm-up of a policy), settled to its last setting

Invariants: a cell's key ends in a digest of everything it was settled to, so equal settings are the same cell and changed
ones another folder; cells of one environment and seed share all but their algorithm's settings, so differences are taken
within a seed; learning rates are tuned on other seeds and another split than those that are reported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
    model_validator,
)

from trace_gym.config import TrainConfig, load_config
from trace_gym.errors import ConfigError, TraceGymError
from trace_gym.plugins import algorithm_fields, make_algorithm, suggestion
from trace_gym.settings import Settings, setting

__all__ = ["Cell", "Evaluation", "Rates", "Suite", "Warmup", "World", "expand", "load_suite", "shipped"]

SUITES = Path(__file__).parent / "suites"
DIGITS = 10  # of a digest in a folder's name

Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)]
Plain = dict[str, JsonValue]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Seeds = tuple[Seed, ...]
Unit = Literal["policy_tokens", "rollout_units", "env_steps"]
Kind = Literal["warmup", "tune", "train"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Warmup(_Part):
    """How the policies that training starts from are made; what is not given is `trace-gym warmup`'s default."""

    policies: int = Field(1, ge=1, description="seed s starts from policy number s modulo this")
    pretrained: str = Field(
        "", description="teach this one (a folder or a known name); empty makes a tiny one"
    )
    steps: int | None = Field(None, ge=1)
    batch: int | None = Field(None, ge=1)
    demonstrations: int | None = Field(None, ge=1)
    d_model: int | None = Field(None, ge=8)
    layers: int | None = Field(None, ge=1)
    lr: float | None = Field(None, gt=0)
    seconds: float = Field(0, ge=0, description="what one takes on one core, as measured")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        tiny = [name for name in ("demonstrations", "d_model", "layers") if getattr(self, name) is not None]
        if self.pretrained and tiny:
            raise ValueError(f"{tiny[0]} is of a policy made from nothing, not of a pretrained one")
        return self


class Evaluation(_Part):
    """A set of tasks that the final policy is measured on, once. `options` change the environment's."""

    split: str = "test"
    tasks: int = Field(256, ge=1)
    draws: int = Field(1, ge=1)
    greedy: bool = False
    options: Plain = {}


class Rates(_Part):
    """How learning rates are chosen: the largest mean area under the curve; ties go to the smaller rate."""

    grid: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    seeds: Seeds = Field(min_length=1)
    split: str = Field("dev", min_length=1, description="what the curves are measured on while tuning")
    tune: Literal["each", "baseline"] = Field("each", description="every algorithm, or the baseline for all")
    budget: int | None = Field(None, ge=1, description="of a tuning run; the environment's unless given")


class World(_Part):
    """An environment of the suite with its settings, which go before the suite's."""

    settings: Plain = {}
    seeded: tuple[str, ...] = Field(
        (), description="settings that take the seed's number, such as env.options.world"
    )
    seeds: Seeds | None = None
    budget: int = Field(ge=1, description="of a cell, in the suite's unit")
    evaluations_per_cell: int = Field(4, ge=1, description="points of a curve after the start")
    warmup: Warmup | None = None
    rates: Rates | None = None
    evaluations: dict[Label, Evaluation] = {}
    algorithms: dict[Label, Plain] = Field(
        {}, description="settings of single algorithms here, over the suite's"
    )
    only: tuple[Label, ...] = Field((), description="the suite's algorithms that run here; empty is all")
    cell_seconds: float = Field(60, gt=0, description="what a cell takes on one core, as measured")


class Suite(_Part):
    """See the module."""

    name: Label = "suite"
    title: str = Field(min_length=1, max_length=200)
    about: str = Field("", max_length=4000)
    command: str = Field("", description="a suite that is another command: this one")
    unit: Unit = "policy_tokens"
    baseline: Label = "grpo"
    seeds: Seeds = ()
    settings: Plain = {}
    environments: dict[Label, World] = {}
    algorithms: dict[Label, Plain] = {}
    deadline_s: float = Field(3600, gt=0, description="of a cell; one that takes longer has failed")
    keep_policies: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.command:
            return self
        if not self.environments or not self.algorithms:
            raise ValueError("a suite has environments and algorithms")
        if self.baseline not in self.algorithms:
            raise ValueError(f"the baseline {self.baseline!r} is none of the algorithms")
        for name, world in self.environments.items():
            self._check_world(name, world)
        return self

    def _check_world(self, name: str, world: World) -> None:
        where, seeds = f"environment {name}", self.seeds_of(world)
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"{where}: give seeds, each once, here or for the suite")
        for other in (*world.only, *world.algorithms):
            if other not in self.algorithms:
                raise ValueError(f"{where}: {other!r} is none of the algorithms")
        if world.only and self.baseline not in world.only:
            raise ValueError(f"{where}: the baseline {self.baseline!r} has to run too")
        if world.rates and len(world.rates.grid) > 1 and self.unit != "policy_tokens":
            raise ValueError(f"{where}: rates are tuned by curves over policy tokens: unit is {self.unit}")
        if world.rates and set(world.rates.seeds) & set(seeds):
            raise ValueError(f"{where}: a seed that rates are tuned on cannot be one that is reported")

    def seeds_of(self, world: World) -> Seeds:
        """The seeds that are reported for a world."""
        return world.seeds if world.seeds is not None else self.seeds

    def algorithms_of(self, world: World) -> tuple[str, ...]:
        """The algorithms that run in a world, in the suite's order."""
        return tuple(name for name in self.algorithms if not world.only or name in world.only)


def shipped() -> dict[str, Path]:
    """The suites that come with the package, by name."""
    return {path.stem: path for path in sorted(SUITES.glob("*.yaml"))}


def load_suite(name: str) -> Suite:
    """A shipped suite by its name, or that of a YAML file. Raises `ConfigError`, a line per mistake."""
    known = shipped()
    path = known.get(name, Path(name))
    if name not in known and path.suffix not in (".yaml", ".yml"):
        hint = suggestion(name, known) or f"; shipped are {', '.join(known)}"
        raise ConfigError(f"there is no suite {name!r}{hint}; a suite of your own is a .yaml file")
    read = Settings.read(path)
    if not path.stem or read.values.get("name") is None:
        read.values = {"name": path.stem, **read.values}
    try:
        return Suite.model_validate(read.values)
    except ValidationError as error:
        lines = [_complaint(read, str(path), e) for e in error.errors(include_url=False)]
        raise ConfigError("\n".join(lines)) from error


def _complaint(read: Settings, path: str, error: Any) -> str:
    key = tuple(str(part) for part in error["loc"])
    where = read.origin(key) or f"{path}: "
    if error["type"] == "value_error":
        return f"{where}{'.'.join(key)}{': ' if key else ''}{error['ctx']['error']}"
    return f"{where}{'.'.join(key)}: {error['msg']}"


# ---- cells ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)  # without slots, for what is computed once
class Cell:
    """One piece of work. `config` is a whole run's settings as plain values; `start` is the key of the warm-up that makes
    its policy, which has to come first. While a cell `waits`, its rate and so its digest are not settled."""

    kind: Kind
    environment: str
    algorithm: str
    seed: int
    config: Plain
    rate: float | None = None
    start: str = ""
    warmup: Plain = field(default_factory=dict)
    evaluations: Mapping[str, Plain] = field(default_factory=dict)
    budget: float = 0
    seconds: float = 60.0  # expected
    keeps_policy: bool = False
    waits: bool = False  # its learning rate is still being tuned
    refused: str = ""  # why it cannot be run at all

    @property
    def label(self) -> str:
        """For people."""
        rate = f" at lr {self.rate:g}" if self.kind == "tune" and self.rate is not None else ""
        return f"{self.environment} {self.algorithm or self.kind} seed {self.seed}{rate}"

    @cached_property
    def digest(self) -> str:
        """Of everything that decides what the cell does, but for its place on the disk."""
        parts = (self.kind, self.environment, self.algorithm, self.seed, self.config, self.start, self.warmup)
        plain = json.dumps([*parts, dict(self.evaluations)], sort_keys=True)
        return hashlib.sha256(plain.encode()).hexdigest()[:DIGITS]

    @cached_property
    def key(self) -> str:
        """The cell's folder below the output folder."""
        name = f"seed-{self.seed}-{self.digest}"
        if self.kind == "warmup":
            return f"policies/{self.environment}/{name}"
        top = "tuning" if self.kind == "tune" else "cells"
        return f"{top}/{self.environment}/{self.algorithm}/{name}"

    def describe(self) -> Plain:
        """Plain values that `Cell(**values)` takes back."""
        return asdict(self)


def expand(suite: Suite, areas: Mapping[str, float] | None = None) -> list[Cell]:
    """Every cell of the suite in the order to run them: warm-ups, tuning, then seed by seed, so that a suite that was
    interrupted has whole seeds. `areas` are what tuning cells came to, by key, nan for a failed one; a cell whose rate
    they do not settle yet `waits`. Raises `ConfigError` for settings that cannot be.
    """
    areas = areas or {}
    worlds = {name: _Expansion(suite, name, world) for name, world in suite.environments.items()}
    warm = [cell for world in worlds.values() for cell in world.warmups()]
    tuning = [cell for world in worlds.values() for cell in world.tuning()]
    seeds = sorted({seed for world in worlds.values() for seed in world.seeds}, key=lambda s: s)
    train = [
        world.training(name, seed, areas)
        for seed in seeds
        for world in worlds.values()
        if seed in world.seeds
        for name in world.algorithms
    ]
    return warm + tuning + train


class _Expansion:
    """The cells of one world."""

    def __init__(self, suite: Suite, name: str, world: World) -> None:
        self.suite, self.name, self.world = suite, name, world
        self.seeds = suite.seeds_of(world)
        self.algorithms = suite.algorithms_of(world)
        self._settled: dict[str, TrainConfig] = {}
        self._warm: dict[int, Cell] = {}
        self._tuning: dict[str, list[Cell]] = {}

    def warmups(self) -> list[Cell]:
        if self.world.warmup is None:
            return []
        tuned = self.world.rates.seeds if self.world.rates else ()
        places = sorted({seed % self.world.warmup.policies for seed in (*self.seeds, *tuned)})
        return [self._warmup(place) for place in places]

    def tuning(self) -> list[Cell]:
        rates = self.world.rates
        if rates is None or len(rates.grid) == 1:
            return []
        names = self.algorithms if rates.tune == "each" else (self.suite.baseline,)
        return [cell for name in names for cell in self._tuned_by(name)]

    def training(self, name: str, seed: int, areas: Mapping[str, float]) -> Cell:
        rates = self.world.rates
        if rates is None:
            return self._cell("train", name, seed, self._config(name, seed))
        if len(rates.grid) == 1:
            return self._cell("train", name, seed, self._config(name, seed, rate=rates.grid[0]))
        tuning = self._tuned_by(name if rates.tune == "each" else self.suite.baseline)
        waits = any(cell.key not in areas for cell in tuning)
        rate = None if waits else _best(tuning, areas)
        cell = self._cell("train", name, seed, self._config(name, seed, rate=rate))
        if waits:
            return replace(cell, waits=True)
        return cell if rate is not None else replace(cell, refused="every learning rate failed while tuning")

    def _tuned_by(self, name: str) -> list[Cell]:
        rates = self.world.rates
        assert rates is not None
        if name not in self._tuning:
            self._tuning[name] = [
                self._cell("tune", name, seed, self._config(name, seed, rate=rate, tuning=True))
                for rate in rates.grid
                for seed in rates.seeds
            ]
        return self._tuning[name]

    def _warmup(self, place: int) -> Cell:
        assert self.world.warmup is not None
        if place not in self._warm:
            env = self._base(self.suite.baseline).env
            given = self.world.warmup.model_dump(exclude={"policies", "seconds"}, exclude_none=True)
            config: Plain = {"env": env.model_dump(mode="json")}
            if given["pretrained"]:
                policy = self._base(self.suite.baseline).policy
                config["policy"] = policy.model_copy(update={"path": given["pretrained"]}).model_dump(
                    mode="json"
                )
            seconds = self.world.warmup.seconds
            self._warm[place] = Cell("warmup", self.name, "", place, config, warmup=given, seconds=seconds)
        return self._warm[place]

    def _cell(self, kind: Kind, name: str, seed: int, config: TrainConfig) -> Cell:
        warm = self.world.warmup
        start = self._warmup(seed % warm.policies).key if warm else ""
        budget = getattr(config.budget, self.suite.unit)
        more = (
            {}
            if kind == "tune"
            else {k: e.model_dump(mode="json") for k, e in self.world.evaluations.items()}
        )
        return Cell(
            kind,
            self.name,
            name,
            seed,
            config.model_dump(mode="json"),
            rate=config.optim.lr,
            start=start,
            evaluations=more,
            budget=budget,
            seconds=self.world.cell_seconds * budget / self.world.budget,
            keeps_policy=self.suite.keep_policies,
        )

    def _config(
        self, name: str, seed: int, *, rate: float | None = None, tuning: bool = False
    ) -> TrainConfig:
        """The run's settings; where it is saved and which policy folder it starts from is settled when it runs."""
        world = self.world
        budget = world.budget
        plain = self._base(name).model_dump(mode="json")
        changes: dict[str, JsonValue] = {"seed": seed, **dict.fromkeys(world.seeded, seed)}
        if rate is not None:
            changes["optim.lr"] = rate
        if tuning:
            assert world.rates is not None
            budget = world.rates.budget or budget
            changes["eval.split"] = world.rates.split
        # Before training all algorithms of a seed are the same policy on the same tasks and samples: measured once.
        changes["eval.at_start"] = name == self.suite.baseline and not tuning
        changes[f"budget.{self.suite.unit}"] = budget
        if self.suite.unit == "policy_tokens":
            changes["eval.every_tokens"] = max(1, budget // world.evaluations_per_cell)
        for key, value in changes.items():
            _put(plain, key, value)
        return TrainConfig.model_validate(plain)

    def _base(self, name: str) -> TrainConfig:
        """Suite, world, algorithm: the later goes before the earlier."""
        if name not in self._settled:
            suite, world = self.suite, self.world
            own = {**suite.algorithms[name], **world.algorithms.get(name, {})}
            changes = [*_flat(suite.settings), *_flat(world.settings), setting("algorithm", own)]
            changes += [setting(key, 0) for key in world.seeded]
            changes.append(setting("budget", {suite.unit: world.budget}))
            config = self._load(changes, name)
            self._check(config, name)
            fields = dict(config.algorithm)
            kind = str(fields.pop("name"))
            full = {"name": kind, **algorithm_fields(make_algorithm(kind, fields))}
            self._settled[name] = config.model_copy(update={"algorithm": full})
        return self._settled[name]

    def _check(self, config: TrainConfig, name: str) -> None:
        rates = self.world.rates
        if rates and config.eval.tasks and rates.split == config.eval.split:
            raise ConfigError(
                f"suite {self.suite.name}, {self.name}: rates cannot be tuned on {rates.split!r}, the split that is reported"
            )
        if self.world.warmup and config.policy.path != TrainConfig().policy.path:
            raise ConfigError(
                f"suite {self.suite.name}, {self.name}: policy.path and warmup both name the policy; give one of them"
            )

    def _load(self, changes: Sequence[str], name: str) -> TrainConfig:
        try:
            return load_config(None, changes)
        except TraceGymError as error:
            raise ConfigError(f"suite {self.suite.name}, {self.name}, {name}: {error}") from error


def _flat(settings: Mapping[str, Any]) -> Iterator[str]:
    """Nested settings as overrides, section by section."""
    sections = {n for n, f in TrainConfig.model_fields.items() if isinstance(f.annotation, type)}
    for name, value in settings.items():
        if isinstance(value, Mapping) and name in sections:
            yield from (setting(f"{name}.{key}", part) for key, part in value.items())
        else:
            yield setting(name, value)


def _put(plain: dict[str, Any], key: str, value: JsonValue) -> None:
    """Set `a.b.c` in nested values."""
    *sections, last = key.split(".")
    for name in sections:
        plain = plain.setdefault(name, {})
    plain[last] = value


def _best(tuning: Sequence[Cell], areas: Mapping[str, float]) -> float | None:
    """The rate with the largest mean area; a rate with a failed run is out. None if none is left."""
    by_rate: dict[float, list[float]] = {}
    for cell in tuning:
        assert cell.rate is not None
        by_rate.setdefault(cell.rate, []).append(areas[cell.key])
    means = {rate: sum(found) / len(found) for rate, found in by_rate.items()}
    whole = {rate: mean for rate, mean in means.items() if mean == mean}
    return min(whole, key=lambda rate: (-whole[rate], rate)) if whole else None
