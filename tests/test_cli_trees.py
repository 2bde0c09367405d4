"""`trace-gym trees`: what it shows of a recorded step, and that recorded text stays text."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from rich.cells import cell_len
from typer.testing import CliRunner, Result

from tests.support.trees import add, prompt_tree, random_trees, star
from trace_gym.algorithm import Credit
from trace_gym.cli import app
from trace_gym.cli.trees import _guides
from trace_gym.config import load_config
from trace_gym.runs import RunFolder
from trace_gym.tree import Tree


def run(*words: str, columns: int = 200) -> Result:
    return CliRunner().invoke(app, ["trees", *words], env={"COLUMNS": str(columns)})


def lines(*words: str, columns: int = 200) -> list[str]:
    result = run(*words, columns=columns)
    assert result.exit_code == 0 and result.stderr == "", result.output
    return result.stdout.splitlines()


def refused(*words: str) -> str:
    result = run(*words)
    assert result.exit_code == 1 and result.stdout == "" and result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    return result.stderr


def changed(tree: Tree, index: int, **fields: object) -> None:
    tree.nodes[index] = dataclasses.replace(tree.nodes[index], **fields)  # type: ignore[arg-type]


def credit(*advantage: float) -> Credit:
    return Credit(np.array(advantage), np.ones(len(advantage)))


def mixed_tree(task: str = "mixed") -> Tree:
    """Two rollouts from the prompt; the first forked after its first turn; one leaf failed."""
    tree = prompt_tree(task)
    one = add(tree, 0, (5, 6, 7), (8,))
    add(tree, one, reward=1.0, status="done")
    add(tree, one, reward=0.0, status="truncated")
    add(tree, 0, reward=float("nan"), status="failed")
    changed(tree, 0, observation="How many?")
    changed(tree, one, action="ask", observation="five")
    changed(tree, 4, reason="the tool broke")
    return tree


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "run", config=load_config(None, []))


def kept(folder: RunFolder, *trees: Tree, step: int = 3, credits: Mapping[str, Credit] | None = None) -> str:
    folder.save_trees(step, {tree.task_id: tree for tree in trees}, credits)
    return str(folder.path)


def test_a_tree_is_shown_with_values_advantages_tokens_and_endings(folder: RunFolder) -> None:
    path = kept(folder, mixed_tree(), credits={"mixed": credit(0.0, 0.25, 1.0, -1.0, float("nan"))})
    assert lines(path) == [
        f"{path}, step 3: 1 tree, 1 mixed",
        "",
        "task | mixed: outcomes 1 x 1, 1 x 0 (mixed), 1 unscored; 5 nodes, 9 sampled tokens, "
        "0 environment steps, 0 rollout units",
        "0        value  0.50  adv +0.00     0 tokens  How many?",
        "├─ 1     value  0.50  adv +0.25     3 tokens  ask → five",
        "│  ├─ 2  value  1.00  adv +1.00     2 tokens  done 1  a → o",
        "│  └─ 3  value  0.00  adv -1.00     2 tokens  truncated 0  a → o",
        "└─ 4     value     -  adv     -     2 tokens  failed (the tool broke)  a → o",
    ]


def test_without_credit_there_is_no_column_for_it(folder: RunFolder) -> None:
    path = kept(folder, mixed_tree(), star([1.0, 0.0]), credits={"task": credit(0.0, 0.5, -0.5)})
    text = lines(path)
    assert sum("adv" in line for line in text) == 3
    assert not any("adv" in line for line in text if "How many?" in line)


def test_only_mixed_trees_when_asked(folder: RunFolder) -> None:
    dull = Tree("dull", star([1.0, 1.0]).nodes)
    path = kept(folder, dull, mixed_tree())
    assert sum(line.startswith("task |") for line in lines(path)) == 2
    text = lines(path, "--mixed")
    assert text[0].endswith("2 trees, 1 mixed") and text[2].startswith("task | mixed:")
    assert "dull" not in "\n".join(text)


def test_the_newest_step_is_shown_unless_another_is_asked_for(folder: RunFolder) -> None:
    kept(folder, mixed_tree("early"), step=9)
    path = kept(folder, mixed_tree("late"), step=10)
    assert "step 10" in lines(path)[0] and "late" in lines(path)[2]
    assert "early" in lines(path, "--step", "9")[2]


def test_a_node_is_shown_with_its_whole_path_and_nothing_cut(folder: RunFolder) -> None:
    tree, long = mixed_tree(), "x" * 500 + "\nsecond"
    changed(tree, 3, action=long, reason="why " * 40, state_key="key3")
    text = lines(kept(folder, tree), "--node", "3", columns=80)
    assert [line for line in text if line.startswith("node")] == [
        "node 0, turn 0: value 0.50 0 tokens",
        "node 1, turn 1: value 0.50 3 tokens",
        f"node 3, turn 2: value 0.00 2 tokens truncated 0 ({('why ' * 40)[:59]}…)",
    ]
    assert "action | " + "x" * 500 in text and "action | second" in text
    assert "reason | " + ("why " * 40).rstrip() in text
    assert "prompt | How many?" in text and "state key3, no snapshot" in text
    assert "draw 0 of a root rollout, policy version 0" in text


def test_full_shows_every_text_under_its_node(folder: RunFolder) -> None:
    tree = mixed_tree()
    changed(tree, 1, action="one\ntwo " + "y" * 300)
    text = lines(kept(folder, tree), "--full", columns=80)
    at = next(i for i, line in enumerate(text) if line.startswith("├─ 1"))
    assert text[at + 1 : at + 4] == [
        "│  │     action | one",
        "│  │     action | two " + "y" * 300,
        "│  │     answer | five",
    ]
    assert not any("…" in line or line != line.rstrip() for line in text)


def test_lines_fit_the_terminal(folder: RunFolder) -> None:
    tree = mixed_tree()
    for index in range(len(tree)):
        changed(tree, index, action="行動" * 80, observation="答え" * 80)
    for columns in (90, 100, 133):
        rows = [line for line in lines(kept(folder, tree), columns=columns) if " tokens  " in line]
        assert len(rows) == 5 and all(cell_len(row) <= columns for row in rows)
        assert all("行動" in row and "答え" in row for row in rows[1:])
    assert all(cell_len(row) > 40 for row in lines(kept(folder, tree), columns=10)[3:])  # still readable


def test_recorded_text_stays_text(folder: RunFolder) -> None:
    tree, hostile = mixed_tree("t\x1b[2J\ntask | x"), "[red]\x1b]0;owned\x07\r\nnode 9, turn 9\u202e"
    for index in range(len(tree)):
        changed(tree, index, action=hostile, observation=hostile, reason=hostile, state_key="\x1b[2J")
    path = kept(folder, tree)
    for words in ((), ("--full",), ("--node", "3")):
        text = lines(path, *words)
        assert not set("\x1b\x07\r\u202e") & set("".join(text)) and any("[red]" in line for line in text)
        assert sum(line.startswith("node 9") for line in text) == 0
    assert "\x1b" not in refused(path, "--task", "x\x1b[2J")


def test_a_long_chain_is_no_trouble(folder: RunFolder) -> None:
    tree = prompt_tree()
    last = 0
    for _ in range(1500):  # more than Python likes to recurse
        last = add(tree, last)
    assert len(lines(kept(folder, tree))) == 3 + 1501


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(random_trees())
def test_guides_tell_the_parent_of_every_node(tree: Tree) -> None:
    """The parent is the nearest node above that is one level less deep: what a reader of the drawing sees."""
    seen: list[int] = []
    for index, guide in _guides(tree):
        depth = len(guide.first) // 3
        assert len(guide.first) % 3 == 0 and set(guide.first) <= set("│├└─ ")
        assert (seen[depth - 1] if depth else -1) == tree[index].parent
        seen[depth:] = [index]
    assert sorted(index for index, _ in _guides(tree)) == list(range(len(tree)))
    assert [index for index, _ in _guides(tree)] == list(tree.walk())


def test_mistakes_are_one_line_that_helps(folder: RunFolder, tmp_path: Path) -> None:
    path = str(folder.path)
    assert "holds no trees" in refused(path)
    kept(folder, mixed_tree("a/1"), mixed_tree("a/2"))
    assert "it has steps 3 to 3" in refused(path, "--step", "4")
    assert "did you mean 'a/1'" in refused(path, "--task", "a/1x")
    assert "it has a/1, a/2" in refused(path, "--task", "zzzzzz")
    assert "--task: a/1, a/2" in refused(path, "--node", "1")
    assert "its nodes are 0 to 4" in refused(path, "--task", "a/2", "--node", "5")
    assert "no run folder" in refused(str(tmp_path / "none"))
    folder.trees_path(3).write_bytes(b"PAR1 nonsense")
    assert "corrupt" in refused(path)


def test_a_task_of_many_is_named_among_the_first(folder: RunFolder) -> None:
    path = kept(folder, *(mixed_tree(f"a/{i}") for i in range(11)))
    assert "a/7 and 3 more" in refused(path, "--node", "1")


def test_help_has_examples() -> None:
    assert re.search(r"Examples:\s+trace-gym trees runs/train\n", run("--help").stdout)
