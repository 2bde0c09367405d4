import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trace_gym.envs.search_qa.env import SearchQAEnv
from trace_gym.envs.search_qa.sources import FileSource, load_questions
from trace_gym.envs.search_qa.task import Hop, Question
from trace_gym.errors import ConfigError, TaskError

HOTPOT: dict[str, Any] = {
    "id": "5a7a",
    "question": "In which country is the town where Ann was born?",
    "answer": "France",
    "type": "bridge",
    "level": "easy",
    "supporting_facts": [["Ann", 0], ["Brest", 1], ["Ann", 2]],
    "context": [
        ["Ann", ["Ann is a cook.", " She was born in Brest."]],
        ["Brest", ["Brest is a town. ", "It is in France."]],
        ["Lyon", ["Lyon is a city."]],
    ],
}
WIKI2: dict[str, Any] = {  # 2WikiMultiHopQA
    "_id": "8813",
    "type": "bridge_comparison",
    "question": "Are Ann and Brest of the same country?",
    "context": [["Ann", ["Ann is French."]], ["Brest", ["Brest is French."]]],
    "supporting_facts": [["Ann", 0], ["Brest", 0]],
    "evidences": [["Ann", "country", "France"], ["Brest", "country", "France"]],
    "answer": "yes",
    "answer_id": None,
}
MUSIQUE: dict[str, Any] = {
    "id": "2hop__1_2",
    "paragraphs": [
        {"idx": 0, "title": "Lyon", "paragraph_text": "Lyon is a city.", "is_supporting": False},
        {"idx": 1, "title": "Ann", "paragraph_text": "Ann was born in Brest.", "is_supporting": True},
        {"idx": 2, "title": "Brest", "paragraph_text": "Brest is in France.", "is_supporting": True},
    ],
    "question": "In which country is the town where Ann was born?",
    "question_decomposition": [
        {"id": 1, "question": "Ann >> place of birth", "answer": "Brest", "paragraph_support_idx": 1},
        {"id": 2, "question": "country of #1", "answer": "France", "paragraph_support_idx": 2},
    ],
    "answer": "France",
    "answer_aliases": ["French Republic", "France"],
    "answerable": True,
}


def write(path: Path, *records: object) -> Path:
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., FileSource]:
    def _load(*records: object, **settings: Any) -> FileSource:
        path = write(tmp_path / "tasks.jsonl", *records)
        return load_questions(str(path), **{"lowest": 1, "highest": 4, **settings})

    return _load


def only(source: FileSource) -> Question:
    (task_id,) = source.tasks("all")
    return source.question(task_id)


# ---- schemas ---------------------------------------------------------------------------------------------


def test_a_hotpotqa_record(load: Callable[..., FileSource]) -> None:
    source = load(HOTPOT)
    question = only(source)
    assert (question.id, question.answers, question.kind) == ("tasks/1", ("France",), "bridge")
    assert question.hops == (Hop("Ann", "Ann"), Hop("Brest", "Brest"))
    assert question.tempting == ("Ann", "Brest")
    assert [(d.title, d.text) for d in source.documents()] == [
        ("Ann", "Ann is a cook. She was born in Brest."),
        ("Brest", "Brest is a town. It is in France."),
        ("Lyon", "Lyon is a city."),
    ]


def test_the_columns_of_the_datasets_package_say_the_same(
    load: Callable[..., FileSource], tmp_path: Path
) -> None:
    facts, context = HOTPOT["supporting_facts"], HOTPOT["context"]
    columns = {
        **HOTPOT,
        "supporting_facts": {"title": [t for t, _ in facts], "sent_id": [i for _, i in facts]},
        "context": {"title": [t for t, _ in context], "sentences": [s for _, s in context]},
    }
    assert only(load(columns)) == only(load(HOTPOT))
    assert load(columns).documents() == load(HOTPOT).documents()
    path = tmp_path / "tasks.parquet"
    pq.write_table(pa.Table.from_pylist([columns]), path)
    assert only(load_questions(str(path), lowest=1, highest=4)) == only(load(HOTPOT))


