"""`TransformersEngine` against the model's own `generate` and against one plain forward pass over each completion."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from trace_gym.engine import Completion, Engine, IntArray, Request
from trace_gym.engines.transformers import TransformersEngine
from trace_gym.errors import EngineError

VOCABULARY = 100
LOGPROB_ERROR = 1e-4  # of fp32, see the module under test

devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def make_model(seed: int = 0, device: str = "cpu", **changes: Any) -> LlamaForCausalLM:
    """A random Llama with grouped queries, its weights large enough for attention to matter."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    model = LlamaForCausalLM(LlamaConfig(**(settings | changes)))
    model.eval()
    torch.nn.Module.to(model, device)
    return model


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return make_model()


def prefixes(seed: int, lengths: Sequence[int]) -> list[IntArray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, VOCABULARY, n).astype(np.int32) for n in lengths]


def finish_all(engine: Engine, ids: Sequence[int]) -> list[Completion]:
    """Poll until every one of the requests has come back; in their order."""
    done: dict[int, Completion] = {}
    for _ in range(10_000):
        for completion in engine.poll(0.0):
            assert completion.request_id not in done
            done[completion.request_id] = completion
        if len(done) == len(ids):
            return [done[i] for i in ids]
    raise AssertionError(f"{len(done)} of {len(ids)} completions after 10,000 polls")


def complete(engine: Engine, *requests: Request) -> list[Completion]:
    return finish_all(engine, [engine.submit(request) for request in requests])


def logits_of(model: LlamaForCausalLM, tokens: IntArray) -> torch.Tensor:
    """Logits [n, V] of one plain pass over a sequence, without a cache or a mask."""
    device = next(model.parameters()).device
    with torch.no_grad():
        out: Any = model(
            input_ids=torch.from_numpy(tokens.astype(np.int64))[None].to(device), use_cache=False
        )
    logits: torch.Tensor = out.logits[0].float().cpu()
    return logits


def logprob_error(model: LlamaForCausalLM, request: Request, completion: Completion) -> float:
    """The largest difference to the log-probabilities of a plain pass at the request's temperature."""
    whole = np.concatenate([request.tokens, completion.tokens])
    logprobs = (logits_of(model, whole)[:-1] / request.temperature).log_softmax(-1)
    chosen = logprobs[torch.arange(len(whole) - 1), torch.from_numpy(whole[1:].astype(np.int64))].numpy()
    return float(np.abs(chosen[len(request.tokens) - 1 :] - completion.logprobs).max())


# ---- what is sampled ------------------------------------------------------------------------------------------------


@devices
def test_greedy_equals_generate_on_ragged_prompts(device: str) -> None:
    model = make_model(device=device)
    engine = TransformersEngine(model, max_batch=4)
    prompts = prefixes(1, [1, 17, 5, 40, 9])
    requests = [Request(p, max_tokens=20, seed=0, temperature=0.0) for p in prompts]
    config = GenerationConfig(max_new_tokens=20, do_sample=False, pad_token_id=0)
    for prompt, completion in zip(prompts, complete(engine, *requests), strict=True):
        ids = torch.from_numpy(prompt.astype(np.int64))[None].to(device)
        out: Any = model.generate(  # type: ignore[misc]
            ids, attention_mask=torch.ones_like(ids), generation_config=config
        )
        assert completion.tokens.tolist() == out[0, len(prompt) :].tolist()
        assert completion.finish == "length"
        assert not completion.logprobs.any()


