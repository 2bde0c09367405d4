"""An engine in this process for any Hugging Face causal language model with full attention.

Continuous batching: the requests being sampled are the rows 0 to n of one store of keys and values, each as long as it
is. A step computes one token for every row. A request joins between any two steps, its prefix computed beside those of
other newcomers, and leaves when it ends, the last row taking its place. Rows that have left are kept for a while, and
newcomers copy the longest beginning that any row shares with them: the next turn of an episode, or a fork, computes
only what is new. Up to rounding, a completion depends on its own prefix, seed and temperature and on nothing else.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from trace_gym.engine import Completion, Finish, Request, Weights
from trace_gym.engines.admission import Job, batches, place
from trace_gym.engines.kv import KeptRows, RaggedCache, Rows
from trace_gym.engines.probe import context_limit, forward, probe, text_config
from trace_gym.engines.sampling import sample
from trace_gym.errors import EngineError

__all__ = ["TransformersEngine"]

GIB = 2**30

REFUSALS = {
    "asleep": "the engine is asleep: wake it before submitting",
    "closed": "the engine is closed: make a new one",
    "dead": "the engine is dead, its device having failed: make a new one, in a new process if that fails too",
}


class TransformersEngine:
    """See the module. It runs the very module it is given: the trainer's own, or a copy that `load` then writes into.

    `max_batch` rows are sampled at a time and `kept_rows` more (as many by default) are kept for reuse; memory for both
    grows with use, to at most that many rows of the longest sequence met. With `cache_gib` it is bounded by that too
    (a row that moves into a larger store is there twice for a moment): kept rows give way first, those longest out of use
    before others, and requests wait until what they may need is free; one alone always runs. `max_prefill_tokens` bounds
    the tokens of one forward pass over prefixes, padding included. For one thread. Raises `EngineError` for a model it
    cannot run.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        max_batch: int = 64,
        max_context: int | None = None,
        max_prefill_tokens: int = 4096,
        kept_rows: int | None = None,
        cache_gib: float | None = None,
    ) -> None:
        kept_rows = max_batch if kept_rows is None else kept_rows
        if max_batch < 1 or max_prefill_tokens < 1 or kept_rows < 0:
            raise EngineError("max_batch and max_prefill_tokens must be at least 1, kept_rows at least 0")
        self.max_context = context_limit(model, max_context)
        self.version = 0
        self._model, self._max_batch, self._max_prefill_tokens = model, max_batch, max_prefill_tokens
        self._vocabulary = int(text_config(model).vocab_size)
        with self._inference():
            shape = probe(model)
        self._limit = None if cache_gib is None else int(cache_gib * GIB) // shape.token_bytes
        self._rows = Rows(shape, max_batch, self.max_context, self._limit)
        self._kept = KeptRows(shape, kept_rows, self.max_context, self._limit)
        self._cache = RaggedCache(self._rows)
        self._active: list[Job] = []  # job i samples into row i
        self._waiting: deque[Job] = deque()
        self._done: list[Completion] = []
        self._ids = itertools.count()
        self._state = "awake"  # or one of REFUSALS

    # ---- the protocol -----------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> int:
        self._check(request)
        limit = min(request.max_tokens, self.max_context - len(request.tokens))
        uniforms = np.random.Generator(np.random.PCG64(request.seed)).random(limit)
        job = Job(next(self._ids), request, limit, uniforms)
        self._waiting.append(job)
        return job.id

    def _check(self, request: Request) -> None:
        if self._state in REFUSALS:
            raise EngineError(REFUSALS[self._state])
        prefix, context, vocabulary = request.tokens, self.max_context, self._vocabulary
        if len(prefix) >= context:
            raise EngineError(
                f"a prefix of {len(prefix)} tokens leaves no room in a context of {context}: shorten it"
            )
        if prefix.min() < 0 or prefix.max() >= vocabulary:
            raise EngineError(
                f"the prefix holds token ids outside 0 to {vocabulary - 1}: use the model's tokenizer"
            )
        if request.seed < 0:
            raise EngineError(f"a request's seed must not be negative: {request.seed}")

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
        """Copy tensors by name. One that is the model's own already costs nothing; a name left out keeps its value."""
        self._only_idle("load weights")
        self._rows.forget()
        self._kept.forget()
        own = dict(self._model.state_dict(keep_vars=True))
        with torch.no_grad():
            for name, tensor in weights:
                if name not in own or own[name].shape != tensor.shape:
                    has = f"shape {tuple(own[name].shape)} there" if name in own else "no such name"
                    raise EngineError(
                        f"cannot load {name}, shape {tuple(tensor.shape)}: the engine's model has {has}"
                    )
                if own[name].data_ptr() != tensor.data_ptr():
                    own[name].copy_(tensor)
        self.version = version

    def sleep(self) -> None:
        """Free the cache. The weights stay: they may be the trainer's."""
        self._only_idle("sleep")
        self._free()
        if self._state == "awake":
            self._state = "asleep"

    def wake(self) -> None:
        if self._state == "asleep":
            self._state = "awake"

    def close(self) -> None:
        """Forget requests, cache and model."""
        self._active.clear()
        self._waiting.clear()
        self._done.clear()
        self._free()
        self._state, self._model = "closed", nn.Module()

    def _free(self) -> None:
        self._rows.free()
        self._kept.free()
        if self._rows.shape.device.type == "cuda":
            torch.cuda.empty_cache()

    def _only_idle(self, what: str) -> None:
        unfinished = len(self._active) + len(self._waiting)
        if unfinished:
            raise EngineError(
                f"the engine cannot {what} with {unfinished} requests unfinished: poll or abort them first"
            )

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        """Without gradients or dropout, whatever mode a trainer that shares the model has left it in."""
        training = [m for m in self._model.modules() if m.training] if self._model.training else []
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
        while count := self._fitting():
            first = len(self._active)
            wave = [self._waiting.popleft() for _ in range(count)]
            try:
                self._reserve(first + count, max(len(job.request.tokens) for job in wave) + 1)
                wave, later = place(wave, first, self._rows, self._kept)
                self._waiting.extendleft(sorted(later, key=lambda job: job.id, reverse=True))
                parts = batches(first, wave, self._max_prefill_tokens)
                logits = torch.cat([self._prefill(row, jobs) for row, jobs in parts])
                drawn = self._draw(wave, logits)
            except Exception as error:  # whatever a model may raise, out of memory included
                self._fail(first, wave, error)
                continue
            self._active += wave
            self._record(first, drawn)

    def _fitting(self) -> int:
        """How many waiting requests can join, in order: there are rows, and memory for all to reach their limits."""
        most = min(len(self._waiting), self._max_batch - len(self._active))
        if self._limit is None:
            return most
        longest = max((job.longest for job in self._active), default=0)
        for count, job in enumerate(itertools.islice(self._waiting, most)):
            rows, longest = len(self._active) + count + 1, max(longest, job.longest)
            if rows > 1 and rows * self._rows.columns(longest) > self._limit:
                return count
        return most

    def _reserve(self, rows: int, columns: int) -> None:
        """Room for the rows being sampled; the memory that is left may hold rows for reuse."""
        if self._limit is not None:
            size = self._rows.room(rows, columns)
            self._kept.bound(max(0, self._limit - size[0] * size[1]))
        self._rows.reserve(rows, columns)

    def _prefill(self, first: int, jobs: Sequence[Job]) -> torch.Tensor:
        """Compute what is unknown of the prefixes in the rows from `first` on; logits [m, V] after their last tokens.

        One pass, or for a prefix longer than a pass may be, which is always alone, as many as it takes.
        """
        filled = self._rows.filled[first : first + len(jobs)]
        lengths = np.array([len(job.request.tokens) for job in jobs])
        while True:
            counts = np.minimum(lengths - filled, self._max_prefill_tokens)
            pads = counts.max() - counts
            positions = np.maximum((filled - pads)[:, None] + np.arange(counts.max()), 0)
            ids = np.take_along_axis(self._rows.tokens[first : first + len(jobs)], positions, axis=1)
            logits = forward(
                self._model, self._cache, first, ids.astype(np.int64), positions, pads if pads.any() else None
            )
            filled += counts
            if (filled == lengths).all():
                return logits

    # ---- sampling ---------------------------------------------------------------------------------------------------

    def _decode(self) -> None:
        """One more token for every active row."""
        if not self._active:
            return
        n, rows = len(self._active), self._rows
        positions = rows.filled[:n].copy()
        last = np.array([job.tokens[-1] for job in self._active], dtype=np.int64)
        try:
            self._reserve(n, int(positions.max()) + 1)
            logits = forward(self._model, self._cache, 0, last[:, None], positions[:, None])
            drawn = self._draw(self._active, logits)
        except Exception as error:
            failed, self._active = self._active, []
            self._fail(0, failed, error)
            return
        rows.tokens[np.arange(n), positions] = last
        rows.filled[:n] += 1
        self._record(0, drawn)

    def _draw(self, jobs: Sequence[Job], logits: torch.Tensor) -> list[tuple[int, float]]:
        """A token and its log-probability for each job, from its own next uniform."""
        uniforms = [job.uniforms[len(job.tokens)] for job in jobs]
        temperatures = [job.request.temperature for job in jobs]
        host = torch.tensor([temperatures, uniforms], dtype=torch.float64)
        tokens, logprobs = sample(logits, *host.to(logits.device))
        return list(zip(tokens.tolist(), logprobs.tolist(), strict=True))

    def _record(self, first: int, drawn: Sequence[tuple[int, float]]) -> None:
        """Add what was drawn for the rows from `first` on, and let those that are finished leave."""
        ends: list[tuple[int, Finish, str]] = []
        for row, (token, logprob) in enumerate(drawn, first):
            job = self._active[row]
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
            self._kept.keep(self._rows, row)
        if row != last:
            self._rows.take(row, self._rows, last, int(self._rows.filled[last]))
            self._active[row] = self._active[last]
        self._rows.drop(last)
        self._active.pop()
        self._complete(job, finish, error)

    def _fail(self, first: int, jobs: Sequence[Job], error: Exception) -> None:
        """A pass over the rows from `first` on broke: its requests come back as errors, others go on if they can."""
        try:
            for row in range(first, min(first + len(jobs), len(self._rows.filled))):
                self._rows.wipe(row)
        except Exception:  # not even that works: the device is gone
            self._state, jobs = "dead", [*jobs, *self._active, *self._waiting]
            self._active, self._waiting = [], deque()
        text = " ".join(f"{type(error).__name__}: {error}".split())
        for job in jobs:
            self._complete(job, "error", f"the forward pass failed with {text}")

    def _complete(self, job: Job, finish: Finish, error: str = "") -> None:
        tokens, logprobs = np.array(job.tokens, dtype=np.int32), np.array(job.logprobs, dtype=np.float32)
        completion = Completion(
            job.id, tokens, logprobs, finish, self.version, job.processed, job.cached, error
        )
        self._done.append(completion)
