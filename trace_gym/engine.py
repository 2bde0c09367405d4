"""What the rollout loop needs of a generator of text: submit a prefix, poll for completions.

Invariants: tokens in, tokens out (no engine sees or makes text); every submitted request comes back from `poll` exactly
once, finished, aborted or failed; log-probs are those of the distribution that was sampled from, which is the policy's
softmax at `temperature` and nothing else (top-p and top-k would bias the importance ratio, so they do not exist here).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from trace_gym.errors import EngineError

__all__ = ["Completion", "Engine", "FloatArray", "IntArray", "Request", "ScriptedEngine", "Weights"]

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
Finish = Literal["stop", "length", "aborted", "error"]
Weights = Iterable[tuple[str, Any]]  # (parameter name, tensor)


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One turn to be sampled. The same `seed` and `tokens` give the same completion on a batch-invariant engine."""

    tokens: IntArray  # [n] the prefix, exactly as the policy shall see it
    max_tokens: int
    seed: int
    temperature: float = 1.0  # 0 is greedy: for evaluation, never for training samples
    stop: tuple[int, ...] = ()  # token ids that end the turn; the one that did is part of the completion

    def __post_init__(self) -> None:
        if len(self.tokens) == 0:
            raise EngineError("a request needs at least one prefix token")
        if self.max_tokens < 1:
            raise EngineError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if not self.temperature >= 0.0:
            raise EngineError(f"temperature must be 0 or more, not {self.temperature}")


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """What came of a request. `finish`: a stop token, `max_tokens` or the context reached, aborted, or failed."""

    request_id: int
    tokens: IntArray  # [n] sampled tokens, the stop token included
    logprobs: FloatArray  # [n] under the sampling distribution; 0 for greedy
    finish: Finish
    version: int = 0  # of the weights that sampled it
    processed_tokens: int = 0  # prefix tokens computed for this request
    cached_tokens: int = 0  # prefix tokens taken from a cache
    error: str = ""  # why, when `finish` is "error"


@runtime_checkable
class Engine(Protocol):
    """See the module. `max_context` is the longest prefix plus completion, in tokens."""

    max_context: int

    def submit(self, request: Request) -> int:
        """Accept a request and return its id. Raises `EngineError` when the engine is dead or the request impossible."""

    def poll(self, timeout_s: float) -> list[Completion]:
        """The completions that are ready; waits at most about `timeout_s` for the first. [] when none is."""

    def abort(self, request_id: int) -> None:
        """Stop working on a request; it comes back as "aborted". Unknown or finished ids are ignored."""

    def load(self, weights: Weights, version: int) -> None:
        """Replace the policy's weights and drop what was cached; no weights: only the latter. Only while idle."""

    def sleep(self) -> None:
        """Give accelerator memory to the trainer, where the platform allows."""

    def wake(self) -> None:
        """Take it back; called before the next `submit`."""

    def close(self) -> None:
        """Free everything; no process stays behind. May be called twice."""


Reply = Callable[[Request, np.random.Generator], Sequence[int]]


@dataclass(slots=True)
class ScriptedEngine:
    """An engine whose replies are computed by `reply(request, rng) -> token ids`: for tests, docs and examples.

    `rng` is seeded by the request, so replies do not depend on batching: this engine is batch-invariant. `shuffle` draws
    the order (and, with `burst`, the number) in which completions arrive. Log-probs are `logprob` for every token.
    """

    reply: Reply
    shuffle: np.random.Generator | None = None
    burst: int | None = None  # at most this many completions a poll
    logprob: float = -1.0
    max_context: int = 1_000_000
    version: int = 0
    _waiting: dict[int, Request] = field(default_factory=dict)
    _aborted: list[int] = field(default_factory=list)
    _ids: itertools.count[int] = field(default_factory=itertools.count)

    def submit(self, request: Request) -> int:
        request_id = next(self._ids)
        self._waiting[request_id] = request
        return request_id

    def poll(self, timeout_s: float) -> list[Completion]:
        ids = list(self._waiting)
        if self.shuffle is not None:
            self.shuffle.shuffle(ids)
        done = [self._complete(request_id) for request_id in ids[: self.burst]]
        none = np.zeros(0)
        done += [
            Completion(i, none.astype(np.int32), none.astype(np.float32), "aborted", self.version)
            for i in self._aborted
        ]
        self._aborted.clear()
        return done

    def _complete(self, request_id: int) -> Completion:
        request = self._waiting.pop(request_id)
        reply = np.asarray(self.reply(request, np.random.default_rng(request.seed)), dtype=np.int32)
        tokens = reply[: request.max_tokens]
        stopped = len(tokens) > 0 and int(tokens[-1]) in request.stop
        logprobs = np.full(len(tokens), self.logprob, dtype=np.float32)
        finish: Finish = "stop" if stopped else "length"
        return Completion(
            request_id, tokens, logprobs, finish, self.version, processed_tokens=len(request.tokens)
        )

    def abort(self, request_id: int) -> None:
        if self._waiting.pop(request_id, None) is not None:
            self._aborted.append(request_id)

    def load(self, weights: Weights, version: int) -> None:
        self.version = version

    def sleep(self) -> None: ...

    def wake(self) -> None: ...

    def close(self) -> None:
        self._waiting.clear()
