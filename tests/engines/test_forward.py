"""`ForwardEngine` against `TransformersEngine`, which samples from the same streams, and against itself."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.engines.test_transformers import VOCABULARY, make_model
from trace_gym.engine import Completion, Engine, Request
from trace_gym.engines.forward import ForwardEngine
from trace_gym.engines.transformers import TransformersEngine
from trace_gym.envs.relay.env import RelayEnv
from trace_gym.errors import EngineError
from trace_gym.tabular import TabularPolicy


def requests(count: int, seed: int = 0, **changes: Any) -> list[Request]:
    rng = np.random.default_rng(seed)
    settings: dict[str, Any] = {"max_tokens": 6, "stop": (3, 4)} | changes
    return [
        Request(rng.integers(VOCABULARY, size=rng.integers(1, 12)).astype(np.int32), seed=i, **settings)
        for i in range(count)
    ]


def run(engine: Engine, asked: list[Request]) -> list[Completion]:
    """Completions in the order of the requests."""
    ids = [engine.submit(request) for request in asked]
    done: dict[int, Completion] = {}
    while len(done) < len(ids):
        done |= {completion.request_id: completion for completion in engine.poll(1.0)}
    assert engine.poll(0.0) == []
    return [done[i] for i in ids]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_it_samples_what_the_cached_engine_samples(temperature: float) -> None:
    model = make_model()
    asked = requests(20, temperature=temperature)
    mine, theirs = run(ForwardEngine(model), asked), run(TransformersEngine(model), asked)
    assert isinstance(ForwardEngine(model), Engine)
    for one, other in zip(mine, theirs, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist() and one.finish == other.finish
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert {c.finish for c in mine} == {"stop", "length"} or temperature == 0


def table() -> tuple[TabularPolicy, list[Request]]:
    spec = RelayEnv(kinds=5).tabular()
    states = np.random.default_rng(0).integers(spec.states, size=60)
    prefixes = [np.array([1, 2, len(spec.actions) + s], dtype=np.int32) for s in states]
    asked = [Request(p, max_tokens=1, seed=i, stop=(0, 1, 2, 3)) for i, p in enumerate(prefixes)]
    return TabularPolicy(spec), asked


def test_a_completion_depends_on_its_own_request_alone() -> None:
    policy, asked = table()
    together = run(ForwardEngine(policy), asked)
    for other in (
        [run(ForwardEngine(policy), [r])[0] for r in asked],
        run(ForwardEngine(policy, max_batch=7), asked),
    ):
        for one, two in zip(together, other, strict=True):
            assert one.tokens.tolist() == two.tokens.tolist()
            assert one.logprobs.tolist() == two.logprobs.tolist()
    again = run(ForwardEngine(policy), [Request(asked[0].tokens, 1, seed) for seed in range(200)])
    assert len({int(c.tokens[0]) for c in again}) > 1  # and on its seed it does depend


def test_the_quick_way_samples_what_the_forward_pass_does() -> None:
    policy, asked = table()
    slow = torch.nn.Module()
    slow.policy = policy
    slow.forward = policy.forward
    for one, two in zip(run(ForwardEngine(policy), asked), run(ForwardEngine(slow), asked), strict=True):
        assert one.tokens.tolist() == two.tokens.tolist()
        assert one.logprobs == pytest.approx(two.logprobs, abs=1e-6)


class Broken(torch.nn.Module):
    def __init__(self, error: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.error = error

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> SimpleNamespace:
        if self.error:
            raise RuntimeError("no luck")
        return SimpleNamespace(logits=torch.full((*input_ids.shape, 9), torch.nan))


def test_a_model_that_breaks_fails_its_requests_and_not_the_engine() -> None:
    for error, words in ((True, "no luck"), (False, "not finite")):
        engine = ForwardEngine(Broken(error))
        done = run(engine, requests(3))
        assert all(c.finish == "error" and words in c.error for c in done)
        assert len(run(engine, requests(2))) == 2


def test_aborted_requests_come_back_once() -> None:
    policy, asked = table()
    engine = ForwardEngine(policy)
    first, second = engine.submit(asked[0]), engine.submit(asked[1])
    engine.abort(first)
    engine.abort(99)
    assert sorted((c.request_id, c.finish) for c in engine.poll(1.0)) == [
        (first, "aborted"),
        (second, "stop"),
    ]
    engine.abort(second)
    assert engine.poll(0.0) == []


def test_weights_are_loaded_by_name_while_nothing_runs() -> None:
    policy, asked = table()
    engine = ForwardEngine(policy)
    engine.load([("logits", torch.full_like(policy.logits, 0.5))], 7)
    assert bool((policy.logits == 0.5).all()) and run(engine, asked[:1])[0].version == 7
    with pytest.raises(EngineError, match="no such tensor"):
        engine.load([("logit", policy.logits)], 8)
    engine.submit(asked[0])
    with pytest.raises(EngineError, match="unfinished"):
        engine.load([], 8)


def test_impossible_requests_are_refused() -> None:
    policy, asked = table()
    with pytest.raises(EngineError, match="no room"):
        ForwardEngine(policy, max_context=3).submit(asked[0])
    with pytest.raises(EngineError, match="negative"):
        ForwardEngine(policy).submit(Request(asked[0].tokens, 1, seed=-1))
    closed = ForwardEngine(policy)
    closed.close()
    closed.close()
    with pytest.raises(EngineError, match="closed"):
        closed.submit(asked[0])
