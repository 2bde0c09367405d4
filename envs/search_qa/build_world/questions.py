"""Questions about the world: chains of facts, and comparisons of two chains.

A path starts at an entity that the question names and follows facts to another one; every fact is a hop: a search, the
passage it brings and the value read there. `depth` counts distinct passages. A question is kept only if each of its
hops is brought by its own search among the first two, and if one search with the question itself does not give it
away (`SHORTCUT_K`): the answer of a chain stands in none of the passages found, and a comparison misses at least one
of the passages whose values it compares.

Splits are by entity: all gold passages of a question belong to its split. What is hardly ever apart (a country and
its capital, a region and its most populous country, an element and the person it leads to) shares one split.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import numpy as np

from trace_gym.envs.search_qa.bm25 import BM25
from trace_gym.envs.search_qa.build_world.facts import Entity, World
from trace_gym.envs.search_qa.build_world.wordings import (
    COMPARED,
    LEADS,
    LEAVES,
    SAME,
    TOPICS,
    Comparison,
    Relation,
)
from trace_gym.envs.search_qa.passages import holds
from trace_gym.envs.search_qa.task import Hop, Question
from trace_gym.seeding import keyed_rng

__all__ = ["MAX_DEPTH", "SHORTCUT_K", "TRAIN_SIZE", "Path", "is_shortcut", "make_questions", "split_of"]

MAX_DEPTH = 4
TRAIN_SIZE = 6000  # questions of every depth; dev and test have a twentieth each
SHORTCUT_K = 5
FOUND_K = 2
TRIES = 40  # per question wanted
SALT = "world 23"  # places large countries in train and some regions in every split
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Path:
    """From an entity that is named to another: how the question calls it and the hops that lead there."""

    start: str
    phrase: str
    hops: tuple[Hop, ...]
    end: Entity

    def to(self, relation: Relation, value: str, end: Entity) -> Path:
        """The path with one more fact of its end."""
        return Path(
            self.start, relation.noun.format(self.phrase), (*self.hops, self.hop(relation, value)), end
        )

    def hop(self, relation: Relation, value: str) -> Hop:
        return Hop(self.end.title, f"{relation.words} {self.end.title}", value)


def split_of(world: World, entity: Entity) -> str:
    """The split that a stable hash places the entity in, together with what goes with it."""
    key = entity.title
    if entity.kind == "city":
        key = entity.facts["capital of"]
    if entity.kind == "region":
        key = entity.facts.get("most populous", key)
    for relation in ("discoverer", "named after"):
        if entity.kind == "element" and entity.facts.get(relation) in world.entities:
            key = entity.facts[relation]
    place = int.from_bytes(hashlib.sha256(f"{SALT}/{key}".encode()).digest()[:4], "big") % 10
    return "train" if place < 6 else "dev" if place < 8 else "test"


# ---- paths -----------------------------------------------------------------------------------------------------


def paths_from(world: World, start: Entity, split: str) -> Iterator[Path]:
    """Every path from `start` within `split`, the empty one first."""
    ways = [Path(start.title, start.title, (), start)]
    while ways:
        path = ways.pop(0)
        yield path
        if depth((*path.hops, Hop(path.end.title, ""))) < MAX_DEPTH:
            ways += [
                way for way in _onward(world, path) if _is_new(way) and split_of(world, way.end) == split
            ]


def _is_new(path: Path) -> bool:
    """Whether the path has not come back to where it was."""
    return path.end.title not in {path.start, *(hop.value for hop in path.hops[:-1])}


def _onward(world: World, path: Path) -> Iterator[Path]:
    end = path.end
    for relation in LEADS.get(end.kind, ()):
        value = end.facts.get(relation.name, "")
        if value in world.entities and world.entities[value].kind in relation.to:
            yield path.to(relation, value, world.entities[value])
    if end.kind == "person" and end.facts.get("nationality") in world.home_countries:
        demonym = end.facts["nationality"]
        home = world.home_countries[demonym]
        read = Hop(end.title, f"nationality {end.title}", demonym)
        named = Hop(home, f"demonym {demonym}", home)
        phrase = f"the home country of {path.phrase}"
        yield Path(path.start, phrase, (*path.hops, read, named), world.entities[home])
    if end.kind == "country" and end.title in world.capitals and path.hops:
        city = world.capitals[end.title]
        told = Hop(city, f"capital of {end.title}", city)
        yield Path(path.start, f"the capital of {path.phrase}", (*path.hops, told), world.entities[city])


def depth(hops: Sequence[Hop]) -> int:
    """Distinct passages."""
    return len({hop.title for hop in hops})


# ---- candidates ------------------------------------------------------------------------------------------------


class Pool:
    """All paths of a split, by what they can be used for."""

    def __init__(self, world: World, split: str) -> None:
        self.world, self.split = world, split
        self.chains: dict[tuple[int, str], list[tuple[Path, Relation]]] = defaultdict(list)
        # (relation, kind of the end) -> passages needed -> paths
        self.ends: dict[tuple[str, str], dict[int, list[Path]]] = defaultdict(lambda: defaultdict(list))
        for entity in world.entities.values():
            if split_of(world, entity) == split and entity.kind in TOPICS:
                for path in paths_from(world, entity, split):
                    self._add(path)

    def _add(self, path: Path) -> None:
        for relation in LEAVES.get(path.end.kind, ()):
            if relation.name in path.end.facts and not _leads_back(path, relation):
                hops = (*path.hops, path.hop(relation, path.end.facts[relation.name]))
                self.ends[relation.name, path.end.kind][depth(hops)].append(path)
                name = f"{TOPICS[self.world.entities[path.start].kind]} {relation.name} {len(path.hops)}"
                self.chains[depth(hops), name].append((path, relation))
        if path.hops and path.end.kind == "city":
            relation = Relation("", "", ("What is {}?",), "")
            self.chains[
                depth(path.hops), f"{TOPICS[self.world.entities[path.start].kind]} capital {len(path.hops)}"
            ].append((path, relation))


def _leads_back(path: Path, relation: Relation) -> bool:
    """Whether the fact is what the path was found by: the demonym of one's home country."""
    return path.end.facts[relation.name] in {path.start, *(hop.value for hop in path.hops)}


