import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.local_server import threads_end
from trace_gym.envs.record import Record
from trace_gym.envs.search_qa import serve
from trace_gym.envs.search_qa.bm25 import BM25
from trace_gym.envs.search_qa.retriever import Document, Hit, Retriever, make_retriever
from trace_gym.envs.search_qa.retrievers.http import HttpRetriever
from trace_gym.envs.search_qa.serve import RetrieverServer
from trace_gym.envs.web import Client
from trace_gym.errors import ConfigError, ExternalError

DOCUMENTS = [
    Document("1", "Ada Lovelace", "She wrote the first program, for Babbage's engine."),
    Document("2", "Charles Babbage", "He designed an engine.\nIt was never built."),
    Document("3", 'The "Engine"', ""),
    Document("4", "Zürich – 東京", "Ein Text mit Ümläuten, engine 🚂."),
]
QUERIES = [
    "engine",
    "who wrote the first program",
    "zurich",
    "nothing of this",
    "Babbage engine built",
    '"Engine"',
]


@pytest.fixture
def server() -> Iterator[RetrieverServer]:
    before = set(threading.enumerate())
    with RetrieverServer(BM25(DOCUMENTS), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    assert threads_end(before)


def ask(server: RetrieverServer, body: bytes, *, path: str = "/retrieve", **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    try:
        connection.putrequest("POST", path, skip_host=True)
        for name, value in {"Host": "127.0.0.1", "Content_Length": str(len(body)), **headers}.items():
            if value:
                connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@pytest.mark.parametrize("kind", ["bm25", "tantivy"])
def test_the_round_trip_gives_the_local_retrievers_hits(kind: str, tmp_path: Path) -> None:
    local = make_retriever(kind, DOCUMENTS)
    with RetrieverServer(local, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        distant = HttpRetriever(server.url, Client(["127.0.0.1"]), Record(tmp_path / "r.sqlite"))
        try:
            for query in QUERIES:
                for k in (1, 3, 10):
                    assert distant.search(query, k) == list(local.search(query, k)), query
            for document in DOCUMENTS:
                opened, mine = distant.open(document.title), local.open(document.title)
                assert opened is not None
                assert mine is not None
                assert (opened.id, opened.title, opened.text) == (mine.id, mine.title, mine.text)
            assert distant.open("Nobody") is None
        finally:
            server.shutdown()
            thread.join()


def test_several_queries_and_the_form_without_scores(server: RetrieverServer) -> None:
    status, answer = ask(server, json.dumps({"queries": ["babbage", "nothing"], "topk": 1}).encode())
    assert status == 200
    assert [len(hits) for hits in answer["result"]] == [1, 0]
    assert answer["result"][0][0].keys() == {"id", "contents"}
    assert ask(server, b'{"queries": []}') == (200, {"result": []})
    scored = ask(server, b'{"queries": ["engine"], "return_scores": true}')[1]["result"][0]
    assert len(scored) == 3
    assert all(item.keys() == {"document", "score"} for item in scored)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400), (b"{", 400), (b"\xff", 400), (b"[" * 100_000, 400), (b"[]", 422), (b"{}", 422),
        (b'{"queries": "x"}', 422), (b'{"queries": [1]}', 422), (b'{"queries": ["x"], "topk": 0}', 422),
        (b'{"queries": ["x"], "topk": 101}', 422), (b'{"queries": ["x"], "topk": true}', 422),
        (b'{"queries": ["x"], "topk": 1e9}', 422), (b'{"queries": [' + b'"x",' * 1024 + b'"x"]}', 413),
        (b'{"queries": ["\\ud800"]}', 200), (b'{"queries": ["' + b"x" * 50_000 + b'"]}', 200),
        (b'{"queries": [""], "topk": null}', 200),
    ],
)  # fmt: skip
def test_requests_of_all_kinds_get_an_answer(server: RetrieverServer, body: bytes, status: int) -> None:
    found, answer = ask(server, body)
    assert (found, "error" in answer) == (status, status != 200)


def test_requests_that_are_refused(server: RetrieverServer) -> None:
    good = b'{"queries": ["x"]}'
    assert ask(server, good, path="/retrieve/../retrieve")[0] == 404
    assert ask(server, good, path="/")[0] == 404
    assert ask(server, good, Host="evil.example")[0] == 403, (
        "a page that a browser shows, under a name that resolves here"
    )
    assert ask(server, good, Host="localhost:8000")[0] == 200
    assert ask(server, b"", Content_Length="")[0] == 411
    assert ask(server, b"", Content_Length="-1")[0] == 411
    assert ask(server, b"", Content_Length=str(5 << 20))[0] == 413
    assert ask(server, b"", Content_Length="9" * 400)[0] == 413
    with socket.create_connection(server.server_address[:2], timeout=20) as sock:  # type: ignore[arg-type]
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert b" 405 " in sock.recv(100)


def test_clients_that_stop_talking_are_let_go(
    monkeypatch: pytest.MonkeyPatch, server: RetrieverServer
) -> None:
    monkeypatch.setattr(serve._Handler, "timeout", 0.2)
    for words in (
        b"",
        b"POST /retr",
        b"POST /retrieve HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{",
    ):
        with socket.create_connection(server.server_address[:2], timeout=20) as sock:  # type: ignore[arg-type]
            sock.sendall(words)
            while sock.recv(1000):
                pass
    assert ask(server, b'{"queries": ["engine"]}')[0] == 200


def test_more_clients_than_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(serve, "MAX_AT_ONCE", 2)
    with RetrieverServer(BM25(DOCUMENTS), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        idle = [socket.create_connection(server.server_address[:2], timeout=20) for _ in range(3)]  # type: ignore[arg-type]
        assert idle[2].recv(10) == b"", "the third is turned away"
        for sock in idle:
            sock.close()
        mine = HttpRetriever(server.url, Client(["127.0.0.1"]), Record(tmp_path / "r.sqlite"))
        assert mine.search("engine", 1), "a client that tries again gets in"
        server.shutdown()
        thread.join()


def test_a_retriever_that_fails_is_a_failure_of_the_service(tmp_path: Path) -> None:
    class Down:
        effect = "recorded"

        def search(self, query: str, k: int) -> list[Hit]:
            raise ExternalError("its own service is down")

        def open(self, title: str) -> Hit | None:
            raise AssertionError

    retriever: Retriever = Down()  # type: ignore[assignment]
    with RetrieverServer(retriever, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        assert ask(server, b'{"queries": ["x"]}') == (503, {"error": "its own service is down"})
        server.shutdown()
        thread.join()


def test_a_port_that_is_taken(server: RetrieverServer) -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 127.0.0.1:.*choose another port, or 0"):
        RetrieverServer(BM25(DOCUMENTS), server.server_address[1])


def test_the_command_serves_until_ctrl_c(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "1", "contents": "\\"Ada\\"\\nengine"}\n')
    command = [
        sys.executable,
        "-m",
        "trace_gym.cli",
        "serve-retriever",
        "--corpus",
        str(corpus),
        "--port",
        "0",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("serving 1 documents by bm25 at http://127.0.0.1:")
        url = line.split(" at ")[1].split(";")[0]
        mine = HttpRetriever(url, Client(["127.0.0.1"]), Record(tmp_path / "r.sqlite"))
        assert [hit.title for hit in mine.search("engine", 1)] == ["Ada"]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (out, err, process.returncode) == ("stopped\n", "", 0)
