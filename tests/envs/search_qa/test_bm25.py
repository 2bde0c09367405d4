import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_gym.envs.search_qa.bm25 import BM25, STOP_WORDS, title_key, words
from trace_gym.envs.search_qa.retriever import FACTORIES, Document, Retriever, make_retriever
from trace_gym.errors import ConfigError

DOCS = [
    Document("1", "Tirana", "Tirana is the capital of Albania."),
    Document("2", "Albania", "Albania is a country. Its neighbour is Greece."),
    Document("3", "Athens", "Athens is the capital of Greece."),
    Document("4", "Łódź", "A city in Poland."),
]


def by_formula(documents: Sequence[Document], query: str, k: int) -> list[tuple[str, float]]:
    """BM25 as its authors write it, word by word and document by document."""
    texts = {d.id: words(f"{d.title} {d.text}") for d in documents}
    mean = max(sum(map(len, texts.values())) / len(texts), 1.0)
    asked = list(dict.fromkeys(words(query)))
    asked = [w for w in asked if w not in STOP_WORDS] or asked
    scores = {}
    for name, text in texts.items():
        score = 0.0
        for word in asked:
            n = sum(word in other for other in texts.values())
            tf = text.count(word)
            if tf:
                idf = math.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
                score += idf * tf / (tf + 1.2 * (1 - 0.75 + 0.75 * len(text) / mean))
        if score > 0:
            scores[name] = score
    return sorted(scores.items(), key=lambda item: (-round(item[1], 5), item[0]))[:k]


@given(
    st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=8).map(" ".join), min_size=1, max_size=12),
    st.lists(st.sampled_from("abcdefghz"), max_size=6).map(" ".join),
    st.integers(1, 5),
)
@settings(max_examples=150)
def test_it_ranks_as_the_formula_does(texts: list[str], query: str, k: int) -> None:
    documents = [Document(f"{i:02}", "", text) for i, text in enumerate(texts)]
    hits = BM25(documents).search(query, k)
    expected = by_formula(documents, query, k)
    assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected], rel=1e-4)
    assert [hit.id for hit in hits] == [name for name, _ in expected]


def test_the_order_of_documents_does_not_matter_and_ties_go_to_the_smaller_id() -> None:
    same = [Document(f"d{i}", "Twin", "one of many") for i in (3, 1, 2)]
    assert [hit.id for hit in BM25(same).search("many", 2)] == ["d1", "d2"]
    shuffled = [DOCS[i] for i in (2, 0, 3, 1)]
    for query in ("capital of Greece", "Albania", "is"):
        assert BM25(DOCS).search(query, 3) == BM25(shuffled).search(query, 3)


def test_stop_words_count_only_alone() -> None:
    index = BM25(DOCS)
    assert index.search("the capital of Albania", 3) == index.search("capital Albania", 3)
    assert len(index.search("is the of", 10)) == 3


def test_case_and_accents_do_not_count() -> None:
    index = BM25([*DOCS, Document("5", "São Tomé", "An island.")])
    assert index.search("sao TOME", 1)[0].title == "São Tomé"
    assert title_key("  São-Tomé ") == "sao tome"


def test_a_title_is_opened_whatever_its_case() -> None:
    index = BM25([*DOCS, Document("0", "albania", "An older passage of the same title.")])
    hit = index.open("ALBANIA!")
    assert hit is not None and hit.id == "0"
    assert index.open("Atlantis") is None
    assert index.open("") is None


@given(st.text(max_size=80), st.integers(-2, 6))
def test_any_query_has_an_answer(query: str, k: int) -> None:
    hits = BM25(DOCS).search(query, k)
    assert len(hits) <= max(k, 0)
    assert all(np.isfinite(hit.score) for hit in hits)
    BM25(DOCS).open(query)


def test_an_index_may_be_empty() -> None:
    assert BM25([]).search("anything", 3) == []
    assert BM25([Document("1", "", "")]).search("anything", 3) == []


def test_ids_are_unique() -> None:
    with pytest.raises(ConfigError, match="two documents have the id '1'"):
        BM25([DOCS[0], DOCS[0]])


def test_retrievers_are_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    index = make_retriever("bm25", DOCS)
    assert isinstance(index, Retriever) and index.effect == "pure"
    with pytest.raises(ConfigError, match="unknown retriever 'google'; there are bm25, "):
        make_retriever("google", DOCS)
    with pytest.raises(ConfigError, match="bm25 takes no further settings"):
        make_retriever("bm25:x", DOCS)
    monkeypatch.setitem(FACTORIES, "mine", "no_such_package.here:make")
    with pytest.raises(ConfigError, match="needs the package no_such_package"):
        make_retriever("mine:1", DOCS)
