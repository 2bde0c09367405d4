"""The world: entities, what is known of each, and the passage that says it.

Every fact is one sentence in one passage, and the sentence names its subject, so that it can be read alone. A
relation that leads on (the country where an airport is) is stated by one end only: that Tirana is the capital of
Albania stands in the passage on Tirana. Titles are unique without regard to case; what has a title in common with
something of an earlier source is left out.
"""

from __future__ import annotations

import csv
import json
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trace_gym.envs.search_qa.bm25 import title_key
from trace_gym.envs.search_qa.build_world.wordnet import Instance, read_instances

__all__ = ["Entity", "World", "make_world"]

MAX_NAME_CHARS = 48
CODES = {"currency code": "currencies", "calling code": "callingCodes", "internet domain": "tld"}
# How mendeleev spells discoverers, where WordNet spells them otherwise.
SPELLINGS = {
    "Martin Klaproth": "Martin Heinrich Klaproth",
    "Jöns Berzelius": "Jons Jakob Berzelius",
    "Carl Wilhelm Scheele": "Karl Wilhelm Scheele",
    "William Wollaston": "William Hyde Wollaston",
}
NATIONALITIES = {"United States": "American", "Englishman": "English", "Frenchman": "French"}
_ADJECTIVES = (
    "American Australian Austrian Belgian British Canadian Chinese Czech Danish Dutch English Finnish Flemish French "
    "German Greek Hungarian Indian Irish Israeli Italian Japanese Mexican Norwegian Polish Portuguese Russian Scottish "
    "Soviet Spanish Swedish Swiss Welsh Argentine Brazilian Cuban Egyptian Iranian Romanian Turkish Venezuelan"
)
_SEVERAL = re.compile(r"[,;/]| and |et al|Institute|Laboratory|Centre|RIKEN")
_HONOURED = re.compile(
    r"[Nn]amed in honor of (?:the (?:scientist|physicist|astronomer) )?((?:[A-Z]\S* ?)+?)(?=,|$)"
)
_NATIONALITY = re.compile(rf"(?:an? |the )?({'|'.join([*NATIONALITIES, *_ADJECTIVES.split()])})\b")


@dataclass(slots=True)
class Entity:
    """Something with a passage of its own. `facts` maps a relation to the value that the passage states."""

    title: str
    kind: str  # country, region, city, element, airport, person, place or thing
    sentences: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)

    def say(self, sentence: str, **facts: str) -> None:
        """Add a sentence and the facts it states."""
        assert all(value.strip() for value in facts.values()), (self.title, facts)
        self.sentences.append(sentence)
        self.facts.update(facts)

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


@dataclass(slots=True)
class World:
    """All entities by title, and which capital belongs to which country."""

    entities: dict[str, Entity] = field(default_factory=dict)
    capitals: dict[str, str] = field(default_factory=dict)  # country -> city
    home_countries: dict[str, str] = field(default_factory=dict)  # demonym -> country
    _keys: dict[str, str] = field(default_factory=dict)

    def add(self, title: str, kind: str) -> Entity | None:
        """A new entity, or None where the title is taken or no good."""
        key = title_key(title)
        if key in self._keys or len(title) > MAX_NAME_CHARS or not title.strip():
            return None
        self._keys[key] = title
        self.entities[title] = Entity(title, kind)
        return self.entities[title]

    def known(self, name: str) -> Entity | None:
        """The entity of this title, whatever its case."""
        title = self._keys.get(title_key(name))
        return None if title is None else self.entities[title]


def make_world(countryinfo: Path, mendeleev: Path, airportsdata: Path, wordnet: Path) -> World:
    """The world from the four packages' folders."""
    world = World()
    instances = read_instances(wordnet)
    codes = _add_countries(world, countryinfo)
    _add_elements(world, mendeleev)
    titles = _add_instances(world, instances)
    _link_containers(world, instances, titles)
    _link_people(world, instances, titles)
    _add_airports(world, airportsdata, codes)
    return world


# ---- countries and capitals ------------------------------------------------------------------------------------


