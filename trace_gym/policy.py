"""The policy as the trainer sees it: log-probs of given tokens, with gradients.

Invariants: log-probs are those of the distribution the engine samples from (logits divided by the same temperature);
padding is masked by length, never by token id (the pad token may be the end-of-turn token); the output head runs only
where a log-prob is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trace_gym.pack import Row

__all__ = ["Policy", "TensorBatch", "micro_batches", "pick_device"]


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
    """A causal language model and how to read log-probs off it."""

    def __init__(self, model: Any, *, temperature: float = 1.0, autocast: torch.dtype | None = None) -> None:
        self.model = model
        self.temperature = temperature
        self.autocast = autocast
        self.device = next(model.parameters()).device

    def logprobs(self, tokens: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Log-prob of each token given those before it, [B, T]; 0 where `wanted` [B, T] is False (token 0 must be).

        Rows are right-padded; causal attention keeps padding from reaching what comes before it.
        """
        wanted = wanted[:, 1:]
        with self._precision():
            hidden = self.model.base_model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
            logits = self.model.get_output_embeddings()(hidden[wanted])
        logits = logits.float() / self.temperature
        picked = logits.gather(-1, tokens[:, 1:][wanted].unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
        out = torch.zeros(tokens.shape, device=tokens.device, dtype=picked.dtype)
        index = torch.nn.functional.pad(wanted, (1, 0)).nonzero(as_tuple=True)
        return out.index_put(index, picked)

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)
