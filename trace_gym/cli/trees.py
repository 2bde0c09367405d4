"""`trees`: a recorded step's rollout trees in the terminal."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.cells import cell_len

from trace_gym.cli.app import app
from trace_gym.cli.screen import block, on_one_line
from trace_gym.errors import ConfigError
from trace_gym.observer import printable
from trace_gym.plugins import suggestion
from trace_gym.tree import NO_PARENT, Node, Tree

if TYPE_CHECKING:
    from trace_gym.runs import RunFolder

__all__ = ["trees_command"]

COLUMNS = 120  # where the output is no terminal
LEAST_TEXT = 24  # cells for what was said, however deep the node is
REASON_CELLS = 60
ID_CELLS = 200
COLOURS = {"truncated": "yellow", "failed": "magenta", "censored": "magenta"}


@app.command("trees")
def trees_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    step: Annotated[int | None, typer.Option(min=0, help="Default: the newest that was kept.")] = None,
    task: Annotated[str | None, typer.Option(metavar="ID", help="Only this task's tree.")] = None,
    node: Annotated[int | None, typer.Option(min=0, help="The whole path to this node, nothing cut.")] = None,
    mixed: Annotated[
        bool, typer.Option("--mixed", help="Only trees with two different outcomes: those that teach.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Cut no text.")] = False,
) -> None:
    """Show the rollout trees of a training step.

    \b
    Examples:  trace-gym trees runs/train
               trace-gym trees runs/train --step 40 --mixed
               trace-gym trees runs/train --step 40 --task word/train/1/424 --node 6

    A line is a turn: number, value (mean outcome below it), advantage, sampled tokens, how it ended, action → answer.
    """
    from trace_gym.runs import RunFolder

    folder = RunFolder.open(run)
    step = _newest_step(folder) if step is None else step
    recorded = _recorded(folder, step)
    chosen = _chosen(recorded, task)
    if node is not None:
        typer.echo("\n".join(_path_lines(_only(chosen), node)))
        return
    chosen = [one for one in chosen if one.tree.mixed() or not mixed]
    n_mixed = sum(one.tree.mixed() for one in recorded)
    word = "tree" if len(recorded) == 1 else "trees"
    typer.echo(printable(f"{run}, step {step}: {len(recorded)} {word}, {n_mixed} mixed"))
    for one in chosen:
        typer.echo()
        typer.echo("\n".join(_tree_lines(one, full)))


# ---- what was recorded ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A tree and, where the algorithm gave it credit, what each of its turns was told."""

    tree: Tree
    advantage: Sequence[float] | None  # [N]


def _newest_step(run: RunFolder) -> int:
    names = [path.stem.removeprefix("step-") for path in run.trees_path(0).parent.glob("step-*.parquet")]
    if not names:
        raise ConfigError(f"{run.path} holds no trees; training keeps them every log.trees_every_steps steps")
    return max(int(name) for name in names if name.isdecimal())


def _recorded(run: RunFolder, step: int) -> list[_Recorded]:
    import pyarrow.parquet as pq

    trees = run.load_trees(step)  # checks the file
    with pq.ParquetFile(run.trees_path(step)) as file:
        flat = iter(file.read(columns=["advantage"])["advantage"].to_pylist())
    recorded = []
    for tree in trees:  # rows stand in the trees' order
        advantage = [next(flat) for _ in tree.nodes]
        recorded.append(_Recorded(tree, None if None in advantage else advantage))
    return recorded


def _chosen(recorded: list[_Recorded], task: str | None) -> list[_Recorded]:
    chosen = [one for one in recorded if task in (None, one.tree.task_id)]
    if task is not None and not chosen:
        ids = [one.tree.task_id for one in recorded]
        hint = suggestion(task, ids) or f"; it has {_listed(ids)}"
        raise ConfigError(f"the step has no tree of task {task!r}{hint}")
    return chosen


def _only(chosen: list[_Recorded]) -> _Recorded:
    if len(chosen) != 1:
        ids = _listed([one.tree.task_id for one in chosen])
        raise ConfigError(f"--node needs one tree; name it with --task: {ids}")
    return chosen[0]


def _listed(ids: Sequence[str]) -> str:
    return ", ".join(on_one_line(task, ID_CELLS) for task in ids[:8]) + (
        f" and {len(ids) - 8} more" if len(ids) > 8 else ""
    )


# ---- drawing --------------------------------------------------------------------------------------------------------


