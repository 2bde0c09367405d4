import copy
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.local_server import Asked, Service, Told, serving
from trace_gym.envs.record import Record
from trace_gym.envs.search_qa.retriever import Hit, Retriever, make_retriever
from trace_gym.envs.search_qa.retrievers.wikipedia import Pace, Transport, WikipediaRetriever
from trace_gym.envs.web import Limits
from trace_gym.errors import ConfigError, ExternalError

ADA = {"pageid": 974, "ns": 0, "title": "Ada Lovelace"}
SNIPPET = '<span class="searchmatch">Ada</span> was a\n mathematician &amp; writer'
TEXT = "Ada Lovelace was a mathematician.\n\n\n== Life ==\nBorn in London.\n\n\n=== Youth ===\nShe drew."


def mediawiki(asked: Asked) -> Told:
    """What Wikipedia's API says, as far as we ask."""
    query = {key: values[0] for key, values in asked.query.items()}
    if query.get("list") == "search":
        found = [
            {**ADA, "snippet": SNIPPET, "size": 9, "wordcount": 2},
            {"pageid": 5, "ns": 0, "title": "Ada", "snippet": "x"},
        ]
        found = [] if query["srsearch"] == "nothing" else found[: int(query["srlimit"])]
        return Told(
            body={"batchcomplete": "", "query": {"searchinfo": {"totalhits": len(found)}, "search": found}}
        )
    title = query["titles"]
    if title in ("Ada Lovelace", "Countess of Lovelace"):
        return Told(body={"query": {"pages": {"974": {**ADA, "extract": TEXT}}}})
    if title.startswith("fr:"):
        return Told(body={"query": {"interwiki": [{"title": title, "iw": "fr"}]}})
    if title.startswith("User:"):
        return Told(body={"query": {"pages": {"9": {"pageid": 9, "ns": 2, "title": title, "extract": "me"}}}})
    return Told(body={"query": {"pages": {"-1": {"ns": 0, "title": title, "missing": ""}}}})


def retriever(service: Service, path: Path, **limits: Any) -> WikipediaRetriever:
    limits = {"total_s": 20.0, "first_wait_s": 0.01, **limits}
    transport = Transport(service.url, limits=Limits(**limits), per_s=1000)
    return WikipediaRetriever("en", transport, Record(path / "w.sqlite"), user_agent="tests me@example.org")


def test_search_and_open_by_the_real_client(tmp_path: Path) -> None:
    with serving(mediawiki) as service:
        mine = retriever(service, tmp_path)
        assert isinstance(mine, Retriever)
        hits = mine.search("  who was\nAda? ", 2)
        assert hits == [
            Hit("974", "Ada Lovelace", "Ada was a mathematician & writer", 1.0),
            Hit("5", "Ada", "x", 0.5),
        ]
        found = mine.open("countess_of  Lovelace".replace("countess", "Countess"))
        assert found is not None
        assert (found.id, found.title) == ("974", "Ada Lovelace")
        assert found.text.startswith("Ada Lovelace was a mathematician.\n\nLife\nBorn in London.")
        assert "She drew." in found.text
        assert mine.search("nothing", 5) == []
        assert mine.open("No such article") is None
        assert [asked.path for asked in service.asked] == ["/w/api.php"] * 4
        assert service.asked[0].query["srsearch"] == ["who was Ada?"]
        sent = {name.lower(): value for name, value in service.asked[0].headers.items()}
        assert sent["user-agent"].startswith("tests me@example.org Wikipedia-API/")
        assert "cookie" not in sent
        asked = len(service.asked)
        assert mine.search("who was Ada?", 2) == hits
        assert mine.open("No such article") is None
        assert len(service.asked) == asked, "known by now"
    replay = make_retriever(f"wikipedia#record={tmp_path}/w.sqlite,mode=replay", [])
    assert replay.search("who was Ada?", 2) == hits
    with pytest.raises(ExternalError, match="mode=live"):
        replay.search("who was Babbage?", 2)


def test_titles_that_are_none_are_not_asked_for(tmp_path: Path) -> None:
    with serving(mediawiki) as service:
        mine = retriever(service, tmp_path)
        for title in (
            "",
            " ",
            "a|b",
            "a#b",
            "[x]",
            "{{x}}",
            "<b>",
            ":x",
            "%41",
            "x" * 256,
            "ü" * 200,
            "\ufffd",
            "a\0b",
        ):
            assert mine.open(title) is None, title
        assert service.asked == []
        assert mine.open("fr:Ada Lovelace") is None
        assert mine.open("User:Me") is None


def test_no_query_fails_for_what_it_says(tmp_path: Path) -> None:
    with serving(mediawiki) as service:
        mine = retriever(service, tmp_path)
        for query in ("\ud800", "x" * 100_000, "a&action=delete&list=", "\r\nX: y", "../../", "東京 🚂"):
            assert len(mine.search(query, 2)) == 2
        assert mine.search("", 2) == mine.search(" \n", 2) == mine.search("x", 0) == []
        assert all(
            asked.path == "/w/api.php" and asked.query["list"] == ["search"] for asked in service.asked
        )
        assert all(len(asked.query["srsearch"][0]) <= 300 for asked in service.asked)