def _chain(pool: Pool, want: int, rng: np.random.Generator) -> Question | None:
    names = sorted(name for at, name in pool.chains if at == want)
    if not names:
        return None
    path, relation = _pick(pool.chains[want, names[int(rng.integers(len(names)))]], rng)
    text = _pick(relation.asks, rng).format(path.phrase)
    hops = (*path.hops, path.hop(relation, path.end.facts[relation.name])) if relation.name else path.hops
    answer = hops[-1].value
    between = tuple(dict.fromkeys(hop.value for hop in hops[:-1] if hop.value != answer))
    return _question(pool, path, text, answer, "bridge" if len(hops) > 1 else "single", hops, between)


def _comparison(pool: Pool, want: int, rng: np.random.Generator) -> Question | None:
    compared = _pick(COMPARED, rng)
    pair = _pair(pool, compared, want, rng)
    if pair is None:
        return None
    one, two, hops = pair
    values = [float(path.end.facts[compared.relation.name]) for path in (one, two)]
    if values[0] == values[1] or one.end is two.end:
        return None
    text, greatest = _pick(compared.asks, rng)
    first = (values[0] > values[1]) == greatest
    answer, other = (one, two) if first else (two, one)
    return _question(
        pool,
        one,
        text.format(one.phrase, two.phrase),
        answer.end.title,
        "comparison",
        hops,
        (other.end.title,),
    )


def _same(pool: Pool, want: int, rng: np.random.Generator) -> Question | None:
    compared = _pick(SAME, rng)
    pair = _pair(pool, compared, want, rng)
    if pair is None or pair[0].end is pair[1].end:
        return None
    one, two, hops = pair
    alike = one.end.facts[compared.relation.name] == two.end.facts[compared.relation.name]
    text, _ = _pick(compared.asks, rng)
    answer, other = ("yes", "no") if alike else ("no", "yes")
    return _question(pool, one, text.format(one.phrase, two.phrase), answer, "same", hops, (other,))


def _pair(
    pool: Pool, compared: Comparison, want: int, rng: np.random.Generator
) -> tuple[Path, Path, tuple[Hop, ...]] | None:
    paths = pool.ends.get((compared.relation.name, compared.kind), {})
    ways = [first for first in sorted(paths) if want - first in paths]
    if not ways:
        return None
    first = ways[int(rng.integers(len(ways)))]
    one, others = _pick(paths[first], rng), paths[want - first]
    if compared.alike and rng.integers(2):  # help the rarer answer
        value = one.end.facts[compared.relation.name]
        others = [path for path in others if path.end.facts[compared.relation.name] == value]
    if not others:
        return None
    two = _pick(others, rng)
    hops = tuple(
        hop
        for path in (one, two)
        for hop in (*path.hops, path.hop(compared.relation, path.end.facts[compared.relation.name]))
    )
    if depth(hops) != want or one.start == two.start:
        return None
    return one, two, hops


def _question(
    pool: Pool,
    path: Path,
    text: str,
    answer: str,
    kind: str,
    hops: tuple[Hop, ...],
    tempting: tuple[str, ...],
) -> Question:
    topic = TOPICS[pool.world.entities[path.start].kind]
    text = text[0].upper() + text[1:]
    return Question(
        id=f"{topic}/{pool.split}/{depth(hops)}",
        text=text,
        answers=(answer,),
        kind=kind,
        hops=hops,
        tempting=tempting,
    )


def _pick(items: Sequence[_T], rng: np.random.Generator) -> _T:
    return items[int(rng.integers(len(items)))]


# ---- what is kept ----------------------------------------------------------------------------------------------


def is_shortcut(index: BM25, question: Question) -> bool:
    """Whether one search with the question gives it away."""
    if len(question.titles) < 2:
        return False
    hits = index.search(question.text, SHORTCUT_K)
    if question.kind == "bridge":
        return any(holds(f"{hit.title}. {hit.text}", question.answers[0]) for hit in hits)
    return set(question.titles) <= {hit.title for hit in hits}


def is_found(index: BM25, question: Question) -> bool:
    """Whether every hop's search brings its passage."""
    return all(
        any(hit.title == hop.title for hit in index.search(hop.query, FOUND_K)) for hop in question.hops
    )


def make_questions(world: World, index: BM25, train_size: int = TRAIN_SIZE) -> list[Question]:
    """The questions of all splits and depths, those of one split and depth in the order they were drawn."""
    questions: list[Question] = []
    for split, size in (("train", train_size), ("dev", train_size // 20), ("test", train_size // 20)):
        pool = Pool(world, split)
        for want in range(1, MAX_DEPTH + 1):
            rng = keyed_rng(SALT, split, want)
            kept: dict[str, Question] = {}
            counts: dict[str, int] = defaultdict(int)
            for _ in range(size * TRIES):
                if len(kept) == size:
                    break
                makers = (_chain,) if want == 1 else (_chain, _chain, _comparison, _same)
                question = _pick(makers, rng)(pool, want, rng)
                if question is None or question.text in kept:
                    continue
                if is_found(index, question) and not is_shortcut(index, question):
                    number = counts[question.id]
                    counts[question.id] += 1
                    kept[question.text] = msgspec.structs.replace(question, id=f"{question.id}/{number}")
            questions += kept.values()
    return questions
