import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trace_gym.envs.math.env import MathEnv
from trace_gym.envs.math.sources import FileSource, load_source
from trace_gym.envs.math.task import Step
from trace_gym.errors import ConfigError, TaskError

GOOD = {
    "question": "Ann has 48 nuts and sells half. How many?",
    "answer": "48/2=<<48/2=24>>24 nuts.\n#### 24",
}


def write(path: Path, *records: object) -> Path:
    """A file of records; a string or bytes stand as a line of their own."""
    lines = [
        r if isinstance(r, bytes) else (r if isinstance(r, str) else json.dumps(r)).encode() for r in records
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def only(source: FileSource) -> Any:
    (task_id,) = source.tasks("all")
    return source.problem(task_id)


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., FileSource]:
    def _load(*records: object, **settings: Any) -> FileSource:
        return load_source(str(write(tmp_path / "tasks.jsonl", *records)), **settings)

    return _load


# ---- records ---------------------------------------------------------------------------------------------


def test_a_gsm8k_record_brings_its_answer_and_its_steps(load: Callable[..., FileSource]) -> None:
    solution = (
        "She sold 48/2 = <<48/2=24>>24 clips in May.\nAltogether 48+24 = <<48+24=72>>72 clips.\n#### 72"
    )
    problem = only(load({"question": " How many?\n", "answer": solution}))
    assert (problem.id, problem.question, problem.answer) == ("tasks/1", "How many?", "72")
    assert problem.steps == (Step("calculator", "48/2", "24"), Step("calculator", "48+24", "72"))


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("#### 1,234,567", "1234567"),
        ("text #### 3 more #### -4.5", "-4.5"),
        ("5/7", "5/7"),
        ("So $x$ is \\boxed{2}, that is \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("(1,234)", "(1,234)"),
        (18, "18"),
        (18.0, "18"),
        (0.25, "0.25"),
    ],
)
def test_the_gold_answer(load: Callable[..., FileSource], answer: object, gold: str) -> None:
    assert only(load({"question": "How many?", "answer": answer})).answer == gold


def test_a_math_record_is_read_from_its_answer_else_from_its_solution(
    load: Callable[..., FileSource],
) -> None:
    both = {"problem": "What?", "answer": "7", "solution": "long \\boxed{8}"}
    assert only(load(both)).answer == "7"
    assert only(load({**both, "answer": None})).answer == "8"
    assert only(load({"q": "What?", "a": "9"}, question_field="q", answer_field="a")).answer == "9"


def test_a_number_without_steps_gets_one(load: Callable[..., FileSource]) -> None:
    assert only(load({"problem": "What?", "answer": "-7"})).steps == (Step("calculator", "-7", "-7"),)
    assert only(load({"problem": "What?", "answer": "\\pi"})).steps == ()


# ---- bad lines -------------------------------------------------------------------------------------------

LONG = "x" * 2**20
BAD_LINES: list[tuple[object, str]] = [
    ("{", "not valid JSON"),
    ('{"question": "How many?", "answer": NaN}', "not valid JSON"),
    (b'{"question": "\xff", "answer": "1"}', "not valid JSON"),
    ("[" * 100_000, "not valid JSON"),
    ("[1, 2]", "a JSON list; write one object per line"),
    ("null", "a JSON NoneType"),
    ({"question": LONG, "answer": "#### 1"}, "the question has 1048576 characters; at most 8000"),
    ({"question": "How many?", "answer": "#### " + LONG}, "the answer is long"),
    ({"question": "How many?", "answer": LONG}, "the answer is long"),
    ({"question": "How \u0000 many?", "answer": "1"}, r"field question holds the control character '\x00'"),
    ({"question": "How many?", "answer": "1\u001b[2J"}, r"field answer holds the control character '\x1b'"),
    ({"question": 5, "answer": "1"}, "the field question is of type int, not text"),
    ({"question": ["a"], "answer": "1"}, "the field question is of type list, not text"),
    ({"question": "How many?", "answer": True}, "the field answer is of type bool, not text"),
    ({"question": "How many?", "answer": {"v": 1}}, "the field answer is of type dict, not text"),
    ({"question": "  ", "answer": "1"}, "the field question is empty"),
    ({"question": "How many?", "answer": ""}, "the field answer is empty"),
    ({"question": "How many?", "answer": "#### "}, "nothing stands after '####'"),
    ({"question": "How many?", "answer": "#### $"}, "the answer '$' holds nothing to compare"),
    ({"question": "How many?", "answer": "1</answer>2"}, "cannot be written inside <answer>"),
    ({"question": "How many?"}, "no field answer or solution (fields: question); name it with answer_field="),
    ({"prompt": "How many?", "answer": "1"}, "no field question or problem (fields: prompt, answer)"),
    ({"question": None, "answer": "1"}, "no field question or problem"),
    ({}, "no field question or problem (fields: none)"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=[reason for _, reason in BAD_LINES])
def test_a_bad_line_is_named_or_skipped(load: Callable[..., FileSource], line: object, reason: str) -> None:
    records = [*([GOOD] * 16), line, GOOD]
    with pytest.raises(TaskError) as caught:
        load(*records)
    message = str(caught.value)
    assert "tasks.jsonl, line 17: " in message
    assert reason in message
    assert "on_bad_line='skip'" in message
    assert "\n" not in message
    assert len(message) < 500
    source = load(*records, on_bad_line="skip")
    assert [bad.line for bad in source.skipped] == [17]
    assert reason in source.skipped[0].reason
    assert len(source.tasks("all")) == 17
    assert source.tasks("all")[-1] == "tasks/18"


def test_blank_lines_and_a_byte_order_mark_are_no_lines(load: Callable[..., FileSource]) -> None:
    source = load(b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), "", "  \t", GOOD)
    assert list(source.tasks("all")) == ["tasks/1", "tasks/4"]
    assert source.skipped == ()


