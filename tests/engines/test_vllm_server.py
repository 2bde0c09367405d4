"""`OpenAIEngine` against vLLM's own server, a tiny untied Llama behind it (`make test-vllm`)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.engines.test_vllm_real import PREFIX, _off, _run
from trace_gym.engine import Request
from trace_gym.engines.openai import OpenAIEngine
from trace_gym.tiny import make_tokenizer

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TOKENS = 300  # of the tokenizer, which has one for every byte
OPTIONS = "--dtype float32 --enforce-eager --max-num-seqs 16 --block-size 32 --no-enable-chunked-prefill"
NEEDED = "--logprobs-mode processed_logprobs --enable-prompt-tokens-details"


def _model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    _model().save_pretrained(folder)
    make_tokenizer(["a b c"], vocab_size=TOKENS).save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cpu = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    words += ["--host", "127.0.0.1", "--port", str(port), *OPTIONS.split(), *NEEDED.split()]
    with subprocess.Popen(
        words,
        env=os.environ | cpu | {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as server:
        try:
            _wait(server, f"http://127.0.0.1:{port}/health")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=60)


def _wait(server: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + 280
    while time.monotonic() < deadline:
        assert server.poll() is None, "the server ended early"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError("the server did not start")


def test_a_server_samples_as_the_model_says_and_takes_new_weights(url: str, tmp_path: Path) -> None:
    model = _model()
    engine = OpenAIEngine(url, weights_folder=str(tmp_path))
    assert engine.max_context == 512
    for temperature in (1.0, 0.5):
        done = _run(engine, [Request(PREFIX, 12, seed=s, temperature=temperature) for s in range(4)])
        assert {(c.finish, len(c.tokens)) for c in done} == {("length", 12)}
        assert _off(model, done, temperature) < 1e-3
    assert done[0].cached_tokens == 192 and done[0].processed_tokens == 8
    again = _run(engine, [Request(PREFIX, 12, seed=s, temperature=0.5) for s in range(4)])
    assert [c.tokens.tolist() for c in again] == [c.tokens.tolist() for c in done]

    stop = int(done[0].tokens[3])
    (stopped,) = _run(engine, [Request(PREFIX, 12, seed=0, temperature=0.5, stop=(stop,))])
    assert stopped.finish == "stop" and int(stopped.tokens[-1]) == stop

    request = engine.submit(Request(PREFIX, 300, seed=1))
    time.sleep(0.3)
    engine.abort(request)
    assert [c.finish for c in engine.poll(0.0)] == ["aborted"]

    rng = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=rng) * 0.1)
    engine.load(model.named_parameters(), 1)
    done = _run(engine, [Request(PREFIX, 12, seed=s) for s in range(4)])
    assert _off(model, done, 1.0) < 1e-3 and done[0].version == 1
    assert min(c.cached_tokens for c in done) == 0 and np.isfinite(done[0].logprobs).all()
    engine.close()
