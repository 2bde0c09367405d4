"""What `VLLMEngine` uses of vLLM's `LLMEngine`, in a few lines: replies are counted up from the prefix's last token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch


@dataclass
class FakeLLM:
    """A step gives every request its next `pace` tokens, as deltas; `broken` is raised instead, `silent` loses all."""

    pace: int = 1
    block: int = 4  # tokens of a cached block
    vocabulary: int = 100
    logprob: float = -0.5
    broken: Exception | None = None
    silent: bool = False
    resets: bool = True
    prompts: dict[str, list[int]] = field(default_factory=dict)
    params: dict[str, dict[str, Any]] = field(default_factory=dict)
    made: dict[str, int] = field(default_factory=dict)
    aborted: list[str] = field(default_factory=list)
    cache: set[tuple[int, ...]] = field(default_factory=set)
    cached: dict[str, int] = field(default_factory=dict)
    loaded: list[dict[str, torch.Tensor]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def add_request(self, request_id: str, prompt: Any, params: Any) -> str:
        if self.broken is not None:
            raise self.broken
        tokens = prompt["prompt_token_ids"]
        self.prompts[request_id], self.params[request_id], self.made[request_id] = tokens, params, 0
        whole = range(self.block, len(tokens), self.block)  # the last token is always computed
        self.cached[request_id] = max((n for n in whole if tuple(tokens[:n]) in self.cache), default=0)
        self.cache |= {tuple(tokens[:n]) for n in whole}
        return request_id + "-internal"

    def step(self) -> Sequence[Any]:
        if self.broken is not None:
            raise self.broken
        if self.silent:
            self.made.clear()
        return [self._advance(request_id) for request_id in list(self.made)]

    def _advance(self, request_id: str) -> Any:
        params, tokens, reason = self.params[request_id], [], None
        for _ in range(self.pace):
            token = (self.prompts[request_id][-1] + self.made[request_id] + 1) % self.vocabulary
            tokens.append(token)
            self.made[request_id] += 1
            if token in params["stop_token_ids"]:
                reason = "stop"
            elif self.made[request_id] == params["max_tokens"]:
                reason = "length"
            if reason:
                del self.made[request_id]
                break
        # The likeliest token may be listed beside the one that was drawn.
        listed = [
            {t: SimpleNamespace(logprob=self.logprob - t), 99: SimpleNamespace(logprob=0.0)} for t in tokens
        ]
        part = SimpleNamespace(token_ids=tokens, logprobs=listed, finish_reason=reason)
        return SimpleNamespace(
            request_id=request_id,
            outputs=[part],
            finished=reason is not None,
            num_cached_tokens=self.cached[request_id],
        )

    def abort_request(self, request_ids: list[str]) -> None:
        self.aborted += request_ids
        for request_id in request_ids:
            self.made.pop(request_id, None)

    def has_unfinished_requests(self) -> bool:
        return bool(self.made)

    def collective_rpc(self, method: str, *, kwargs: dict[str, Any]) -> None:
        assert method == "reload_weights"
        self.calls.append("reload")
        self.loaded.append(dict(kwargs["weights_iterator"]))

    def apply_model(self, func: Callable[[Any], None]) -> None:
        self.calls.append(func.__name__)

    def reset_prefix_cache(self) -> bool:
        self.calls.append("reset")
        self.cache.clear()
        return self.resets

    def sleep(self, level: int) -> None:
        self.calls.append(f"sleep {level}")

    def wake_up(self) -> None:
        self.calls.append("wake")
