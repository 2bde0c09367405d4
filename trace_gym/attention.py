"""Attention in a pack: a token sees its own path and nothing else, each pair of tokens once.

Everything else that a transformer does, it does token by token; so a pack runs as one sequence of length N through the model,
with positions that count along the path, and only the attention function is another one while it does.

On a CPU a segment without a fork attends to itself (causal), and everything below it attends to the whole of it (a rectangle
without a mask). What a token gathers from the segments on its path is joined by their log-sum-exps, as ring attention does
(Liu et al., arXiv 2310.01889); a backward pass of a part that is given the joined output and log-sum-exp has the right gradient. So a
chain costs what it costs alone, and nothing is padded, masked or copied. On CUDA it is one FlexAttention kernel with the
block mask `k <= q < end[k]`, over sizes rounded up so that few are compiled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from trace_gym.pack import Pack

__all__ = ["TreeAttention", "attending", "attending_again"]

NAME = "trace_gym_tree"  # in transformers' register of attention functions
UNKNOWN = ("sliding_window", "softcap", "s_aux", "position_bias")  # what some models want besides
BUCKET = 128  # FlexAttention's block; packs are rounded up to a power of two of them

_present: ContextVar[tuple[Any, TreeAttention] | None] = ContextVar("pack", default=None)


@dataclass(slots=True, eq=False)
class TreeAttention:
    """What the attention of one pack needs, made once for all layers."""

    pack: Pack
    device: torch.device
    segments: list[tuple[int, int, int]]
    block_mask: Any = None  # CUDA

    @classmethod
    def of(cls, pack: Pack, device: torch.device) -> TreeAttention:
        mask = block_mask(pack, device) if device.type == "cuda" else None
        return cls(pack, device, pack.segments(), mask)

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """[1, H, N, d] from queries [1, H, N, d] and keys and values [1, H or fewer, N, d]."""
        query, key = query.to(value.dtype), key.to(value.dtype)  # rotary positions undo autocast
        if self.block_mask is not None:
            return flex(query, key, value, self.block_mask, scale)
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (key, value))
        out: torch.Tensor = _Joined.apply(query, key, value, self.segments, scale)  # type: ignore[no-untyped-call]
        return out


# ---- in the place of a model's own ----------------------------------------------------------------------------------


@contextmanager
def attending(config: Any, tree: TreeAttention) -> Iterator[None]:
    """Inside, models with this `config` attend as `tree` says."""
    _register()
    own, token = config._attn_implementation, _present.set((config, tree))
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = own
        _present.reset(token)


def attending_again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For `torch.utils.checkpoint`: a layer that is computed again in the backward pass attends as it did the first time."""
    present = _present.get()
    return nullcontext(), nullcontext() if present is None else attending(*present)


@cache
def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _forward)


def _forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The signature that transformers calls; output [1, N, H, d]."""
    present = _present.get()
    assert present is not None
    wanted = [name for name in UNKNOWN if options.get(name) is not None]
    if wanted or dropout:
        raise NotImplementedError(f"its attention has {wanted[0] if wanted else 'dropout'}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return present[1](query, key, value, scale).transpose(1, 2), None


# ---- CPU ------------------------------------------------------------------------------------------------------------

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _Joined(torch.autograd.Function):
    """Attention part by part over slices of one sequence; see the module."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        segments: list[tuple[int, int, int]],
        scale: float,
    ) -> torch.Tensor:
        _, heads, tokens, width = query.shape
        joined = query.new_empty(1, tokens, heads, width, dtype=torch.float32).transpose(1, 2)
        sums = query.new_empty(1, heads, tokens, dtype=torch.float32)
        for a, b, _ in segments:
            part, sums[:, :, a:b] = _attend(*_cut(a, b, query, key, value), 0.0, True, scale=scale)
            joined[:, :, a:b] = part
        for a, b, end in segments:
            if b < end:
                part, own = _attend(query[:, :, b:end], *_cut(a, b, key, value), 0.0, False, scale=scale)
                _join(joined[:, :, b:end], sums[:, :, b:end], part, own)
        out = joined.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.segments, ctx.scale = segments, scale
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, sums = ctx.saved_tensors
        grads = [torch.zeros_like(x, dtype=torch.float32) for x in (query, key, value)]
        for a, b, end in ctx.segments:
            parts = [(a, b, True), (b, end, False)] if b < end else [(a, b, True)]
            for low, high, causal in parts:
                of_query = _cut(low, high, grad.to(query.dtype), query, out, sums)
                found = _attend_backward(
                    *of_query[:2], *_cut(a, b, key, value), *of_query[2:], 0.0, causal, scale=ctx.scale
                )
                for total, part, (start, stop) in zip(
                    grads, found, ((low, high), (a, b), (a, b)), strict=True
                ):
                    total[:, :, start:stop] += part
        return *(total.to(query.dtype) for total in grads), None, None


def _cut(start: int, stop: int, *tensors: torch.Tensor) -> list[torch.Tensor]:
    return [x[:, :, start:stop] for x in tensors]


def _join(out: torch.Tensor, sums: torch.Tensor, part: torch.Tensor, own: torch.Tensor) -> None:
    """Join in place a part's output [1, H, n, d] and log-sum-exps [1, H, n] to what there is."""
    both = torch.logaddexp(sums, own)
    out.mul_((sums - both).exp_().unsqueeze(-1)).addcmul_(part, (own - both).exp_().unsqueeze(-1))
    sums.copy_(both)


# ---- CUDA -----------------------------------------------------------------------------------------------------------


def bucket(tokens: int) -> int:
    """The size a pack is rounded up to."""
    return BUCKET << max(0, (tokens - 1) // BUCKET).bit_length()


def block_mask(pack: Pack, device: torch.device) -> Any:
    """The pack's FlexAttention mask. What rounding up adds sees itself alone, for a row that sees nothing is nan."""
    from torch.nn.attention.flex_attention import create_block_mask

    size = bucket(len(pack))
    last = np.arange(1, size + 1)
    last[: len(pack)] = pack.end
    end = torch.from_numpy(last).to(device)

    def sees(batch: Any, head: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (k <= q) & (q < end[k])

    return create_block_mask(sees, None, None, size, size, device=device, BLOCK_SIZE=BUCKET)


def flex(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scale: float
) -> torch.Tensor:
    tokens = query.shape[2]
    spare = mask.seq_lengths[0] - tokens
    query, key, value = (torch.nn.functional.pad(x, (0, 0, 0, spare)) for x in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    attend = _compiled() if query.device.type == "cuda" else _plain()
    out: torch.Tensor = attend(query, key, value, block_mask=mask, scale=scale, enable_gqa=grouped)
    return out[:, :, :tokens]


@cache
def _compiled() -> Any:
    return torch.compile(_plain(), dynamic=False)


def _plain() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention
