"""The build script on a small world of its own."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trace_gym.envs.search_qa.bm25 import BM25
from trace_gym.envs.search_qa.build_world import questions
from trace_gym.envs.search_qa.build_world.facts import World, make_world
from trace_gym.envs.search_qa.build_world.wordnet import read_instances
from trace_gym.envs.search_qa.retriever import Document
from trace_gym.envs.search_qa.task import Hop, Question
from trace_gym.envs.search_qa.world import DOCUMENTS, QUESTIONS

COUNTRIES = (
    ("Albania", "Tirana", "Albanian", "Southern Europe", "AL", 2_800_000),
    ("Poland", "Warsaw", "Polish", "Eastern Europe", "PL", 38_000_000),
    ("Greece", "Athens", "Greek", "Southern Europe", "GR", 10_000_000),
    ("Nowhere", "", "", "", "NW", None),
)
NOUNS = (
    "  1 This line is a part of the licence",
    "00000001 18 n 01 chemist 0 000 | a scientist",
    "00000002 15 n 01 European_country 0 000 | a country",
    "00000003 15 n 01 town 0 000 | a place",
    "00000010 18 n 03 Curie 0 Marie_Curie 0 Madame_Curie 0 001 @i 00000001 n 0000 | Polish chemist (1867-1934)",
    "00000011 15 n 01 Poland 0 001 @i 00000002 n 0000 | a republic in Europe",
    '00000012 15 n 01 Krakow 0 002 @i 00000003 n 0000 #p 00000011 n 0000 | an old town; "I saw Krakow"',
    "00000013 18 n 01 Smith 0 001 @i 00000001 n 0000 | English chemist (1800-1850)",
    "00000014 18 n 01 Smith 0 001 @i 00000001 n 0000 | another one (born in 1900)",
)
AIRPORTS = (
    '"icao","iata","name","city","subd","country","elevation","lat","lon","tz","lid"\n'
    '"EPKK","KRK","Balice Airport","Krakow","","PL",791,0,0,"",""\n'
    '"LATI","TIA","Rinas Airport","Tirana","","AL",126,0,0,"",""\n'
    '"XXXX","","No Code Airport","Tirana","","AL",126,0,0,"",""\n'
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    for name in ("countryinfo/data", "mendeleev", "airportsdata", "dict"):
        (folder / name).mkdir(parents=True)
    for name, capital, demonym, region, code, people in COUNTRIES:
        record: dict[str, Any] = {
            "name": name,
            "capital": capital,
            "demonym": demonym,
            "subregion": region,
            "population": people,
        }
        record |= {"ISO": {"alpha2": code}, "currencies": [code + "X"], "callingCodes": [""], "area": 100}
        (folder / "countryinfo/data" / f"{code}.json").write_text(json.dumps(record))
    with sqlite3.connect(folder / "mendeleev/elements.db") as database:
        database.execute(
            "create table elements (name, symbol, atomic_number, discoverers, discovery_year, "
            "discovery_location, name_origin)"
        )
        database.executemany(
            "insert into elements values (?, ?, ?, ?, ?, ?, ?)",
            [
                ("Radium", "Ra", 88, "Madame Curie", 1898, "Poland", "Latin: radius"),
                ("Curium", "Cm", 96, "A, B", 1944, None, "Named in honor of Marie Curie, a chemist."),
            ],
        )
    database.close()
    (folder / "airportsdata/airports.csv").write_text(AIRPORTS)
    (folder / "dict/data.noun").write_text("\n".join(NOUNS) + "\n")
    return folder


@pytest.fixture(scope="module")
def world(folder: Path) -> World:
    return make_world(folder / "countryinfo", folder / "mendeleev", folder / "airportsdata", folder / "dict")


def test_wordnet_instances(folder: Path) -> None:
    found = read_instances(folder / "dict")
    curie = found["00000010"]
    assert (curie.title, curie.kind, curie.classes) == ("Marie Curie", "person", ("chemist",))
    assert (curie.born, curie.died, curie.gloss) == ("1867", "1934", "Polish chemist")
    assert found["00000012"].containers == ("00000011",)
    assert found["00000012"].gloss == "an old town"
    assert (found["00000014"].born, found["00000014"].died) == ("1900", "")
    assert "00000001" not in found, "a class is no instance"


def test_facts_are_linked(world: World) -> None:
    facts = {title: entity.facts for title, entity in world.entities.items()}
    assert "Nowhere" not in facts and "Smith" not in facts and "No Code Airport" not in facts
    assert facts["Tirana"] == {"capital of": "Albania"}
    assert facts["Radium"]["discoverer"] == "Marie Curie", "whatever the source calls her"
    assert facts["Curium"]["named after"] == "Marie Curie" and "discoverer" not in facts["Curium"]
    assert facts["Krakow"] == {"is in": "Poland"}
    assert facts["Southern Europe"]["most populous"] == "Greece"
    assert facts["Balice Airport"]["elevation"] == "241"
    assert "calling code" not in facts["Poland"], "an empty code is no fact"
    assert world.home_countries["Polish"] == "Poland"
    assert all(
        value in entity.text for entity in world.entities.values() for value in entity.facts.values()
    ), "every fact is said"


def test_paths_do_not_come_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "split_of", lambda world, entity: "train")
    paths = list(questions.paths_from(world, world.entities["Radium"], "train"))
    phrases = {path.phrase for path in paths}
    assert "the capital of the home country of the discoverer of Radium" in phrases
    assert len(phrases) == len(paths)
    for path in paths:
        assert questions.depth(path.hops) <= questions.MAX_DEPTH
        ends = [path.start, *(hop.value for hop in path.hops if hop.value in world.entities)]
        assert len(set(ends)) == len(ends), path


def test_what_goes_together_shares_a_split(world: World) -> None:
    def place(title: str) -> str:
        return questions.split_of(world, world.entities[title])

    assert place("Tirana") == place("Albania")
    assert place("Southern Europe") == place("Greece")
    assert place("Radium") == place("Curium") == place("Marie Curie")


def test_a_shortcut_is_seen() -> None:
    index = BM25(
        [
            Document("1", "A", "A is in B."),
            Document("2", "B", "The code of B is 7."),
            Document("3", "C", "C."),
        ]
    )
    hops = (Hop("A", "A", "B"), Hop("B", "code B", "7"))
    given = Question(
        id="", text="What is the code of the place of A?", answers=("7",), kind="bridge", hops=hops
    )
    assert questions.is_shortcut(index, given)
    hidden = Question(id="", text="How is A called?", answers=("7",), kind="bridge", hops=hops)
    assert not questions.is_shortcut(index, hidden)
    both = Question(id="", text="Are A and B alike?", answers=("no",), kind="same", hops=hops)
    assert questions.is_shortcut(index, both)


def test_the_script_writes_the_same_bytes_twice(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trace_gym.envs.search_qa.build_world", "--packages", str(folder)]
    for out in ("one", "two"):
        done = subprocess.run(
            [*command, "--wordnet", str(folder / "dict"), "--out", str(tmp_path / out), "--size", "20"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    for name in (DOCUMENTS, QUESTIONS):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    done = subprocess.run([*command, "--wordnet", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode != 0 and "there is no" in done.stderr
