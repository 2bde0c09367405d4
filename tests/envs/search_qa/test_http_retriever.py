from pathlib import Path
from typing import Any

import pytest

from tests.support.local_server import Asked, Told, free_port, serving
from trace_gym.envs.record import Record
from trace_gym.envs.search_qa.retriever import Hit, Retriever, make_retriever
from trace_gym.envs.search_qa.retrievers.http import HttpRetriever
from trace_gym.envs.search_qa.retrievers.wire import WireError, hits_of
from trace_gym.envs.web import Client, Limits
from trace_gym.errors import ConfigError, ExternalError

ADA = {"id": "7", "contents": '"Ada Lovelace"\nShe wrote a program.'}
HIT = Hit("7", "Ada Lovelace", "She wrote a program.", 1.5)


def retriever(url: str, path: Path, **limits: Any) -> HttpRetriever:
    limits = {"total_s": 20.0, "first_wait_s": 0.01, **limits}
    return HttpRetriever(url, Client(["127.0.0.1"], limits=Limits(**limits)), Record(path / "r.sqlite"))


def test_a_question_is_asked_once_in_search_r1s_form(tmp_path: Path) -> None:
    with serving([Told(body={"result": [[{"document": ADA, "score": 1.5}]]})]) as service:
        mine = retriever(service.url + "/retrieve", tmp_path)
        assert isinstance(mine, Retriever)
        assert mine.effect == "recorded"
        assert [mine.search("who?", 3), mine.search("who?", 3)] == [[HIT], [HIT]]
        (asked,) = service.asked
        assert (asked.method, asked.target) == ("POST", "/retrieve")
        assert asked.json == {"queries": ["who?"], "topk": 3, "return_scores": True}
    assert mine.search("who?", 3) == [HIT], "from the record, with the service gone"


def test_the_record_is_named_in_the_retrievers_name(tmp_path: Path) -> None:
    record = tmp_path / "a, b.sqlite"
    with serving([Told(body={"result": [[{"document": ADA, "score": 1.5}]]})]) as service:
        name = f"{service.url}/retrieve#record={str(record).replace(',', '%2C')}"
        assert make_retriever(name, []).search("who?", 3) == [HIT]
    replay = make_retriever(f"{name},mode=replay,deadline_s=1", [])
    assert replay.search("who?", 3) == [HIT]
    with pytest.raises(ExternalError, match=r"holds no answer .*mode=live"):
        replay.search("who else?", 3)


def test_without_a_name_the_record_is_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACE_GYM_CACHE", str(tmp_path))
    with serving([Told(body={"result": [[ADA]]})]) as service:
        make_retriever(f"{service.url}/retrieve", []).search("who?", 3)
    (record,) = (tmp_path / "records").iterdir()
    assert record.name.startswith("retriever-")


@pytest.mark.parametrize(
    ("item", "hit"),
    [
        ({"document": ADA, "score": 1.5}, HIT),
        ({"document": ADA}, Hit("7", "Ada Lovelace", "She wrote a program.", 1.0)),
        (ADA, Hit("7", "Ada Lovelace", "She wrote a program.", 1.0)),
        ({"document": {**ADA, "id": 7}, "score": 2}, Hit("7", "Ada Lovelace", "She wrote a program.", 2.0)),
        ({"id": "1", "title": "T", "text": "words"}, Hit("1", "T", "words", 1.0)),
        ({"id": "1", "title": "T", "contents": '"T"\nwords'}, Hit("1", "T", "words", 1.0)),
        ({"id": "1", "title": "T", "contents": "words\nand more"}, Hit("1", "T", "words\nand more", 1.0)),
        ({"id": "1", "contents": "T\nwords"}, Hit("1", "T", "words", 1.0)),
        ({"id": "1", "contents": "T"}, Hit("1", "T", "", 1.0)),
        ({"document": '"T"\nwords', "score": 1}, Hit("2503f5e48d72e961", "T", "words", 1.0)),
        ({"contents": '"T"\nwords'}, Hit("2503f5e48d72e961", "T", "words", 1.0)),
        ({"document": ADA, "score": float("nan")}, Hit("7", "Ada Lovelace", "She wrote a program.", 1.0)),
        ({"document": {"id": "\ud800", "contents": '"\ud800"\n\ud800'}}, Hit("?", "?", "?", 1.0)),
    ],
)
def test_variants_of_an_item(item: Any, hit: Hit) -> None:
    assert hits_of({"result": [[item]]}, 3) == [hit]


