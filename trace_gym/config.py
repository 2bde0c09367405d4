"""The settings of a run: frozen values, every one with its unit, its bounds and a sentence.

A run is `load_config(file, overrides)`: the YAML file first, then `a.b=value` overrides in order. Invariant: a
setting that is read was declared here, or by the algorithm or environment it is for; an unknown or impossible one is
an error on one line that says where it came from. `dump_config` writes a file that loads back equal.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from pydantic_core import ErrorDetails

from trace_gym.errors import ConfigError
from trace_gym.plugins import suggestion
from trace_gym.settings import Settings, flow

__all__ = [
    "BudgetConfig",
    "EngineConfig",
    "EnvConfig",
    "EvalConfig",
    "LogConfig",
    "LoraConfig",
    "OptimConfig",
    "OracleConfig",
    "PolicyConfig",
    "RolloutConfig",
    "TrainConfig",
    "dump_config",
    "load_config",
]

FolderPath = Annotated[str, Field(min_length=1), AfterValidator(os.path.expanduser)]
Options = dict[str, JsonValue]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class EnvConfig(_Section):
    """Which environment the policy learns in."""

    id: str = Field(
        "trace_gym/Math-v0", min_length=1, description="gymnasium id; module:id imports the module first"
    )
    options: Options = Field({}, description="arguments of gymnasium.make, such as {difficulty: 3}")


class LoraConfig(_Section):
    """Low-rank adapters that learn in place of the weights."""

    rank: int = Field(0, ge=0, description="of the adapters; 0 is none: every weight learns")
    alpha: int = Field(32, ge=1, description="an adapter counts alpha / rank times")
    targets: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="layers that get one, such as [q_proj, v_proj]; [] is all but the output head"
    )


class PolicyConfig(_Section):
    """The language model to train."""

    path: FolderPath = Field(
        "policy",
        description="model folder, a name of `trace-gym model list`, one on the Hugging Face hub, or tabular: a table of "
        "logits, for environments such as trace_gym/Relay-v0 whose success probabilities are known exactly",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto is cuda where there is one")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="precision of forward passes, what learns stays float32; auto is bfloat16 on cuda"
    )
    lora: LoraConfig = LoraConfig()
    gradient_checkpointing: bool = Field(
        False, description="less memory: layers are computed again in the backward pass"
    )
    layout: Literal["auto", "packed", "flat"] = Field(
        "auto",
        description="how updates compute rollouts: packed, what they begin with alike once; flat, each by itself; the "
        "numbers are the same; auto is packed where the model can be",
    )
    template_args: Options = Field(
        {}, description="arguments of the chat template, such as {enable_thinking: false}"
    )


class EngineConfig(_Section):
    """What generates text."""

    kind: Literal["transformers", "vllm", "openai"] = Field(
        "transformers",
        description="transformers, vllm (in this process) or openai (a server); a table has its own whatever stands here",
    )
    max_batch: int = Field(128, ge=1, description="turns generated at a time, at most")
    max_context: int | None = Field(
        None, ge=2, description="tokens of a prefix and its turn, at most; null is what the model can"
    )
    cache_gib: float | None = Field(
        None, gt=0, description="memory for keys and values; null is 2 for vllm, no bound for transformers"
    )
    sleep: bool = Field(
        False, description="give the engine's memory to the trainer while it learns, for a GPU that both use"
    )
    url: str = Field(
        "",
        description="of the server, for kind=openai, such as http://localhost:8000/v1; nothing else is contacted",
    )
    model: str = Field("", description="the policy's name on the server; empty is the first that it lists")
    key_env: str = Field("", description="environment variable that holds the server's key; empty is none")
    weights_folder: FolderPath | Literal[""] = Field(
        "", description="folder that the server sees too, through which it gets new weights; needed to train"
    )

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        server = self.kind == "openai"
        if server and not self.url:
            raise ValueError("engine.kind=openai needs engine.url, such as http://localhost:8000/v1")
        names = ("cache_gib", "sleep") if server else ("url", "model", "key_env", "weights_folder")
        idle = [f"engine.{name}" for name in names if getattr(self, name)]
        if idle:
            raise ValueError(f"engine.kind={self.kind} has no use for {', '.join(idle)}: leave it out")
        return self


class RolloutConfig(_Section):
    """How a step's trees are grown."""

    prompts_per_step: int = Field(
        16, ge=1, description="tasks in a step's pool; algorithm.pool goes before it"
    )
    max_tokens: int = Field(64, ge=1, description="tokens sampled per turn, at most")
    temperature: float = Field(1.0, gt=0, description="sampling temperature")
    turn_deadline_s: float = Field(
        120.0, gt=0, description="seconds for generating one turn, queueing included"
    )
    env_deadline_s: float = Field(20.0, gt=0, description="seconds for one environment step")
    threads: int = Field(4, ge=1, description="environment steps at a time")
    ahead: int = Field(
        0,
        ge=0,
        le=1,
        description="versions that sampled turns may be old: 1 grows a step's trees during the update before it, so that the "
        "two overlap; 0 is exactly on policy",
    )


