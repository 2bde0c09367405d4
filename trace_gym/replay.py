"""Any seeded gymnasium environment of text, made forkable by playing its episodes again.

The state is a recipe: the reset seed, and for each turn the action, the seed of its noise and a digest of the
answer. Whoever asks for a state that the inner environment is not in gets it by replay from the start.

Invariant: the inner environment either stands exactly at `_at`, or `_at` is None. A replay that answers
otherwise than recorded raises `ReplayDivergence`; nothing goes on from a state that is not the one asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import msgspec
import numpy as np

from trace_gym.env import ForkableEnv, Info, Opening, Turn
from trace_gym.errors import ConfigError, ReplayDivergence, TaskError
from trace_gym.snapshot import plain_bytes
from trace_gym.text import clean_text

__all__ = ["ReplayEnv", "ReplayState", "ReplayedTurn"]

InnerEnv = gymnasium.Env[str, Any]
DEFAULT_TURNS = 64
SEED_SPLITS = {"train": range(1000), "test": range(1000, 1200)}  # the tasks of an environment that names none

# How environments refuse an action. Anything else they raise (lost connections, no memory) is their failure.
_REFUSALS = (ValueError, TypeError, LookupError, AssertionError, gymnasium.error.InvalidAction)
_NOT_EXTRA = frozenset({"task_id", "role", "system", "tools", "success"})


class ReplayedTurn(msgspec.Struct, frozen=True, array_like=True):
    """One turn of the recipe. A refused action was never carried out, so a replay leaves it out."""

    action: str
    noise: int | None  # seed of the inner generator for this turn; None where nothing was drawn from it
    digest: bytes  # of observation, reward and ending
    refused: bool = False


class ReplayState(msgspec.Struct, frozen=True):
    """Everything needed to play an episode again from the start."""

    task: str
    seed: int  # of the inner reset
    opening: bytes  # digest of the first observation
    turns: tuple[ReplayedTurn, ...] = ()


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the inner environment said to an action."""

    observation: str
    reward: float
    terminated: bool
    truncated: bool
    info: Info
    noise: int | None  # the seed of its noise, if it drew any

    @property
    def digest(self) -> bytes:
        return _digest(self.observation, self.reward, self.terminated, self.truncated)