def _tree_lines(one: _Recorded, full: bool) -> Iterator[str]:
    """The tree's summary, then a line per node in depth-first order; with `full` its whole text below it."""
    yield typer.style(block("task", _summary(one.tree)), bold=True)
    facts = _facts(one)
    guides = dict(_guides(one.tree))
    width = max(len(guide.first) + len(str(index)) for index, guide in guides.items())
    columns = shutil.get_terminal_size((COLUMNS, 24)).columns
    for index, guide in guides.items():
        node = one.tree[index]
        line = f"{guide.first + str(index):<{width}}  {facts[index]}  "
        room = max(LEAST_TEXT, columns - cell_len(line + _ending(node)) - 2)
        parts = (_coloured(node), "" if full else _said(node, room))
        yield (line + "  ".join(filter(None, parts))).rstrip()
        if full:
            yield from (f"{guide.rest:<{width}}  {text}" for text in _texts(node))


def _path_lines(one: _Recorded, index: int) -> Iterator[str]:
    """Everything on the path to a node."""
    if index >= len(one.tree):
        raise ConfigError(f"the tree has no node {index}; its nodes are 0 to {len(one.tree) - 1}")
    yield typer.style(block("task", _summary(one.tree)), bold=True)
    facts = _facts(one)
    for turn, step in enumerate(one.tree.path(index)):
        node = one.tree[step]
        yield ""
        yield f"node {step}, turn {turn}: {' '.join(facts[step].split())} {_coloured(node)}".rstrip()
        if node.parent != NO_PARENT:
            yield f"draw {node.draw} of a {node.origin} rollout, policy version {node.policy_version}"
        yield printable(f"state {node.state_key or '(none)'}{'' if node.snapshot else ', no snapshot'}")
        yield from _texts(node)


@dataclass(frozen=True, slots=True)
class _Guide:
    """What stands left of a node: on its own line, and on further lines of its text."""

    first: str
    rest: str


def _guides(tree: Tree) -> Iterator[tuple[int, _Guide]]:
    """Nodes in depth-first order. A stack, since a chain may be longer than Python likes to recurse."""
    below = tree.children()
    stack = [(0, _Guide("", "│" if below[0] else " "))]
    while stack:
        index, guide = stack.pop()
        yield index, guide
        indent = guide.rest[:-1]
        for child in reversed(below[index]):
            last = child == below[index][-1]
            inside = "│" if below[child] else " "
            rest = indent + ("   " if last else "│  ") + inside
            stack.append((child, _Guide(indent + ("└─ " if last else "├─ "), rest)))


def _facts(one: _Recorded) -> list[str]:
    """[N] value, advantage and sampled tokens, in columns."""
    values = one.tree.values()
    lines = []
    for index, node in enumerate(one.tree.nodes):
        text = f"value {_number(float(values[index]), '5.2f')}"
        if one.advantage is not None:
            text += f"  adv {_number(one.advantage[index], '+5.2f')}"
        lines.append(f"{text}  {node.n_action:>4} tokens")
    return lines


def _number(value: float, form: str) -> str:
    return f"{'-':>5}" if math.isnan(value) else f"{value:{form}}"


def _ending(node: Node) -> str:
    """How the turn ended and why, and its reward; empty for a turn that just went on."""
    reward = "" if math.isnan(node.reward) else f" {node.reward:g}"
    if node.status == "running":
        return f"reward{reward}" if node.reward else ""
    why = f" ({on_one_line(node.reason, REASON_CELLS)})" if node.reason else ""
    return f"{node.status}{reward}{why}"


def _coloured(node: Node) -> str:
    ending = _ending(node)
    colour = COLOURS.get(node.status) or ("green" if node.reward > 0 else "red")
    return typer.style(ending, fg=colour) if ending else ""


def _said(node: Node, cells: int) -> str:
    """Action and observation on one line of at most `cells`."""
    if node.parent == NO_PARENT:
        return on_one_line(node.observation, cells)
    action = on_one_line(node.action, cells)
    answer = on_one_line(node.observation, max(cells // 3, cells - 3 - cell_len(action)))
    return f"{on_one_line(action, cells - 3 - cell_len(answer))} → {answer}"


def _texts(node: Node) -> list[str]:
    """The node's whole text; a reason in full, for above it is cut."""
    parts = [] if node.parent == NO_PARENT else [("action", node.action)]
    parts += [("answer" if parts else "prompt", node.observation)]
    parts += [("reason", node.reason)] if node.reason else []
    return [line for label, text in parts for line in block(label, text).split("\n")]


def _summary(tree: Tree) -> str:
    outcomes, cost = tree.outcomes(), tree.cost()
    counts = Counter(f"{outcome:g}" for outcome in sorted(outcomes, reverse=True))
    told = ", ".join(f"{count} x {outcome}" for outcome, count in counts.items()) or "none"
    unscored = len(tree.leaves()) - len(outcomes)
    return (
        f"{on_one_line(tree.task_id, ID_CELLS)}: outcomes {told}{' (mixed)' if tree.mixed() else ''}"
        f"{f', {unscored} unscored' if unscored else ''}; {len(tree)} nodes, {cost.policy_tokens} sampled tokens, "
        f"{cost.env_steps} environment steps, {cost.rollout_units:g} rollout units"
    )
