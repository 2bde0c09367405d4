"""Where passages come from: the protocol of every retriever, and the names that choose one.

A retriever answers a query with passages and opens a passage by its title. It is shared by every fork of an
environment and never part of a state, so it must answer alike whatever was asked before and from any thread: a
`pure` one because its documents do not change, a `recorded` one because it keeps each answer of its service and
gives it again.

`make_retriever` looks up what stands before the first colon of a name in `FACTORIES`; a module is imported when
its name is first used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Protocol, cast, runtime_checkable

import msgspec

from trace_gym.env import Effect
from trace_gym.errors import ConfigError

__all__ = ["FACTORIES", "Document", "Factory", "Hit", "Retriever", "make_retriever"]

# kind -> "module:factory"; the factory is called with the whole name and the documents of the questions
FACTORIES: dict[str, str] = {
    "bm25": "trace_gym.envs.search_qa.bm25:make",
    "tantivy": "trace_gym.envs.search_qa.retrievers.tantivy:make",
    "http": "trace_gym.envs.search_qa.retrievers.http:make",
    "https": "trace_gym.envs.search_qa.retrievers.http:make",
    "wikipedia": "trace_gym.envs.search_qa.retrievers.wikipedia:make",
}


class Document(msgspec.Struct, frozen=True):
    """A passage of the corpus. `id` is unique; several may share a title."""

    id: str
    title: str
    text: str


class Hit(msgspec.Struct, frozen=True):
    """A passage that was found, and how well it matches (comparable within one answer only)."""

    id: str
    title: str
    text: str
    score: float


@runtime_checkable
class Retriever(Protocol):
    """What an environment asks of a source of passages.

    Both methods raise a child of `TraceGymError` when no answer can be had (a service that is down): the rollout
    is then lost, never scored. Neither may fail because of what the query or the title holds.
    """

    effect: Effect  # "pure" for a local index, "recorded" for an external service

    def search(self, query: str, k: int) -> Sequence[Hit]:
        """At most `k` passages, best first; none where nothing matches."""

    def open(self, title: str) -> Hit | None:
        """The passage with this title, or None."""


Factory = Callable[[str, Sequence[Document]], Retriever]


def make_retriever(spec: str, documents: Sequence[Document]) -> Retriever:
    """The retriever that `spec` names: bm25, tantivy, http://host:port/retrieve, wikipedia or wikipedia:LANGUAGE.

    Local ones index `documents`; services have their own. Raises `ConfigError` for a name that cannot be meant
    or a package that is not installed.
    """
    kind = spec.partition("#")[0].partition(":")[0]
    place = FACTORIES.get(kind)
    if place is None:
        raise ConfigError(f"unknown retriever {spec[:200]!r}; there are {', '.join(FACTORIES)}")
    module_name, _, name = place.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"retriever {spec[:200]!r} needs the package {error.name}: pip install 'trace-gym[search]'"
        ) from error
    factory = cast(Factory, getattr(module, name))
    return factory(spec, documents)
