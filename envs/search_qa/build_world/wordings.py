"""How the questions of the world-facts set are worded, by relation."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["COMPARED", "LEADS", "LEAVES", "SAME", "TOPICS", "Comparison", "Relation"]

TOPICS = {
    "airport": "airports",
    "city": "countries",
    "country": "countries",
    "element": "elements",
    "person": "people",
    "place": "places",
    "region": "countries",
}


@dataclass(frozen=True, slots=True)
class Relation:
    """A fact of an entity: `{}` stands for the entity; `noun` calls the value, `words` are searched for beside its title."""

    name: str
    noun: str
    asks: tuple[str, ...]
    words: str
    to: tuple[str, ...] = ()  # kinds of entity that it leads on to


_AIRPORT_COUNTRY = Relation(
    "country", "the country where {} is", ("In which country is {}?",), "country", ("country",)
)
_CAPITAL_OF = Relation(
    "capital of",
    "the country whose capital is {}",
    ("{} is the capital of which country?",),
    "capital",
    ("country",),
)
_DISCOVERER = Relation(
    "discoverer",
    "the discoverer of {}",
    ("Who discovered {}?", "Who was the discoverer of {}?"),
    "discovered by",
    ("person",),
)
_NAMED_AFTER = Relation(
    "named after",
    "the person {} was named after",
    ("Which person was {} named after?",),
    "named after",
    ("person",),
)
_DISCOVERED_IN = Relation(
    "discovery country",
    "the country where {} was discovered",
    ("In which country was {} discovered?",),
    "discovered in",
    ("country",),
)
_IS_IN = Relation(
    "is in", "the place that holds {}", ("Which larger place is {} in?",), "is in", ("place", "city")
)
_IS_IN_COUNTRY = Relation("is in", "the country that holds {}", (), "is in", ("country",))

_REGION = Relation(
    "region",
    "the region of {}",
    ("Which region is {} in?", "What is the region of {}?"),
    "region",
    ("region",),
)
_MOST_POPULOUS = Relation(
    "most populous",
    "the most populous country of {}",
    ("Which is the most populous country of {}?",),
    "most populous country",
    ("country",),
)
_LARGEST = Relation(
    "largest",
    "the largest country of {}",
    ("Which is the largest country of {}?",),
    "largest country",
    ("country",),
)

LEADS = {
    "airport": (_AIRPORT_COUNTRY,),
    "city": (_CAPITAL_OF,),
    "country": (_REGION,),
    "element": (_DISCOVERER, _NAMED_AFTER, _DISCOVERED_IN),
    "place": (_IS_IN, _IS_IN_COUNTRY),
    "region": (_MOST_POPULOUS, _LARGEST),
}


def _leaf(name: str, *asks: str, words: str = "") -> Relation:
    return Relation(name, "", asks, words or name)


_POPULATION = _leaf("population", "What is the population of {}?", "How many people live in {}?")
_AREA = _leaf("area", "What is the area in square kilometres of {}?")
_BORN = _leaf("year of birth", "In which year was {} born?", words="born year")
_NATIONALITY = _leaf("nationality", "What is the nationality of {}?", "Of which nationality was {}?")
_YEAR = _leaf("discovery year", "In which year was {} discovered?", words="discovered year")
_ELEVATION = _leaf("elevation", "What is the elevation in metres of {}?")

LEAVES = {
    "airport": (
        _AIRPORT_COUNTRY,
        _ELEVATION,
        _leaf("city", "Which city does {} serve?", "What is the city of {}?"),
        _leaf("IATA code", "What is the IATA code of {}?"),
    ),
    "city": (_CAPITAL_OF,),
    "country": (
        _REGION,
        _leaf("demonym", "What is the demonym of {}?", "Which demonym do the people of {} have?"),
        _leaf("currency code", "What is the currency code of {}?"),
        _leaf("calling code", "What is the calling code of {}?"),
        _leaf("internet domain", "What is the internet domain of {}?"),
        _POPULATION,
        _AREA,
    ),
    "element": (
        _DISCOVERER,
        _NAMED_AFTER,
        _DISCOVERED_IN,
        _YEAR,
        _leaf("symbol", "What is the chemical symbol of {}?"),
        _leaf("atomic number", "What is the atomic number of {}?"),
    ),
    "person": (
        _NATIONALITY,
        _BORN,
        _leaf("year of death", "In which year did {} die?", words="died year"),
    ),
    "place": (_IS_IN,),
    "region": (_MOST_POPULOUS, _LARGEST),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """A fact that two entities of one kind are compared by. Each wording comes with whether it asks for the greater."""

    kind: str
    relation: Relation
    asks: tuple[tuple[str, bool], ...]
    alike: bool = False  # it asks whether the two are the same


COMPARED = (
    Comparison(
        "person",
        _BORN,
        (("Who was born first, {} or {}?", False), ("Who was born later, {} or {}?", True)),
    ),
    Comparison(
        "airport",
        _ELEVATION,
        (("Which airport lies higher, {} or {}?", True), ("Which airport lies lower, {} or {}?", False)),
    ),
    Comparison(
        "element",
        _YEAR,
        (
            ("Which element was discovered first, {} or {}?", False),
            ("Which element was discovered later, {} or {}?", True),
        ),
    ),
    Comparison(
        "country",
        _POPULATION,
        (("Which has more people, {} or {}?", True), ("Which has fewer people, {} or {}?", False)),
    ),
    Comparison(
        "country", _AREA, (("Which is larger, {} or {}?", True), ("Which is smaller, {} or {}?", False))
    ),
)

SAME = (
    Comparison("person", _NATIONALITY, (("Are {} and {} of the same nationality?", True),), alike=True),
    Comparison("airport", _AIRPORT_COUNTRY, (("Are {} and {} in the same country?", True),), alike=True),
    Comparison(
        "element", _DISCOVERED_IN, (("Were {} and {} discovered in the same country?", True),), alike=True
    ),
    Comparison("place", _IS_IN, (("Are {} and {} in the same larger place?", True),), alike=True),
    Comparison(
        "country",
        _REGION,
        (("Are {} and {} in the same region?", True),),
        alike=True,
    ),
)
