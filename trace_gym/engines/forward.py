"""An engine for any module that gives logits for a prefix: plain forward passes, nothing kept between them.

It is meant for policies whose forward pass costs next to nothing, such as tables, and as a reference. A module that knows its
next token without looking at a whole prefix may offer

    next_logits(prefixes) -> [B, v]      logits after each prefix; token ids from v on are impossible

else `model(input_ids=…, use_cache=False).logits` is read after each row's last token, rows padded on the right, which causal
attention keeps out of sight. Every request draws from a stream of its own seed; so up to rounding in the forward pass (none
with `next_logits` of a table) a completion depends on its own prefix, seed and temperature and on nothing else.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trace_gym.engine import Completion, Finish, IntArray, Request, Weights
from trace_gym.engines.sampling import sample
from trace_gym.errors import EngineError

__all__ = ["ForwardEngine"]


@dataclass(slots=True, eq=False)
class _Job:
    id: int
    request: Request
    limit: int
    uniforms: npt.NDArray[np.float64]  # [limit]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    processed: int = 0

    @property
    def prefix(self) -> IntArray:
        if not self.tokens:
            return self.request.tokens
        return np.concatenate([self.request.tokens, np.array(self.tokens, dtype=np.int32)])


class ForwardEngine:
    """See the module. It runs the very module it is given; `max_batch` requests share a forward pass. For one thread."""

    def __init__(self, model: Any, *, max_batch: int = 256, max_context: int = 1_000_000) -> None:
        if max_batch < 1 or max_context < 2:
            raise EngineError("max_batch must be at least 1, max_context at least 2")
        self.max_context, self.version = max_context, 0
        self._model, self._max_batch = model, max_batch
        self._jobs: dict[int, _Job] = {}
        self._done: list[Completion] = []
        self._ids = itertools.count()
        self._closed = False

    def submit(self, request: Request) -> int:
        if self._closed:
            raise EngineError("the engine is closed: make a new one")
        if request.seed < 0:
            raise EngineError(f"a request's seed must not be negative: {request.seed}")
        room = self.max_context - len(request.tokens)
        if room < 1:
            raise EngineError(
                f"a prefix of {len(request.tokens)} tokens leaves no room in a context of {self.max_context}"
            )
        limit = min(request.max_tokens, room)
        uniforms = np.random.Generator(np.random.PCG64(request.seed)).random(limit)
        job = _Job(next(self._ids), request, limit, uniforms)
        self._jobs[job.id] = job
        return job.id

    def poll(self, timeout_s: float) -> list[Completion]:
        """Passes of one token for every request until one is complete or the time is over; one pass at least."""
        deadline = time.monotonic() + timeout_s
        while self._jobs:
            jobs = list(self._jobs.values())
            for first in range(0, len(jobs), self._max_batch):
                self._advance(jobs[first : first + self._max_batch])
            if self._done or time.monotonic() >= deadline:
                break
        done, self._done = self._done, []
        return done

    def abort(self, request_id: int) -> None:
        if request_id in self._jobs:
            self._complete(self._jobs[request_id], "aborted")

    def load(self, weights: Weights, version: int) -> None:
        """Copy tensors by name. One that is the model's own already costs nothing; a name left out keeps its value."""
        if self._jobs:
            raise EngineError(
                f"the engine cannot load weights with {len(self._jobs)} requests unfinished: poll or abort them first"
            )
        own = dict(self._model.state_dict(keep_vars=True))
        with torch.no_grad():
            for name, tensor in weights:
                if name not in own or own[name].shape != tensor.shape:
                    raise EngineError(
                        f"cannot load {name}, shape {tuple(tensor.shape)}: the model has no such tensor"
                    )
                if own[name].data_ptr() != tensor.data_ptr():
                    own[name].copy_(tensor)
        self.version = version

    def sleep(self) -> None:
        """Nothing is held that could be given back."""

    def wake(self) -> None: ...

    def close(self) -> None:
        self._jobs.clear()
        self._done.clear()
        self._closed = True

    # ---- a pass -----------------------------------------------------------------------------------------------------

    def _advance(self, jobs: Sequence[_Job]) -> None:
        prefixes = [job.prefix for job in jobs]
        try:
            with torch.inference_mode():
                logits = self._logits(prefixes)
                host = torch.tensor(
                    [
                        [job.request.temperature for job in jobs],
                        [job.uniforms[len(job.tokens)] for job in jobs],
                    ],
                    dtype=torch.float64,
                )
                tokens, logprobs = sample(logits, *host.to(logits.device))
        except Exception as error:  # whatever a model may raise
            text = " ".join(f"{type(error).__name__}: {error}".split())
            for job in jobs:
                self._complete(job, "error", f"the forward pass failed with {text}")
            return
        for job, prefix, token, logprob in zip(
            jobs, prefixes, tokens.tolist(), logprobs.tolist(), strict=True
        ):
            job.processed += len(prefix)
            self._record(job, token, logprob)

    def _logits(self, prefixes: Sequence[IntArray]) -> torch.Tensor:
        """[B, v] after each prefix."""
        quick = getattr(self._model, "next_logits", None)
        if quick is not None:
            return quick(prefixes)  # type: ignore[no-any-return]
        lengths = np.array([len(prefix) for prefix in prefixes])
        ids = np.zeros((len(prefixes), int(lengths.max())), dtype=np.int64)
        for row, prefix in zip(ids, prefixes, strict=True):
            row[: len(prefix)] = prefix
        device = next(self._model.parameters()).device
        logits = self._model(input_ids=torch.from_numpy(ids).to(device), use_cache=False).logits
        return logits[torch.arange(len(ids)), torch.from_numpy(lengths - 1)]  # type: ignore[no-any-return]

    def _record(self, job: _Job, token: int, logprob: float) -> None:
        if not math.isfinite(logprob):
            self._complete(job, "error", "the model's logits are not finite: its weights may have diverged")
            return
        job.tokens.append(token)
        job.logprobs.append(logprob)
        if token in job.request.stop:
            self._complete(job, "stop")
        elif len(job.tokens) == job.limit:
            self._complete(job, "length")

    def _complete(self, job: _Job, finish: Finish, error: str = "") -> None:
        del self._jobs[job.id]
        tokens, logprobs = np.array(job.tokens, dtype=np.int32), np.array(job.logprobs, dtype=np.float32)
        self._done.append(
            Completion(job.id, tokens, logprobs, finish, self.version, job.processed, error=error)
        )