def test_a_2wikimultihopqa_record(load: Callable[..., FileSource]) -> None:
    question = only(load(WIKI2))
    assert (question.answers, question.kind, question.tempting) == (("yes",), "bridge_comparison", ("no",))
    assert question.titles == ("Ann", "Brest")


def test_a_musique_record(load: Callable[..., FileSource]) -> None:
    source = load(MUSIQUE)
    question = only(source)
    assert question.answers == ("France", "French Republic")
    assert question.hops == (Hop("Ann", "Ann", "Brest"), Hop("Brest", "Brest", "France"))
    assert question.tempting == ("Ann", "Brest")
    assert len(source.documents()) == 3
    with pytest.raises(TaskError, match="not answerable"):
        load({**MUSIQUE, "answerable": False})


def test_a_json_file_is_one_array(tmp_path: Path) -> None:
    path = tmp_path / "hotpot_dev.json"
    path.write_text(json.dumps([HOTPOT, WIKI2, 3]))
    with pytest.raises(TaskError, match="line 3: a JSON int, not an object"):
        load_questions(str(path), lowest=1, highest=4)
    source = load_questions(str(path), lowest=1, highest=4, on_bad_line="skip")
    assert list(source.tasks("all")) == ["hotpot_dev/1", "hotpot_dev/2"]
    for content in ('{"a": 1}', "[1,", "[" * 100_000):
        path.write_text(content)
        with pytest.raises(TaskError, match="cannot read the task file"):
            load_questions(str(path), lowest=1, highest=4)


# ---- bad lines -------------------------------------------------------------------------------------------

