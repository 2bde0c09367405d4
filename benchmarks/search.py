"""What searching costs: the built-in BM25 beside bm25s, the built-in corpus, and the steps and forks of SearchQA-v0.

    pip install bm25s
    python -m trace_gym.benchmarks.search            all of it, with 100,000 documents, about a minute
    python -m trace_gym.benchmarks.search --documents 10000

The documents are random words with the frequencies of a natural text, 20 to 100 words long: by the law of Zipf and
Mandelbrot, a word's share is as 1 / (rank + 2.7), and the most frequent words are the stop words. A query is 6 to 12
words drawn alike. bm25s gets the same words without stop words, as its own tokenizer would give them, and chooses the
best with its own top-k, and with one that looks at the scores above 0 alone. It is needed by this benchmark alone and
left out where it is not installed.
"""

from __future__ import annotations

import argparse
import importlib
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np

from trace_gym.benchmarks.core import fork_costs
from trace_gym.env import ForkableEnv
from trace_gym.envs.search_qa.bm25 import BM25, STOP_WORDS
from trace_gym.envs.search_qa.retriever import Document
from trace_gym.envs.search_qa.world import WorldSource
from trace_gym.runs import environment_facts
from trace_gym.seeding import keyed_rng

__all__ = ["builtin_costs", "main", "search_costs"]

SEARCH_QA = "trace_gym/SearchQA-v0"
VOCABULARY = 200_000
K = 10


def make_texts(count: int, shortest: int, longest: int, *, key: str) -> list[str]:
    """Texts of stop words and of words `w1`, `w2`, …, the more frequent the smaller the number."""
    rng = keyed_rng("search benchmark", key)
    vocabulary = np.array([*sorted(STOP_WORDS), *(f"w{i}" for i in range(VOCABULARY))])
    share = np.cumsum(1 / (np.arange(len(vocabulary)) + 2.7))
    lengths = rng.integers(shortest, longest + 1, size=count)
    drawn = vocabulary[np.searchsorted(share, rng.random(int(lengths.sum())) * share[-1])]
    return [" ".join(part) for part in np.split(drawn, np.cumsum(lengths)[:-1])]


def search_costs(count: int, queries: int = 400) -> dict[str, tuple[float, float]]:
    """Microseconds a query (median, 99th percentile), and seconds to index as both numbers."""
    texts, asked = make_texts(count, 20, 100, key="texts"), make_texts(queries, 6, 12, key="queries")
    start = time.perf_counter()
    index = BM25([Document(f"{i:07}", "", text) for i, text in enumerate(texts)])
    built = time.perf_counter() - start
    found = {
        "built-in: index, s": (built, built),
        "built-in: query, µs": _each(lambda query: index.search(query, K), asked),
        "built-in: postings, MB": (index.nbytes / 1e6, index.nbytes / 1e6),
    }
    try:
        bm25s: Any = importlib.import_module("bm25s")
    except ImportError:
        return found
    start = time.perf_counter()
    other = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    other.index([_telling(text) for text in texts], show_progress=False)
    built = time.perf_counter() - start
    split = [_telling(query) for query in asked]
    found["bm25s: index, s"] = (built, built)
    found["bm25s: query, its top-k, µs"] = _each(
        lambda query: other.retrieve([query], k=K, show_progress=False), split
    )
    found["bm25s: query, top-k above 0, µs"] = _each(lambda query: _best(other.get_scores(query)), split)
    return found


def _telling(text: str) -> list[str]:
    return [word for word in text.split() if word not in STOP_WORDS] or text.split()


def _best(scores: Any) -> Any:
    """numpy's argpartition is slow where most scores are 0 and equal: leave these out first."""
    found = np.flatnonzero(scores > 0)
    best = found[np.argpartition(scores[found], -K)[-K:]] if len(found) > K else found
    return best[np.argsort(-scores[best], kind="stable")]


def _each(search: Callable[[Any], object], queries: Sequence[Any]) -> tuple[float, float]:
    """Median and 99th percentile over the queries, in microseconds, each asked once after a first round."""
    for query in queries[:20]:
        search(query)
    samples = []
    for query in queries:
        start = time.perf_counter_ns()
        search(query)
        samples.append((time.perf_counter_ns() - start) / 1000)
    return float(np.median(samples)), float(np.percentile(samples, 99))


def builtin_costs() -> dict[str, float]:
    """Loading, indexing and stepping the built-in set."""
    start = time.perf_counter()
    source = WorldSource()
    tasks, documents = source.tasks("all"), source.documents()
    loaded = time.perf_counter() - start
    start = time.perf_counter()
    BM25(documents)
    built = time.perf_counter() - start
    tracemalloc.start()
    index = BM25(documents)
    memory = tracemalloc.get_traced_memory()[0] / 1e6
    tracemalloc.stop()
    env: ForkableEnv[Any] = gymnasium.make(SEARCH_QA).unwrapped  # type: ignore[assignment]
    start, steps = time.perf_counter(), 0
    for task in env.tasks("test"):
        env.reset(options={"task": task})
        while env.snapshot().status == "running":
            env.step(env.expert_action())
            steps += 1
    wall = time.perf_counter() - start
    names = [question.text for question in map(source.question, env.tasks("test")[:400])]
    return {
        "documents": float(len(documents)),
        "questions": float(len(tasks)),
        "read both files, s": loaded,
        "index, s": built,
        "index in memory, MB": memory,
        "of it postings, MB": index.nbytes / 1e6,
        "query, µs": _each(lambda query: index.search(query, 3), names)[0],
        "steps per second (with the expert that chooses them)": steps / wall,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=100_000)
    count = parser.parse_args().documents
    print(f"| {count:,} documents | median | 99th percentile |\n|---|---|---|")
    for name, (median, high) in search_costs(count).items():
        print(f"| {name} | {median:,.1f} | {high:,.1f} |")
    print("\n| built-in set | |\n|---|---|")
    for name, value in builtin_costs().items():
        print(f"| {name} | {value:,.2f} |")
    print(
        "\n| forks of SearchQA-v0, halfway through the expert's solution | median µs | 99th percentile µs |\n|---|---|---|"
    )
    env: ForkableEnv[Any] = gymnasium.make(SEARCH_QA).unwrapped  # type: ignore[assignment]
    for name, (median, high) in fork_costs(env, env.tasks("test")[0]).items():
        print(f"| {name} | {median:.1f} | {high:.1f} |")
    print("\n" + ", ".join(f"{k} {v}" for k, v in environment_facts().items()))


if __name__ == "__main__":
    main()