@devices
def test_a_random_load_has_the_log_probs_of_a_plain_pass(device: str) -> None:
    """Forks, next turns, strangers and aborted requests join a small batch at random times; the cache is too small."""
    model = make_model(device=device)
    engine = TransformersEngine(model, max_batch=5, max_context=80, max_prefill_tokens=30, kept_rows=3)
    rng = np.random.default_rng(2)
    seen = prefixes(3, [12, 30, 1])
    running: dict[int, Request] = {}
    finishes, cached = [], 0
    for number in range(60):
        for _ in range(rng.integers(0, 4)):
            start = seen[rng.integers(len(seen))]
            start = start[: rng.integers(1, len(start) + 1)]
            tokens = np.concatenate(
                [start, rng.integers(1, VOCABULARY, rng.integers(0, 12)).astype(np.int32)]
            )[:79]
            temperature = float(rng.choice([0.5, 1.0, 1.7]))
            request = Request(
                tokens, int(rng.integers(1, 30)), seed=number, temperature=temperature, stop=(7, 8)
            )
            running[engine.submit(request)] = request
        if running and rng.random() < 0.1:
            engine.abort(int(rng.choice(list(running))))
        for completion in engine.poll(0.0):
            request = running.pop(completion.request_id)
            finishes.append(completion.finish)
            if len(completion.tokens):
                assert completion.cached_tokens + completion.processed_tokens == len(request.tokens)
                assert logprob_error(model, request, completion) < LOGPROB_ERROR
                seen.append(np.concatenate([request.tokens, completion.tokens])[:79])
            cached += completion.cached_tokens
    assert len(finish_all(engine, list(running))) == len(running)
    assert set(finishes) == {"stop", "length", "aborted"}
    assert cached > 100


def test_a_seed_gives_the_same_tokens_alone_and_in_company(model: LlamaForCausalLM) -> None:
    prompts = prefixes(4, [3, 25, 11, 60, 7, 1])
    requests = [Request(p, max_tokens=15 + 3 * i, seed=i, stop=(5,)) for i, p in enumerate(prompts)]
    alone = [complete(TransformersEngine(model), request)[0] for request in requests]
    engine = TransformersEngine(model, max_batch=4)
    ids = []
    for request in requests:  # each joins while the others are on their way
        ids.append(engine.submit(request))
        assert engine.poll(0.0) == []
    for one, other in zip(alone, finish_all(engine, ids), strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=LOGPROB_ERROR)
    assert complete(engine, requests[1])[0].tokens.tolist() == alone[1].tokens.tolist()
    again = Request(prompts[1], max_tokens=18, seed=99)
    assert complete(engine, again)[0].tokens.tolist() != alone[1].tokens.tolist()


def test_the_seed_names_the_uniforms_that_are_inverted(model: LlamaForCausalLM) -> None:
    (prompt,) = prefixes(25, [9])
    (done,) = complete(TransformersEngine(model), Request(prompt, max_tokens=20, seed=123, temperature=1.5))
    tokens = prompt
    for uniform in np.random.Generator(np.random.PCG64(123)).random(20):
        weights = (logits_of(model, tokens)[-1].double() / 1.5).softmax(-1).cumsum(-1).numpy()
        tokens = np.append(tokens, np.int32(np.searchsorted(weights, uniform, side="right")))
    assert done.tokens.tolist() == tokens[9:].tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_tokens_are_distributed_as_the_tempered_softmax(temperature: float) -> None:
    model = make_model(vocab_size=8)
    engine = TransformersEngine(model, max_batch=256)
    prompt = np.array([1, 2, 3], dtype=np.int32)
    draws = 2000
    done = complete(
        engine, *[Request(prompt, max_tokens=1, seed=i, temperature=temperature) for i in range(draws)]
    )
    probabilities = (logits_of(model, prompt)[-1].double() / temperature).softmax(-1).numpy()
    counts = np.bincount([int(c.tokens[0]) for c in done], minlength=8)
    assert chisquare(counts, probabilities * draws).pvalue > 0.001
    other = (logits_of(model, prompt)[-1].double() / (temperature * 1.3)).softmax(-1).numpy()
    assert chisquare(counts, other * draws).pvalue < 0.001  # enough draws to tell


# ---- how a turn ends ------------------------------------------------------------------------------------------------


def test_a_stop_token_ends_the_turn_and_is_part_of_it(model: LlamaForCausalLM) -> None:
    engine = TransformersEngine(model)
    (free,) = complete(engine, Request(prefixes(5, [6])[0], max_tokens=30, seed=1))
    stop = int(free.tokens[12])
    first = free.tokens.tolist().index(stop)
    (done,) = complete(engine, Request(prefixes(5, [6])[0], max_tokens=30, seed=1, stop=(stop, 1000)))
    assert done.finish == "stop"
    assert done.tokens.tolist() == free.tokens[: first + 1].tolist()
    assert len(done.logprobs) == first + 1