BAD_LINES: list[tuple[object, str]] = [
    ("{", "not valid JSON"),
    ("[]", "a JSON list; write one object per line"),
    ({}, "no field supporting_facts (fields: none)"),
    ({**HOTPOT, "question": None}, "no field question (fields: id, question"),
    ({**HOTPOT, "question": 5}, "the field question is of type int"),
    ({**HOTPOT, "question": " "}, "the field question is empty"),
    ({**HOTPOT, "question": "x" * 9000}, "the question has 9000 characters"),
    ({**HOTPOT, "question": "a\u0000b"}, "holds the control character"),
    ({**HOTPOT, "answer": ""}, "the field answer is empty"),
    ({**HOTPOT, "answer": "The"}, "holds nothing to compare"),
    ({**HOTPOT, "answer": "x</answer>y"}, "cannot be written inside <answer>"),
    ({**HOTPOT, "answer": "x" * 2000}, "the field answer has 2000 characters"),
    ({**HOTPOT, "answer": ["France"]}, "the field answer is of type list"),
    ({**HOTPOT, "supporting_facts": []}, "supporting_facts is empty"),
    ({**HOTPOT, "supporting_facts": [["Ann"]]}, "no list of pairs [title, sent_id]"),
    ({**HOTPOT, "supporting_facts": {"title": ["Ann"]}}, "no two lists of one length"),
    ({**HOTPOT, "supporting_facts": [[3, 0]]}, "supporting_facts (a title) is of type int"),
    ({**HOTPOT, "context": "text"}, "context is no list of pairs"),
    ({**HOTPOT, "context": [["Ann", [1]]]}, "a passage that is no text"),
    ({**HOTPOT, "context": [["x" * 999, ["a"]]]}, "a title has 999 characters"),
    ({**MUSIQUE, "question_decomposition": []}, "question_decomposition is empty"),
    ({**MUSIQUE, "paragraphs": [1]}, "paragraphs is no list of objects"),
    (
        {**MUSIQUE, "question_decomposition": [{"answer": "a", "paragraph_support_idx": 9}]},
        "names the paragraph 9, which is not there",
    ),
    (
        {**MUSIQUE, "question_decomposition": [{"answer": "a", "paragraph_support_idx": None}]},
        "paragraph_support_idx is no whole number",
    ),
    ({**MUSIQUE, "answer_aliases": "France"}, "answer_aliases is no list"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=[reason for _, reason in BAD_LINES])
def test_a_bad_line_is_named_or_skipped(load: Callable[..., FileSource], line: object, reason: str) -> None:
    with pytest.raises(TaskError) as caught:
        load(HOTPOT, line, MUSIQUE)
    message = str(caught.value)
    assert "tasks.jsonl, line 2: " in message and reason in message and "\n" not in message
    source = load(HOTPOT, line, MUSIQUE, on_bad_line="skip")
    assert [bad.line for bad in source.skipped] == [2]
    assert list(source.tasks("all")) == ["tasks/1", "tasks/3"]


# ---- corpus and settings ---------------------------------------------------------------------------------


def test_each_passage_stands_once_in_the_corpus(load: Callable[..., FileSource], tmp_path: Path) -> None:
    more = write(
        tmp_path / "more.jsonl", {"title": "Lyon", "text": "Another."}, {"title": "Oslo", "text": "A city."}
    )
    source = load(HOTPOT, MUSIQUE, corpus=str(more))
    documents = source.documents()
    ids = [d.id for d in documents]
    assert ids == ["Ann", "Ann #2", "Brest", "Brest #2", "Lyon", "Lyon #2", "Oslo"]
    assert source.documents() is documents
    bad = write(tmp_path / "bad.jsonl", {"title": "Lyon"}, {"title": "Oslo", "text": "A city."})
    with pytest.raises(TaskError, match=r"bad\.jsonl, line 1: no field text"):
        load(HOTPOT, corpus=str(bad))
    source = load(HOTPOT, corpus=str(bad), on_bad_line="skip")
    assert [bad.reason[:13] for bad in source.skipped] == ["no field text"]


def test_difficulty_is_the_number_of_gold_passages(load: Callable[..., FileSource]) -> None:
    one = {**HOTPOT, "supporting_facts": [["Ann", 0]]}
    five = {**HOTPOT, "supporting_facts": [[str(i), 0] for i in range(5)]}
    assert list(load(HOTPOT, one, five, lowest=2, highest=2).tasks("all")) == ["tasks/1"]
    assert list(load(HOTPOT, one, five, lowest=4, highest=4).tasks("all")) == ["tasks/3"]


def test_the_environment_tells_what_it_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "tasks.jsonl", HOTPOT, "{")
    env = SearchQAEnv(path, "all", on_bad_line="skip")
    assert env.notices()[0].startswith("line 2 skipped: not valid JSON")
    with pytest.raises(ConfigError, match="corpus= adds passages to those of a file"):
        SearchQAEnv(corpus=path)
    with pytest.raises(ConfigError, match=r"a \.jsonl or \.parquet file"):
        SearchQAEnv(tmp_path / "tasks.csv")
    empty = next(split for split in ("train", "dev", "test") if not env.tasks(split))
    with pytest.raises(TaskError, match="is empty; pass split='all'"):
        SearchQAEnv(path, empty, on_bad_line="skip").reset(seed=0)


def test_the_datasets_package_itself_reads_a_local_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    facts, context = HOTPOT["supporting_facts"], HOTPOT["context"]
    columns = {
        **HOTPOT,
        "supporting_facts": {"title": [t for t, _ in facts], "sent_id": [i for _, i in facts]},
        "context": {"title": [t for t, _ in context], "sentences": [s for _, s in context]},
    }
    folder = tmp_path / "hotpot"
    folder.mkdir()
    write(folder / "train.jsonl", columns)
    source = load_questions(f"hf:{folder}", lowest=1, highest=4)
    assert only(source).titles == ("Ann", "Brest")


# ---- real questions --------------------------------------------------------------------------------------


def test_the_expert_solves_real_hotpotqa_questions(shared_data: Path) -> None:
    env = SearchQAEnv(
        shared_data / "hotpotqa_distractor_60.jsonl", "all", corpus=shared_data / "wiki_passages_6119.jsonl"
    )
    assert len(env.tasks("all")) == 60
    for task in env.tasks("all"):
        env.reset(options={"task": task})
        over, actions = False, 0
        while not over:
            _, reward, terminated, truncated, info = env.step(env.expert_action())
            over, actions = terminated or truncated, actions + 1
        assert (reward, info["fact_recall"], info["f1"]) == (1.0, 1.0, 1.0), task
        assert 2 <= actions <= 2 * len(env.state.question.hops) + 1
