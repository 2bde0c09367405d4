"""vLLM itself: `make test-vllm` runs these in an environment that has it. A tiny Llama."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trace_gym.engine import Completion, Engine, IntArray, Request
from trace_gym.engines.vllm import VLLMEngine
from trace_gym.engines.vllm_start import CPU_BLOCK, start
from trace_gym.errors import EngineError

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

VOCABULARY = 96
PREFIX = np.random.default_rng(0).integers(0, VOCABULARY, 200).astype(np.int32)


def _tiny() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)  # else all tokens are about equally likely
    return model.eval().requires_grad_(False)  # type: ignore[no-any-return]


def _start(folder: Path) -> VLLMEngine:
    return start(str(folder), dtype="float32", max_batch=64, cache_gib=0.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    _tiny().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[VLLMEngine]:
    engine = _start(folder)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared: VLLMEngine) -> VLLMEngine:
    """With an empty cache and the weights that it started with."""
    shared.load(_tiny().named_parameters(), 0)
    return shared


def _run(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    ids = [engine.submit(request) for request in requests]
    done: dict[int, Completion] = {}
    while len(done) < len(ids):
        done |= {c.request_id: c for c in engine.poll(1.0)}
    return [done[i] for i in ids]


def _logprobs(
    model: LlamaForCausalLM, prefix: IntArray, tokens: IntArray, temperature: float
) -> torch.Tensor:
    """Log-probs [n, V] of the tempered policy before each of the tokens."""
    ids = torch.from_numpy(np.concatenate([prefix, tokens])).long()[None]
    logits: torch.Tensor = model(ids).logits[0, len(prefix) - 1 : -1]
    return torch.log_softmax(logits.double() / temperature, -1)


def _off(model: LlamaForCausalLM, completions: Sequence[Completion], temperature: float) -> float:
    """The largest difference between an engine's log-probs and the model's."""
    worst = 0.0
    for done in completions:
        own = _logprobs(model, PREFIX, done.tokens, temperature)
        own = own.gather(1, torch.from_numpy(done.tokens).long()[:, None])[:, 0]
        worst = max(worst, float((own - torch.from_numpy(done.logprobs)).abs().max()))
    return worst


def test_log_probs_are_those_of_the_tempered_distribution(engine: VLLMEngine) -> None:
    for temperature in (1.0, 0.6):
        done = _run(engine, [Request(PREFIX, 20, seed=s, temperature=temperature) for s in range(4)])
        assert {len(c.tokens) for c in done} == {20}
        assert _off(_tiny(), done, temperature) < 1e-4


def test_greedy_tokens_are_the_likeliest(engine: VLLMEngine) -> None:
    (done,) = _run(engine, [Request(PREFIX, 10, seed=0, temperature=0.0)])
    assert done.tokens.tolist() == _logprobs(_tiny(), PREFIX, done.tokens, 1.0).argmax(-1).tolist()
    assert done.logprobs.tolist() == [0.0] * 10


def test_a_seed_gives_the_same_tokens_alone_and_in_company(engine: VLLMEngine) -> None:
    crowd = _run(engine, [Request(PREFIX, 20, seed=s) for s in range(8)])
    (alone,) = _run(engine, [Request(PREFIX, 20, seed=5)])
    assert alone.tokens.tolist() == crowd[5].tokens.tolist()
    assert len({tuple(c.tokens.tolist()) for c in crowd}) == 8


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_seeded_tokens_are_distributed_as_the_model_says(engine: VLLMEngine, temperature: float) -> None:
    """First tokens against their probabilities (chi-squared), and 12,000 tokens' surprise against the entropy (z).

    Bounds that chance passes in one of some 10,000 runs; the seeds are fixed, so it either always does or never.
    """
    from scipy import stats

    model = _tiny()
    first = _run(engine, [Request(PREFIX, 1, seed=s, temperature=temperature) for s in range(3000)])
    expected = _logprobs(model, PREFIX, first[0].tokens, temperature)[0].exp().numpy() * len(first)
    counts = np.bincount([int(c.tokens[0]) for c in first], minlength=VOCABULARY)
    rare = expected < 5
    observed, wanted = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
    assert len(wanted) > 5
    assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-4

    surprise = variance = 0.0
    for done in _run(
        engine, [Request(PREFIX, 40, seed=s, temperature=temperature) for s in range(10_000, 10_300)]
    ):
        logprobs = _logprobs(model, PREFIX, done.tokens, temperature)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        surprise += float((-torch.from_numpy(done.logprobs).double() - entropy).sum())
        variance += float(((logprobs.exp() * logprobs**2).sum(-1) - entropy**2).sum())
    assert abs(surprise / variance**0.5) < 4


def test_forks_compute_what_follows_the_last_shared_block(engine: VLLMEngine) -> None:
    (parent,) = _run(engine, [Request(PREFIX, 8, seed=0)])
    assert (parent.processed_tokens, parent.cached_tokens) == (200, 0)
    whole = np.concatenate([PREFIX, parent.tokens])
    for fork in _run(engine, [Request(whole, 4, seed=s) for s in range(4)]):
        assert fork.processed_tokens + fork.cached_tokens == 208
        assert 0 < fork.processed_tokens <= 8 + CPU_BLOCK


def test_stop_tokens_end_a_turn_and_the_models_own_do_not(engine: VLLMEngine) -> None:
    (free,) = _run(engine, [Request(PREFIX, 20, seed=1)])
    stop = int(free.tokens[4])
    (stopped,) = _run(engine, [Request(PREFIX, 20, seed=1, stop=(stop,))])
    assert stopped.finish == "stop"
    assert stopped.tokens.tolist() == free.tokens.tolist()[: free.tokens.tolist().index(stop) + 1]


def test_the_context_ends_a_turn(engine: VLLMEngine) -> None:
    (done,) = _run(engine, [Request(np.resize(PREFIX, 505), 50, seed=1)])
    assert (len(done.tokens), done.finish) == (7, "length")


def test_abort_gives_what_there_is_and_the_others_go_on(engine: VLLMEngine) -> None:
    first, second = (engine.submit(Request(PREFIX, 30, seed=s)) for s in range(2))
    for _ in range(3):
        engine.poll(0.0)
    engine.abort(first)
    (aborted,) = engine.poll(0.0)
    assert aborted.request_id == first and aborted.finish == "aborted" and 0 < len(aborted.tokens) < 30
    done: list[Completion] = []
    while not done:
        done = engine.poll(1.0)
    assert (done[0].request_id, len(done[0].tokens)) == (second, 30)


def test_every_weight_can_be_replaced(engine: VLLMEngine) -> None:
    """One kind after the other, the embedding, whose weights are the output head's too, among them."""
    model, rng = _tiny(), torch.Generator().manual_seed(1)
    for version, part in enumerate(("embed_tokens", "self_attn", "mlp", "norm"), 1):
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.add_(torch.randn(parameter.shape, generator=rng) * 0.05)
        engine.load(model.named_parameters(), version)
        done = _run(engine, [Request(PREFIX, 10, seed=s) for s in range(2)])
        assert _off(model, done, 1.0) < 1e-4, part
        assert done[0].version == version and done[0].cached_tokens == 0