SEARCHING: Callable[[WikipediaRetriever], Any] = lambda mine: mine.search("Ada", 2)  # noqa: E731
OPENING: Callable[[WikipediaRetriever], Any] = lambda mine: mine.open("Ada")  # noqa: E731


@pytest.mark.parametrize("what", [SEARCHING, OPENING], ids=["search", "open"])
@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (Told(429, "", {"Retry-After": "3600"}), "asking to wait 3600 s"),
        (Told(500), r"no answer in 3 tries \(HTTP 500\)"),
        (Told(wait_s=2), "no answer in time"),
        (Told(body=b" " * 50, drip_s=0.05), "no answer in time"),
        (Told(body="{"), "not valid JSON"),
        (Told(body=b"\xff"), "not valid JSON"),
        (Told(body="[]"), "without a result"),
        (Told(body={}), "without a result"),
        (Told(body={"query": []}), "without a result"),
        (Told(body={"query": {"search": 7, "pages": 7}}), "cannot be used"),
        (Told(body={"query": {"search": [{}], "pages": {"1": []}}}), "cannot be used"),
        (Told(body={"error": {"code": "ratelimited"}}), "reports the error 'ratelimited'"),
        (Told(body={"error": {"code": "internal_api_error_DBQueryError"}}), "reports the error"),
        (Told(body={"error": "x"}), "reports the error 'unknown'"),
        (Told(403, "blocked"), "HTTP 403"),
        (Told(302, "", {"Location": "http://elsewhere/"}), "HTTP 302"),
        (Told(size=2 << 20), "HTTP 200, an answer of more than 1,048,576 bytes"),
    ],
)  # fmt: skip
def test_failures_are_errors_and_not_recorded(
    told: Told, reason: str, what: Callable[[WikipediaRetriever], Any], tmp_path: Path
) -> None:
    with serving([told]) as service:
        mine = retriever(service, tmp_path, total_s=0.3 if told.wait_s or told.drip_s else 20.0)
        with pytest.raises(ExternalError, match=reason) as caught:
            what(mine)
        assert "\n" not in str(caught.value)
        assert len(Record(tmp_path / "w.sqlite")) == 0


def test_a_busy_wikipedia_is_asked_again(tmp_path: Path) -> None:
    replies = iter([Told(429, "", {"Retry-After": "0"}), Told(503)])
    with serving(lambda asked: next(replies, None) or mediawiki(asked)) as service:
        assert len(retriever(service, tmp_path).search("Ada", 2)) == 2
        assert len(service.asked) == 3


def test_a_question_that_makes_no_sense_to_it_finds_nothing(tmp_path: Path) -> None:
    with serving([Told(body={"error": {"code": "cirrussearch-query-too-long", "info": "…"}})]) as service:
        mine = retriever(service, tmp_path)
        assert mine.search("x", 2) == []
        assert mine.open("x") is None


def test_a_proxy_in_the_environment_does_not_carry_it_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving([Told()]) as proxy, serving(mediawiki) as service:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert len(retriever(service, tmp_path).search("Ada", 2)) == 2
        assert proxy.asked == []


def test_threads_share_one(tmp_path: Path) -> None:
    with serving(mediawiki) as service:
        mine = retriever(service, tmp_path)
        seen: list[int] = []
        threads = [
            threading.Thread(target=lambda n=n: seen.append(len(mine.search(f"Ada {n}", 2))))
            for n in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [2] * 6


def test_the_pace_is_kept_by_all_callers_together() -> None:
    pace, start = Pace(50), time.monotonic()

    def wait_thrice() -> None:
        for _ in range(3):
            pace.wait()

    threads = [threading.Thread(target=wait_thrice) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - start >= 8 / 50


def test_names_that_cannot_be_meant() -> None:
    for name, reason in {
        "wikipedia:EN": "a language is a code",
        "wikipedia:en.evil.example/": "a language is a code",
        "wikipedia:en@evil": "a language is a code",
        "wikipedia#per_s=0": "per_s is a positive number",
        "wikipedia#user_agent=me": "user_agent names you",
        "wikipedia#user_agent=me%0d%0aX: y": "user_agent names you",
        "wikipedia#pages=3": "unknown option 'pages'",
    }.items():
        with pytest.raises(ConfigError, match=reason):
            make_retriever(name, [])


def test_the_transport_asks_its_own_host_whatever_the_request_names() -> None:
    with serving([Told(body={"query": {}})]) as service:
        transport = Transport(service.url, per_s=1000)
        request = httpx.Request("GET", "https://elsewhere.example/w/api.php?a=b", headers={"Cookie": "a=b"})
        assert json.loads(transport.handle_request(request).read()) == {"query": {}}
        assert (service.asked[0].target, "Cookie" in service.asked[0].headers) == ("/w/api.php?a=b", False)


def test_a_copy_shares_no_connection(tmp_path: Path) -> None:
    with serving(mediawiki) as service:
        mine = retriever(service, tmp_path)
        mine.search("Ada", 2)
        assert copy.copy(mine).search("Ada again", 2) == mine.search("Ada again", 2)
