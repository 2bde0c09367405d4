"""Whether this engine can run a model, found out before the first request instead of from wrong samples after it.

The engine hands a model explicit positions, an explicit mask and a cache of its own. A model that ignores one of them
runs without an error and samples from the wrong distribution, so a few tokens are computed both ways and compared. What
only shows further on, such as a window that attention is cut to, is read from the configuration.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from trace_gym.engines.kv import LongArray, RaggedCache, Rows, Shape
from trace_gym.errors import EngineError

__all__ = ["context_limit", "forward", "probe", "text_config"]

LAYER_TYPES = {"full_attention", "sliding_attention", "chunked_attention"}
# Attention is full up to these lengths and something else beyond: as long as the context is no longer, it is full.
WINDOWS = (
    "sliding_window",
    "sliding_window_size",
    "attention_chunk_size",
    "attention_window",
    "attention_window_size",
    "local_attention",
    "window_size",
)
TOKENS = 6  # in the probe
TOLERANCE = 0.01  # of the logits' standard deviation, in single precision
LOW_PRECISION_TOLERANCE = (
    0.3  # bf16 kernels differ by a few hundredths; a wrong mask makes a difference of about one
)


def text_config(model: nn.Module) -> Any:
    """The configuration of the language model, which in models that also see or hear is a part of the whole."""
    config = getattr(model, "config", None)
    if config is None:
        raise EngineError(f"{type(model).__name__} has no config: give a transformers causal language model")
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def context_limit(model: nn.Module, asked: int | None) -> int:
    """`asked`, or the longest context in which the model can be run; `EngineError` where `asked` is longer."""
    limits = _limits(text_config(model))
    if asked is None:
        if not limits:
            raise EngineError("the model does not say how long its context is: pass max_context")
        return min(limits.values())
    if asked < 2:
        raise EngineError(f"max_context must be at least 2, not {asked}")
    for name, limit in limits.items():
        if asked > limit:
            raise EngineError(
                f"max_context {asked} is beyond the model's {name}: this engine supports at most {limit}"
            )
    return asked


def _limits(config: Any) -> dict[str, int]:
    """Lengths up to which the model's attention is full and a token's encoding depends on its own position alone."""
    limits = {name: getattr(config, name, None) for name in ("max_position_embeddings", *WINDOWS)}
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in (ropes, *ropes.values()):  # one, or one for each type of layer
        if (
            isinstance(rope, dict) and rope.get("rope_type") == "longrope"
        ):  # a longer row would change all the others
            limits["original_max_position_embeddings"] = rope.get("original_max_position_embeddings")
    return {name: limit for name, limit in limits.items() if isinstance(limit, int) and limit > 0}


def forward(
    model: nn.Module,
    cache: RaggedCache,
    first: int,
    ids: LongArray,
    positions: LongArray,
    pads: LongArray | None = None,
) -> torch.Tensor:
    """Logits [m, V] after the last of the new tokens `ids` [m, Q] of m rows; the rest as for `RaggedCache.place`."""
    mask = cache.place(first, positions, pads)
    out = model(
        input_ids=torch.from_numpy(ids).to(mask.device),
        position_ids=torch.from_numpy(positions).to(mask.device),
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    logits: torch.Tensor = out.logits[:, -1]
    return logits


def probe(model: nn.Module) -> Shape:
    """The shape of the model's keys and values. Raises `EngineError` saying why the engine cannot run the model."""
    device = _device(model)
    config = text_config(model)
    attention = getattr(config, "_attn_implementation", "sdpa")
    if attention not in ("sdpa", "eager"):
        raise EngineError(
            f"{attention} takes no mask for each row: load the model with attn_implementation='sdpa'"
        )
    foreign = set(getattr(config, "layer_types", None) or ()) - LAYER_TYPES
    if foreign:
        raise _unsupported(model, f"it has layers of type {', '.join(sorted(foreign))}")
    ids = np.arange(TOKENS, dtype=np.int64) % int(config.vocab_size)
    try:
        shape, plain = _plain(model, ids, device)
        ragged = _ragged(model, ids, shape)
    except EngineError:
        raise
    except Exception as error:
        raise _unsupported(model, f"a forward pass failed with {type(error).__name__}: {error}") from error
    _compare(
        model,
        ragged.float(),
        plain.float(),
        TOLERANCE if shape.dtype.itemsize >= 4 else LOW_PRECISION_TOLERANCE,
    )
    return shape


def _device(model: nn.Module) -> torch.device:
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1:
        raise EngineError(
            f"the model is on {len(devices)} devices and this engine runs on one: move it, or use vLLM"
        )
    return devices.pop()


def _plain(model: nn.Module, ids: LongArray, device: torch.device) -> tuple[Shape, torch.Tensor]:
    """What the cache of transformers holds after one ordinary pass, and the logits after tokens 3, 1, 4 and 2."""
    block = torch.from_numpy(ids)[None].to(device)
    out = model(input_ids=block, attention_mask=torch.ones_like(block), use_cache=True)
    layers = getattr(getattr(out, "past_key_values", None), "layers", [])
    shapes = {_layer_shape(layer) for layer in layers}
    if len(shapes) != 1 or None in shapes:
        raise _unsupported(model, "its layers do not all keep keys and values of one shape")
    heads, key_dim, value_dim, dtype = next(shape for shape in shapes if shape)
    return Shape(len(layers), heads, key_dim, value_dim, dtype, device), out.logits[0, [3, 1, 4, 2]]


def _layer_shape(layer: Any) -> tuple[int, int, int, torch.dtype] | None:
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if keys is None or values is None or keys.ndim != 4 or values.ndim != 4:
        return None
    return keys.shape[1], keys.shape[3], values.shape[3], keys.dtype


def _ragged(model: nn.Module, ids: LongArray, shape: Shape) -> torch.Tensor:
    """The same logits out of a prefill of four tokens beside two, and one step of decoding for both rows."""
    rows = Rows(shape, 2, TOKENS)
    rows.reserve(2, TOKENS)
    cache = RaggedCache(rows)
    block = np.stack([ids[:4], ids[[0, 0, 0, 1]]])  # in the second row two of padding and two tokens
    positions, pads = np.array([[0, 1, 2, 3], [0, 0, 0, 1]]), np.array([0, 2])
    prefill = forward(model, cache, 0, block, positions, pads)
    decode = forward(model, cache, 0, ids[[4, 2]][:, None], np.array([[4], [2]]))
    return torch.cat([prefill, decode])


def _compare(model: nn.Module, ragged: torch.Tensor, plain: torch.Tensor, tolerance: float) -> None:
    difference, spread = float((ragged - plain).abs().max()), float(plain.std())
    if not np.isfinite(spread):
        raise EngineError("the model's logits are not finite: check its weights")
    if not difference <= tolerance * spread + 1e-6:
        raise _unsupported(
            model, f"given masks and positions for each row, its logits are off by {difference:.2g}"
        )


def _unsupported(model: nn.Module, why: str) -> EngineError:
    return EngineError(f"this engine cannot run {type(model).__name__}: {' '.join(why.split())}; use vLLM")