def test_lone_surrogates_are_replaced(load: Callable[..., FileSource]) -> None:
    line = '{"question": "How many \\ud800 nuts?", "answer": "1"}'
    source = load(line, GOOD, on_bad_line="skip")
    for task_id in source.tasks("all"):
        source.problem(task_id).question.encode()


@pytest.mark.parametrize("content", [b"", b"\n\n", b"{}\n"])
def test_a_file_without_tasks_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(content)
    with pytest.raises(TaskError, match=r"holds no task: (it is empty|all 1 lines are bad)"):
        load_source(str(path), on_bad_line="skip")


def test_settings_and_files_that_cannot_be_meant(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"cannot open the task file .*No such file.*check the path"):
        load_source(str(tmp_path / "absent.jsonl"))
    with pytest.raises(ConfigError, match=r"name 'builtin', a \.jsonl or \.parquet file"):
        load_source(str(tmp_path / "tasks.csv"))
    with pytest.raises(ConfigError, match="on_bad_line is 'error' or 'skip', not 'ignore'"):
        load_source(str(write(tmp_path / "tasks.jsonl", GOOD)), on_bad_line="ignore")  # type: ignore[arg-type]
    folder = tmp_path / "folder.jsonl"
    folder.mkdir()
    with pytest.raises(TaskError, match="cannot read the task file"):
        load_source(str(folder))


# ---- ids and splits --------------------------------------------------------------------------------------


def test_splits_divide_the_file_by_question(load: Callable[..., FileSource]) -> None:
    records = [{"question": f"What is {i} and {i}?", "answer": str(2 * i)} for i in range(1000)]
    source = load(*records, *records[:100])
    parts = {split: source.tasks(split) for split in ("train", "dev", "test")}
    assert sorted(task_id for ids in parts.values() for task_id in ids) == sorted(source.tasks("all"))
    assert 0.75 < len(parts["train"]) / 1100 < 0.85
    assert 0.07 < len(parts["test"]) / 1100 < 0.13
    questions = [{source.problem(i).question for i in ids} for ids in parts.values()]
    assert sum(map(len, questions)) == 1000, "a question that stands twice stands in one split"
    with pytest.raises(TaskError, match="unknown split 'validation'; there are train, dev, test, all"):
        source.tasks("validation")


def test_an_unknown_id_is_refused(load: Callable[..., FileSource]) -> None:
    with pytest.raises(TaskError, match=r"unknown task 'tasks/2': the ids of tasks read 'tasks/1', by line"):
        load(GOOD).problem("tasks/2")


def test_a_changed_file_is_read_again(load: Callable[..., FileSource]) -> None:
    assert only(load(GOOD)).answer == "24"
    assert only(load({**GOOD, "answer": "#### 2,500"})).answer == "2500"


# ---- Parquet and datasets --------------------------------------------------------------------------------