class OptimConfig(_Section):
    """AdamW and how a step's tokens are cut up for it."""

    lr: float | None = Field(
        None, gt=0, description="learning rate after warm-up; null is 3e-4, and 0.1 for policy.path=tabular"
    )
    warmup_steps: int = Field(5, ge=0, description="optimiser steps of linear warm-up")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay per step, times lr")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="AdamW's two decay rates, such as [0.9, 0.999]"
    )
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    minibatches: int = Field(1, ge=1, description="optimiser steps per training step")
    micro_batch_tokens: int = Field(
        16384, ge=1, description="tokens per forward pass, at most (memory); padding counts"
    )


class BudgetConfig(_Section):
    """When to stop: whatever limit is reached first. null is no limit; one at least must be set."""

    steps: int | None = Field(None, ge=1, description="training steps")
    policy_tokens: int | None = Field(None, ge=1, description="sampled tokens")
    rollout_units: float | None = Field(None, gt=0, description="rollouts; one from a prefix counts half")
    env_steps: int | None = Field(None, ge=1, description="environment steps")

    @model_validator(mode="after")
    def _one_at_least(self) -> Self:
        if all(getattr(self, name) is None for name in type(self).model_fields):
            raise ValueError("set one limit at least, such as budget.steps=100")
        return self


class EvalConfig(_Section):
    """How success is measured before, during and after training."""

    split: str = Field("test", min_length=1, description="the environment's split")
    tasks: int = Field(
        256,
        ge=0,
        description="tasks, the same random draw of the split every time; 0 is no evaluation",
    )
    every_steps: int = Field(
        0, ge=0, description="training steps between evaluations; 0 is before and after only"
    )
    every_tokens: int = Field(
        0,
        ge=0,
        description="sampled tokens between evaluations, for curves at equal cost; 0 leaves it to every_steps",
    )
    at_start: bool = Field(True, description="measure before training too")
    draws: int = Field(1, ge=1, description="sampled rollouts per task")
    greedy: bool = Field(True, description="measure greedy success too")


class OracleConfig(_Section):
    """What algorithms may ask for the true success probability of any place in a tree. Nobody has to; never billed."""

    kind: Literal["exact", "sampled"] = Field(
        "exact",
        description="exact: where the policy knows it (policy.path=tabular), else none; sampled: by rollouts from the place",
    )
    draws: int = Field(16, ge=1, description="rollouts from each place, where kind is sampled")


class LogConfig(_Section):
    """What the run folder keeps."""

    trees_every_steps: int = Field(
        1, ge=0, description="training steps between saved rollout trees; 0 is none"
    )
    tensorboard: bool = Field(True, description="write a TensorBoard log too, where it is installed")
    wandb: str = Field("", description="project of Weights & Biases to log to; empty is none")
    checkpoint_every_steps: int = Field(
        10, ge=0, description="training steps between checkpoints that a run can be resumed from; 0 is none"
    )


def _named(algorithm: Options) -> Options:
    named = {"name": "grpo", **algorithm}  # so that `algorithm.group=4` alone is a setting of the default
    if not isinstance(named["name"], str):
        raise ValueError(
            "the name is a word, such as algorithm.name=grpo (`trace-gym algorithms` lists them)"
        )
    return named


