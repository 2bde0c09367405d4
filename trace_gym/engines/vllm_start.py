"""Starting vLLM in this process, and ending it.

vLLM changes the process that it runs in; what could hurt what else runs here is undone as soon as it has started: what
is preloaded into child processes, and a `torch.set_num_threads` that does nothing. It takes torch's process group for its
own and ends it with itself, so there is one vLLM in a process and nobody else with such a group. Nothing is reported to
anybody, no code comes with a model, and only safetensors files are read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

from trace_gym.engines.vllm import VLLMEngine
from trace_gym.errors import EngineError

__all__ = ["start"]

GIB = 2**30
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process; read again whenever an engine is made
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
DEFAULTS = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else it may bind itself to one core
    "VLLM_LOGGING_LEVEL": "ERROR",
}
CPU_BLOCK = 32  # tokens; vLLM's 128 would let a fork compute up to 127 tokens again
MISSING = (
    "engine.kind=vllm needs vLLM, which wants an environment of its own (docs/engines.md says how); "
    "engine.kind=transformers needs nothing more"
)


def start(
    path: str,
    *,
    dtype: str,
    max_batch: int = 128,
    max_context: int | None = None,
    cache_gib: float = 2.0,
) -> VLLMEngine:
    """An engine for the model in the folder (or of the hub name) `path`. `cache_gib` bounds its keys and values.

    Raises `EngineError`, on one line, where vLLM is missing or cannot run the model.
    """
    os.environ.update(ENVIRONMENT)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    with _undone():
        try:
            from vllm import SamplingParams
            from vllm.engine.arg_utils import EngineArgs
            from vllm.platforms import current_platform
            from vllm.sampling_params import RequestOutputKind
            from vllm.v1.engine.llm_engine import LLMEngine
        except ImportError as error:
            raise EngineError(f"{MISSING}: {' '.join(str(error).split())[:200]}") from error
        cpu = bool(current_platform.is_cpu())
        options = _options(path, dtype, max_batch, max_context, cache_gib) | (_on_cpu() if cpu else {})
        _refuse_process_group()
        try:
            llm = LLMEngine.from_engine_args(EngineArgs(**options))
        except Exception as error:  # out of memory, an architecture that it does not know, …
            raise EngineError(
                f"vLLM cannot run {path}: {' '.join(f'{type(error).__name__}: {error}'.split())[:300]}"
            ) from error
    return VLLMEngine(
        llm,
        params=partial(SamplingParams, output_kind=RequestOutputKind.DELTA),
        shutdown=llm.engine_core.shutdown,
        max_context=int(llm.model_config.max_model_len),
        vocabulary=int(llm.model_config.get_vocab_size()),
        sleeps=not cpu,
    )


def _options(
    path: str, dtype: str, max_batch: int, max_context: int | None, cache_gib: float
) -> dict[str, Any]:
    """`EngineArgs` for every platform."""
    return {
        "model": path,
        "skip_tokenizer_init": True,  # token ids in and out
        "trust_remote_code": False,
        "load_format": "safetensors",
        "generation_config": "vllm",  # a model's own would cut the distribution to its top-k
        "dtype": dtype,
        "max_num_seqs": max_batch,
        "max_model_len": max_context,
        "kv_cache_memory_bytes": int(cache_gib * GIB),
        "gpu_memory_utilization": 0.01,  # what must be free to start; with a cache of a given size it bounds nothing
        "enable_prefix_caching": True,
        "enable_sleep_mode": True,
        "logprobs_mode": "processed_logprobs",  # of the tempered distribution, which is sampled from
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "seed": 0,  # of streams that no request of ours draws from
    }


def _on_cpu() -> dict[str, Any]:
    """A prefix is computed in one pass there: after a part of one, vLLM would wind a seeded generator back, which on a
    CPU no generator can be."""
    return {
        "enable_sleep_mode": False,
        "enforce_eager": True,
        "block_size": CPU_BLOCK,
        "enable_chunked_prefill": False,
    }


@contextlib.contextmanager
def _undone() -> Iterator[None]:
    """Give back what vLLM's start changes and nothing here may keep."""
    import torch

    preload, threads, set_threads = (
        os.environ.get("LD_PRELOAD"),
        torch.get_num_threads(),
        torch.set_num_threads,
    )
    try:
        yield
    finally:
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        if preload is None:
            os.environ.pop("LD_PRELOAD", None)
        else:
            os.environ["LD_PRELOAD"] = preload


def _refuse_process_group() -> None:
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise EngineError(
            "vLLM needs torch's process group for itself: close the vLLM engine or the group that is there"
        )
