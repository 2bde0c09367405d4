"""Whether this engine can run a model, found out before the first request instead of from wrong samples after it.

The engine hands a model explicit positions, an explicit mask and a cache of its own. A model that ignores one of them runs
without an error and samples from the wrong distribution, so a few tokens are computed both ways and compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from trace_gym.engines.kv import RaggedCache, Rows, Shape
from trace_gym.errors import EngineError

__all__ = ["context_limit", "forward", "measure", "probe"]

TOKENS = 6  # in the probe
TOLERANCE = {torch.float32: 0.01, torch.float64: 0.01}  # of the logits' standard deviation
LOW_PRECISION_TOLERANCE = 0.3  # bf16 kernels differ by a few per cent; a wrong mask by about one


def context_limit(model: nn.Module, asked: int | None) -> int:
    """`asked`, or the longest context in which the model can be run; `EngineError` where `asked` is longer."""
    config = text_config(model)
    limits = {"max_position_embeddings": getattr(config, "max_position_embeddings", None)}
    for name in ("sliding_window", "attention_chunk_size"):  # full attention up to here, something else beyond
        limits[name] = getattr(config, name, None)
    for rope in rope_parameters(config):
        if rope.get("rope_type") == "longrope":  # beyond it, one long row would change the others' frequencies
            limits["original_max_position_embeddings"] = rope.get("original_max_position_embeddings")
    known = {name: limit for name, limit in limits.items() if limit is not None}
    if not known and asked is None:
        raise EngineError("the model does not say how long its context is: pass max_context")
    name = min(known, key=known.__getitem__, default="")
    if asked is None:
        return int(known[name])
    if known and asked > known[name]:
        raise EngineError(f"max_context {asked} is beyond the model's {name} {known[name]}, the most this engine supports")
    if asked < 2:
        raise EngineError(f"max_context must be at least 2, not {asked}")
    return asked


def text_config(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    if config is None:
        raise EngineError(f"{type(model).__name__} has no config: give a transformers causal language model")
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def rope_parameters(config: Any) -> list[dict[str, Any]]:
    """The rope settings: one dictionary, or one for each type of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)]
    return nested or [rope]


def forward(
    model: nn.Module, cache: RaggedCache, first: int, ids: Any, positions: Any, pads: Any = None
) -> torch.Tensor:
    """Logits [m, V] after the last token of each of the rows `first` to `first + m`; `ids`, `positions` [m, Q], see `place`."""
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


def measure(model: nn.Module) -> tuple[Shape, torch.Tensor]:
    """The shape of the model's keys and values, and its logits [TOKENS, V] for the probe's tokens computed the plain way."""
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1:
        raise EngineError(f"the model is spread over {len(devices)} devices; this engine runs on one: use vLLM")
    device = devices.pop()
    attention = getattr(text_config(model), "_attn_implementation", "sdpa")
    if attention not in ("sdpa", "eager"):
        raise EngineError(f"attention {attention!r} takes no mask per row: load the model with attn_implementation='sdpa'")
    out = model(input_ids=torch.from_numpy(_ids(model)).to(device), use_cache=True)
    shapes = {_layer_shape(model, layer) for layer in getattr(out.past_key_values, "layers", [])}
    if len(shapes) != 1:
        raise unsupported(model, "its layers do not all keep keys and values of one shape")
    heads, key_dim, value_dim, dtype = shapes.pop()
    return Shape(len(out.past_key_values.layers), heads, key_dim, value_dim, dtype, device), out.logits[0]


def _layer_shape(model: nn.Module, layer: Any) -> tuple[int, int, int, torch.dtype]:
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if keys is None or values is None or hasattr(layer, "conv_states"):
        raise unsupported(model, "it has layers that keep something else than keys and values")
    return keys.shape[1], keys.shape[3], values.shape[3], keys.dtype


def probe(model: nn.Module) -> Shape:
    """Check the model and return the shape of its keys and values. Raises `EngineError` naming what is wrong with it."""
    try:
        shape, plain = measure(model)
        ragged = _ragged(model, shape)
    except EngineError:
        raise
    except Exception as error:
        raise unsupported(model, f"a forward pass failed with {type(error).__name__}: {error}") from error
    want = plain[[3, 1, 4, 2]].float()
    tolerance = TOLERANCE.get(shape.dtype, LOW_PRECISION_TOLERANCE)
    difference, spread = float((ragged.float() - want).abs().max()), float(want.std())
    if not np.isfinite(spread):
        raise EngineError("the model's logits are not finite: check its weights")
    if not difference <= tolerance * spread + 1e-6:
        raise unsupported(model, f"with explicit masks and positions its logits change by {difference:.2g}")
    return shape


def _ragged(model: nn.Module, shape: Shape) -> torch.Tensor:
    """The plain logits at tokens 3, 1, 4 and 2, computed by a ragged prefill and one step of decoding."""
    rows = Rows(shape, 2, TOKENS)
    rows.reserve(2, TOKENS)
    cache, ids = RaggedCache(rows), _ids(model)[0]
    block = np.stack([ids[:4], np.concatenate([ids[:2], ids[:2]])])  # the second row: two of padding, two tokens
    positions, pads = np.array([[0, 1, 2, 3], [0, 0, 0, 1]]), np.array([0, 2])
    prefill = forward(model, cache, 0, block, positions, pads)
    decode = forward(model, cache, 0, ids[[4, 2]][:, None], np.array([[4], [2]]))
    return torch.cat([prefill, decode])


def _ids(model: nn.Module) -> Any:
    return np.arange(TOKENS, dtype=np.int64)[None] % int(text_config(model).vocab_size)


def unsupported(model: nn.Module, why: str) -> EngineError:
    return EngineError(f"this engine cannot run {type(model).__name__}: {why}; use vLLM")