class TrainConfig(_Section):
    """A training run. The algorithm's fields are checked by `plugins.make_algorithm`, an option by its environment."""

    seed: int = Field(0, ge=0, lt=2**63, description="every random stream of the run derives from it")
    out: FolderPath = Field("runs", description="folder of run folders")
    name: str = Field(
        "train",
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$",
        max_length=100,
        description="of the run folder; a number is added where it exists",
    )
    deterministic: bool = Field(
        False, description="the same trees and weights each time, at some cost in speed"
    )
    env: EnvConfig = EnvConfig()
    policy: PolicyConfig = PolicyConfig()
    engine: EngineConfig = EngineConfig()
    algorithm: Annotated[Options, AfterValidator(_named)] = Field(
        {"name": "grpo"}, description="name and fields; `trace-gym algorithms` lists both"
    )
    rollout: RolloutConfig = RolloutConfig()
    optim: OptimConfig = OptimConfig()
    budget: BudgetConfig = BudgetConfig(policy_tokens=250_000)
    eval: EvalConfig = EvalConfig()
    oracle: OracleConfig = OracleConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _ahead_or_repeatable(self) -> Self:
        if self.rollout.ahead and self.deterministic:
            raise ValueError(
                "rollout.ahead=1 cannot be deterministic, for a stopped run would go on with other trees; switch one off"
            )
        if self.rollout.ahead and self.engine.sleep:
            raise ValueError(
                "rollout.ahead=1 samples during the update, when engine.sleep=true has the engine rest"
            )
        return self


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> TrainConfig:
    """The settings in a YAML file (none: the defaults), changed by `a.b=value` overrides.

    Raises `ConfigError` with one line per mistake: the file and its line, or the override, and what to write instead.
    """
    settings = Settings.read(path) if path is not None else Settings()
    for text in overrides:
        settings.override(text)
    try:
        return TrainConfig.model_validate(settings.values)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(_complaint(e, settings) for e in error.errors(include_url=False))
        ) from error


def dump_config(config: TrainConfig) -> str:
    """YAML with a comment on every setting; `load_config` reads it back equal."""
    return "\n".join(_dump(config, "")) + "\n"


def _dump(section: BaseModel, indent: str) -> Iterator[str]:
    plain = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:"
            yield from _dump(value, indent + "  ")
        elif isinstance(value, dict) and value:
            yield f"{indent}{name}:  # {field.description}"
            yield from (f"{indent}  {flow(key)}: {flow(part)}" for key, part in plain[name].items())
        else:
            yield f"{indent}{name}: {flow(plain[name])}  # {field.description}"


# ---- complaints -----------------------------------------------------------------------------------------------------


def _complaint(error: ErrorDetails, settings: Settings) -> str:
    """One of pydantic's errors as a line for people."""
    path = tuple(str(part) for part in error["loc"])
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        text = f"unknown key {key}{_suggest(path)} (`trace-gym train --print-config` lists all keys)"
    elif error["type"] == "value_error":
        text = f"{key}: {error['ctx']['error']}"
    elif error["type"] in ("model_type", "dict_type"):
        text = f"{key} is a section with keys such as {_example(path)}; it cannot be {_short(error['input'])}"
    elif error["type"] in (
        "tuple_type",
        "missing",
        "too_long",
    ):  # of the settings, lists alone can be too short
        name = ".".join(part for part in path if not part.isdigit())
        text = f"{name} is a list ({_known_keys()[name]}); it cannot be {_short(error['input'])}"
    else:
        text = f"{key}: {error['msg']}, not {_short(error['input'])}"
    return f"{settings.origin(path)}{text}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _example(path: Sequence[str]) -> str:
    key = ".".join(path)
    if key == "algorithm":
        return "algorithm.name"
    return next((known for known in _known_keys() if known.startswith(key + ".")), f"{key}.NAME")


def _suggest(path: Sequence[str]) -> str:
    """The key meant, if there is a guess: by the same word elsewhere, by its description, by a similar spelling."""
    known, key, word = _known_keys(), ".".join(path), path[-1]
    if key in known:  # the dot is part of the word
        return f"; in a file, write it nested: {word.replace('.', ': {', 1)}: …}}"
    same = [other for other in known if other.rpartition(".")[2] == word]
    described = [other for other, text in known.items() if word.replace("_", " ") in text]
    for certain in (same, described):
        if len(certain) == 1:
            return f"; did you mean {certain[0]!r}?"
    siblings = [other for other in known if other.rpartition(".")[0] == key.rpartition(".")[0]]
    return suggestion(key, siblings) or suggestion(key, known)


def _known_keys(section: type[BaseModel] = TrainConfig, prefix: str = "") -> dict[str, str]:
    """Every key and its description."""
    keys: dict[str, str] = {}
    for name, field in section.model_fields.items():
        keys[prefix + name] = field.description or ""
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys |= _known_keys(field.annotation, f"{prefix}{name}.")
    return keys
