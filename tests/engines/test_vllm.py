"""`VLLMEngine` over a small fake of vLLM: what is asked of vLLM, what is made of its answers, what happens when it fails."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.fake_vllm import FakeLLM
from trace_gym.engine import Completion, Engine, Request
from trace_gym.engines.vllm import VLLMEngine, pack_tied_heads
from trace_gym.engines.vllm_start import start
from trace_gym.errors import EngineError

Closed = list[str]


@pytest.fixture
def fake() -> FakeLLM:
    return FakeLLM()


@pytest.fixture
def engine(fake: FakeLLM) -> VLLMEngine:
    return _engine(fake)


def _engine(
    fake: FakeLLM, *, shutdown: Callable[[], None] = lambda: None, sleeps: bool = False
) -> VLLMEngine:
    return VLLMEngine(fake, params=dict, shutdown=shutdown, max_context=40, vocabulary=100, sleeps=sleeps)


def _request(*tokens: int, max_tokens: int = 5, **rest: Any) -> Request:
    return Request(np.array(tokens, dtype=np.int32), max_tokens, **({"seed": 3} | rest))


def _all(engine: VLLMEngine, count: int) -> dict[int, Completion]:
    done: dict[int, Completion] = {}
    for _ in range(100):
        done |= {c.request_id: c for c in engine.poll(1.0)}
        if len(done) == count:
            return done
    raise AssertionError("the requests did not come back")


def test_it_is_an_engine(engine: VLLMEngine) -> None:
    assert isinstance(engine, Engine) and engine.max_context == 40


def test_vllm_is_asked_for_the_tempered_softmax_and_nothing_else(fake: FakeLLM, engine: VLLMEngine) -> None:
    engine.submit(_request(1, 2, max_tokens=9, seed=2**64 - 1, temperature=0.7, stop=(50, 60)))
    assert fake.prompts == {"0": [1, 2]}
    assert fake.params["0"] == {
        "max_tokens": 9,
        "temperature": 0.7,
        "seed": 2**63 - 1,
        "stop_token_ids": [50, 60],
        "ignore_eos": True,
        "logprobs": 0,
        "detokenize": False,
    }


def test_deltas_add_up_and_each_token_has_its_own_log_prob(fake: FakeLLM, engine: VLLMEngine) -> None:
    fake.pace = 2
    first, second = engine.submit(_request(10, max_tokens=5)), engine.submit(_request(20, stop=(23,)))
    done = _all(engine, 2)
    assert done[first].tokens.tolist() == [11, 12, 13, 14, 15] and done[first].finish == "length"
    assert done[first].logprobs.tolist() == pytest.approx([-0.5 - t for t in range(11, 16)])
    assert done[second].tokens.tolist() == [21, 22, 23] and done[second].finish == "stop"
    assert done[first].tokens.dtype == np.int32 and done[first].logprobs.dtype == np.float32


def test_greedy_tokens_have_log_prob_zero(engine: VLLMEngine) -> None:
    engine.submit(_request(10, temperature=0.0))
    assert _all(engine, 1)[0].logprobs.tolist() == [0.0] * 5


def test_the_context_bounds_a_turn(fake: FakeLLM, engine: VLLMEngine) -> None:
    engine.submit(_request(*range(38), max_tokens=9))
    assert fake.params["0"]["max_tokens"] == 2 and len(_all(engine, 1)[0].tokens) == 2


def test_cached_and_processed_tokens_are_told(engine: VLLMEngine) -> None:
    engine.submit(_request(*range(10)))
    engine.submit(_request(*range(9), 77, 78))
    done = _all(engine, 2)
    assert [(done[i].processed_tokens, done[i].cached_tokens) for i in (0, 1)] == [(10, 0), (3, 8)]


@pytest.mark.parametrize(
    ("tokens", "rest", "said"),
    [
        (range(40), {}, "no room in a context of 40"),
        ((1, 100), {}, "outside 0 to 99"),
        ((-1,), {}, "outside 0 to 99"),
        ((1,), {"seed": -1}, "must not be negative"),
    ],
)
def test_impossible_requests_are_refused(engine: VLLMEngine, tokens: Any, rest: Any, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        engine.submit(_request(*tokens, **rest))
    assert engine.poll(0.0) == []


def test_what_vllm_refuses_is_one_line(fake: FakeLLM, engine: VLLMEngine) -> None:
    fake.broken = ValueError("no\nway")
    with pytest.raises(EngineError, match="vLLM refused the request: ValueError: no way"):
        engine.submit(_request(1))
    fake.broken = None
    assert engine.poll(0.0) == []


def test_poll_takes_one_step_or_waits_for_the_first_completion(engine: VLLMEngine) -> None:
    engine.submit(_request(1, max_tokens=3))
    assert engine.poll(0.0) == [] and engine.poll(0.0) == []
    assert len(engine.poll(0.0)) == 1
    assert engine.poll(0.0) == []


def test_abort_returns_what_there_is_and_tells_vllm(fake: FakeLLM, engine: VLLMEngine) -> None:
    request = engine.submit(_request(1, 2, 3))
    engine.poll(0.0)
    engine.abort(request)
    engine.abort(request)
    engine.abort(99)
    (done,) = engine.poll(0.0)
    assert (done.finish, done.tokens.tolist(), done.processed_tokens) == ("aborted", [4], 3)
    assert fake.aborted == ["0"] and engine.poll(0.0) == []


def test_a_request_aborted_before_its_first_step_cost_nothing(engine: VLLMEngine) -> None:
    engine.abort(engine.submit(_request(1, 2, 3)))
    (done,) = engine.poll(0.0)
    assert (done.finish, len(done.tokens), done.processed_tokens) == ("aborted", 0, 0)


def test_a_failing_step_fails_every_request_and_the_engine(fake: FakeLLM, engine: VLLMEngine) -> None:
    engine.submit(_request(1))
    engine.submit(_request(2))
    engine.poll(0.0)
    fake.broken = RuntimeError("out of\nmemory")
    done = engine.poll(0.0)
    assert [c.finish for c in done] == ["error", "error"]
    assert done[0].error == "vLLM failed with RuntimeError: out of memory"
    with pytest.raises(EngineError, match="cannot go on"):
        engine.submit(_request(1))
    with pytest.raises(EngineError, match="cannot go on"):
        engine.load((), 1)


def test_requests_that_vllm_loses_come_back_as_errors(fake: FakeLLM, engine: VLLMEngine) -> None:
    fake.silent = True
    engine.submit(_request(1))
    (done,) = engine.poll(1.0)
    assert (done.finish, done.error) == ("error", "vLLM lost the request")


def test_log_probs_that_are_not_finite_end_the_request(fake: FakeLLM, engine: VLLMEngine) -> None:
    engine.submit(_request(1))
    engine.poll(0.0)
    fake.logprob = float("nan")
    (done,) = engine.poll(0.0)
    assert done.finish == "error" and "not finite" in done.error
    assert done.tokens.tolist() == [2] and np.isfinite(done.logprobs).all()
    assert fake.aborted == ["0"]


def test_load_hands_tensors_over_packs_and_forgets(fake: FakeLLM, engine: VLLMEngine) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    engine.load([("a", weight)], 7)
    assert fake.calls == ["reload", "pack_tied_heads", "reset"]
    (loaded,) = fake.loaded
    assert loaded["a"].data_ptr() == weight.data_ptr() and not loaded["a"].requires_grad
    engine.submit(_request(1))
    assert _all(engine, 1)[0].version == 7


def test_nothing_to_load_only_forgets(fake: FakeLLM, engine: VLLMEngine) -> None:
    engine.load((), 3)
    assert fake.calls == ["reset"] and engine.version == 3


def test_a_cache_that_is_not_reset_stops_the_engine(fake: FakeLLM, engine: VLLMEngine) -> None:
    fake.resets = False
    with pytest.raises(EngineError, match="did not reset"):
        engine.load((), 1)
    with pytest.raises(EngineError, match="cannot go on"):
        engine.submit(_request(1))


def test_weights_that_vllm_cannot_take_stop_the_engine(fake: FakeLLM, engine: VLLMEngine) -> None:
    def fail() -> Any:
        yield "a", torch.ones(1)
        raise KeyError("b")

    with pytest.raises(EngineError, match="could not take the weights: KeyError"):
        engine.load(fail(), 1)
    with pytest.raises(EngineError, match="cannot go on"):
        engine.submit(_request(1))


def test_weights_and_memory_change_only_while_idle(engine: VLLMEngine) -> None:
    engine.submit(_request(1))
    with pytest.raises(EngineError, match="1 requests unfinished"):
        engine.load((), 1)
    with pytest.raises(EngineError, match="1 requests unfinished"):
        engine.sleep()


def test_sleep_and_wake_where_vllm_can(fake: FakeLLM) -> None:
    engine = _engine(fake, sleeps=True)
    engine.sleep()
    engine.sleep()
    with pytest.raises(EngineError, match="asleep"):
        engine.submit(_request(1))
    with pytest.raises(EngineError, match="asleep"):
        engine.load((), 1)
    engine.wake()
    engine.wake()
    assert fake.calls == ["sleep 1", "wake", "reset"]
    engine.submit(_request(1))


def test_sleep_and_wake_where_it_cannot(fake: FakeLLM, engine: VLLMEngine) -> None:
    engine.sleep()
    engine.wake()
    engine.submit(_request(1))
    assert fake.calls == []


def test_close_may_be_called_twice(fake: FakeLLM) -> None:
    closed: Closed = []
    engine = _engine(fake, shutdown=lambda: closed.append("once"))
    engine.submit(_request(1))
    engine.close()
    engine.close()
    assert closed == ["once"] and engine.poll(0.0) == []
    with pytest.raises(EngineError, match="closed"):
        engine.submit(_request(1))


def test_a_packed_head_that_still_holds_its_weight_is_packed_again() -> None:
    packed: list[str] = []

    class Method:
        def process_weights_after_loading(self, module: torch.nn.Module) -> None:
            packed.append(type(module).__name__)

    class Head(torch.nn.Module):
        def __init__(self, shape: tuple[int, ...]) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(shape))
            self.cpu_linear = lambda x: x
            self.quant_method = Method()

    model = torch.nn.ModuleList([Head((2, 2)), Head((0,)), torch.nn.Linear(2, 2)])
    pack_tied_heads(model)
    assert packed == ["Head"]


def test_a_missing_vllm_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_vllm(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "vllm":
            raise ImportError("No module named 'vllm'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_vllm)
    threads = torch.get_num_threads()
    with pytest.raises(EngineError, match=r"docs/engines\.md") as caught:
        start("nowhere", dtype="float32")
    assert "\n" not in str(caught.value)
    assert torch.get_num_threads() == threads
