"""vLLM in this process: continuous batching, prefix caching, and weights that are written in place.

`VLLMEngine` keeps the books over vLLM's own `LLMEngine`, whose `step` runs inside `poll`; `start` makes one. Everything
happens in this very process, so a weight update hands tensors over without a copy on disk or between processes, and
nothing is left to clean up when the process ends, however it ends. Invariants: of vLLM's many sampling parameters only
temperature, seed, length and stop tokens are used, and log-probs are those of the tempered distribution. vLLM caches
whole blocks of tokens: a fork computes what follows the last block that it shares.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from trace_gym.engine import Completion, Finish, Request, Weights
from trace_gym.errors import EngineError

__all__ = ["LLM", "VLLMEngine"]

SEEDS = 2**63  # vLLM's seeds are signed 64-bit numbers
FINISHES: Mapping[str, Finish] = {"stop": "stop", "length": "length"}
REFUSALS = {
    "asleep": "the engine is asleep: wake it first",
    "closed": "the engine is closed: make a new one",
    "dead": "vLLM has failed and cannot go on: start the run again",
}


class LLM(Protocol):
    """What is used of `vllm.v1.engine.llm_engine.LLMEngine`."""

    def add_request(self, request_id: str, prompt: Any, params: Any) -> object: ...

    def step(self) -> Sequence[Any]: ...

    def abort_request(self, request_ids: list[str]) -> object: ...

    def has_unfinished_requests(self) -> bool: ...

    def collective_rpc(self, method: str, *, kwargs: dict[str, Any]) -> object: ...

    def apply_model(self, func: Callable[[Any], None]) -> object: ...

    def reset_prefix_cache(self) -> bool: ...

    def sleep(self, level: int) -> object: ...

    def wake_up(self) -> object: ...


@dataclass(slots=True, eq=False)
class _Job:
    request: Request
    limit: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    cached: int = 0
    started: bool = False  # whether vLLM has computed anything for it


class VLLMEngine:
    """See the module. `params` makes vLLM's `SamplingParams`; `shutdown` frees what `llm` holds; for one thread.

    `sleeps`: whether `sleep` gives memory back, which vLLM can do on accelerators only.
    """

    def __init__(
        self,
        llm: LLM,
        *,
        params: Callable[..., Any],
        shutdown: Callable[[], None],
        max_context: int,
        vocabulary: int,
        sleeps: bool = False,
    ) -> None:
        self.max_context, self.version = max_context, 0
        self._llm: Any = llm
        self._params, self._shutdown = params, shutdown
        self._vocabulary, self._sleeps = vocabulary, sleeps
        self._jobs: dict[int, _Job] = {}
        self._done: list[Completion] = []
        self._ids = itertools.count()
        self._state = "awake"  # or one of REFUSALS

    # ---- requests ---------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> int:
        self._check(request)
        job = _Job(request, min(request.max_tokens, self.max_context - len(request.tokens)))
        request_id = next(self._ids)
        prompt = {"prompt_token_ids": request.tokens.tolist()}
        try:
            self._llm.add_request(str(request_id), prompt, self._params(**sampling(request, job.limit)))
        except Exception as error:  # vLLM validates requests with errors of its own
            raise EngineError(f"vLLM refused the request: {_said(error)}") from error
        self._jobs[request_id] = job
        return request_id

    def _check(self, request: Request) -> None:
        self._only_awake()
        prefix, context = request.tokens, self.max_context
        if len(prefix) >= context:
            raise EngineError(
                f"a prefix of {len(prefix)} tokens leaves no room in a context of {context}: shorten it"
            )
        if prefix.min() < 0 or prefix.max() >= self._vocabulary:
            raise EngineError(
                f"the prefix holds token ids outside 0 to {self._vocabulary - 1}: use the model's tokenizer"
            )
        if request.seed < 0:
            raise EngineError(f"a request's seed must not be negative: {request.seed}")

    def poll(self, timeout_s: float) -> list[Completion]:
        """Steps until a completion is ready or the time is over; one step at least where there is work."""
        deadline = time.monotonic() + timeout_s
        while self._jobs and not self._done:
            self._step()
            if time.monotonic() >= deadline:
                break
        done, self._done = self._done, []
        return done

    def _step(self) -> None:
        try:
            outputs = self._llm.step()
            lost = not outputs and not self._llm.has_unfinished_requests()
        except Exception as error:  # after which vLLM's own books are in doubt
            self._state = "dead"
            self._fail(f"vLLM failed with {_said(error)}")
            return
        for output in outputs:
            self._take(int(output.request_id), output)
        if lost:
            self._fail("vLLM lost the request")

    def _take(self, request_id: int, output: Any) -> None:
        """Add what a step made for a request; complete it if that was its last."""
        job = self._jobs.get(request_id)
        if job is None:  # aborted
            return
        part = output.outputs[0]
        tokens = list(part.token_ids)
        job.started = True
        job.cached = max(job.cached, output.num_cached_tokens or 0)
        job.tokens += tokens
        job.logprobs += chosen(part.logprobs, tokens)
        if not np.isfinite(job.logprobs).all():
            self._llm.abort_request([str(request_id)])
            self._complete(
                request_id, "error", "the model's logits are not finite: its weights may have diverged"
            )
        elif output.finished:
            finish = FINISHES.get(part.finish_reason or "", "error")
            error = f"vLLM ended the request: {part.finish_reason}" if finish == "error" else ""
            self._complete(request_id, finish, error)

    def _complete(self, request_id: int, finish: Finish, error: str = "") -> None:
        job, count = self._jobs.pop(request_id), None
        if finish == "error":  # of a row that broke, keep what came before
            bad = np.flatnonzero(~np.isfinite(job.logprobs))
            count = int(bad[0]) if len(bad) else None
        tokens = np.array(job.tokens[:count], dtype=np.int32)
        logprobs = np.array(job.logprobs[:count], dtype=np.float32)
        if job.request.temperature == 0:
            logprobs[:] = 0.0
        processed = len(job.request.tokens) - job.cached if job.started else 0
        self._done.append(
            Completion(request_id, tokens, logprobs, finish, self.version, processed, job.cached, error)
        )

    def _fail(self, why: str) -> None:
        for request_id in list(self._jobs):
            self._complete(request_id, "error", why)

    def abort(self, request_id: int) -> None:
        if request_id in self._jobs:
            self._llm.abort_request([str(request_id)])
            self._complete(request_id, "aborted")

    # ---- weights and memory -----------------------------------------------------------------------------------------

    def load(self, weights: Weights, version: int) -> None:
        """Write a checkpoint's tensors, named as the model's own are, into vLLM's; all or, for a new version only, none."""
        self._only_idle("load weights")
        self._only_awake()
        first = next(iterator := iter(weights), None)
        if first is not None:
            whole = ((name, tensor.detach()) for name, tensor in itertools.chain([first], iterator))
            try:
                self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": whole})
                self._llm.apply_model(pack_tied_heads)
            except Exception as error:  # half of the weights may be new
                self._state = "dead"
                raise EngineError(f"vLLM could not take the weights: {_said(error)}") from error
        self._forget()
        self.version = version

    def _forget(self) -> None:
        if not self._llm.reset_prefix_cache():
            self._state = "dead"
            raise EngineError("vLLM did not reset its prefix cache, which holds what other weights computed")

    def sleep(self) -> None:
        """Move the weights to the host's memory and free the cache, where vLLM can."""
        self._only_idle("sleep")
        if self._state == "awake":
            if self._sleeps:
                self._llm.sleep(level=1)
            self._state = "asleep"

    def wake(self) -> None:
        if self._state == "asleep":
            if self._sleeps:
                self._llm.wake_up()
                self._forget()
            self._state = "awake"

    def close(self) -> None:
        """Free the model and the cache."""
        if self._state == "closed":
            return
        self._state, self._llm = "closed", None
        self._jobs.clear()
        self._done.clear()
        self._shutdown()

    def _only_awake(self) -> None:
        if self._state in REFUSALS:
            raise EngineError(REFUSALS[self._state])

    def _only_idle(self, what: str) -> None:
        if self._jobs:
            raise EngineError(
                f"the engine cannot {what} with {len(self._jobs)} requests unfinished: poll or abort them first"
            )