def test_max_tokens_and_the_context_end_a_turn(model: LlamaForCausalLM) -> None:
    engine = TransformersEngine(model, max_context=20)
    ten, last = prefixes(6, [10, 19])
    done = complete(
        engine, *[Request(p, max_tokens=n, seed=0) for p, n in ((ten, 1), (ten, 10), (ten, 99), (last, 9))]
    )
    assert [len(c.tokens) for c in done] == [1, 10, 10, 1]
    assert {c.finish for c in done} == {"length"}
    for request_tokens, completion in ((ten, done[2]), (last, done[3])):
        assert logprob_error(model, Request(request_tokens, 1, 0), completion) < LOGPROB_ERROR


def test_impossible_requests_are_refused(model: LlamaForCausalLM) -> None:
    engine = TransformersEngine(model, max_context=20)
    for tokens, seed, message in (
        (prefixes(7, [20])[0], 0, "leaves no room"),
        (np.array([1, VOCABULARY], dtype=np.int32), 0, "token ids outside 0 to 99"),
        (np.array([-1, 3], dtype=np.int32), 0, "token ids outside"),
        (np.array([1], dtype=np.int32), -1, "seed must not be negative"),
    ):
        with pytest.raises(EngineError, match=message):
            engine.submit(Request(tokens, 5, seed))
    assert engine.poll(0.0) == []


def test_poll_takes_one_step_or_waits_for_the_first_completion(model: LlamaForCausalLM) -> None:
    engine = TransformersEngine(model)
    short, long = (Request(p, n, seed=0) for p, n in zip(prefixes(8, [4, 4]), (6, 200), strict=True))
    ids = [engine.submit(short), engine.submit(long)]
    steps = 0
    while not (done := engine.poll(0.0)):
        steps += 1
    assert [c.request_id for c in done] == ids[:1]
    assert steps == 4  # the first sampled two tokens, the fifth and last poll the sixth
    assert [c.request_id for c in engine.poll(60.0)] == ids[1:]
    assert engine.poll(60.0) == []


def test_abort_returns_what_there_is(model: LlamaForCausalLM) -> None:
    engine = TransformersEngine(model, max_batch=1)
    requests = [Request(p, 50, seed=0) for p in prefixes(9, [4, 4, 4])]
    running, waiting, third = (engine.submit(request) for request in requests)
    engine.poll(0.0)
    for request_id in (running, waiting, 12345, running):
        engine.abort(request_id)
    done = {c.request_id: c for c in engine.poll(0.0)}
    assert sorted(done) == [running, waiting]
    assert {c.finish for c in done.values()} == {"aborted"}
    assert len(done[running].tokens) == 2
    assert len(done[waiting].tokens) == 0
    assert logprob_error(model, requests[0], done[running]) < LOGPROB_ERROR
    assert logprob_error(model, requests[2], finish_all(engine, [third])[0]) < LOGPROB_ERROR


# ---- reuse ----------------------------------------------------------------------------------------------------------


@devices
def test_the_next_turn_and_its_forks_compute_only_what_is_new(device: str) -> None:
    model = make_model(device=device)
    engine = TransformersEngine(model)
    (prompt,) = prefixes(10, [40])
    (first,) = complete(engine, Request(prompt, max_tokens=10, seed=0))
    assert (first.cached_tokens, first.processed_tokens) == (0, 40)
    turn = np.concatenate([prompt, first.tokens, prefixes(11, [6])[0]])
    forks = [Request(turn, max_tokens=12, seed=i) for i in range(6)]
    forks.append(Request(prompt[:25], max_tokens=12, seed=9))  # from the middle of what is kept
    done = complete(engine, *forks)
    assert done[0].cached_tokens == 49  # the last token sampled was never fed to the model
    assert [c.cached_tokens for c in done[1:6]] == [49] * 5  # what is left is not worth waiting for
    assert done[6].cached_tokens == 24
    plain = TransformersEngine(model, kept_rows=0)
    for fork, completion in zip(forks, done, strict=True):
        assert completion.cached_tokens + completion.processed_tokens == len(fork.tokens)
        assert logprob_error(model, fork, completion) < LOGPROB_ERROR
        (other,) = complete(plain, fork)
        assert other.cached_tokens == 0
        assert other.tokens.tolist() == completion.tokens.tolist()


