"""Attention in a pack: a token sees its own path and nothing else, each pair of tokens once.

Everything else that a transformer does, it does token by token; so a pack runs as one sequence of length N through the model,
with positions that count along the path, and only the attention function is another one while it does.

On a CPU a segment without a fork attends to itself (causal), and everything below it attends to the whole of it (a
rectangle without a mask); small subtrees side by side are one block with a mask. So a chain costs what it costs alone, and
nothing is padded or copied. What a token gets from several parts is joined by their log-sum-exps, as ring attention does
(Liu et al., arXiv 2310.01889); the backward pass of a part that is given the joined output and log-sum-exp yields that
part's share of the gradient. On CUDA it is one FlexAttention kernel with the block mask `k <= q < end[k]`, over sizes
rounded up so that few are compiled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.autograd.function import once_differentiable

from trace_gym.pack import Pack

__all__ = ["TreeAttention", "attending", "attending_again"]

NAME = "trace_gym_tree"  # in transformers' register of attention functions
UNKNOWN = ("sliding_window", "softcap", "s_aux", "position_bias")  # what some models want besides
SMALL = 64  # tokens: so many cost less with a mask than in parts
KERNELS = 64  # compiled at most: sizes, precisions, with and without gradients
BUCKET = 128  # FlexAttention's block; packs are rounded up to a power of two of them

_present: ContextVar[tuple[Any, TreeAttention] | None] = ContextVar("pack", default=None)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Queries from `low` to `high` over keys from `start` to `stop`."""

    low: int
    high: int
    start: int
    stop: int
    causal: bool = False
    mask: torch.Tensor | None = None  # [1, 1, n, n], added to the scores


@dataclass(frozen=True, slots=True, eq=False)
class TreeAttention:
    """What the attention of one pack needs, made once for all layers."""

    own: Sequence[Part] = ()  # CPU: every query once, over itself and what is near
    above: Sequence[Part] = ()  # and over what is further up its path
    block_mask: Any = None  # CUDA

    @classmethod
    def of(cls, pack: Pack, device: torch.device) -> TreeAttention:
        return cls(block_mask=block_mask(pack, device)) if device.type == "cuda" else cls(*parts(pack))

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """[1, H, N, d] from queries [1, H, N, d] and keys and values [1, H or fewer, N, d]."""
        query, key = query.to(value.dtype), key.to(value.dtype)  # rotary positions undo autocast
        if self.block_mask is not None:
            return flex(query, key, value, self.block_mask, scale)
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (key, value))
        out: torch.Tensor = _Joined.apply(query, key, value, self, scale)  # type: ignore[no-untyped-call]
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


def parts(pack: Pack) -> tuple[list[Part], list[Part]]:
    """What every token sees near by, and the rectangles of what is further up."""
    own: list[Part] = []
    above: list[Part] = []
    low = high = 0  # whole subtrees side by side that wait for more of them
    for a, b, end in pack.segments():
        if a < high:
            continue  # in a subtree that waits
        if end - low > SMALL:
            if low < high:
                own.append(_block(pack, low, high))
            low = a
        if end - low <= SMALL:
            high = end
        else:
            own.append(Part(a, b, a, b, causal=True))
            if b < end:
                above.append(Part(b, end, a, b))
            low = high = b
    if low < high:
        own.append(_block(pack, low, high))
    return own, above


def _block(pack: Pack, low: int, high: int) -> Part:
    end, k = pack.end[low:high] - low, np.arange(high - low)
    sees = (k[None] <= k[:, None]) & (k[:, None] < end[None])
    if sees.sum() == len(k) * (len(k) + 1) // 2:
        return Part(low, high, low, high, causal=True)
    mask = np.where(sees, np.float32(0.0), np.float32(-np.inf))
    return Part(low, high, low, high, mask=torch.from_numpy(mask)[None, None])


class _Joined(torch.autograd.Function):
    """Attention part by part over slices of one sequence; see the module."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        tree: TreeAttention,
        scale: float,
    ) -> torch.Tensor:
        _, heads, tokens, width = query.shape
        joined = query.new_empty(1, tokens, heads, width, dtype=torch.float32).transpose(1, 2)
        sums = query.new_empty(1, heads, tokens, dtype=torch.float32)
        for part in (*tree.own, *tree.above):
            here = slice(part.low, part.high)
            keys = _cut(part.start, part.stop, key, value)
            mask = None if part.mask is None else part.mask.to(query.dtype)
            found, sum_ = _attend(query[:, :, here], *keys, 0.0, part.causal, attn_mask=mask, scale=scale)
            if part.low == part.start:
                joined[:, :, here], sums[:, :, here] = found, sum_
            else:
                _join(joined[:, :, here], sums[:, :, here], found, sum_)
        out = joined.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.tree, ctx.scale = tree, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, sums = ctx.saved_tensors
        grad = grad.to(query.dtype)
        grads = [torch.zeros_like(x, dtype=torch.float32) for x in (query, key, value)]
        for part in (*ctx.tree.own, *ctx.tree.above):
            g, q, o, sum_ = _cut(part.low, part.high, grad, query, out, sums)
            k, v = _cut(part.start, part.stop, key, value)
            mask = None if part.mask is None else part.mask.to(query.dtype)
            found = _attend_backward(g, q, k, v, o, sum_, 0.0, part.causal, attn_mask=mask, scale=ctx.scale)
            grads[0][:, :, part.low : part.high] += found[0]
            for total, more in zip(grads[1:], found[1:], strict=True):
                total[:, :, part.start : part.stop] += more
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
    """The pack's FlexAttention mask, found block by block: nothing is made N x N.

    What rounding up adds sees itself alone, for a row that sees nothing is nan.
    """
    from torch.nn.attention.flex_attention import BlockMask

    size = bucket(len(pack))
    last = np.arange(1, size + 1)
    last[: len(pack)] = pack.end
    blocks = last.reshape(-1, BUCKET)
    block = np.arange(len(blocks))
    before = block[:, None] > block[None]  # [blocks of queries, blocks of keys]
    full = before & (blocks.min(axis=1)[None] >= BUCKET * (block[:, None] + 1))
    some = before & (blocks.max(axis=1)[None] > BUCKET * block[:, None]) & ~full | np.eye(
        len(block), dtype=bool
    )
    end = torch.from_numpy(last).to(device)

    def sees(batch: Any, head: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (k <= q) & (q < end[k])

    return BlockMask.from_kv_blocks(
        *_listed(some, device), *_listed(full, device), BUCKET, mask_mod=sees, seq_lengths=(size, size)
    )


def _listed(chosen: npt.NDArray[np.bool_], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """How many key blocks each block of queries has [1, 1, n], and which, those first [1, 1, n, n]."""
    count, order = chosen.sum(axis=1), np.argsort(~chosen, axis=1, kind="stable")
    count_, order_ = (torch.from_numpy(x.astype(np.int32)).to(device)[None, None] for x in (count, order))
    return count_, order_


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
    # beyond the limit scores are made whole; the stubs do not know the option
    return torch.compile(_plain(), dynamic=False, recompile_limit=KERNELS)  # type: ignore[call-overload]


def _plain() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention
