import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_gym.envs.search_qa.answers import exact_match, f1, normalised
from trace_gym.envs.search_qa.passages import holds, shorten, snippet


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("The  Beatles!", "beatles"),
        ("an apple, a pear", "apple pear"),
        ("U.S.A.", "usa"),
        ("the", ""),
        ("Theatre", "theatre"),
        ("12,345", "12345"),
    ],
)
def test_normalisation_is_hotpotqas(answer: str, plain: str) -> None:
    assert normalised(answer) == plain


def test_exact_match_is_of_any_gold_answer() -> None:
    assert exact_match("the Eiffel tower.", ("Eiffel Tower", "La dame de fer"))
    assert not exact_match("tower", ("Eiffel Tower",))


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("Eiffel Tower", "the Eiffel Tower", 1.0),
        ("Eiffel", "Eiffel Tower", 2 / 3),
        ("tower of the Eiffel", "Eiffel Tower", 0.8),
        ("Paris", "London", 0.0),
        ("yes it is", "yes", 0.0),
        ("yes", "yes", 1.0),
        ("no", "yes", 0.0),
        ("x x y", "y y x", 2 / 3),
    ],
)
def test_f1_counts_words(answer: str, gold: str, score: float) -> None:
    assert f1(answer, (gold,)) == pytest.approx(score)


def test_the_best_gold_answer_counts() -> None:
    assert f1("New York", ("NYC", "New York City")) == pytest.approx(0.8)


@given(st.text(max_size=30), st.text(max_size=30))
@settings(max_examples=50)
def test_f1_is_symmetric_and_bounded(one: str, two: str) -> None:
    assert 0.0 <= f1(one, (two,)) <= 1.0
    assert f1(one, (two,)) == pytest.approx(f1(two, (one,)))


# ---- what is shown of a passage ----------------------------------------------------------------------------

TEXT = "Tirana is a city. The river is the Lana. It has an airport, and the mayor lives there."


def test_a_short_passage_is_shown_whole() -> None:
    assert snippet(TEXT, "anything", len(TEXT)) == TEXT


def test_a_snippet_begins_with_the_sentence_asked_for() -> None:
    assert snippet(TEXT, "Tirana river", 40) == "Tirana is a city. The river is the…"
    assert snippet(TEXT, "which river is the one", 30) == "The river is the Lana. It has…"
    assert snippet(TEXT, "", 20) == "Tirana is a city…"


@given(st.text(max_size=200), st.text(max_size=30), st.integers(20, 100))
def test_a_snippet_keeps_its_limit(text: str, query: str, limit: int) -> None:
    assert len(snippet(text, query, limit)) <= limit
    assert len(shorten(text, limit)) <= limit


def test_a_value_is_found_as_whole_words() -> None:
    assert holds("The code is +44.", "44")
    assert holds("Sao Tome and Principe", "São Tomé")
    assert not holds("the year 1944", "44")
    assert not holds("anything", "")
