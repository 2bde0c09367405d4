"""`OpenAIEngine` against a small server in vLLM's words, right and wrong."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.local_server import Asked, Service, Told, serving, threads_end
from trace_gym.engine import Completion, Engine, Request
from trace_gym.engines import openai
from trace_gym.engines.openai import OpenAIEngine, key_from
from trace_gym.errors import EngineError

Answer = Callable[[Asked], Told]
LISTED = Told(body={"data": [{"id": "first", "max_model_len": 40}, {"id": "second", "max_model_len": 8}]})


def events(*choices: dict[str, Any], cached: int | None = None, end: bool = True) -> Told:
    """A stream of one event a choice, and of what was used."""
    bodies: list[Any] = [{"choices": [choice]} for choice in choices]
    if cached is not None:
        bodies.append({"choices": [], "usage": {"prompt_tokens_details": {"cached_tokens": cached}}})
    text = "".join(f"data: {json.dumps(body)}\n\n" for body in bodies) + ("data: [DONE]\n\n" if end else "")
    return Told(body=text, headers={"Content-Type": "text/event-stream"})


def tokens(*ids: int, reason: str | None = None, logprob: float = -0.5) -> dict[str, Any]:
    return {
        "token_ids": list(ids),
        "logprobs": {"token_logprobs": [logprob] * len(ids)},
        "finish_reason": reason,
    }


def probe(asked: Asked, *, tempered: bool) -> Told:
    """The two likeliest tokens, a logit of 1 apart."""
    gap = 1.0 / asked.json["temperature"] if tempered else 1.0
    top = {"token_id:1": -0.3, "token_id:2": -0.3 - gap}
    logprobs = {"token_logprobs": [-0.3], "top_logprobs": [top]}
    return Told(body={"choices": [{"token_ids": [1], "logprobs": logprobs, "finish_reason": "length"}]})


@contextmanager
def served(answer: Answer | None = None, *, tempered: bool = True) -> Iterator[Service]:
    """A server that passes the probe and then answers completions with `answer`."""

    def told(asked: Asked) -> Told:
        if asked.path == "/v1/models":
            return LISTED
        if asked.path == "/v1/completions" and not asked.json["stream"]:
            return probe(asked, tempered=tempered)
        assert answer is not None
        return answer(asked)

    with serving(told) as service:
        yield service


def engine_of(service: Service, **options: Any) -> OpenAIEngine:
    return OpenAIEngine(f"{service.url}/v1", **({"max_batch": 2, "deadline_s": 5.0} | options))


def ask(**rest: Any) -> Request:
    return Request(np.array([5, 6, 7], dtype=np.int32), **({"max_tokens": 4, "seed": 3} | rest))


def complete(engine: OpenAIEngine, *requests: Request) -> list[Completion]:
    ids = [engine.submit(request) for request in requests]
    done: dict[int, Completion] = {}
    deadline = time.monotonic() + 10
    while len(done) < len(ids) and time.monotonic() < deadline:
        done |= {c.request_id: c for c in engine.poll(0.5)}
    return [done[i] for i in ids]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "FIRST_WAIT_S", 0.001)


def test_tokens_log_probs_and_counts_come_out_of_the_stream() -> None:
    with served(lambda asked: events(tokens(8, 9), tokens(2, reason="stop"), cached=2)) as service:
        engine = engine_of(service)
        assert isinstance(engine, Engine) and engine.max_context == 40
        (done,) = complete(engine, ask(stop=(2,)))
        engine.close()
    assert (done.tokens.tolist(), done.finish, done.error) == ([8, 9, 2], "stop", "")
    assert done.logprobs.tolist() == [-0.5] * 3
    assert (done.cached_tokens, done.processed_tokens) == (2, 1)


def test_the_server_is_asked_for_the_tempered_softmax_and_nothing_else() -> None:
    with served(lambda asked: events(tokens(8, reason="length"))) as service:
        engine = engine_of(service, key="secret")
        complete(engine, ask(temperature=0.5, seed=2**64 - 1, stop=(2, 4), max_tokens=100))
        engine.close()
    asked = service.asked[-1]
    assert asked.headers["Authorization"] == "Bearer secret"
    body = asked.json
    assert body["prompt"] == [5, 6, 7] and body["model"] == "first" and body["return_token_ids"] is True
    assert body["max_tokens"] == 37  # what the context leaves
    assert body["seed"] == 2**63 - 1 and body["stop_token_ids"] == [2, 4] and body["ignore_eos"] is True
    neutral = {"temperature": 0.5, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert {name: body[name] for name in neutral} == neutral


def test_greedy_tokens_have_log_prob_zero() -> None:
    with served(lambda asked: events(tokens(8, reason="length"))) as service:
        (done,) = complete(engine_of(service), ask(temperature=0.0))
    assert done.logprobs.tolist() == [0.0]


def test_failures_that_pass_are_tried_again() -> None:
    answers = [Told(status=429), Told(status=503), events(tokens(8, reason="length"))]
    with served(lambda asked: answers.pop(0)) as service:
        (done,) = complete(engine_of(service), ask())
    assert done.tokens.tolist() == [8] and answers == []


def test_a_server_that_stays_busy_fails_the_request() -> None:
    with served(lambda asked: Told(status=503)) as service:
        (done,) = complete(engine_of(service), ask())
    assert done.finish == "error" and done.error.endswith("failed: status 503")
    assert len([a for a in service.asked if a.path == "/v1/completions"]) == 2 + openai.TRIES


def test_a_wait_beyond_the_deadline_is_not_waited_for() -> None:
    with served(lambda asked: Told(status=429, headers={"Retry-After": "600"})) as service:
        start = time.monotonic()
        (done,) = complete(engine_of(service, deadline_s=1.0), ask())
    assert done.finish == "error" and time.monotonic() - start < 5


def test_an_answer_that_breaks_off_keeps_its_tokens_and_is_not_asked_for_again() -> None:
    with served(lambda asked: events(tokens(8, 9), end=False)) as service:
        (done,) = complete(engine_of(service), ask())
    assert (done.finish, done.tokens.tolist()) == ("error", [8, 9])
    assert len(service.asked) == 4


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Told(status=400, body='{"error": "too\\nlong"}'), "answered with status 400"),
        (Told(status=302, headers={"Location": "http://127.0.0.1:9/v1"}), "answered with status 302"),
        (events({"token_ids": None, "logprobs": None}), "returns no token ids"),
        (events({"token_ids": [1], "logprobs": None}), "returns no log-probs"),
        (events(tokens(1, logprob=float("nan"))), "not finite"),
        (events(tokens(1, reason="abort")), "ended the request: abort"),
        (Told(body='data: {"error": {"message": "gone"}}\n\n'), "the server said"),
        (Told(body="data: [1]\n\n"), "the server said"),
        (events(tokens(2**40, reason="length")), "token ids that no tokenizer has"),
        (events(tokens(-1, reason="length")), "token ids that no tokenizer has"),
        (events(tokens(8, reason="length", logprob=0.5)), "above 0"),
        (events(*[tokens(8)] * 5), "more than the 4 tokens"),
        (events(tokens(8, reason="stop")), "does not end turns"),
        (events(tokens(), tokens(reason="stop")), "does not end turns"),
    ],
)
def test_wrong_answers_are_errors_on_one_line(answer: Told, said: str) -> None:
    with served(lambda asked: answer) as service:
        (done,) = complete(engine_of(service), ask())
    assert done.finish == "error" and said in done.error and "\n" not in done.error


@pytest.mark.parametrize(("told", "cached"), [(1000, 3), (-1000, 0)])
def test_no_more_is_cached_than_the_prefix_and_nothing_is_taken_back(told: int, cached: int) -> None:
    with served(lambda asked: events(tokens(8, reason="length"), cached=told)) as service:
        (done,) = complete(engine_of(service), ask())
    assert (done.cached_tokens, done.processed_tokens) == (cached, 3 - cached)


def test_an_abort_is_answered_at_once_and_ends_the_stream() -> None:
    slow = events(*[tokens(8)] * 200)
    with served(lambda asked: Told(body=slow.body, drip_s=0.001)) as service:
        engine = engine_of(service)
        request = engine.submit(ask())
        time.sleep(0.3)
        engine.abort(request)
        engine.abort(99)
        (done,) = engine.poll(0.0)
        assert done.request_id == request and done.finish == "aborted"
        assert len(done.tokens) == len(done.logprobs) < 200
        assert engine.poll(0.2) == []
        engine.close()


def test_a_stream_past_its_deadline_is_ended() -> None:
    slow = events(*[tokens(8)] * 500)
    with served(lambda asked: Told(body=slow.body, drip_s=0.001)) as service:
        (done,) = complete(engine_of(service, deadline_s=0.5), ask())
    assert done.finish == "error" and "in time" in done.error


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
SLOW = {
    "silent": Told(wait_s=4),
    "headers": Told(body=HEAD + b"X: y\r\n" * 50, raw=True, drip_s=0.05),
    "body": Told(body=b"data: " + b"x" * 200, drip_s=0.05),
    "no length": Told(body=HEAD + b"\r\n" + b"x" * 200, raw=True, drip_s=0.05),
    "refusal": Told(status=400, body=b"x" * 200, drip_s=0.05),
}


@pytest.mark.parametrize("kind", SLOW)
def test_whatever_is_slow_ends_at_the_deadline_and_leaves_no_thread(kind: str) -> None:
    before = set(threading.enumerate())
    with served(lambda asked: SLOW[kind]) as service:
        engine = engine_of(service)
        engine._deadline_s = 0.5  # the probe was given more: a busy machine is no slow server
        start = time.monotonic()
        (done,) = complete(engine, ask())
        engine.close()
        assert done.finish == "error" and "in time" in done.error
        assert 0.4 < time.monotonic() - start < 2.5
        assert threads_end({*before, *_others()})


def _others() -> set[threading.Thread]:
    """Not the engine's: the service goes on dripping until it is closed."""
    return {
        t
        for t in threading.enumerate()
        if t.name != "trace_gym-worker" and not isinstance(t, threading.Timer)
    }