def _add_countries(world: World, folder: Path) -> dict[str, str]:
    """Adds every country and its capital; returns country names by ISO code."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("data/*.json")]
    records.sort(key=lambda r: (-(r.get("population") or 0), r["name"]))
    codes = {}
    for record in records:
        name = record["name"].partition(" (")[0].removeprefix("The ")
        country = world.add(name, "country") if record.get("subregion") else None
        if country is not None:
            codes[record["ISO"]["alpha2"]] = name
            _describe_country(world, country, record)
    _add_regions(world)
    for record in records:
        name, capital = record["name"].partition(" (")[0].removeprefix("The "), record.get("capital") or ""
        if name in world.entities and isinstance(capital, str) and "/" not in capital and capital != name:
            city = world.add(capital, "city")
            if city is not None:
                city.say(f"{capital} is the capital of {name}.", **{"capital of": name})
                world.capitals[name] = capital
    return codes


def _add_regions(world: World) -> None:
    """Adds the regions of the countries added so far, with the country that has most people and most land in each."""
    members: dict[str, list[Entity]] = defaultdict(list)
    for country in list(world.entities.values()):
        members[country.facts["region"]].append(country)
    for name, countries in sorted(members.items()):
        region = world.add(name, "region")
        if region is None:
            continue
        region.say(f"{name} is a region of {len(countries)} countries and territories.")
        for relation, fact in (("most populous", "population"), ("largest", "area")):
            known = [country for country in countries if fact in country.facts]
            if len(known) > 1:
                most = max(known, key=lambda country: float(country.facts[fact]))
                region.say(f"The {relation} country of {name} is {most.title}.", **{relation: most.title})


def _describe_country(world: World, country: Entity, record: Mapping[str, Any]) -> None:
    name = country.title
    country.say(f"The region of {name} is {record['subregion']}.", region=record["subregion"])
    demonym = (record.get("demonym") or "").partition(",")[0].strip()
    if demonym:
        country.say(f"The demonym of {name} is {demonym}.", demonym=demonym)
        world.home_countries.setdefault(demonym, name)  # the most populous one: they come in that order
    for relation, field_name in CODES.items():
        values = [value for value in record.get(field_name) or [] if value]
        if len(values) == 1:
            country.say(f"The {relation} of {name} is {values[0]}.", **{relation: str(values[0])})
    if record.get("population"):
        count = int(record["population"])
        country.say(f"The population of {name} is {count}.", population=str(count))
    if record.get("area"):
        area = f"{float(record['area']):.0f}"
        country.say(f"The area of {name} is {area} square kilometres.", area=area)


# ---- elements --------------------------------------------------------------------------------------------------


def _add_elements(world: World, folder: Path) -> None:
    with sqlite3.connect(f"file:{folder / 'elements.db'}?mode=ro", uri=True) as database:
        rows = database.execute(
            "select name, symbol, atomic_number, discoverers, discovery_year, discovery_location, name_origin "
            "from elements order by atomic_number"
        ).fetchall()
    for name, symbol, number, discoverers, year, location, origin in rows:
        element = world.add(name, "element")
        assert element is not None
        element.say(f"{name} is a chemical element with the symbol {symbol}.", symbol=symbol)
        element.say(f"The atomic number of {name} is {number}.", **{"atomic number": str(number)})
        if year:
            discoverer = SPELLINGS.get(discoverers.removeprefix("Sir "), discoverers.removeprefix("Sir "))
            if _SEVERAL.search(discoverer):
                element.say(f"{name} was discovered by {discoverer}.")
            else:
                element.facts["discoverer"] = discoverer  # `_link_people` says it
            element.say(f"{name} was discovered in the year {year}.", **{"discovery year": str(year)})
        if location:
            element.say(f"{name} was discovered in {location}.")
            if world.known(location) is not None:
                element.facts["discovery country"] = location
        if origin:
            element.say(f"Origin of the name {name}: {origin.rstrip('.')}.")
            honoured = _HONOURED.search(origin)
            if honoured is not None:
                element.facts["named after"] = honoured[1]


def _link_people(world: World, instances: Mapping[str, Instance], titles: Mapping[str, str]) -> None:
    """A discoverer, or who an element is named after, is the one person of WordNet that bears the name."""
    people: dict[str, set[str]] = defaultdict(set)
    for key, title in titles.items():
        if instances[key].kind == "person":
            for name in instances[key].names:
                people[title_key(name)].add(title)
    for element in [e for e in world.entities.values() if e.kind == "element"]:
        for relation, sentence in (("discoverer", "was discovered by"), ("named after", "was named after")):
            name = element.facts.get(relation, "")
            found = people.get(title_key(name), set())
            title = next(iter(found)) if len(found) == 1 else name
            if relation == "named after":
                element.facts.pop(relation, None)
            if name and (relation == "discoverer" or len(found) == 1):
                element.say(f"{element.title} {sentence} {title}.", **{relation: title})


# ---- people, places and things -----------------------------------------------------------------------------------


def _add_instances(world: World, instances: Mapping[str, Instance]) -> dict[str, str]:
    """Adds what has a title of its own; returns titles by WordNet key, those of countries and capitals included."""
    shared = Counter(title_key(instance.title) for instance in instances.values())
    titles = {}
    for key, instance in instances.items():
        known = world.known(instance.title)
        if known is not None and _is_the_same(instance, known):
            titles[key] = known.title
            known.say(f"{known.title}: {_gloss(instance)}.")
            continue
        country = next((n for n in instance.names if _is_country(instance) and world.known(n)), None)
        if country is not None:
            titles[key] = country
            continue
        entity = world.add(instance.title, instance.kind) if shared[title_key(instance.title)] == 1 else None
        if entity is not None:
            titles[key] = instance.title
            _describe_instance(entity, instance)
    return titles


def _is_the_same(instance: Instance, known: Entity) -> bool:
    if known.kind == "country":
        return _is_country(instance)
    return known.kind == "city" and any("capital" in c for c in instance.classes)


def _is_country(instance: Instance) -> bool:
    return any(c.endswith("country") for c in instance.classes)


def _gloss(instance: Instance) -> str:
    return re.sub(r"\s+", " ", instance.gloss).rstrip(" .;:")


def _describe_instance(entity: Entity, instance: Instance) -> None:
    name = entity.title
    entity.say(f"{name}: {_gloss(instance)}.")
    if instance.kind != "person" or not instance.born:
        return
    nationality = _NATIONALITY.match(instance.gloss)
    if nationality is not None:
        value = NATIONALITIES.get(nationality[1], nationality[1])
        entity.say(f"Nationality of {name}: {value}.", nationality=value)
    entity.say(f"{name} was born in the year {instance.born}.", **{"year of birth": instance.born})
    if instance.died:
        entity.say(f"{name} died in the year {instance.died}.", **{"year of death": instance.died})


def _link_containers(world: World, instances: Mapping[str, Instance], titles: Mapping[str, str]) -> None:
    """Says where a place is when there is one answer: the only country that it is part of, or the only place."""
    for key, title in titles.items():
        entity = world.entities[title]
        around = {titles[k] for k in instances[key].containers if k in titles} - {title}
        countries = {name for name in around if world.entities[name].kind == "country"}
        chosen = countries or (around if len(instances[key].containers) == 1 else set())
        if entity.kind == "place" and len(chosen) == 1:
            (container,) = chosen
            entity.say(f"{title} is in {container}.", **{"is in": container})


# ---- airports --------------------------------------------------------------------------------------------------


def _add_airports(world: World, folder: Path, codes: Mapping[str, str]) -> None:
    """Adds airports with an IATA code whose name says that they are one and names nothing else."""
    with (folder / "airports.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["iata"] and row["country"] in codes]
    rows.sort(key=lambda row: row["icao"])
    names = Counter(title_key(row["name"]) for row in rows)
    for row in rows:
        name = " ".join(row["name"].split())
        if names[title_key(name)] > 1 or not _says_airport(name):
            continue
        airport = world.add(name, "airport")
        if airport is None:
            continue
        country = codes[row["country"]]
        airport.say(f"{name} is in {country}.", country=country)
        if row["city"]:
            airport.say(f"The city of {name} is {row['city']}.", city=row["city"])
        airport.say(f"The IATA code of {name} is {row['iata']}.", **{"IATA code": row["iata"]})
        if row["elevation"] not in ("", "0"):
            metres = round(float(row["elevation"]) * 0.3048)
            airport.say(f"The elevation of {name} is {metres} metres.", elevation=str(metres))


def _says_airport(name: str) -> bool:
    return bool(re.search(r"Air(port|field|strip| Base|drome)|Aerodrome|Aeroport|Aeropuerto", name))


def kinds(entities: Iterable[Entity]) -> Counter[str]:
    """How many entities there are of each kind."""
    return Counter(entity.kind for entity in entities)