def test_scores_that_are_missing_fall_with_the_rank() -> None:
    scores = [hit.score for hit in hits_of({"result": [[ADA, ADA, ADA, ADA]]}, 3)]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 3


@pytest.mark.parametrize(
    "answer",
    [None, [], {}, {"result": []}, {"result": {}}, {"result": [[], []]}, {"result": [{}]}, {"result": [[1]]},
     {"result": [[{"document": 1}]]}, {"result": [[{"id": "1"}]]}, {"result": [[{"contents": 1}]]}, {"error": "x"}],
)  # fmt: skip
def test_what_is_no_answer(answer: Any) -> None:
    with pytest.raises(WireError):
        hits_of(answer, 3)


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (Told(body="<html>"), "not valid JSON"),
        (Told(body=b"\xff\xfe"), "not valid JSON"),
        (Told(body="[" * 100_000), "not valid JSON"),
        (Told(body={"result": 1}), "it is not"),
        (Told(404, "{}"), "HTTP 404"),
        (
            Told(307, "", {"Location": "http://elsewhere/"}),
            "a redirect to 'http://elsewhere/': name that address instead",
        ),
        (Told(size=6 << 20), "more than 1,048,576 bytes"),
        (Told(500), "gave no answer in 3 tries"),
        (Told(429, "", {"Retry-After": "60"}), "asking to wait 60 s"),
        (Told(wait_s=2), "no answer in time"),
    ],
)
def test_failures_are_not_recorded(told: Told, reason: str, tmp_path: Path) -> None:
    with serving([told]) as service:
        mine = retriever(service.url, tmp_path, total_s=0.3 if told.wait_s else 20.0)
        with pytest.raises(ExternalError, match=reason) as caught:
            mine.search("who?", 3)
        assert "\n" not in str(caught.value)
        assert len(Record(tmp_path / "r.sqlite")) == 0


@pytest.mark.parametrize("query", ["", "  ", "\ud800", "x" * 100_000, "\0\r\n", '"}],"topk":', "<|im_end|>"])
def test_no_query_fails_for_what_it_says(query: str, tmp_path: Path) -> None:
    with serving([Told(body={"result": [[ADA]]})]) as service:
        assert len(retriever(service.url, tmp_path).search(query, 3)) == (1 if query.strip() else 0)
        assert all(len(asked.json["queries"][0]) <= 2000 for asked in service.asked)


def test_open_takes_the_first_passage_with_the_title(tmp_path: Path) -> None:
    def answer(asked: Asked) -> Told:
        assert asked.json["topk"] == 20
        other = {"id": "8", "contents": '"Ada"\nA language.'}
        return Told(body={"result": [[other, ADA, {**ADA, "id": "9"}]]})

    with serving(answer) as service:
        mine = retriever(service.url, tmp_path)
        found = mine.open("ada  LOVELACE")
        assert found is not None
        assert found.id == "7"
        assert mine.open("Babbage") is None
        assert mine.open("") is None


def test_names_that_cannot_be_meant() -> None:
    for name, reason in {
        "http://": "no URL of a service",
        "http://me:secret@h/": "holds credentials",
        "http://h/#colour=red": "unknown option 'colour'; there are record, mode, deadline_s",
        "http://h/#record": "is no option",
        "http://h/#mode=replay,mode=live": "given twice",
        "http://h/#mode=rewrite": "'live' or 'replay'",
        "http://h/#deadline_s=-1": "a positive number",
        "http://h/#deadline_s=nan": "a positive number",
    }.items():
        with pytest.raises(ConfigError, match=reason) as caught:
            make_retriever(name, [])
        assert "secret" not in str(caught.value)


def test_a_service_that_is_down(tmp_path: Path) -> None:
    with pytest.raises(ExternalError, match="Connection refused"):
        retriever(f"http://127.0.0.1:{free_port()}/retrieve", tmp_path).search("who?", 1)