def test_parquet_rows_are_records(tmp_path: Path) -> None:
    path = tmp_path / "tasks.parquet"
    pq.write_table(pa.table({"problem": ["One?", "Two?", None], "answer": [1.0, math.nan, 3.0]}), path)
    with pytest.raises(
        TaskError, match=r"tasks\.parquet, line 2: the field answer is nan, not a finite number"
    ):
        load_source(str(path))
    source = load_source(str(path), on_bad_line="skip")
    assert only(source).answer == "1"
    assert [bad.line for bad in source.skipped] == [2, 3]


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "tasks.parquet", "PAR1 not really")
    with pytest.raises(TaskError, match=r"cannot read the task file .*is it a Parquet file\?") as caught:
        load_source(str(path))
    assert "\n" not in str(caught.value)


class FakeDatasets:
    """Stands for the `datasets` package, which reaches for the network."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None, str]] = []

    def load_dataset(self, name: str, config: str | None, *, split: str) -> list[dict[str, Any]]:
        self.asked.append((name, config, split))
        if name == "absent":
            raise ConnectionError("Couldn't reach\nthe Hub")
        return [GOOD, {**GOOD, "answer": "#### 7"}]


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("hf:me/sums", ("me/sums", None, "train")),
        ("hf:me/sums:main", ("me/sums", "main", "train")),
        ("hf:me/sums:main:test", ("me/sums", "main", "test")),
        ("hf:me/sums::test", ("me/sums", None, "test")),
    ],
)
def test_a_dataset_is_asked_for_by_name_config_and_split(
    monkeypatch: pytest.MonkeyPatch, source: str, asked: tuple[str, str | None, str]
) -> None:
    fake = FakeDatasets()
    monkeypatch.setitem(sys.modules, "datasets", fake)
    found = load_source(source)
    assert fake.asked == [asked]
    assert found.tasks("all") == (f"{source[3:]}/1", f"{source[3:]}/2")


def test_what_goes_wrong_with_a_dataset_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets())
    with pytest.raises(TaskError, match=r"^cannot load the dataset 'hf:absent': Couldn't reach the Hub$"):
        load_source("hf:absent")
    for source in ("hf:", "hf::x", "hf:a:b:c:d"):
        with pytest.raises(ConfigError, match="such as 'hf:openai/gsm8k:main:test'"):
            load_source(source)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'trace-gym\[data\]'"):
        load_source("hf:me/sums")


def test_the_datasets_package_itself_reads_a_local_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "sums"
    folder.mkdir()
    write(folder / "train.jsonl", GOOD, {**GOOD, "answer": "#### 7"})
    source = load_source(f"hf:{folder}")
    assert [source.problem(i).answer for i in source.tasks("all")] == ["24", "7"]


# ---- real problems ---------------------------------------------------------------------------------------


def test_real_gsm8k_problems_load_whole(shared_data: Path) -> None:
    source = load_source(str(shared_data / "gsm8k_train_1000.jsonl"))
    problems = [source.problem(task_id) for task_id in source.tasks("all")]
    assert len(problems) == 1000
    assert source.skipped == ()
    assert all(p.answer.lstrip("-").isdigit() for p in problems)
    assert sum(len(p.steps) for p in problems) > 3000
    assert all(p.steps for p in problems)


def test_bad_lines_among_real_ones_are_reported_by_number(shared_data: Path, tmp_path: Path) -> None:
    lines: list[object] = list((shared_data / "gsm8k_train_1000.jsonl").read_text("utf-8").splitlines()[:200])
    places = range(5, 5 + 7 * len(BAD_LINES), 7)
    for place, (line, _) in zip(places, BAD_LINES, strict=True):
        lines.insert(place - 1, line)
    source = load_source(str(write(tmp_path / "mixed.jsonl", *lines)), on_bad_line="skip")
    assert [bad.line for bad in source.skipped] == list(places)
    assert len(source.tasks("all")) == 200


def test_skipped_lines_are_told_with_their_reasons(tmp_path: Path) -> None:
    good = '{"question": "2 and 2?", "answer": "4 #### 4"}'
    file = tmp_path / "mixed.jsonl"
    file.write_text("\n".join([good, "{", *["[]"] * 30, good]))
    env = MathEnv(source=str(file), on_bad_line="skip")
    notices = env.notices()
    assert notices[0].startswith("line 2 skipped: not valid JSON")
    assert len(notices) == 21 and notices[-1] == "11 more lines skipped"
    assert not MathEnv().notices()
