"""The committed pictures are what the script draws, they are sound SVG, and the numbers in them are the library's."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from docs.generate.pictures import FOLDER, PICTURES, PREDICTED, RUN
from docs.generate.repository import ROOT
from tests.support.trees import add, prompt_tree
from trace_gym.algorithms.allocate import root_value
from trace_gym.algorithms.credit import credit_trees

pytestmark = pytest.mark.checkout


@pytest.mark.parametrize("name", PICTURES)
def test_a_committed_picture_is_the_drawn_one(name: str) -> None:
    drawn = str(PICTURES[name]())
    assert (FOLDER / f"{name}.svg").read_text(encoding="utf-8") == drawn, (
        "run python -m docs.generate.pictures"
    )
    root = ElementTree.fromstring(drawn)
    tags = {element.tag.partition("}")[2] for element in root.iter()}
    assert {"title", "desc", "rect", "text"} <= tags and "script" not in tags
    assert "http" not in drawn.replace("http://www.w3.org/2000/svg", "")


def test_every_picture_stays_on_its_sheet() -> None:
    for name, draw in PICTURES.items():
        picture = draw()
        root = ElementTree.fromstring(str(picture))
        for element in root.iter("{http://www.w3.org/2000/svg}text"):
            size, x = float(element.get("font-size", "13")), float(element.get("x", "0"))
            width = 0.56 * size * len(element.text or "")
            left = {"start": 0.0, "middle": 0.5, "end": 1.0}[element.get("text-anchor", "start")]
            assert x - left * width >= -1 and x + (1 - left) * width <= picture.size[0] + 4, (
                name,
                element.text,
            )


def test_a_picture_escapes_what_a_model_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    from docs.generate.svg import Picture

    p = Picture(10, 10, "<t>", "a & b")
    p.text(1, 1, "</text><script>x</script>")
    assert "<script>" not in str(p) and "<t>" not in str(p) and "a &amp; b" in str(p)


def test_the_pictured_allocation_is_the_best_one() -> None:
    """No unit moved from one prompt to another raises the sum of what the page says is maximised."""
    words = str(PICTURES["allocation"]())
    counts = np.array(json.loads(words.partition("rollouts given: ")[2].partition(".</desc>")[0]))
    assert counts.sum() == 18 and counts[0] == counts[-1] == 0
    v = np.array(PREDICTED)
    best = root_value(v, counts).sum()
    for take in np.flatnonzero(counts):
        for give in range(len(v)):
            moved = counts.copy()
            moved[take] -= 1
            moved[give] += 1
            assert root_value(v, moved).sum() <= best + 1e-12


def test_the_recorded_trees_values_and_advantages_follow_from_its_outcomes() -> None:
    told = json.loads(RUN.read_text(encoding="utf-8"))
    by_index = {node["node"]: node for node in told["nodes"]}
    tree = prompt_tree(told["task"])
    for index in range(1, len(by_index)):
        node = by_index[index]
        ended = node["reward"] is not None
        added = add(tree, node["parent"], reward=node["reward"] or 0.0, status="done" if ended else "running")
        assert added == index
    values = tree.values()
    advantage = credit_trees({"t": tree}, mode="edge", weights="path", scale="none")["t"].advantage
    for index, node in by_index.items():
        assert float(node["value"]) == pytest.approx(values[index], abs=0.005)
        if index:
            assert float(node["advantage"]) == pytest.approx(advantage[index], abs=0.005)


def test_the_page_tells_of_the_recorded_tree() -> None:
    told = json.loads(RUN.read_text(encoding="utf-8"))
    page = (ROOT / "docs/trace-by-example.md").read_text(encoding="utf-8")
    by_index = {node["node"]: node for node in told["nodes"]}
    assert told["question"] in page
    assert [by_index[i]["reward"] for i in (3, 6, 9)] == [1.0] * 3  # all three root rollouts are right
    assert by_index[10]["parent"] == by_index[2]["parent"] == 1 and by_index[11]["reward"] == 0.0
    assert (by_index[2]["advantage"], by_index[10]["advantage"], by_index[1]["advantage"]) == (
        "+1.00",
        "-1.00",
        "-0.50",
    )
    continued = [n for n in told["nodes"] if n["origin"] == "continuation" and n["reward"] is not None]
    assert len(continued) == 6 and sum(n["reward"] for n in continued) == 5
    assert sum(n["anchor"] for n in told["nodes"]) == 6  # each of the six turns gets one
