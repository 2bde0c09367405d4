"""The built-in retriever: exact BM25 over numpy postings.

Robertson and Zaragoza 2009 (The Probabilistic Relevance Framework), with the idf that is never negative:

    score(q, d) = sum over words w of q:  idf(w) * tf / (tf + k1 * (1 - b + b * length(d) / mean length))
    idf(w) = log(1 + (N - n(w) + 0.5) / (n(w) + 0.5))

What depends on the document alone is computed when the index is built, so a query adds one array per word. The
answer is a function of the set of documents and the query: documents are put in order of their ids, ties go to the
smaller id, and words are added in one order. Words of a query that are everywhere (`STOP_WORDS`) count only where
there is no other.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trace_gym.env import Effect
from trace_gym.envs.search_qa.retriever import Document, Hit
from trace_gym.errors import ConfigError

__all__ = ["BM25", "MAX_QUERY_WORDS", "STOP_WORDS", "make", "title_key", "words"]

K1, B = 1.2, 0.75
MAX_QUERY_WORDS = 64  # distinct words of a query that are looked up
_WORD = re.compile(r"[^\W_]+")
_EVERYWHERE = (
    "a an and are as at be been by did do does for from had has have he her his how i in is it its of on or she "
    "that the their they this to was were what when where which who whom whose with"
)
STOP_WORDS = frozenset(_EVERYWHERE.split())


def words(text: str) -> list[str]:
    """The words of `text` in order, without case and accents."""
    if not text.isascii():
        decomposed = unicodedata.normalize("NFKD", text)
        text = "".join(c for c in decomposed if not unicodedata.combining(c))
    return _WORD.findall(text.lower())


def title_key(title: str) -> str:
    """What titles are compared by: case, accents and punctuation do not count."""
    return " ".join(words(title)) or title.strip()


class BM25:
    """An index of documents, built once and never changed."""

    effect: Effect = "pure"

    def __init__(self, documents: Sequence[Document]) -> None:
        self._documents = sorted(documents, key=lambda d: d.id)
        for before, after in zip(self._documents, self._documents[1:], strict=False):
            if before.id == after.id:
                raise ConfigError(f"two documents have the id {after.id[:80]!r}; ids must be unique")
        self._by_title: dict[str, int] = {}
        for place, document in enumerate(self._documents):
            self._by_title.setdefault(title_key(document.title), place)
        self._terms, self._starts, self._places, self._weights = _postings(self._documents)

    def __len__(self) -> int:
        return len(self._documents)

    @property
    def nbytes(self) -> int:
        """Bytes of the postings, without documents and vocabulary."""
        return self._starts.nbytes + self._places.nbytes + self._weights.nbytes

    def search(self, query: str, k: int) -> Sequence[Hit]:
        """At most `k` documents that share a word with `query`, best first, ties by id."""
        places, scores = self.top(query, k)
        return [self._hit(int(place), float(score)) for place, score in zip(places, scores, strict=True)]

    def open(self, title: str) -> Hit | None:
        """The document with this title (the smallest id where several have it)."""
        place = self._by_title.get(title_key(title))
        return None if place is None else self._hit(place, 1.0)

    def top(self, query: str, k: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
        """Places (in the order of ids) and scores of the `k` best documents."""
        terms = self._query_terms(query)
        scores = np.zeros(len(self._documents), np.float32)  # [documents]
        shortest = np.empty(0, np.int32)
        for start, end in ((int(self._starts[t]), int(self._starts[t + 1])) for t in terms):
            places = self._places[start:end]
            scores[places] += self._weights[start:end]  # a document stands once in a word's postings
            if len(places) >= k and (len(places) < len(shortest) or not len(shortest)):
                shortest = places
        # The k-th best of any k documents is a lower bound for the k-th best of all: few documents reach it.
        least = np.partition(scores[shortest], -k)[-k] if len(shortest) and k > 0 else np.float32(0)
        found = np.flatnonzero(scores >= least if least > 0 else scores > 0)
        order = np.lexsort((found, -scores[found]))[: max(k, 0)]
        return found[order], scores[found[order]]

    def _query_terms(self, query: str) -> list[int]:
        distinct = list(dict.fromkeys(words(query)))
        telling = [word for word in distinct if word not in STOP_WORDS] or distinct
        return sorted(self._terms[word] for word in telling[:MAX_QUERY_WORDS] if word in self._terms)

    def _hit(self, place: int, score: float) -> Hit:
        document = self._documents[place]
        return Hit(document.id, document.title, document.text, score)


_Postings = tuple[dict[str, int], npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.float32]]


def _postings(documents: Sequence[Document]) -> _Postings:
    """Vocabulary, where each word's postings start, and the postings: document and weight, by word."""
    terms: dict[str, int] = {}
    term_of, place_of, count_of = array("i"), array("i"), array("i")
    lengths = np.zeros(len(documents))
    for place, document in enumerate(documents):
        found = words(f"{document.title} {document.text}")
        lengths[place] = len(found)
        for word, count in Counter(found).items():
            term_of.append(terms.setdefault(word, len(terms)))
            place_of.append(place)
            count_of.append(count)
    term = np.frombuffer(term_of, np.int32) if term_of else np.empty(0, np.int32)
    order = np.argsort(term, kind="stable")  # within a word, documents stay in order
    places = np.array(place_of, np.int32)[order]
    counts = np.array(count_of, np.float64)[order]
    sizes = np.bincount(term, minlength=len(terms)) if len(terms) else np.zeros(0, np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    idf = np.log1p((len(documents) - sizes + 0.5) / (sizes + 0.5))
    norm = K1 * (1 - B + B * lengths / max(lengths.mean() if len(lengths) else 0.0, 1.0))
    weights = (np.repeat(idf, sizes) * counts / (counts + norm[places])).astype(np.float32)
    return terms, starts, places, weights


def make(spec: str, documents: Sequence[Document]) -> BM25:
    """Raises `ConfigError` when `spec` is not "bm25"."""
    if spec != "bm25":
        raise ConfigError(f"retriever {spec[:200]!r}: bm25 takes no further settings")
    return BM25(documents)
