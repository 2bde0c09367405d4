"""The policy as the trainer sees it: log-probs of given tokens, with gradients.

Invariants: log-probs are those of the distribution the engine samples from (logits divided by the same temperature);
padding is masked by length, never by token id (the pad token may be the end-of-turn token); the output head runs only
where a log-prob is needed, unless the model does something to its hidden states or logits besides. Where asked to, what all
rows of a pass begin with (instructions, tools, a group's prompt) is computed once, forwards and backwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from trace_gym.errors import ConfigError
from trace_gym.pack import Row

__all__ = ["Policy", "TensorBatch", "micro_batches", "pick_device"]

WORTH_SHARING = 16  # tokens: a second pass has its cost too


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("policy.device=cuda: this torch sees no CUDA device; use auto or cpu")
    return torch.device(name)


@dataclass(slots=True)
class TensorBatch:
    """Rows as right-padded tensors [B, T]; implements `algorithm.LossBatch`."""

    tokens: torch.Tensor
    advantage: torch.Tensor
    weight: torch.Tensor
    behaviour: torch.Tensor
    old: torch.Tensor | None = None
    reference: torch.Tensor | None = None

    @classmethod
    def of(cls, rows: Sequence[Row], device: torch.device) -> TensorBatch:
        length = max(len(row) for row in rows)

        def padded(name: str, dtype: type) -> torch.Tensor:
            out: np.ndarray[Any, Any] = np.zeros((len(rows), length), dtype=dtype)
            for line, row in zip(out, rows, strict=True):
                line[: len(row)] = getattr(row, name)
            return torch.from_numpy(out).to(device)

        return cls(
            padded("tokens", np.int64),
            padded("advantage", np.float32),
            padded("weight", np.float32),
            padded("behaviour", np.float32),
        )


def micro_batches(rows: Sequence[Row], max_tokens: int) -> Iterator[list[int]]:
    """Indices of rows in groups of at most `max_tokens` padded tokens (at least one row each), similar lengths together."""
    group: list[int] = []
    for index in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        if group and len(rows[group[0]]) * (len(group) + 1) > max_tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


class Policy:
    """A causal language model and how to read log-probs off it.

    `autocast` is the precision of forward passes where it is not the weights' own. `checkpointing` keeps the layers' inputs
    only and computes the layers again in the backward pass; `share_prefix` computes what all rows begin with once, its keys
    and values standing for every row's. `ConfigError` for a model that cannot.
    """

    def __init__(
        self,
        model: Any,
        *,
        temperature: float = 1.0,
        autocast: torch.dtype | None = None,
        checkpointing: bool = False,
        share_prefix: bool = False,
    ) -> None:
        self.model = model
        self.temperature = temperature
        self.autocast = autocast
        self.device = next(model.parameters()).device
        self._checkpointed = _checkpointed_layers(model) if checkpointing else []
        self._head_only = _head_is_last(model, self.device)
        self._shares = share_prefix
        if share_prefix and (checkpointing or not self._head_only or not self._sharing_is_right()):
            reason = "gradient checkpointing" if checkpointing else type(model).__name__
            raise ConfigError(f"policy.share_prefix cannot be used with {reason}: leave it false")

    def logprobs(self, tokens: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Log-prob of each token given those before it, [B, T]; 0 where `wanted` [B, T] is False (token 0 must be).

        Rows are right-padded; causal attention keeps padding from reaching what comes before it.
        """
        wanted = wanted[:, 1:]
        with self._precision(), self._checkpointing():
            logits = self._logits(tokens[:, :-1], wanted)
        logits = logits.float() / self.temperature
        picked = logits.gather(-1, tokens[:, 1:][wanted].unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
        out = torch.zeros(tokens.shape, device=tokens.device, dtype=picked.dtype)
        index = torch.nn.functional.pad(wanted, (1, 0)).nonzero(as_tuple=True)
        return out.index_put(index, picked)

    def _logits(self, tokens: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Logits [n, V] after the n wanted positions of [B, T]."""
        if not self._head_only:
            return self.model(input_ids=tokens, use_cache=False).logits[wanted]  # type: ignore[no-any-return]
        start = _shared(tokens, wanted) if self._shares else 0
        start = start if start >= WORTH_SHARING else 0
        hidden = self._hidden(tokens, start)[wanted[:, start:]]
        return self.model.get_output_embeddings()(hidden)  # type: ignore[no-any-return]

    def _hidden(self, tokens: torch.Tensor, start: int) -> torch.Tensor:
        """Last hidden states [B, T - start, d] from column `start` on, before which all rows are alike."""
        base = self.model.base_model
        if start == 0:
            return base(input_ids=tokens, use_cache=False).last_hidden_state  # type: ignore[no-any-return]
        past = base(input_ids=tokens[:1, :start], use_cache=True).past_key_values
        past.batch_repeat_interleave(len(tokens))
        rest = base(input_ids=tokens[:, start:], past_key_values=past, use_cache=True)
        return rest.last_hidden_state  # type: ignore[no-any-return]

    def _sharing_is_right(self) -> bool:
        """Whether this model's cache can stand for several rows: tried out, within the rounding of half precision."""
        size = self.model.get_input_embeddings().weight.shape[0]
        tokens = torch.arange(8, device=self.device).repeat(2, 1)
        tokens[1, 4:] += 1
        try:
            with torch.no_grad():
                whole, parts = self._hidden(tokens % size, 0)[:, 4:], self._hidden(tokens % size, 4)
        except Exception:  # a cache without such a method, or none at all
            return False
        return bool((whole - parts).abs().max() <= 0.1 * whole.abs().max())

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)

    @contextmanager
    def _checkpointing(self) -> Iterator[None]:
        """Layers checkpoint in training mode only. They are put in it without what they hold, where dropout would begin."""
        layers = self._checkpointed if torch.is_grad_enabled() else []
        before = [layer.training for layer in layers]
        try:
            for layer in layers:
                layer.training = True
            yield
        finally:
            for layer, mode in zip(layers, before, strict=True):
                layer.training = mode


def _shared(tokens: torch.Tensor, wanted: torch.Tensor) -> int:
    """With how many tokens all rows [B, T] begin alike, before the first whose output is wanted; 0 for a single row."""
    alike = (tokens == tokens[:1]).all(dim=0) & ~wanted.any(dim=0)
    return 0 if len(tokens) < 2 else int(alike.long().cumprod(dim=0).sum())


def _checkpointed_layers(model: Any) -> list[Any]:
    layers = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    if not layers or not getattr(model, "supports_gradient_checkpointing", False):
        raise ConfigError(
            f"{type(model).__name__} has no gradient checkpointing: set policy.gradient_checkpointing=false"
        )
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    return layers


def _head_is_last(model: Any, device: torch.device) -> bool:
    """Whether the model's logits are its output head on the last hidden states and nothing else.

    Models that scale or cap their logits, or scale what enters the head, are found out by giving the head an output made
    up here, large enough for any cap to show, and by looking at its input.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    base = getattr(model, "base_model", None)
    if head is None or base is None or base is model:
        return False
    seen: list[torch.Tensor] = []

    def replace(module: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        made_up = torch.linspace(-200, 200, output.numel(), device=output.device).reshape(output.shape)
        seen.extend((arguments[0], made_up.to(output.dtype)))
        return seen[1]

    ids = torch.arange(4, device=device)[None] % head.weight.shape[0]
    handle = head.register_forward_hook(replace)
    try:
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits
            hidden = getattr(base(input_ids=ids, use_cache=False), "last_hidden_state", None)
    finally:
        handle.remove()
    if hidden is None or len(seen) != 2 or hidden.shape != seen[0].shape:
        return False
    return torch.equal(logits.to(seen[1].dtype), seen[1]) and torch.allclose(
        hidden, seen[0], rtol=1e-3, atol=1e-5
    )
