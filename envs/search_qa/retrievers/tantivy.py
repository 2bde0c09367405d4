"""BM25 by tantivy, for corpora beyond ten thousand documents: 100,000 are indexed in seconds, a query takes a millisecond.

    tantivy        the documents of the questions
    tantivy:FILE   the documents of a JSONL file (see `corpus`)

The index is in memory and built by one thread, so that equal documents give equal hits in every process. A query is words,
never tantivy's query language: any text may be asked. Equal scores come in the order of the ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import tantivy

from trace_gym.env import Effect, clean_text
from trace_gym.envs.search_qa.bm25 import title_key
from trace_gym.envs.search_qa.retriever import Document, Hit
from trace_gym.envs.search_qa.retrievers.corpus import read_corpus
from trace_gym.errors import ConfigError

__all__ = ["TantivyRetriever", "make"]

MAX_QUERY_CHARS = 10_000
MAX_QUERY_WORDS = 64
HEAP_BYTES = 64 << 20
TITLE_WEIGHT = 2.0
TIES = 64  # candidates beyond those asked for, so that equal scores at the edge are put in order too


def make(spec: str, documents: Sequence[Document]) -> TantivyRetriever:
    """`tantivy` over `documents`, or `tantivy:FILE`. Raises `TaskError` for a file that cannot be used."""
    path = spec.partition(":")[2]
    return TantivyRetriever(read_corpus(path) if path else documents)


class TantivyRetriever:
    """Titles and texts, English stems, titles counting twice. Ties go to the smaller id."""

    effect: Effect = "pure"

    def __init__(self, documents: Sequence[Document]) -> None:
        self._documents = sorted(documents, key=lambda document: document.id)
        for before, after in pairwise(self._documents):
            if before.id == after.id:
                raise ConfigError(f"two documents have the id {after.id[:80]!r}; ids must be unique")
        self._by_title: dict[str, int] = {}
        for place, document in enumerate(self._documents):
            self._by_title.setdefault(title_key(document.title), place)
        self._words = _analyzer()
        builder = tantivy.SchemaBuilder()
        builder.add_text_field("title", tokenizer_name="stems")
        builder.add_text_field("text", tokenizer_name="stems")
        builder.add_unsigned_field("place", stored=True)
        self._schema = builder.build()
        self._index = tantivy.Index(self._schema)
        self._index.register_tokenizer("stems", self._words)
        writer = self._index.writer(heap_size=HEAP_BYTES, num_threads=1)
        for place, document in enumerate(self._documents):
            title, text = clean_text(document.title), clean_text(document.text)
            writer.add_document(tantivy.Document(title=title, text=text, place=place))
        writer.commit()
        writer.wait_merging_threads()
        self._index.reload()
        self._searcher = self._index.searcher()

    def __len__(self) -> int:
        return len(self._documents)

    def search(self, query: str, k: int) -> list[Hit]:
        """At most `k` documents that share a word with `query`, best first."""
        wanted = list(dict.fromkeys(self._words.analyze(clean_text(query)[:MAX_QUERY_CHARS])))[
            :MAX_QUERY_WORDS
        ]
        if not wanted or k < 1 or not self._documents:
            return []
        found = self._searcher.search(self._query(wanted), limit=k + TIES, count=False).hits
        places = [(-score, int(self._searcher.doc(address)["place"][0])) for score, address in found]
        return [self._hit(place, -score) for score, place in sorted(places)[:k]]

    def open(self, title: str) -> Hit | None:
        """The document with this title, the smallest id where several have it."""
        place = self._by_title.get(title_key(title))
        return None if place is None else self._hit(place, 1.0)

    def _query(self, words: list[str]) -> tantivy.Query:
        should = tantivy.Occur.Should
        parts = []
        for word in words:
            title = tantivy.Query.term_query(self._schema, "title", word)
            parts.append((should, tantivy.Query.boost_query(title, TITLE_WEIGHT)))
            parts.append((should, tantivy.Query.term_query(self._schema, "text", word)))
        return tantivy.Query.boolean_query(parts)

    def _hit(self, place: int, score: float) -> Hit:
        document = self._documents[place]
        return Hit(document.id, document.title, document.text, score)


def _analyzer() -> tantivy.TextAnalyzer:
    words = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
    for step in (
        tantivy.Filter.remove_long(60),
        tantivy.Filter.lowercase(),
        tantivy.Filter.ascii_fold(),
        tantivy.Filter.stemmer("english"),
    ):
        words = words.filter(step)
    return words.build()
