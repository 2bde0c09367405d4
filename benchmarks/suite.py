"""A suite: what a YAML file says a benchmark is.

Invariant: what is reported is honest by construction. Every algorithm runs on the seeds of the baseline, and learning rates are
tuned on other seeds and another split than those that are reported.
"""

from __future__ import annotations

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

from trace_gym.errors import ConfigError
from trace_gym.plugins import suggestion
from trace_gym.settings import Settings

__all__ = ["Evaluation", "Plain", "Rates", "Suite", "Warmup", "World", "load_suite", "shipped"]

SUITES = Path(__file__).parent / "suites"

Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)]
Plain = dict[str, JsonValue]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Seeds = tuple[Seed, ...]
Unit = Literal["policy_tokens", "rollout_units", "env_steps"]


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