def test_a_slow_answer_to_a_command_ends_at_the_deadline(tmp_path: Path) -> None:
    with served(lambda asked: Told(body=b'{"results": "' + b"x" * 400, drip_s=0.05)) as service:
        engine = engine_of(service, weights_folder=str(tmp_path))
        engine._deadline_s = 0.5
        start = time.monotonic()
        with pytest.raises(EngineError, match="in time"):
            engine.load([("a", torch.ones(1))], 1)
        assert time.monotonic() - start < 2.5


def test_no_more_requests_are_under_way_than_max_batch() -> None:
    running = most = 0

    def answer(asked: Asked) -> Told:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.1)
        running -= 1
        return events(tokens(8, reason="length"))

    with served(answer) as service:
        done = complete(engine_of(service), *[ask() for _ in range(6)])
    assert [c.finish for c in done] == ["length"] * 6 and most == 2


# ---- which servers are refused --------------------------------------------------------------------------------------


def test_a_server_without_token_ids_is_refused_at_once() -> None:
    plain = Told(body={"choices": [{"text": "hi", "logprobs": None}]})
    with serving([LISTED, plain]) as service, pytest.raises(EngineError, match="returns no token ids"):
        engine_of(service)


def test_log_probs_that_ignore_the_temperature_allow_temperature_one_only() -> None:
    with served(lambda asked: events(tokens(8, reason="length")), tempered=False) as service:
        engine = engine_of(service)
        with pytest.raises(EngineError, match="processed_logprobs"):
            engine.submit(ask(temperature=0.5))
        assert [c.finish for c in complete(engine, ask(), ask(temperature=0.0))] == ["length"] * 2


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000/v1",
        "ftp://host/v1",
        "http://me:secret@host/v1",
        "http://:secret@host/v1",
        "http://host/v1#x",
        "http://[::1/v1",
        "http:///v1",
        "",
    ],
)
def test_an_address_is_checked(url: str) -> None:
    with pytest.raises(EngineError, match=r"engine\.url is an address") as caught:
        OpenAIEngine(url)
    assert "secret" not in str(caught.value)


