"""What the viewer reads: numbers against hand-made trees, files of every age and state."""

import json
import math
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.trees import prompt_tree
from tests.support.viewed import HOSTILE, keep, run_folder, small_tree, with_text
from trace_gym.errors import ConfigError, RunError
from trace_gym.runs import RunFolder
from trace_gym.tree import Tree
from trace_gym.view.actions import brief, split_action
from trace_gym.view.data import RunReader

NAN = float("nan")


def test_a_nodes_numbers_are_the_trees(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    keep(run, 3, small_tree(), predicted=[0.25, 0.75, NAN, NAN, NAN, NAN], why={"n1": "because"})
    reader = RunReader(run.path)
    one = reader.node(3, 0, 1)
    assert (one["predicted"], one["realised"], one["draws"]) == (0.75, 0.5, 2)
    assert one["surprise"] == pytest.approx(0.25 / math.sqrt(0.75 * 0.25 / 2))
    assert one["advantage"] == pytest.approx(1 / 6 - 0.5) and one["weight"] == 1.0
    assert (one["why"], one["turn"], one["children"], one["origin"]) == ("because", 1, [2, 3], "root")
    assert one["cost"]["policy_tokens"] == 2
    assert [turn["node"] for turn in reader.node(3, 0, 3)["path"]] == [0, 1, 3]
    broken = reader.node(3, 0, 4)
    assert (broken["realised"], broken["reward"], broken["predicted"], broken["surprise"]) == (None,) * 4
    json.dumps([reader.node(3, 0, i) for i in range(6)], allow_nan=False)


def test_what_stands_beside_a_tree_is_its_own(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    keep(run, 0, prompt_tree("bare"), small_tree(), predicted=[0.5], why={"n0": "because"})
    reader = RunReader(run.path)
    assert (reader.node(0, 0, 0)["predicted"], reader.node(0, 0, 0)["why"]) == (0.5, "because")
    assert [reader.node(0, 1, i)["advantage"] for i in (0, 5)] == pytest.approx([-0.5, 5 / 6 - 0.5])
    assert (reader.node(0, 1, 0)["predicted"], reader.node(0, 1, 0)["why"]) == (None, None)


def test_a_trees_summary_counts_its_leaves(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    keep(run, 0, small_tree(), predicted=[0.99, 0.75, NAN, NAN, NAN, NAN])
    (recorded,) = RunReader(run.path).trees(0)
    summary = recorded.summary(0)
    assert summary["outcomes"] == [[1.0, 1], [0.0, 2]]
    assert (summary["leaves"], summary["unscored"], summary["unsolved"], summary["forks"]) == (4, 1, 2, 1)
    assert summary["mixed"] and summary["realised"] == 0.25  # the draws from the prompt: 0.5, unscored, 0
    assert summary["surprise"] == pytest.approx(0.74 / math.sqrt(0.95 * 0.05 / 2))  # the chance is kept off 1


def test_the_drawing_has_every_node_once(tmp_path: Path) -> None:
    run, tree = run_folder(tmp_path), small_tree()
    keep(run, 0, tree)
    drawing = RunReader(run.path).tree(0, 0).drawing()
    assert drawing["parent"] == [-1, 0, 1, 1, 0, 0]
    assert drawing["value"] == [0.25, 0.5, 0.0, 1.0, None, 0.0]
    assert drawing["solved"] == [None, None, False, True, None, False]
    assert {len(column) for name, column in drawing.items() if name != "task"} == {len(tree)}


@pytest.mark.parametrize(
    ("text", "thought", "action"),
    [
        ("I add. <tool_call>{}</tool_call>", "I add.", "<tool_call>{}</tool_call>"),
        ("<think>hm</think>\nplain", "<think>hm</think>", "plain"),
        ("<think>a <answer>?</think> b", "<think>a <answer>?</think>", "b"),
        ("so</think> then <answer>5</answer> end", "so</think> then", "<answer>5</answer> end"),
        ("<think>a <answer>5</answer>", "<think>a <answer>5</answer>", ""),
        ("<answer>5</answer>", "", "<answer>5</answer>"),
        ("just words", "", "just words"),
        ("", "", ""),
    ],
)
def test_thought_and_action_are_told_apart_and_nothing_is_lost(text: str, thought: str, action: str) -> None:
    assert split_action(text) == (thought, action)
    assert "".join((thought + action).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            'so <tool_call>{"name":"calculator","arguments":{"expression":"3*4"}}</tool_call>',
            "calculator(3*4)",
        ),
        ('<tool_call>{"name":"put","arguments":{"x":1,"y":[2,"a"]}}</tool_call>', "put(1, [2, 'a'])"),
        ("<answer> 5\n6 </answer>", "= 5 6"),
        ("<search>who</search>", "search(who)"),
        ("up\nand down", "up and down"),
        (
            '<tool_call>{"name":' + "[" * 5000 + "</tool_call>",
            '<tool_call>{"name":' + "[" * 5000 + "</tool_call>",
        ),
        ("", ""),
    ],
)
def test_an_action_is_told_on_one_line(text: str, line: str) -> None:
    assert brief(text) == line


def test_files_of_an_earlier_release_open_without_notes(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    keep(run, 0, small_tree(), predicted=[0.5] * 6)
    path = run.trees_path(0)
    pq.write_table(pq.read_table(path).drop_columns(["predicted", "why"]), path)
    node = RunReader(run.path).node(0, 0, 1)
    assert (node["predicted"], node["why"], node["realised"]) == (None, None, 0.5)
    assert len(run.load_trees(0)[0]) == 6


def test_steps_appear_while_the_run_goes_on_and_a_rewritten_one_is_read_again(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    reader = RunReader(run.path)
    assert reader.steps() == [] and reader.progress() == []
    keep(run, 2, small_tree())
    before = reader.progress()
    assert reader.steps() == [2] and len(reader.trees(2)) == 1
    keep(run, 10, small_tree())
    keep(run, 2, small_tree(), small_tree("word/2"))
    run.append_metrics({"step": 2.0, "success": 0.5})
    os.utime(run.trees_path(2), ns=(1, 1))
    assert reader.steps() == [2, 10] and len(reader.trees(2)) == 2
    assert reader.progress()[0]["stamp"] != before[0]["stamp"]
    assert [row["success"] for row in reader.progress()] == [0.5, None]


def test_half_written_and_foreign_files_are_no_steps_or_say_so(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    keep(run, 1, small_tree())
    folder, whole = run.trees_path(1).parent, run.trees_path(1).read_bytes()
    for name in (
        ".step-000002.parquet.77",
        "step-000003.parquet.tmp",
        "step-x.parquet",
        "step-4.parquet",
        "notes.txt",
    ):
        (folder / name).write_bytes(b"half")
    reader = RunReader(run.path)
    assert reader.steps() == [1]
    run.trees_path(5).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"step-000005.parquet is corrupt"):
        reader.trees(5)
    assert reader.places_of("word/1") == [{"step": 1, "tree": 0}]  # the broken file does not hide the others
    (run.path / "metrics.parquet").write_bytes(b"half")
    assert [row["step"] for row in reader.progress()] == [1, 5]


def test_the_same_prompt_is_found_in_other_steps(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    keep(run, 0, small_tree("a"), small_tree("b"))
    keep(run, 4, small_tree("b"))
    reader = RunReader(run.path)
    assert reader.places_of("b") == [{"step": 0, "tree": 1}, {"step": 4, "tree": 0}]
    assert reader.places_of("c") == []


def test_what_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    with pytest.raises(ConfigError, match="no run folder"):
        RunReader(tmp_path)
    reader = RunReader(run.path)
    with pytest.raises(ConfigError, match="none so far"):
        reader.trees(0)
    keep(run, 1, small_tree())
    for ask in (
        lambda: reader.trees(2),
        lambda: reader.tree(1, 9),
        lambda: reader.node(1, 0, 6),
        lambda: reader.tree(1, -1),
    ):
        with pytest.raises(ConfigError, match=r"has steps 1 to 1|has 1 trees|has nodes 0 to 5"):
            ask()


def test_only_the_newest_few_steps_are_kept_in_memory(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    for step in range(9):
        keep(run, step, small_tree())
    reader = RunReader(run.path)
    for step in range(9):
        reader.trees(step)
    assert reader.trees(8) is reader.trees(8) and len(reader._steps) == 6


def test_hostile_text_is_data(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    keep(run, 0, with_text(small_tree(), HOSTILE), why={"n0": HOSTILE})
    node = RunReader(run.path).node(0, 0, 2)
    assert node["state_key"] == node["reason"] == node["task"] == HOSTILE
    assert node["path"][-1]["action"].startswith("<script>")


def test_an_empty_step_is_no_error(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    run.save_trees(0, {})
    run.save_trees(1, {"bare": Tree("bare", small_tree().nodes[:1])})
    reader = RunReader(run.path)
    assert reader.trees(0) == []
    assert reader.trees(1)[0].summary(0)["realised"] is None


def rewritten(run: RunFolder, step: int, **columns: pa.Array) -> RunReader:
    """A reader of the run after a step's columns were replaced, as by somebody who writes such files himself."""
    table = pq.read_table(run.trees_path(step))
    for name, values in columns.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), values)
    pq.write_table(table, run.trees_path(step))
    return RunReader(run.path)


@pytest.mark.parametrize("name", ["predicted", "advantage", "weight", "reward", "rollout_units"])
@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
def test_whatever_numbers_a_file_holds_json_can_say_what_comes_out(
    tmp_path: Path, name: str, value: float
) -> None:
    run = run_folder(tmp_path)
    keep(run, 0, small_tree(), predicted=[0.5] * 6)
    recorded = rewritten(run, 0, **{name: pa.array([value] * 6, pa.float64())}).tree(0, 0)
    told = [recorded.summary(0), recorded.drawing(), *(recorded.node(i) for i in range(6))]
    json.dumps(told, allow_nan=False)


@pytest.mark.parametrize("name", ["task_id", "action", "why"])
def test_text_that_is_no_utf_8_is_a_corrupt_file(tmp_path: Path, name: str) -> None:
    run = run_folder(tmp_path)
    keep(run, 0, small_tree())
    ends = pa.array([2 * i for i in range(7)], pa.int32()).buffers()[1]
    reader = rewritten(
        run, 0, **{name: pa.Array.from_buffers(pa.string(), 6, [None, ends, pa.py_buffer(b"\xff\xfe" * 6)])}
    )
    for read in (lambda: reader.trees(0), lambda: run.load_trees(0)):
        with pytest.raises(RunError, match="corrupt"):
            read()
    assert len(reader.places_of("word/1")) == (name != "task_id")  # which looks at that column alone