class ReplayEnv(ForkableEnv[ReplayState]):
    """`env` made forkable: an id, a function that makes one, or an instance that gymnasium made.

    Without `tasks` a task is a reset seed ("0", "1", …). With `tasks`, ids by split, the inner environment is
    reset with `options={"task": id}` and a seed of its own. `max_turns` defaults to the inner step limit, or
    to 64.

    Before each turn the inner `np_random` is seeded from this environment's generator, so that forks restored
    with a seed of their own see fresh noise. Noise that the inner environment draws elsewhere is the same in
    every fork, or ends in `ReplayDivergence`. `reseed=False` leaves the inner generator alone: then the reset
    seed fixes all noise, and `restore(seed=)` draws none.

    An action that the inner environment refuses by raising costs a turn and is not carried out. Success is
    what the last inner info says (`success` or `is_success`), else a positive last reward. A restore costs as
    much as the turns it replays, and nothing where the environment already stands there.

    `expert` is given the inner environment, unwrapped, and says the action of a scripted solution.
    """

    state_type: ClassVar[type[msgspec.Struct]] = ReplayState

    def __init__(
        self,
        env: str | InnerEnv | Callable[[], InnerEnv],
        *,
        env_id: str | None = None,
        max_turns: int | None = None,
        tasks: Mapping[str, Sequence[str]] | None = None,
        system: str = "",
        expert: Callable[[InnerEnv], str] | None = None,
        reseed: bool = True,
        dense_reward: bool = False,
    ) -> None:
        super().__init__()
        self._make = _maker(env)
        self._inner = env if isinstance(env, gymnasium.Env) else self._make()
        self._at: ReplayState | None = None
        spec = self._inner.spec
        name = spec.id if spec else type(self._inner.unwrapped).__qualname__
        self.env_id = env_id or f"replay:{name}"  # type: ignore[misc]  # each instance has its own
        self.dense_reward = dense_reward
        self._turn_limit = max_turns or (spec and spec.max_episode_steps) or DEFAULT_TURNS
        self._tasks = None if tasks is None else {split: tuple(ids) for split, ids in tasks.items()}
        self._system = system
        self._expert = expert
        self._reseed = reseed

    # ---- the contract -------------------------------------------------------------------------------------

    def tasks(self, split: str) -> Sequence[str]:
        known = SEED_SPLITS if self._tasks is None else self._tasks
        if split not in known:
            raise TaskError(f"{self.env_id}: no split {split!r}; there are {', '.join(map(repr, known))}")
        return [str(task) for task in known[split]]

    def begin(self, task_id: str, rng: np.random.Generator) -> Opening[ReplayState]:
        if self._tasks is None:
            if not (task_id.isascii() and task_id.isdecimal() and len(task_id) <= 9):
                raise TaskError(f"{self.env_id}: a task is a reset seed, such as '17', not {task_id!r:.80}")
            seed = int(task_id)
        elif any(task_id in ids for ids in self._tasks.values()):
            seed = int(rng.integers(2**31))
        else:
            raise TaskError(
                f"{self.env_id}: no task {task_id!r:.80}; tasks(split) lists those of {', '.join(self._tasks)}"
            )
        observation, info = self._reset_inner(task_id, seed)
        self._at = ReplayState(task_id, seed, _digest(observation))
        return Opening(self._at, observation, self._turn_limit, _plain(info))

    def advance(self, state: ReplayState, action: str, rng: np.random.Generator) -> Turn[ReplayState]:
        noise = int(rng.integers(2**63)) if self._reseed else None
        self._go_to(state)
        try:
            answer = self._play(action, noise)
        except _REFUSALS as error:
            turn = ReplayedTurn(action, None, b"", refused=True)
            observation = f"The action was refused ({type(error).__name__}: {error})."
            return Turn.go(_longer(state, turn), observation, role="user", extra={"format_error": True})
        self._at = after = _longer(state, ReplayedTurn(action, answer.noise, answer.digest))
        extra = _plain(answer.info)
        if answer.terminated:
            success = _success(answer)
            reward = answer.reward
            return Turn.end(
                after, answer.observation, success=success, reward=reward, role="user", extra=extra
            )
        turn_kind = Turn[ReplayState].cut if answer.truncated else Turn[ReplayState].go
        return turn_kind(after, answer.observation, reward=answer.reward, role="user", extra=extra)

    def expert_action(self) -> str:
        """What `expert` or the inner environment's own `expert_action` says. Raises `ConfigError` without."""
        self._go_to(self.state)
        if self._expert is not None:
            return self._expert(self._inner.unwrapped)
        scripted = getattr(self._inner.unwrapped, "expert_action", None)
        if scripted is None:
            raise ConfigError(
                f"{self.env_id}: no scripted solution; pass ReplayEnv(expert=function of the env)"
            )
        return str(scripted())

    def instructions(self, state: ReplayState) -> str:
        return self._system

    def resume(self, state: ReplayState) -> None:
        self._go_to(state)

    def close(self) -> None:
        self._inner.close()

    # ---- the inner environment ----------------------------------------------------------------------------

    def _unshare(self) -> None:
        self._inner, self._at = self._make(), None

    def _go_to(self, state: ReplayState) -> None:
        """Bring the inner environment to `state`. Raises `ReplayDivergence` where it answers otherwise."""
        if state == self._at:
            return
        self._at = None
        observation, _ = self._reset_inner(state.task, state.seed)
        if _digest(observation) != state.opening:
            raise ReplayDivergence(
                f"{self.env_id}: reset(seed={state.seed}) shows another text than recorded"
            )
        for number, turn in enumerate(state.turns, start=1):
            if not turn.refused and not self._replays(turn):
                raise ReplayDivergence(
                    f"{self.env_id}: turn {number} of {len(state.turns)} answers otherwise than recorded; "
                    "the environment depends on something besides its seed and the actions"
                )
        self._at = state

    def _replays(self, turn: ReplayedTurn) -> bool:
        try:
            return self._play(turn.action, turn.noise).digest == turn.digest
        except _REFUSALS:
            return False

    def _reset_inner(self, task: str, seed: int) -> tuple[str, Info]:
        self._at = None
        options = None if self._tasks is None else {"task": task}
        observation, info = self._inner.reset(seed=seed, options=options)
        return self._text(observation), info

    def _play(self, action: str, noise: int | None) -> _Answer:
        """Step the inner environment, which then stands nowhere known until the caller says so."""
        self._at = None
        inner = self._inner.unwrapped
        before = None
        if noise is not None:
            inner.np_random = _reseeded(inner.np_random, noise)
            before = inner.np_random.bit_generator.state
        observation, reward, terminated, truncated, info = self._inner.step(action)
        drew = before is not None and inner.np_random.bit_generator.state != before
        text = self._text(observation)
        ended = bool(terminated), bool(truncated)
        return _Answer(text, float(reward), *ended, dict(info), noise if drew else None)

    def _text(self, observation: object) -> str:
        if not isinstance(observation, str):
            raise ConfigError(f"{self.env_id}: observations must be text, not {type(observation).__name__}")
        return clean_text(observation)


def _maker(env: str | InnerEnv | Callable[[], InnerEnv]) -> Callable[[], InnerEnv]:
    if isinstance(env, str):
        return lambda: gymnasium.make(env, disable_env_checker=True)
    if not isinstance(env, gymnasium.Env):
        return env
    if (spec := env.spec) is not None:
        return lambda: gymnasium.make(spec)
    raise ConfigError(
        f"ReplayEnv cannot make a second {type(env).__name__} to fork into: pass a function that does"
    )


def _reseeded(generator: np.random.Generator, seed: int) -> np.random.Generator:
    """`generator` itself where possible, for the inner environment may hold it under another name."""
    fresh = np.random.PCG64(seed)
    if not isinstance(generator.bit_generator, np.random.PCG64):
        return np.random.Generator(fresh)
    generator.bit_generator.state = fresh.state
    return generator


def _longer(state: ReplayState, turn: ReplayedTurn) -> ReplayState:
    return msgspec.structs.replace(state, turns=(*state.turns, turn))


def _success(answer: _Answer) -> bool:
    said = answer.info.get("success", answer.info.get("is_success"))
    return answer.reward > 0 if said is None else bool(said)


def _digest(*shown: str | float | bool) -> bytes:
    return hashlib.blake2b(plain_bytes(shown, "replay"), digest_size=16).digest()


def _from_numpy(value: object) -> object:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not plain data")


_PLAIN_ENCODER = msgspec.msgpack.Encoder(enc_hook=_from_numpy, order="deterministic")


def _plain(info: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of those entries of the inner info that are plain data and no keys of the contract."""
    kept: dict[str, Any] = {}
    for key, value in info.items():
        try:
            if key not in _NOT_EXTRA:
                kept[clean_text(key)] = msgspec.msgpack.decode(_PLAIN_ENCODER.encode(value))
        except (TypeError, ValueError, OverflowError, RecursionError):
            continue
    return kept