def test_a_server_that_is_not_there_is_one_line() -> None:
    with pytest.raises(EngineError, match="gave no usable answer"):
        OpenAIEngine("http://127.0.0.1:9/v1")


def test_models_and_contexts_are_checked() -> None:
    with served() as service:
        assert engine_of(service, model="second").max_context == 8
        assert engine_of(service, max_context=20).max_context == 20
        with pytest.raises(EngineError, match="serves no 'third'; it has first, second"):
            engine_of(service, model="third")
        with pytest.raises(EngineError, match="beyond the server's context of 40"):
            engine_of(service, max_context=50)
        with pytest.raises(EngineError, match="no room in a context of 3"):
            engine_of(service, max_context=3).submit(ask())
    with (
        serving([Told(body={"data": [{"id": "m"}]})]) as service,
        pytest.raises(EngineError, match="max_context"),
    ):
        engine_of(service)
    with serving([Told(body=b"<html>")]) as service, pytest.raises(EngineError, match="no usable answer"):
        engine_of(service)


def test_a_key_comes_out_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "secret")
    monkeypatch.delenv("NO_KEY", raising=False)
    assert key_from("") == "" and key_from("A_KEY") == "secret"
    with pytest.raises(EngineError, match="NO_KEY"):
        key_from("NO_KEY")
    monkeypatch.setenv("A_KEY", "secret\r\n")  # as files end
    assert key_from("A_KEY") == "secret"
    for wrong in ("sec\nret", "s\u00e9cret"):
        monkeypatch.setenv("A_KEY", wrong)
        with pytest.raises(EngineError, match="A_KEY") as caught:
            key_from("A_KEY")
        assert wrong not in str(caught.value)