# ---- vLLM's words -----------------------------------------------------------------------------------------------------


def sampling(request: Request, limit: int) -> dict[str, Any]:
    """`SamplingParams` for a request, less how its output is cut into parts: the tempered softmax and nothing else."""
    return {
        "max_tokens": limit,
        "temperature": request.temperature,
        "seed": request.seed % SEEDS,
        "stop_token_ids": list(request.stop),
        "ignore_eos": True,  # the renderer's stop tokens are those of the request
        "logprobs": 0,  # of the token that was drawn
        "detokenize": False,
    }


def chosen(logprobs: Any, tokens: Sequence[int]) -> list[float]:
    """Each token's own log-prob out of vLLM's mappings {token: value with .logprob}, one a position."""
    return [float(position[token].logprob) for position, token in zip(logprobs or (), tokens, strict=True)]


def pack_tied_heads(model: Any) -> None:
    """Pack an output head that shares the embedding's weights again.

    On a CPU vLLM multiplies by a packed copy, and `reload_weights` renews those of layers that a checkpoint names alone.
    """
    for module in model.modules():
        packed, weight = getattr(module, "cpu_linear", None), getattr(module, "weight", None)
        if (
            packed is not None and weight is not None and weight.ndim == 2
        ):  # others hold nothing but the packed copy
            module.quant_method.process_weights_after_loading(module)


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
