"""Writes the world-facts set: see `build_world/__init__.py` for what to install first."""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec

from trace_gym.envs.search_qa.bm25 import BM25
from trace_gym.envs.search_qa.build_world.facts import make_world
from trace_gym.envs.search_qa.build_world.questions import TRAIN_SIZE, make_questions
from trace_gym.envs.search_qa.retriever import Document
from trace_gym.envs.search_qa.world import DOCUMENTS, FOLDER, QUESTIONS

PACKAGES = ("countryinfo", "mendeleev", "airportsdata")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m trace_gym.envs.search_qa.build_world", description=__doc__
    )
    parser.add_argument("--wordnet", type=Path, required=True, help="the folder that holds data.noun")
    parser.add_argument("--packages", type=Path, help="where the packages are, if not installed here")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--size", type=int, default=TRAIN_SIZE, help="training questions of every depth")
    arguments = parser.parse_args()
    if not (arguments.wordnet / "data.noun").is_file():
        sys.exit(f"there is no {arguments.wordnet / 'data.noun'}; name WordNet's dict folder")
    countryinfo, mendeleev, airportsdata = (_folder(name, arguments.packages) for name in PACKAGES)
    world = make_world(countryinfo, mendeleev, airportsdata, arguments.wordnet)
    documents = [Document(e.title, e.title, e.text) for e in world.entities.values()]
    questions = make_questions(world, BM25(documents), arguments.size)
    arguments.out.mkdir(parents=True, exist_ok=True)
    _write(arguments.out / DOCUMENTS, [(d.title, d.text) for d in documents])
    _write(arguments.out / QUESTIONS, [_row(question) for question in questions])
    print(len(documents), "documents:", dict(Counter(e.kind for e in world.entities.values())))
    print(len(questions), "questions:", dict(Counter(q.kind for q in questions)))


def _folder(name: str, packages: Path | None) -> Path:
    """Where a package lies, without importing it."""
    if packages is not None:
        folder = packages / name
    else:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            sys.exit(f"the package {name} is not installed: pip install --no-deps {' '.join(PACKAGES)}")
        folder = Path(spec.origin).parent
    if not folder.is_dir():
        sys.exit(f"there is no folder {folder}")
    return folder


def _row(question: object) -> list[object]:
    """The fields of a question in order, without their names."""
    return list(msgspec.to_builtins(question).values())


def _write(path: Path, rows: Iterable[object]) -> None:
    data = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
    path.write_bytes(gzip.compress(data, 9, mtime=0))


if __name__ == "__main__":
    main()