def test_requests_that_arrive_together_compute_their_common_prefix_once(model: LlamaForCausalLM) -> None:
    engine = TransformersEngine(model)
    (prompt,), tails = prefixes(12, [50]), prefixes(13, [1, 2, 3, 4])
    requests = [Request(np.concatenate([prompt, tail]), max_tokens=8, seed=i) for i, tail in enumerate(tails)]
    done = complete(engine, *requests)
    assert sum(c.processed_tokens for c in done) == 50 + 1 + 2 + 3 + 4
    for request, completion in zip(requests, done, strict=True):
        assert logprob_error(model, request, completion) < LOGPROB_ERROR


def test_prefills_are_bounded_and_padded_little() -> None:
    model = fragile()
    engine = TransformersEngine(model, max_prefill_tokens=32)
    requests = [
        Request(p, max_tokens=1, seed=0) for p in prefixes(26, [100, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 20])
    ]
    model.shapes.clear()
    for request, completion in zip(requests, complete(engine, *requests), strict=True):
        assert logprob_error(model, request, completion) < LOGPROB_ERROR
    assert model.shapes[:6] == [(10, 3), (1, 20), (1, 32), (1, 32), (1, 32), (1, 4)]


def test_waiting_requests_are_served_in_order(model: LlamaForCausalLM) -> None:
    engine = TransformersEngine(model, max_batch=2)
    (prompt,) = prefixes(14, [30])
    ids = [engine.submit(Request(prompt, max_tokens=5, seed=i)) for i in range(7)]
    order: list[int] = []
    while len(order) < len(ids):
        order += sorted(c.request_id for c in engine.poll(0.0))
    assert order == ids


def test_load_changes_the_policy_and_drops_what_was_cached(model: LlamaForCausalLM) -> None:
    engine = TransformersEngine(copy.deepcopy(model))
    other = make_model(seed=1)
    request = Request(prefixes(15, [30])[0], max_tokens=10, seed=0)
    (before,) = complete(engine, request)
    engine.load(other.named_parameters(), 7)
    (after,) = complete(engine, request)
    assert (before.version, after.version) == (0, 7)
    assert (before.cached_tokens, after.cached_tokens) == (0, 0)
    assert logprob_error(model, request, before) < LOGPROB_ERROR
    assert logprob_error(other, request, after) < LOGPROB_ERROR
    assert logprob_error(model, request, after) > 0.1
    with pytest.raises(EngineError, match="cannot load nothing"):
        engine.load([("nothing", torch.zeros(1))], 8)
    with pytest.raises(EngineError, match=r"cannot load lm_head.weight, shape \(3,\)"):
        engine.load([("lm_head.weight", torch.zeros(3))], 8)


def test_a_shared_model_is_left_as_the_trainer_had_it() -> None:
    model = make_model(attention_dropout=0.5)
    engine = TransformersEngine(model)
    model.train()
    frozen = model.model.layers[0]
    frozen.eval()
    request = Request(prefixes(16, [9])[0], max_tokens=10, seed=0)
    (before,) = complete(engine, request)
    assert model.training and not frozen.training
    loss = model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.pow(2).mean()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.sub_(0.5 * parameter.grad)
    engine.load(model.named_parameters(), 1)
    (after,) = complete(engine, request)
    model.eval()
    assert after.cached_tokens == 0
    assert logprob_error(model, request, after) < LOGPROB_ERROR
    assert logprob_error(model, request, before) > 1e-3


def test_weights_may_be_tied_and_half_precision() -> None:
    model = make_model(tie_word_embeddings=True).to(torch.bfloat16)  # type: ignore[arg-type]
    engine = TransformersEngine(model, max_batch=3)
    engine.load(make_model(seed=2, tie_word_embeddings=True).state_dict().items(), 1)
    requests = [Request(p, max_tokens=12, seed=0) for p in prefixes(17, [3, 20, 9, 31])]
    for request, completion in zip(requests, complete(engine, *requests), strict=True):
        assert logprob_error(model, request, completion) < 0.3


# ---- failures and the end -------------------------------------------------------------------------------------------


