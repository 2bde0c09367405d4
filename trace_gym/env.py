"""The environment contract: ordinary gymnasium plus states that are values.

An episode's whole mutable condition is one frozen `Snapshot`: the environment's own frozen state struct, the
generator's state, the turn count and what was last shown. `step` replaces it. Taking a snapshot therefore
copies nothing, and restoring one cannot touch a sibling.

Invariant: after `restore(s)` an instance behaves as the instance did that `s` was taken from, in this process
or another; with `seed=` it differs in environment noise alone.
"""

from __future__ import annotations

import copy
import hashlib
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal

import gymnasium
import msgspec
import numpy as np

from trace_gym.errors import (
    ConfigError,
    EnvironmentContractError,
    EpisodeError,
    IrreversibleError,
    SnapshotError,
    TaskError,
    TraceGymError,
)
from trace_gym.snapshot import (
    MAX_SNAPSHOT_BYTES,
    GeneratorState,
    Role,
    Snapshot,
    StateT,
    plain_bytes,
)
from trace_gym.text import MAX_OBSERVATION_CHARS, UnicodeText, clean_text, cut

__all__ = [
    "MAX_OBSERVATION_CHARS",
    "MAX_SNAPSHOT_BYTES",
    "ForkableEnv",
    "GeneratorState",
    "Info",
    "Opening",
    "Snapshot",
    "Tool",
    "Turn",
    "UnicodeText",
    "clean_text",
]

Info = dict[str, Any]
Effect = Literal["pure", "stateful", "recorded", "irreversible"]

