"""The policy as the trainer sees it: log-probs of given tokens, with gradients.

Invariants: log-probs are those of the distribution the engine samples from (logits divided by the same temperature);
padding is masked by length, never by token id (the pad token may be the end-of-turn token); the output head runs only
where a log-prob is needed, unless the model does something to its hidden states or logits besides.

Two layouts give the same numbers. Packed: the rows of a pass become one sequence in which what they begin with alike stands
once (`pack.pack`), so that it is computed once, forwards and backwards. Flat: each row by itself, right-padded. Flat is the
reference, and what a model gets that cannot be packed; whether it can is found out by trying.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from trace_gym.attention import TreeAttention, attending, attending_again
from trace_gym.errors import ConfigError
from trace_gym.pack import Pack, Row, pack, subtrees

__all__ = ["Layout", "Policy", "TensorBatch", "micro_batches", "pick_device"]

Layout = Literal["auto", "packed", "flat"]


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
    only and computes the layers again in the backward pass. `layout` auto is packed where that works; `flat_because` says why
    where it does not. `ConfigError` for a model that cannot do what was asked for.
    """

    def __init__(
        self,
        model: Any,
        *,
        temperature: float = 1.0,
        autocast: torch.dtype | None = None,
        checkpointing: bool = False,
        layout: Layout = "auto",
    ) -> None:
        self.model = model
        self.temperature = temperature
        self.autocast = autocast
        self.device = next(model.parameters()).device
        self._checkpointed = _checkpointed_layers(model) if checkpointing else []
        self._head_only = _head_is_last(model, self.device)
        self.flat_because = "it was asked for" if layout == "flat" else self._not_packed_right()
        if layout == "packed" and self.flat_because:
            name = type(model).__name__
            raise ConfigError(
                f"policy.layout=packed cannot be used with {name}: {self.flat_because}; use auto or flat"
            )

    def micro_batches(self, rows: Sequence[Row], max_tokens: int) -> Iterator[list[int]]:
        """Indices of rows in groups that cost a pass of at most `max_tokens` tokens each (at least one row)."""
        return micro_batches(rows, max_tokens) if self.flat_because else subtrees(rows, max_tokens)

    def logprobs(self, tokens: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Log-prob of each token given those before it, [B, T]; 0 where `wanted` [B, T] is False (token 0 must be).

        Rows are right-padded; causal attention keeps padding from reaching what comes before it.
        """
        index = wanted.nonzero(as_tuple=True)
        flat = bool(self.flat_because) or len(index[0]) == 0
        with self._precision(), self._checkpointing():
            if flat:
                logits = self._outputs(wanted[:, 1:], input_ids=tokens[:, :-1])
                which = torch.arange(len(logits), device=tokens.device)
            else:
                logits, which = self._packed_outputs(tokens, wanted)
        logits = logits.float() / self.temperature
        picked = logits[which, tokens[index]] - logits.logsumexp(-1)[which]
        return torch.zeros(tokens.shape, device=tokens.device, dtype=picked.dtype).index_put(index, picked)

    def _packed_outputs(
        self, tokens: torch.Tensor, wanted: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [n, V], and which of them is for each wanted token: the first tokens of siblings are read at one place."""
        rows, mask = tokens.cpu().numpy(), wanted.cpu().numpy()
        used = [int(line.nonzero()[0][-1]) if line.any() else 0 for line in mask]  # the last is only read off
        packed = pack([row[:n] for row, n in zip(rows, used, strict=True)])
        read = np.concatenate(
            [path[line.nonzero()[0] - 1] for path, line in zip(packed.paths, mask, strict=True)]
        )
        places, which = (torch.from_numpy(x).to(self.device) for x in np.unique(read, return_inverse=True))
        return self._run(packed, places), which

    def _run(self, packed: Pack, places: torch.Tensor) -> torch.Tensor:
        """Logits [n, V] after the tokens at `places` [n] of a pack."""
        tokens, position = (
            torch.from_numpy(x.astype(np.int64)).to(self.device)[None]
            for x in (packed.tokens, packed.position)
        )
        with attending(self.model.config, TreeAttention.of(packed, self.device)):
            # A mask of four axes is passed on as it is; none at all would be made up, N x N.
            mask = torch.zeros(1, 1, 1, 1, device=self.device)
            return self._outputs((0, places), input_ids=tokens, position_ids=position, attention_mask=mask)

    def _outputs(self, where: Any, **inputs: torch.Tensor) -> torch.Tensor:
        """Logits [n, V] at the positions `where` selects of [B, T]."""
        if not self._head_only:
            return self.model(**inputs, use_cache=False).logits[where]  # type: ignore[no-any-return]
        hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state[where]
        return self.model.get_output_embeddings()(hidden)  # type: ignore[no-any-return]

    def _not_packed_right(self) -> str:
        """Why this model cannot be packed; empty when it can. Found out on rows that fork, and one changed besides."""
        config = getattr(self.model, "config", None)
        special = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
        if special or getattr(
            config, "attention_chunk_size", None
        ):  # a trial of a few tokens would not show it
            return f"it has layers of {', '.join(sorted(special)) or 'chunked attention'}"
        rows = np.arange(10)[None].repeat(4, axis=0)
        rows[1, 4:] += 1
        rows[2, 7:] += 2
        rows[3] += 3
        changed = rows.copy()
        changed[3] += 1
        try:
            size = self.model.get_input_embeddings().weight.shape[0]
            with torch.no_grad():
                whole = self._outputs((slice(None),), input_ids=torch.from_numpy(rows % size).to(self.device))
                parts, other = self._whole(rows % size), self._whole(changed % size)
        except Exception as error:
            return " ".join(f"{type(error).__name__}: {error}".split())[:160]
        # Over 700 random models rounding came to 8e-4 at most (deep ones, large weights), wrong attention to 2e-3 at least.
        precise = whole.dtype == torch.float32
        if (whole - parts).abs().max() > (1e-3 if precise else 0.1) * whole.abs().max():
            return "it computes something else when it is"
        if (parts - other)[:3].abs().max() > 8 * torch.finfo(whole.dtype).eps * whole.abs().max():
            return "what it computes for a row depends on other rows"
        return ""

    def _whole(self, rows: np.ndarray[Any, Any]) -> torch.Tensor:
        """Logits [B, T, V] of all positions, packed."""
        packed = pack(list(rows))
        every = self._run(packed, torch.arange(len(packed), device=self.device))
        return every[torch.from_numpy(np.stack(packed.paths)).to(self.device)]

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)

    @contextmanager
    def _checkpointing(self) -> Iterator[None]:
        """Layers checkpoint in training mode only. They are put in it without what they hold, and `_recomputed` puts them back
        before they run: dropout would begin."""
        layers = self._checkpointed if torch.is_grad_enabled() else []
        before = [layer.training for layer in layers]
        try:
            for layer in layers:
                layer.training = True
            yield
        finally:
            for layer, mode in zip(layers, before, strict=True):
                layer.training = mode


def _checkpointed_layers(model: Any) -> list[Any]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers: list[Any] = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers or not getattr(model, "supports_gradient_checkpointing", False):
        raise ConfigError(
            f"{type(model).__name__} has no gradient checkpointing: set policy.gradient_checkpointing=false"
        )
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(_recomputed, layer)
    return layers


def _recomputed(layer: Any, run: Callable[..., Any], *inputs: Any) -> Any:
    """`run(*inputs)` of a layer that has asked to be checkpointed, as itself at rest: some drop out in their own name."""

    def at_rest(*inputs: Any) -> Any:
        before, layer.training = layer.training, False
        try:
            return run(*inputs)
        finally:
            layer.training = before

    return checkpoint(at_rest, *inputs, use_reentrant=False, context_fn=attending_again)


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
