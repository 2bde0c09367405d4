import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_gym.envs.search_qa.bm25 import BM25
from trace_gym.envs.search_qa.retriever import Document, Retriever, make_retriever
from trace_gym.envs.search_qa.retrievers.corpus import read_corpus
from trace_gym.envs.search_qa.retrievers.tantivy import TantivyRetriever
from trace_gym.errors import ConfigError, TaskError

DOCUMENTS = [
    Document("c", "Oslo", "The capital of Norway, on a fjord."),
    Document("a", "Norway", "A country in the north. Its capital is Oslo."),
    Document("b", "Bergen", "A city of Norway; it rains."),
    Document("d", "Zürich", "Eine Stadt."),
    *(Document(f"x{n:03}", "Same", "equal words") for n in range(80)),
]
RETRIEVER = TantivyRetriever(DOCUMENTS)


def test_it_finds_what_bm25_finds() -> None:
    assert isinstance(RETRIEVER, Retriever)
    assert (RETRIEVER.effect, len(RETRIEVER)) == ("pure", 84)
    for query in ("capital of Norway", "Oslo", "cities raining", "zurich", "ZÜRICH"):
        hit, *_ = RETRIEVER.search(query, 3)
        assert hit.score > 0
        if "raining" not in query:  # a stem, which the built-in retriever does not know
            assert hit.id in [other.id for other in BM25(DOCUMENTS).search(query, 3)]
    assert RETRIEVER.search("raining", 1)[0].id == "b"
    assert RETRIEVER.search("xyzzy", 3) == []


def test_better_matches_come_first_and_ties_by_id() -> None:
    hits = RETRIEVER.search("equal words norway", 20)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert [hit.id for hit in RETRIEVER.search("equal", 5)] == ["x000", "x001", "x002", "x003", "x004"]


def test_equal_documents_give_equal_hits_in_whatever_order_they_come() -> None:
    other = TantivyRetriever(DOCUMENTS[::-1])
    for query in ("norway", "equal", "capital oslo norway city equal"):
        assert other.search(query, 10) == RETRIEVER.search(query, 10)


@given(
    st.text(max_size=80)
    | st.sampled_from(['"', "title:(", "a AND OR", "*", "[a TO b]", "x^1e99", "+-!", "\\"])
)
def test_any_text_is_a_query(query: str) -> None:
    assert len(RETRIEVER.search(query, 3)) <= 3
    RETRIEVER.open(query)


def test_queries_at_the_edge() -> None:
    assert RETRIEVER.search("norway", 0) == RETRIEVER.search("norway", -1) == RETRIEVER.search("", 3) == []
    assert RETRIEVER.search("\ud800 oslo", 1)[0].id == "c"
    assert len(RETRIEVER.search("oslo " * 100_000 + "norway", 3)) > 0
    assert TantivyRetriever([]).search("oslo", 3) == []
    assert len(RETRIEVER.search("equal norway", 1000)) == 83


def test_open() -> None:
    found = RETRIEVER.open("  zurich ")
    assert found is not None
    assert (found.id, found.text) == ("d", "Eine Stadt.")
    same = RETRIEVER.open("Same")
    assert same is not None
    assert same.id == "x000"
    assert RETRIEVER.open("Paris") is None


def test_threads_share_it() -> None:
    seen: list[object] = []
    threads = [
        threading.Thread(target=lambda: seen.append(RETRIEVER.search("norway capital", 3))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(hits == seen[0] for hits in seen)


# ---- corpora -------------------------------------------------------------------------------------------------------


def test_a_corpus_in_either_form(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"id": "a", "title": "T", "text": "w"}\n\n{"id": 7, "contents": "\\"U\\"\\nv\\nx"}\n{"contents": "V\\ny"}'
    )
    assert read_corpus(path) == [Document("a", "T", "w"), Document("7", "U", "v\nx"), Document("4", "V", "y")]
    assert make_retriever(f"tantivy:{path}", []).search("x", 1)[0].title == "U"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no document"),
        ("{", "line 1: not valid JSON"),
        ('{"title": "T", "text": "w"}\n[]', "line 2: it is not an object"),
        ('{"title": "T"}', 'line 1: a document has neither "contents" nor'),
        ('{"id": null, "contents": "x"}', "line 1: the id is neither"),
        (
            '{"id": "1", "contents": "x"}\n{"id": "1", "contents": "y"}',
            "line 2: the id '1' stands in line 1 too",
        ),
        ("[" * 100_000, "line 1: not valid JSON"),
    ],
)
def test_a_corpus_that_is_none(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(text)
    with pytest.raises(TaskError, match=reason):
        read_corpus(path)


def test_a_corpus_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"cannot read the corpus .*check the path"):
        make_retriever(f"tantivy:{tmp_path}/none.jsonl", [])
    with pytest.raises(ConfigError, match="two documents have the id"):
        TantivyRetriever([DOCUMENTS[0], DOCUMENTS[0]])