_CONTRACT_KEYS = frozenset({"task_id", "role", "system", "tools", "success"})  # of `info`: never in `extra`


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function the agent may call. `effect` says what a fork has to know about it:

    `pure` no effect · `stateful` effect held in the snapshot · `recorded` external, answered from an
    append-only record · `irreversible` external and not to be undone, so that no fork past it is allowed.
    """

    name: str
    description: str
    parameters: dict[str, Any]  # JSON schema of the arguments, an object; never mutated
    effect: Effect = "pure"

    def schema(self) -> dict[str, Any]:
        """The tool as chat templates expect it (OpenAI's function form)."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Opening(Generic[StateT]):
    """How an episode begins: its first state, what the agent is shown, and how many turns it has."""

    state: StateT
    observation: str
    turn_limit: int
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Turn(Generic[StateT]):
    """What one action led to. Build it with `Turn.go`, `Turn.end` or `Turn.cut`."""

    state: StateT
    observation: str
    role: Role
    reward: float
    terminated: bool
    truncated: bool
    success: bool | None
    extra: dict[str, Any]
    irreversible: bool

    @classmethod
    def go(
        cls,
        state: StateT,
        observation: str,
        *,
        reward: float = 0.0,
        role: Role = "tool",
        extra: dict[str, Any] | None = None,
        irreversible: bool = False,
    ) -> Turn[StateT]:
        """The episode goes on. A reward before the end is for environments that declare `dense_reward`."""
        return cls(state, observation, role, reward, False, False, None, extra or {}, irreversible)

    @classmethod
    def end(
        cls,
        state: StateT,
        observation: str,
        *,
        success: bool,
        reward: float | None = None,
        role: Role = "tool",
        extra: dict[str, Any] | None = None,
        irreversible: bool = False,
    ) -> Turn[StateT]:
        """The episode is over; the reward is 0 or 1 by `success` unless given."""
        reward = float(success) if reward is None else reward
        return cls(state, observation, role, reward, True, False, success, extra or {}, irreversible)

    @classmethod
    def cut(
        cls,
        state: StateT,
        observation: str,
        *,
        reward: float = 0.0,
        role: Role = "tool",
        extra: dict[str, Any] | None = None,
        irreversible: bool = False,
    ) -> Turn[StateT]:
        """The episode is cut short from outside the task, as it is by itself at its turn limit."""
        return cls(state, observation, role, reward, False, True, False, extra or {}, irreversible)


class ForkableEnv(gymnasium.Env[str, str], Generic[StateT]):
    """A gymnasium environment of text whose every state can be kept, moved and forked.

    A subclass declares `env_id`, `state_type` and, when its state changes meaning, `schema_version`; it
    implements `begin`, `advance`, `tasks`, `expert_action`, and where useful `instructions`, `tools`,
    `state_key`. Everything mutable lives in the frozen state struct; other attributes are read-only after
    construction and shared by forks.

    `info` always holds `task_id` and `role` (user | tool) of the observation; at `reset` and `restore` also
    `system` (instructions) and `tools` (JSON schemas), and `tools` again in a step that changed them; at the
    end `success`. An episode cut at its turn limit ends `truncated`, with `success` False. The reward is 0
    before the end unless the environment sets `dense_reward`.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (gymnasium's own declaration)
    env_id: ClassVar[str]
    state_type: ClassVar[type[msgspec.Struct]]
    schema_version: ClassVar[int] = 1
    dense_reward: bool = False

    def __init__(self) -> None:
        self.observation_space = UnicodeText(MAX_OBSERVATION_CHARS)
        self.action_space = UnicodeText()
        self._now: Snapshot | None = (
            None  # of the last reset, step or restore; its `generator` is set when read
        )
        self._packed_tools: tuple[tuple[Tool, ...], bytes] = ((), msgspec.msgpack.encode([]))

    # ---- what a subclass writes --------------------------------------------------------------------------

    def begin(self, task_id: str, rng: np.random.Generator) -> Opening[StateT]:
        """The opening of `task_id`. Raises `TaskError` when there is no such task."""
        raise NotImplementedError

    def advance(self, state: StateT, action: str, rng: np.random.Generator) -> Turn[StateT]:
        """What `action` leads to from `state`. Any string is an action; noise comes from `rng` alone."""
        raise NotImplementedError

    def tasks(self, split: str) -> Sequence[str]:
        """The ids of the split's tasks, in a fixed order. Raises `TaskError` for an unknown split."""
        raise NotImplementedError

    def expert_action(self) -> str:
        """An action that leads towards success from the present state, if it is still solvable."""
        raise NotImplementedError

    def novice_action(self, rng: np.random.Generator) -> str:
        """What a fallible demonstrator does here, systematic mistakes included: what `trace-gym warmup` teaches.

        Override it where an imperfect beginner makes a better start for reinforcement learning than the expert.
        """
        return self.expert_action()

    def notices(self) -> Sequence[str]:
        """What a person should know about this environment's tasks, a line each, such as lines of a file that were skipped."""
        return ()

    def instructions(self, state: StateT) -> str:
        """The system message. It may depend on the task, not on the turn."""
        return ""

    def tools(self, state: StateT) -> Sequence[Tool]:
        """The tools the agent may call in `state`."""
        return ()

    def state_key(self) -> str:
        """Equal for equal situations, whatever the path or generator. Default: digest of task and state."""
        now = self._episode()
        return hashlib.sha256(plain_bytes((now.task_id, now.state), self.env_id)).hexdigest()

    def resume(self, state: StateT) -> None:
        """Called by `restore`, for an environment that drives something outside its state (`ReplayEnv`)."""

    # ---- gymnasium ---------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, Info]:
        """Begin `options["task"]`, or a task drawn from the train split.

        Raises `TaskError` for an unknown task, `ConfigError` for any other option.
        """
        if unknown := (options or {}).keys() - {"task"}:
            names = ", ".join(sorted(map(repr, unknown)))
            raise ConfigError(
                f"{self.env_id}: unknown reset option {names}; the one option is 'task', a task id"
            )
        super().reset(seed=seed)
        task_id = (options or {}).get("task")
        if task_id is None:
            task_id = self._draw_task()
        elif not isinstance(task_id, str):
            raise TaskError(f"options['task'] must be a task id (a string), not {task_id!r}")
        opening = self.begin(task_id, self.np_random)
        self._now = Snapshot(
            env_id=self.env_id,
            schema_version=self.schema_version,
            task_id=task_id,
            state=opening.state,
            generator=_UNREAD,
            turn=0,
            turn_limit=opening.turn_limit,
            status="running",
            observation=cut(opening.observation),
            role="user",
            extra=self._checked(opening.extra),
        )
        return self._now.observation, self._full_info(self._now)

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        """Take one turn. Raises `EpisodeError` before `reset` and after the end."""
        now = self._episode()
        if now.status != "running":
            raise EpisodeError(f"{self.env_id}: the episode is over; call reset() or restore() before step()")
        if not isinstance(action, str):
            raise EpisodeError(f"{self.env_id}: an action is a string, not {type(action).__name__}")
        turn = self.advance(now.state, clean_text(action), self.np_random)
        truncated = turn.truncated or (not turn.terminated and now.turn + 1 >= now.turn_limit)
        after = msgspec.structs.replace(
            now,
            state=turn.state,
            turn=now.turn + 1,
            status="done" if turn.terminated else "truncated" if truncated else "running",
            observation=cut(turn.observation),
            role=turn.role,
            success=False if truncated else turn.success,
            extra=self._checked(turn.extra),
            irreversible=now.irreversible or turn.irreversible,
        )
        self._now = after
        info = self._info(after)
        tools = tuple(self.tools(after.state))
        if tools != tuple(self.tools(now.state)):
            info["tools"] = self._schemas(tools)
        return after.observation, turn.reward, turn.terminated, truncated, info

    # ---- forking -----------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The present state. Raises `IrreversibleError` when an irreversible tool was called."""
        now = self._episode()
        if now.irreversible:
            raise IrreversibleError(f"{self.env_id}: {_IRREVERSIBLE}")
        return msgspec.structs.replace(now, generator=GeneratorState.of(self.np_random))

    def restore(self, snapshot: Snapshot, *, seed: int | None = None) -> tuple[str, Info]:
        """Become the episode that `snapshot` was taken from and return its last observation and info.

        `seed=None` continues the stored generator; a seed draws fresh environment noise, as continuations of
        one prefix must. Raises `SnapshotError` when the snapshot is another environment's or cannot be read;
        the instance then stays in the episode it was in.
        """
        self._refuse_foreign(snapshot)
        state = snapshot.state_as(self.state_type)
        generator = snapshot.generator.generator() if seed is None else _seeded(seed)
        before = self._now, self._np_random, self._np_random_seed
        try:
            self.np_random = generator
            self._now = now = msgspec.structs.replace(snapshot, state=state, generator=_UNREAD)
            self.resume(state)  # type: ignore[arg-type]  # state_type is StateT's
            return now.observation, self._full_info(now)
        except Exception as error:
            self._now, self._np_random, self._np_random_seed = before
            if isinstance(error, TraceGymError):
                raise
            reason = f"{type(error).__name__}: {error}"
            raise SnapshotError(
                f"{self.env_id}: the snapshot's state makes no sense here ({reason})"
            ) from error

    def fork(self) -> ForkableEnv[StateT]:
        """An exact twin in the present state, generator included; the two share nothing mutable."""
        snapshot = self.snapshot()
        twin = copy.copy(self)
        twin.observation_space = UnicodeText(MAX_OBSERVATION_CHARS)
        twin.action_space = UnicodeText()
        twin._unshare()
        twin.restore(snapshot)
        return twin

    def _unshare(self) -> None:
        """Called on a new fork, for an environment that drives something outside its state."""

    # ---- helpers -----------------------------------------------------------------------------------------

    def _episode(self) -> Snapshot:
        if self._now is None:
            raise EpisodeError(f"{self.env_id}: call reset() or restore() first")
        return self._now

    @property
    def state(self) -> StateT:
        """The present frozen state struct, for `expert_action`, `state_key` and tests."""
        return self._episode().state  # type: ignore[no-any-return]

    def _draw_task(self) -> str:
        ids = self.tasks("train")
        if not ids:
            raise TaskError(
                f"{self.env_id}: the train split has no tasks; name one with options={{'task': id}}"
            )
        return ids[int(self.np_random.integers(len(ids)))]

    def _refuse_foreign(self, snapshot: Snapshot) -> None:
        if not isinstance(snapshot, Snapshot):
            raise SnapshotError(
                f"restore() takes a Snapshot, not {type(snapshot).__name__}; see Snapshot.from_bytes"
            )
        if snapshot.env_id != self.env_id:
            theirs = f"{snapshot.env_id:.80}"
            raise SnapshotError(f"this snapshot is of {theirs!r}; it cannot be restored into {self.env_id!r}")
        if snapshot.schema_version != self.schema_version:
            raise SnapshotError(
                f"{self.env_id}: the snapshot has schema version {snapshot.schema_version}, "
                f"this release reads {self.schema_version}; record it again"
            )
        if snapshot.irreversible:
            raise IrreversibleError(f"{self.env_id}: {_IRREVERSIBLE}")

    def _checked(self, extra: dict[str, Any]) -> dict[str, Any]:
        if extra and (taken := _CONTRACT_KEYS & extra.keys()):
            raise EnvironmentContractError(
                f"{self.env_id}: `extra` may not hold {sorted(taken)}; rename them"
            )
        return extra

    def _schemas(self, tools: Sequence[Tool]) -> list[dict[str, Any]]:
        """Schemas that share nothing with the environment: unpacked anew from bytes kept for these tools."""
        known, packed = self._packed_tools
        if len(known) != len(tools) or not all(map(operator.is_, known, tools)):
            packed = msgspec.msgpack.encode([tool.schema() for tool in tools])
            self._packed_tools = tuple(tools), packed
        return msgspec.msgpack.decode(packed, type=list[dict[str, Any]])

    def _info(self, now: Snapshot) -> Info:
        info: Info = copy.deepcopy(now.extra) if now.extra else {}
        info["task_id"] = now.task_id
        info["role"] = now.role
        if now.success is not None:
            info["success"] = now.success
        return info

    def _full_info(self, now: Snapshot) -> Info:
        info = self._info(now)
        info["system"] = clean_text(self.instructions(now.state))
        info["tools"] = self._schemas(self.tools(now.state))
        return info


_UNREAD = GeneratorState(
    bytes(16), bytes(16), 0, 0
)  # stands where the generator's state has not been asked for
_IRREVERSIBLE = "an irreversible tool was called; no state after it can be forked"


def _seeded(seed: int) -> np.random.Generator:
    try:
        return np.random.Generator(np.random.PCG64(seed))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"restore(seed=) takes a whole number from 0, not {seed!r}") from error