# ---- weights --------------------------------------------------------------------------------------------------------


def test_weights_cannot_be_replaced_without_a_folder() -> None:
    with served() as service, pytest.raises(EngineError, match=r"engine\.weights_folder"):
        engine_of(service).load([("a", torch.ones(2))], 1)


def test_weights_go_through_a_folder_and_the_server_is_told(tmp_path: Path) -> None:
    def answer(asked: Asked) -> Told:
        if asked.path == "/collective_rpc":
            body = asked.json
            assert body["method"] == "reload_weights"
            seen.append(float(load_file(Path(body["kwargs"]["weights_path"]) / "model.safetensors")["a"][0]))
            return Told(body={"results": [None]})
        assert asked.path == "/reset_prefix_cache"
        return Told()

    seen: list[float] = []
    with served(answer) as service:
        engine = engine_of(service, weights_folder=str(tmp_path))
        engine.load([("a", torch.nn.Parameter(torch.tensor([4.0])))], 1)
        engine.load([("a", torch.tensor([5.0]))], 2)
        engine.load((), 3)
    assert seen == [4.0, 5.0] and engine.version == 3
    (own,) = tmp_path.iterdir()
    assert [p.name for p in own.iterdir()] == ["version-2"]
    engine.close()
    assert list(tmp_path.iterdir()) == []
    paths = [a.path for a in service.asked[3:]]
    assert paths == ["/collective_rpc", "/reset_prefix_cache"] * 2 + ["/reset_prefix_cache"]


def test_runs_that_share_a_folder_keep_their_weights_apart(tmp_path: Path) -> None:
    places: list[Path] = []

    def answer(asked: Asked) -> Told:
        if asked.path == "/collective_rpc":
            places.append(Path(asked.json["kwargs"]["weights_path"]))
        return Told()

    with served(answer) as service:
        engines = [engine_of(service, weights_folder=str(tmp_path)) for _ in range(2)]
        for number, engine in enumerate(engines):
            engine.load([("a", torch.tensor([float(number)]))], 0)
        assert [float(load_file(place / "model.safetensors")["a"][0]) for place in places] == [0.0, 1.0]
        engines[0].load([("a", torch.tensor([2.0]))], 1)
        engines[0].close()
        assert [place.exists() for place in places] == [False, True, False]
        engines[1].close()


def test_a_server_that_does_not_reload_is_one_line(tmp_path: Path) -> None:
    with served(lambda asked: Told(status=404)) as service:
        engine = engine_of(service, weights_folder=str(tmp_path))
        with pytest.raises(EngineError, match="status 404"):
            engine.load([("a", torch.ones(1))], 1)
        assert engine.version == 0
