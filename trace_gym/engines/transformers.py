"""An engine in this process for any Hugging Face causal language model with full attention.

Continuous batching without padding: the requests being sampled are the rows 0 .. n of one store of keys and values, each as
long as it is. One step computes one token for every row; a request joins between any two steps (its unknown tokens are
computed beside other newcomers'), and leaves at once, its place taken by the last row. Rows that have left are kept, least
recently used first to go, and a newcomer copies the longest beginning that any row shares with it: the next turn of an
episode, or a fork of it, computes only what is new. A completion depends on its own prefix, seed and temperature, up to the
rounding of the model's arithmetic.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from trace_gym.engine import Completion, Finish, IntArray, Request, Weights
from trace_gym.engines.kv import LongArray, RaggedCache, Rows
from trace_gym.engines.probe import context_limit, forward, probe, text_config
from trace_gym.engines.sampling import sample
from trace_gym.errors import EngineError

__all__ = ["TransformersEngine"]

PADDING = 64  # tokens of padding in a prefill that cost less than another forward pass
WORTH_WAITING = 16  # tokens: a newcomer lets another go first whose prefix saves it at least this many


@dataclass(slots=True, eq=False)
class _Job:
    """A request, and what has been sampled for it."""

    id: int
    request: Request
    limit: int  # tokens to sample at most: `max_tokens`, or what the context leaves
    uniforms: npt.NDArray[np.float64]  # [limit]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    cached: int = 0  # prefix tokens taken from the cache
    processed: int = 0  # prefix tokens computed


class TransformersEngine:
    """See the module. The engine runs the very module it is given: the trainer's own, or a copy that `load` writes into.

    `max_batch` rows are sampled at a time and `kept_rows` more are kept for reuse (as many by default); memory for both
    grows with use, up to that many rows of the longest context met. `max_prefill_tokens` bounds the tokens, padding
    included, of one forward pass over prefixes. One thread at a time. Raises `EngineError` for a model it cannot run.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        max_batch: int = 64,
        max_context: int | None = None,
        max_prefill_tokens: int = 4096,
        kept_rows: int | None = None,
    ) -> None:
        if max_batch < 1 or max_prefill_tokens < 1 or (kept_rows is not None and kept_rows < 0):
            raise EngineError("max_batch and max_prefill_tokens must be at least 1, kept_rows at least 0")
        self.max_context = context_limit(model, max_context)
        self.version = 0
        self._model, self._max_batch, self._max_prefill_tokens = model, max_batch, max_prefill_tokens
        self._vocabulary = int(text_config(model).vocab_size)
        with self._inference():
            shape = probe(model)
        self._rows = Rows(shape, max_batch, self.max_context)
        self._kept = Rows(shape, max_batch if kept_rows is None else kept_rows, self.max_context)
        self._used: LongArray = np.zeros(
            self._kept.max_rows, dtype=np.int64
        )  # when each kept row was last of use
        self._cache = RaggedCache(self._rows)
        self._active: list[_Job] = []  # job i samples into row i
        self._waiting: deque[_Job] = deque()
        self._done: list[Completion] = []
        self._ids, self._clock = itertools.count(), itertools.count(1)
        self._state = "awake"  # asleep, closed

    # ---- the protocol -----------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> int:
        if self._state != "awake":
            raise EngineError(
                f"the engine is {self._state}: {'wake it' if self._state == 'asleep' else 'make a new one'} first"
            )
        room = self.max_context - len(request.tokens)
        if room < 1:
            raise EngineError(
                f"a prefix of {len(request.tokens)} tokens leaves no room in a context of {self.max_context}: shorten it"
            )
        if request.tokens.min() < 0 or request.tokens.max() >= self._vocabulary:
            raise EngineError(
                f"the prefix holds a token id outside 0 to {self._vocabulary - 1}: is it the model's tokenizer?"
            )
        if request.seed < 0:
            raise EngineError(f"a seed must not be negative: {request.seed}")
        limit = min(request.max_tokens, room)
        uniforms = np.random.Generator(np.random.PCG64(request.seed)).random(limit)
        job = _Job(next(self._ids), request, limit, uniforms)
        self._waiting.append(job)
        return job.id

    def poll(self, timeout_s: float) -> list[Completion]:
        """Steps until a completion is ready or the time is over; one step at least where there is work."""
        deadline = time.monotonic() + timeout_s
        with self._inference():
            while self._active or self._waiting:
                self._admit()
                self._decode()
                if self._done or time.monotonic() >= deadline:
                    break
        done, self._done = self._done, []
        return done

    def abort(self, request_id: int) -> None:
        for job in self._waiting:
            if job.id == request_id:
                self._waiting.remove(job)
                self._complete(job, "aborted")
                return
        for row, job in enumerate(self._active):
            if job.id == request_id:
                with self._inference():
                    self._leave(row, "aborted")
                return

    def load(self, weights: Weights, version: int) -> None:
        """Copy tensors by name; a tensor that is the model's own already costs nothing, a name left out stays as it is."""
        self._only_idle("load weights")
        self._forget()
        own = dict(self._model.state_dict(keep_vars=True))
        with torch.no_grad():
            for name, tensor in weights:
                if name not in own or own[name].shape != tensor.shape:
                    what = f"shape {tuple(own[name].shape)}" if name in own else "no such parameter"
                    raise EngineError(
                        f"cannot load {name} {tuple(tensor.shape)}: the engine's model has {what}"
                    )
                if own[name].data_ptr() != tensor.data_ptr():
                    own[name].copy_(tensor)
        self.version = version

    def sleep(self) -> None:
        """Free the cache. The weights stay: they may be the trainer's."""
        self._only_idle("sleep")
        self._rows.free()
        self._forget(free=True)
        if self._rows.shape.device.type == "cuda":
            torch.cuda.empty_cache()
        if self._state == "awake":
            self._state = "asleep"

    def wake(self) -> None:
        if self._state == "asleep":
            self._state = "awake"

    def close(self) -> None:
        self._active.clear()
        self._waiting.clear()
        self.sleep()
        self._state, self._model = "closed", nn.Module()

    def _only_idle(self, what: str) -> None:
        if self._active or self._waiting:
            raise EngineError(
                f"the engine cannot {what} with {len(self._active) + len(self._waiting)} requests unfinished"
            )

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        """Without gradients or dropout, whatever mode a trainer that shares the model has left it in."""
        training = (
            [module for module in self._model.modules() if module.training] if self._model.training else []
        )
        for module in training:
            module.training = False
        try:
            with torch.inference_mode():
                yield
        finally:
            for module in training:
                module.training = True

    # ---- joining ----------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Give free rows to waiting requests, first come first served."""
        while self._waiting and len(self._active) < self._max_batch:
            first = len(self._active)
            wave = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_batch - first))]
            try:
                wave = self._place(first, wave)
                logits = torch.cat([self._prefill(row, jobs) for row, jobs in self._batches(first, wave)])
            except Exception as error:  # whatever a model may raise, out of memory included
                self._fail(first, wave, error)
                continue
            self._active += wave
            self._record(first, logits)

    def _place(self, first: int, jobs: list[_Job]) -> list[_Job]:
        """Give the jobs rows from `first` on that hold what other rows know of their prefixes.

        A job that shares more with one of the others than with any row so far goes back to the queue until that one's
        prefix is computed. Returns the jobs placed, in the order of their rows: by the number of tokens to compute.
        """
        plans = sorted(((job, *self._donor(job.request.tokens)) for job in jobs), key=_to_compute)
        self._rows.reserve(first + len(jobs), max(len(job.request.tokens) for job in jobs) + 1)
        placed: list[_Job] = []
        later: list[_Job] = []
        contained: set[int] = set()
        for job, source, donor, common in plans:
            prefix, row = job.request.tokens, first + len(placed)
            if self._rows.longest(prefix, first, row)[1] - common >= WORTH_WAITING:
                later.append(job)
                continue
            self._rows.take(row, source, donor, common)
            self._rows.tokens[row, : len(prefix)] = prefix
            job.cached, job.processed = common, len(prefix) - common
            placed.append(job)
            if source is self._kept:
                self._used[donor] = next(self._clock)
                if common == source.filled[donor]:
                    contained.add(donor)
        for donor in contained:  # all of it is in a row that is itself kept later
            self._kept.drop(donor)
            self._used[donor] = 0
        self._waiting.extendleft(sorted(later, key=lambda job: job.id, reverse=True))
        return placed

    def _donor(self, prefix: IntArray) -> tuple[Rows, int, int]:
        """The row that shares the longest beginning with the prefix, all but its last token (which must be computed)."""
        running = self._rows.longest(prefix[:-1], 0, len(self._active))
        kept = self._kept.longest(prefix[:-1], 0, self._kept.max_rows)
        return (self._rows, *running) if running[1] >= kept[1] else (self._kept, *kept)

    def _batches(self, first: int, wave: Sequence[_Job]) -> Iterator[tuple[int, Sequence[_Job]]]:
        """Cut the wave, which is sorted by tokens to compute, into (first row, jobs) of bounded size and little padding."""
        start = 0
        for stop in range(1, len(wave) + 1):
            real = sum(job.processed for job in wave[start:stop])
            padded = max(job.processed for job in wave[start : stop + 1]) * (stop + 1 - start)
            if stop == len(wave) or padded > self._max_prefill_tokens or padded > 2 * real + PADDING:
                yield first + start, wave[start:stop]
                start = stop

    def _prefill(self, first: int, jobs: Sequence[_Job]) -> torch.Tensor:
        """Compute the unknown tokens of the prefixes in rows `first` …; logits [m, V] after the last of each."""
        rows = slice(first, first + len(jobs))
        lengths = np.array([len(job.request.tokens) for job in jobs])
        while True:
            known = self._rows.filled[rows]
            counts = np.minimum(
                lengths - known, self._max_prefill_tokens
            )  # a long prefix that is alone goes in pieces
            columns = known[:, None] + np.arange(counts.max()) - (counts.max() - counts)[:, None]
            pads = counts.max() - counts
            positions = np.maximum(columns, 0)
            ids = np.take_along_axis(self._rows.tokens[rows], positions, axis=1)
            logits = forward(self._model, self._cache, first, ids.astype(np.int64), positions, pads)
            self._rows.filled[rows] += counts
            if (self._rows.filled[rows] == lengths).all():
                return logits

    # ---- sampling ---------------------------------------------------------------------------------------------------

    def _decode(self) -> None:
        """One more token for every active row."""
        if not self._active:
            return
        n, rows = len(self._active), self._rows
        positions = rows.filled[:n].copy()
        try:
            rows.reserve(n, int(positions.max()) + 1)
            last = np.array([job.tokens[-1] for job in self._active], dtype=np.int64)
            logits = forward(self._model, self._cache, 0, last[:, None], positions[:, None])
        except Exception as error:
            failed, self._active = self._active, []
            self._fail(0, failed, error)
            return
        rows.tokens[np.arange(n), positions] = last
        rows.filled[:n] += 1
        self._record(0, logits)

    def _record(self, first: int, logits: torch.Tensor) -> None:
        """Sample a token for each row from `first` on, and let the rows that it ends leave."""
        jobs = self._active[first:]
        temperatures = torch.tensor([job.request.temperature for job in jobs], dtype=torch.float64)
        uniforms = torch.tensor([job.uniforms[len(job.tokens)] for job in jobs], dtype=torch.float64)
        drawn, logprobs = sample(logits, temperatures.to(logits.device), uniforms.to(logits.device))
        ends: list[tuple[int, Finish, str]] = []
        for row, (job, token, logprob) in enumerate(
            zip(jobs, drawn.tolist(), logprobs.tolist(), strict=True), first
        ):
            if not math.isfinite(logprob):
                ends.append(
                    (row, "error", "the model's logits are not finite: its weights may have diverged")
                )
                continue
            job.tokens.append(token)
            job.logprobs.append(logprob)
            if token in job.request.stop:
                ends.append((row, "stop", ""))
            elif len(job.tokens) == job.limit:
                ends.append((row, "length", ""))
        for row, finish, error in reversed(ends):  # from the last, for leaving moves the last row
            self._leave(row, finish, error)

    # ---- leaving ----------------------------------------------------------------------------------------------------

    def _leave(self, row: int, finish: Finish, error: str = "") -> None:
        """Complete the row's request, keep the row for reuse, and move the last row into its place."""
        job, last = self._active[row], len(self._active) - 1
        if error:
            self._rows.wipe(row)
        else:
            self._keep(row)
        if row != last:
            self._rows.take(row, self._rows, last, int(self._rows.filled[last]))
            self._active[row] = self._active[last]
        self._rows.drop(last)
        self._active.pop()
        self._complete(job, finish, error)

    def _fail(self, first: int, jobs: Sequence[_Job], error: Exception) -> None:
        """A forward pass over rows `first` … broke: its requests come back as errors, the others go on."""
        for row in range(first, min(first + len(jobs), len(self._rows.filled))):
            self._rows.wipe(row)
        text = " ".join(f"{type(error).__name__}: {error}".split())
        for job in jobs:
            self._complete(job, "error", f"the forward pass failed with {text}")

    def _complete(self, job: _Job, finish: Finish, error: str = "") -> None:
        tokens, logprobs = np.array(job.tokens, dtype=np.int32), np.array(job.logprobs, dtype=np.float32)
        self._done.append(
            Completion(job.id, tokens, logprobs, finish, self.version, job.processed, job.cached, error)
        )


def _to_compute(plan: tuple[_Job, Rows, int, int]) -> int:
    return len(plan[0].request.tokens) - plan[3]
