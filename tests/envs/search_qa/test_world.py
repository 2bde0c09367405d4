"""The built-in set as it is shipped."""

import gzip
import time

import pytest

from trace_gym.envs.search_qa.bm25 import BM25, title_key
from trace_gym.envs.search_qa.build_world.questions import FOUND_K, SHORTCUT_K
from trace_gym.envs.search_qa.passages import holds
from trace_gym.envs.search_qa.task import Question, read_difficulty
from trace_gym.envs.search_qa.world import DOCUMENTS, FOLDER, QUESTIONS, TOPICS, WorldSource, read_topics
from trace_gym.errors import ConfigError, TaskError

SPLITS = ("train", "dev", "test")


@pytest.fixture(scope="module")
def source() -> WorldSource:
    return WorldSource()


@pytest.fixture(scope="module")
def questions(source: WorldSource) -> dict[str, list[Question]]:
    return {split: [source.question(i) for i in source.tasks(split)] for split in SPLITS}


def test_it_is_large_enough_and_small_enough(source: WorldSource) -> None:
    documents = source.documents()
    assert len(documents) >= 10_000
    assert len({title_key(d.title) for d in documents}) == len(documents), "titles are unique"
    assert sum((FOLDER / name).stat().st_size for name in (DOCUMENTS, QUESTIONS)) < 5_000_000
    assert (FOLDER / "NOTICE").is_file()


def test_reading_it_takes_less_than_a_second() -> None:
    start = time.process_time()
    for name in (DOCUMENTS, QUESTIONS):
        gzip.decompress((FOLDER / name).read_bytes())
    assert time.process_time() - start < 1.0


def test_every_split_and_every_number_of_hops_has_chains_and_comparisons(
    questions: dict[str, list[Question]],
) -> None:
    for split in SPLITS:
        for hops in (2, 3, 4):
            kinds = {q.kind for q in questions[split] if len(q.titles) == hops}
            assert kinds == {"bridge", "comparison", "same"}, (split, hops)


def test_an_id_tells_topic_split_and_hops(source: WorldSource, questions: dict[str, list[Question]]) -> None:
    for split in SPLITS:
        for question in questions[split]:
            topic, where, hops, number = question.id.split("/")
            assert (topic in TOPICS, where, int(hops), number.isdigit()) == (
                True,
                split,
                len(question.titles),
                True,
            )
    first = [task.split("/")[2] for task in source.tasks("train")[:8]]
    assert first == ["1", "2", "3", "4"] * 2, "the beginning of the list holds all of them"


def test_no_gold_passage_and_no_question_is_shared_between_splits(
    questions: dict[str, list[Question]],
) -> None:
    titles = {split: {title for q in questions[split] for title in q.titles} for split in SPLITS}
    texts = {split: {q.text for q in questions[split]} for split in SPLITS}
    for one, two in (("train", "dev"), ("train", "test"), ("dev", "test")):
        assert not titles[one] & titles[two]
        assert not texts[one] & texts[two]


def test_every_hop_is_told_by_its_passage(source: WorldSource, questions: dict[str, list[Question]]) -> None:
    texts = {d.title: f"{d.title}. {d.text}" for d in source.documents()}
    for question in (q for split in SPLITS for q in questions[split]):
        for hop in question.hops:
            assert holds(texts[hop.title], hop.value), (question.id, hop)
        if question.kind == "bridge":
            assert question.answers == (question.hops[-1].value,)
        elif question.kind == "same":
            assert {*question.answers, *question.tempting} == {"yes", "no"}
        assert not set(question.answers) & set(question.tempting)


def test_one_search_with_the_question_gives_no_answer_away(
    source: WorldSource, questions: dict[str, list[Question]]
) -> None:
    index = BM25(source.documents())
    chosen = [q for split in SPLITS for q in questions[split][:: 23 if split == "train" else 7]]
    for question in (q for q in chosen if len(q.titles) > 1):
        hits = index.search(question.text, SHORTCUT_K)
        if question.kind == "bridge":
            assert not any(holds(f"{h.title}. {h.text}", question.answers[0]) for h in hits), question.id
        else:
            assert not set(question.titles) <= {h.title for h in hits}, question.id
    for question in chosen:
        for hop in question.hops:
            assert hop.title in {h.title for h in index.search(hop.query, FOUND_K)}, (question.id, hop)


def test_comparisons_are_answered_by_their_values(questions: dict[str, list[Question]]) -> None:
    seen = 0
    for question in questions["test"] + questions["dev"]:
        numbers = {hop.title: hop.value for hop in question.hops if hop.value.isdigit()}
        if question.kind != "comparison" or len(numbers) != 2:
            continue
        (one, two), text = numbers, question.text
        greatest = any(word in text for word in ("later", "higher", "more people", "larger"))
        assert greatest != any(word in text for word in ("first", "lower", "fewer", "smaller"))
        right = one if (float(numbers[one]) > float(numbers[two])) == greatest else two
        assert question.answers == (right,), question.id
        seen += 1
    assert seen > 100


def test_same_nationality_is_asked_for(questions: dict[str, list[Question]]) -> None:
    asked = [q for split in SPLITS for q in questions[split] if q.text.endswith("of the same nationality?")]
    assert len(asked) > 100
    for question in asked:
        values = [hop.value for hop in question.hops if hop.query.startswith("nationality ")]
        assert question.answers == ("yes" if values[0] == values[-1] else "no",), question.id


def test_difficulty_and_topics_choose(source: WorldSource) -> None:
    some = WorldSource(2, 3, ("elements",))
    ids = some.tasks("all")
    assert ids and {i.split("/")[0] for i in ids} == {"elements"}
    assert {i.split("/")[2] for i in ids} == {"2", "3"}
    assert some.question("countries/train/1/0").kind == "single", "any built-in id can be asked for"
    assert read_difficulty("2") == (2, 2) and read_difficulty("1-4") == (1, 4)
    for text in ("", "0", "5", "3-2", "easy", "1-9"):
        with pytest.raises(ConfigError, match="difficulty"):
            read_difficulty(text)
    assert read_topics("people+places") == ("people", "places")
    with pytest.raises(ConfigError, match="unknown topic 'films'"):
        read_topics("people+films")
    with pytest.raises(TaskError, match="unknown split 'validation'"):
        source.tasks("validation")
    with pytest.raises(TaskError, match="built-in ids read topic/split/hops/number"):
        source.question("countries/train/9/0")