def test_there_is_one_vllm_in_a_process(engine: VLLMEngine, folder: Path) -> None:
    with pytest.raises(EngineError, match="close the vLLM engine"):
        _start(folder)
    assert len(_run(engine, [Request(PREFIX, 3, seed=0)])[0].tokens) == 3


def test_sleeping_and_waking_changes_no_token(engine: VLLMEngine) -> None:
    (before,) = _run(engine, [Request(PREFIX, 10, seed=1)])
    engine.sleep()
    engine.wake()
    (after,) = _run(engine, [Request(PREFIX, 10, seed=1)])
    assert before.tokens.tolist() == after.tokens.tolist()


@pytest.mark.gpu
def test_sleep_gives_the_gpus_memory_back(engine: VLLMEngine) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    before = torch.cuda.mem_get_info()[0]
    engine.sleep()
    assert torch.cuda.mem_get_info()[0] > before + 0.1 * 2**30
    engine.wake()
    assert _off(_tiny(), _run(engine, [Request(PREFIX, 10, seed=1)]), 1.0) < 0.05


PROGRAM = """
import sys, time
import numpy as np
from trace_gym.engine import Request
from trace_gym.engines.vllm_start import start
engine = start(sys.argv[1], dtype="float32", cache_gib=0.2)
engine.submit(Request(np.arange(50, dtype=np.int32), 400, seed=0))
engine.poll(0.0)
if sys.argv[2] == "close":
    engine.close()
print("ready", flush=True)
time.sleep(600)
"""


def _of_session(session: int) -> list[int]:
    """The processes of a session, zombies aside."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads Linux's table of processes")
@pytest.mark.parametrize("end", ["close", "kill"])
def test_no_process_stays_behind(folder: Path, end: str) -> None:
    """After `close` there is the program alone; after SIGKILL there is nothing."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), end],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    ) as program:
        try:
            assert program.stdout is not None and any(line == b"ready\n" for line in program.stdout)
            if end == "close":
                assert _of_session(program.pid) == [program.pid]
        finally:
            program.send_signal(signal.SIGKILL)
            program.wait(timeout=30)
    deadline = time.monotonic() + 10
    while (left := _of_session(program.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
