"""SearchQA by external retrievers, end to end."""

import threading
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import pytest

from trace_gym.envs.actions import format_call
from trace_gym.envs.search_qa.env import SearchQAEnv
from trace_gym.envs.search_qa.retriever import Retriever
from trace_gym.envs.search_qa.retrievers.corpus import builtin_documents
from trace_gym.envs.search_qa.retrievers.tantivy import TantivyRetriever
from trace_gym.envs.search_qa.serve import RetrieverServer
from trace_gym.errors import ExternalError

TASK = "countries/train/2/0"
LOCAL = TantivyRetriever(builtin_documents())


@pytest.fixture(scope="module")
def server() -> Iterator[RetrieverServer]:
    with RetrieverServer(LOCAL, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def make(retriever: str | Retriever) -> SearchQAEnv:
    env = gymnasium.make("trace_gym/SearchQA-v0", retriever=retriever)
    assert isinstance(env, SearchQAEnv)
    env.reset(seed=0, options={"task": TASK})
    return env


def solve(env: SearchQAEnv) -> list[str]:
    seen, over, reward = [], False, 0.0
    while not over:
        observation, reward, terminated, truncated, _ = env.step(env.expert_action())
        seen.append(observation)
        over = terminated or truncated
    assert reward == 1.0
    return seen


def test_the_expert_solves_by_a_service_and_by_its_record(server: RetrieverServer, tmp_path: Path) -> None:
    name = f"{server.url}#record={tmp_path}/hits.sqlite"
    live = make(name)
    assert {tool.effect for tool in live.tools(live.state)} == {"recorded"}
    seen = solve(live)
    replayed = make(name + ",mode=replay")
    assert solve(replayed) == seen
    assert seen == solve(make(LOCAL))
    replayed.reset(options={"task": TASK})
    with pytest.raises(ExternalError, match=r"holds no answer .*mode=live"):
        replayed.step(format_call("search", {"query": "something that nobody asked"}))


def test_a_service_that_is_down_loses_the_rollout_not_the_process(tmp_path: Path) -> None:
    env = make(f"http://127.0.0.1:9/retrieve#record={tmp_path}/hits.sqlite,deadline_s=0.3")
    snapshot = env.snapshot()
    with pytest.raises(ExternalError, match="check that it is up"):
        env.step(format_call("search", {"query": "x"}))
    env.restore(snapshot)
    env.fork()
