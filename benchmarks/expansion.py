"""The cells that a suite comes to, settled to their last setting, in the order to run them.

    cell = one training run, one run that tunes a learning rate, or one warm-up of a policy

Invariants: a cell's key ends in a digest of everything that decides what it does, so equal settings are the same cell and
changed ones another folder; cells of one environment and seed share all but their algorithm's settings, so differences are
taken within a seed.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from pydantic import JsonValue

from trace_gym.benchmarks.suite import Plain, Suite, World
from trace_gym.config import TrainConfig, load_config
from trace_gym.errors import ConfigError, TraceGymError
from trace_gym.plugins import algorithm_fields, make_algorithm
from trace_gym.settings import setting

__all__ = ["Cell", "Kind", "expand"]

DIGITS = 10  # of a digest in a folder's name
Kind = Literal["warmup", "tune", "train"]


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
        self._plains: dict[str, dict[str, Any]] = {}
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
            return self._cell("train", name, seed)
        if len(rates.grid) == 1:
            return self._cell("train", name, seed, rate=rates.grid[0])
        tuning = self._tuned_by(name if rates.tune == "each" else self.suite.baseline)
        waits = any(cell.key not in areas for cell in tuning)
        rate = None if waits else _best(tuning, areas)
        cell = self._cell("train", name, seed, rate=rate)
        if waits:
            return replace(cell, waits=True)
        return cell if rate is not None else replace(cell, refused="every learning rate failed while tuning")

    def _tuned_by(self, name: str) -> list[Cell]:
        rates = self.world.rates
        assert rates is not None
        if name not in self._tuning:
            self._tuning[name] = [
                self._cell("tune", name, seed, rate=rate) for rate in rates.grid for seed in rates.seeds
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

    def _cell(self, kind: Kind, name: str, seed: int, *, rate: float | None = None) -> Cell:
        """The rate of None is the settings' own. Where a run is saved and which policy folder it starts from is settled when
        it runs."""
        suite, world, tuning = self.suite, self.world, kind == "tune"
        start = self._warmup(seed % world.warmup.policies).key if world.warmup else ""
        config = copy.deepcopy(self._plain(name))
        budget = world.budget
        changes: dict[str, JsonValue] = {"seed": seed, **dict.fromkeys(world.seeded, seed)}
        if rate is not None:
            changes["optim.lr"] = rate
        if tuning:
            assert world.rates is not None
            budget = world.rates.budget or budget
            changes["eval.split"] = world.rates.split
        # Before training all algorithms of a seed are the same policy on the same tasks and samples: measured once.
        changes["eval.at_start"] = name == suite.baseline and not tuning
        changes[f"budget.{suite.unit}"] = budget
        if suite.unit == "policy_tokens":
            changes["eval.every_tokens"] = max(1, budget // world.evaluations_per_cell)
        for key, value in changes.items():
            _put(config, key, value)
        sets = {} if tuning else {k: e.model_dump(mode="json") for k, e in world.evaluations.items()}
        return Cell(
            kind,
            self.name,
            name,
            seed,
            config,
            rate=config["optim"]["lr"],
            start=start,
            evaluations=sets,
            budget=budget,
            seconds=world.cell_seconds * budget / world.budget,
            keeps_policy=suite.keep_policies,
        )

    def _plain(self, name: str) -> dict[str, Any]:
        """The algorithm's settings here as plain values, not to be changed."""
        if name not in self._plains:
            self._plains[name] = self._base(name).model_dump(mode="json")
        return self._plains[name]

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