class Fragile(LlamaForCausalLM):
    """Fails on demand: `break_on` is a number of query tokens, `poison` makes the logits of that many rows NaN.

    `shapes` lists the passes made.
    """

    break_on: int = -1
    poison: int = 0
    shapes: list[tuple[int, ...]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.shapes.append(tuple(kwargs["input_ids"].shape))
        if kwargs["input_ids"].shape[1] == self.break_on:
            raise RuntimeError("no\nmemory")
        out = super().forward(*args, **kwargs)
        out.logits[: self.poison] = float("nan")
        return out


def fragile() -> Fragile:
    model = make_model()
    model.__class__ = Fragile
    assert isinstance(model, Fragile)
    model.shapes = []
    return model


def test_a_failed_prefill_fails_the_newcomers_alone() -> None:
    model = fragile()
    engine = TransformersEngine(model)
    old, new = (Request(p, max_tokens=10, seed=0) for p in prefixes(18, [5, 13]))
    first = engine.submit(old)
    engine.poll(0.0)
    model.break_on = 13
    second = engine.submit(new)
    (error,) = engine.poll(0.0)
    assert (error.request_id, error.finish) == (second, "error")
    assert error.error == "the forward pass failed with RuntimeError: no memory"
    model.break_on = -1
    assert logprob_error(model, old, finish_all(engine, [first])[0]) < LOGPROB_ERROR
    assert logprob_error(model, new, complete(engine, new)[0]) < LOGPROB_ERROR


def test_a_failed_step_fails_the_running_requests_and_the_engine_goes_on() -> None:
    model = fragile()
    engine = TransformersEngine(model, max_batch=2)
    requests = [Request(p, max_tokens=10, seed=0) for p in prefixes(19, [5, 6, 7])]
    ids = [engine.submit(request) for request in requests]
    model.break_on = 1
    done = {c.request_id: c for c in engine.poll(0.0)}
    assert sorted(done) == ids[:2]
    assert {c.finish for c in done.values()} == {"error"}
    model.break_on = -1
    assert logprob_error(model, requests[2], finish_all(engine, ids[2:])[0]) < LOGPROB_ERROR


def test_logits_that_are_not_finite_fail_their_own_row() -> None:
    model = fragile()
    engine = TransformersEngine(model)
    requests = [Request(p, max_tokens=10, seed=0) for p in prefixes(20, [5, 6])]
    ids = [engine.submit(request) for request in requests]
    engine.poll(0.0)
    model.poison = 1
    (bad,) = engine.poll(0.0)
    assert bad.finish == "error" and "not finite" in bad.error
    model.poison = 0
    (good,) = finish_all(engine, [i for i in ids if i != bad.request_id])
    assert logprob_error(model, requests[ids.index(good.request_id)], good) < LOGPROB_ERROR


def test_what_exploded_weights_left_in_the_cache_hurts_nobody() -> None:
    model = make_model()
    engine = TransformersEngine(model)
    healthy = copy.deepcopy(model)
    request = Request(prefixes(21, [30])[0], max_tokens=10, seed=0)
    complete(engine, request)
    engine.load([("model.embed_tokens.weight", torch.full((VOCABULARY, 32), float("nan")))], 1)
    assert complete(engine, request)[0].finish == "error"
    engine.load(healthy.named_parameters(), 2)
    (done,) = complete(engine, request)
    assert logprob_error(healthy, request, done) < LOGPROB_ERROR


def test_an_engine_whose_device_is_gone_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fragile()
    engine = TransformersEngine(model, max_batch=1)
    requests = [Request(p, max_tokens=10, seed=0) for p in prefixes(22, [5, 6])]
    ids = [engine.submit(request) for request in requests]

    def gone(row: int) -> None:
        raise RuntimeError("device lost")

    monkeypatch.setattr(engine._rows, "wipe", gone)
    model.break_on = 5
    assert [(c.request_id, c.finish) for c in engine.poll(0.0)] == [(ids[0], "error"), (ids[1], "error")]
    with pytest.raises(EngineError, match="dead"):
        engine.submit(requests[0])


def test_sleep_frees_the_cache_until_it_is_needed(model: LlamaForCausalLM) -> None:
    engine = TransformersEngine(model)
    request = Request(prefixes(23, [30])[0], max_tokens=10, seed=0)
    engine.submit(request)
    with pytest.raises(EngineError, match="cannot sleep with 1 requests unfinished"):
        engine.sleep()
    with pytest.raises(EngineError, match="cannot load weights"):
        engine.load((), 1)
    engine.poll(60.0)
    engine.sleep()
    assert engine._rows.keys.numel() == engine._kept.keys.numel() == 0
    engine.load((), 1)
    with pytest.raises(EngineError, match="asleep"):
        engine.submit(request)
    engine.wake()
    (done,) = complete(engine, request)
    assert (done.cached_tokens, done.version) == (0, 1)
    assert logprob_error(model, request, done) < LOGPROB_ERROR


def test_close_may_be_called_twice(model: LlamaForCausalLM) -> None:
    engine = TransformersEngine(model)
    request = Request(prefixes(24, [3])[0], max_tokens=10, seed=0)
    engine.submit(request)
    engine.close()
    engine.close()
    engine.wake()
    assert engine.poll(0.0) == []
    with pytest.raises(EngineError, match="closed"):
        engine.submit(request)


def test_it_is_an_engine(model: LlamaForCausalLM) -> None:
    assert isinstance(TransformersEngine(model), Engine)
    for bad in ({"max_batch": 0}, {"max_prefill_tokens": 0}, {"kept_rows": -1}):
        with pytest.raises(EngineError, match="at least"):
            TransformersEngine(model, **bad)


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_sixteen_forks_of_a_long_prefix_compute_the_last_turn_alone() -> None:
    """Beside 16 fresh requests of that length, which compute everything."""
    model = make_model(max_position_embeddings=1024)
    engine = TransformersEngine(model, max_batch=16, kept_rows=1)
    (prefix,) = prefixes(40, [1000])
    (parent,) = complete(engine, Request(prefix, max_tokens=4, seed=0))
    turn = np.concatenate([prefix, parent.tokens, prefixes(41, [3])[0]])
    forks = complete(engine, *[Request(turn, max_tokens=2, seed=s) for s in range(16)])
    assert sum(c.processed_tokens for c in forks) == 16 * 4  # the last token sampled, and the observation
    fresh = complete(engine, *[Request(p, max_tokens=2, seed=0) for p in prefixes(42, [1007] * 16)])
    assert sum(c.processed_tokens for c in fresh) == 16 * 1007


def _tokens_stored(engine: TransformersEngine) -> int:
    return engine._rows.tokens.size + engine._kept.tokens.size


@pytest.mark.parametrize("room", [64, 192, 700])
def test_a_bounded_cache_changes_no_token_and_stays_within_its_bound(
    model: LlamaForCausalLM, room: int
) -> None:
    """`room` in tokens; where it holds less than one sequence, that one runs alone."""
    requests = [
        Request(p, max_tokens=20, seed=i)
        for i, p in enumerate(prefixes(50, [30, 90, 10, 60, 30, 110, 5, 40, 80, 20]))
    ]
    requests += [Request(requests[0].tokens, max_tokens=20, seed=s) for s in range(20, 24)]
    free = complete(TransformersEngine(model), *requests)
    token_bytes = TransformersEngine(model)._rows.shape.token_bytes
    engine = TransformersEngine(model, cache_gib=room * token_bytes / 2**30)
    ids = [engine.submit(request) for request in requests]
    done: dict[int, Completion] = {}
    while len(done) < len(ids):
        done |= {c.request_id: c for c in engine.poll(0.0)}
        assert _tokens_stored(engine) <= room or engine._rows.tokens.shape[0] == 1
    for request, one, other in zip(requests, free, (done[i] for i in ids), strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert logprob_error(model, request, other) < LOGPROB_ERROR


def test_a_batch_is_as_large_as_memory_allows(model: LlamaForCausalLM) -> None:
    token_bytes = TransformersEngine(model)._rows.shape.token_bytes
    engine = TransformersEngine(model, cache_gib=64 * 3.5 * token_bytes / 2**30)
    ids = [engine.submit(Request(p, max_tokens=20, seed=0)) for p in prefixes(51, [30] * 8)]
    engine.poll(0.0)
    assert len(engine._active) == 3
    assert {c.finish for c in finish_all(engine, ids)} == {"length"}
