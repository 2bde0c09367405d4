"""Ten thousand, a hundred thousand and a million nodes: planned, grown, credited, packed and kept; time and memory per node.

    trace-gym bench speed --only scale

Each size is two shapes. *pool*: many trees of about 64 nodes, as a step has them. *one tree*: all nodes in a single tree,
where whatever looks at a tree's nodes once for each of its nodes would be quadratic. A tree is grown as TRACE grows it: root
rollouts of four turns, then the continuations that its plan asks for, of two. No policy and no environment run: what is
timed is this package's own work. Every size and shape has a fresh process, so that memory is its own. Seconds are the process's
own (CPU), so that other work on the machine counts little.
"""

from __future__ import annotations

import hashlib
import io
import math
import multiprocessing
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from trace_gym.algorithm import Branch, Credit, RunContext, StepContext
from trace_gym.algorithms.credit import ADVANTAGES, credit_trees
from trace_gym.algorithms.trace import TRACE, PublishedTRACE
from trace_gym.ledger import Cost
from trace_gym.pack import flatten, token_weights
from trace_gym.runs import environment_facts
from trace_gym.seeding import keyed_rng
from trace_gym.snapshot import GeneratorState, Snapshot
from trace_gym.tree import Node, Tree
from trace_gym.treefile import read_trees, tree_table

__all__ = ["measure", "page"]

SIZES, QUICK_SIZES = (10_000, 100_000, 1_000_000), (1_000, 4_000)
SHAPES = ("pool", "one tree")
TURNS, LATER_TURNS = 4, 2  # of a root rollout, of a continuation
GROUP, CONTINUATIONS = 8, 2
NODES_PER_ROOT = TURNS + CONTINUATIONS * LATER_TURNS
PROMPT, SAMPLED, SHOWN = 64, 32, 16  # tokens
VOCABULARY = 49_152  # tokens are drawn at random, so that a compressor finds nothing in them
OBSERVATION = "The calculator says 1,024. What do you do next? "
GENERATOR = GeneratorState.of(np.random.Generator(np.random.PCG64(0)))

Seconds = dict[str, float]


# ---- a step, without a policy ---------------------------------------------------------------------------------------


def _prompt(task: str, rng: np.random.Generator) -> Tree:
    tokens = rng.integers(0, VOCABULARY, PROMPT, dtype=np.int32)
    return Tree(task, [Node.prompt(tokens, OBSERVATION, _snapshot(task, 0, OBSERVATION))])


def _snapshot(task: str, turn: int, observation: str) -> Snapshot:
    return Snapshot(
        env_id="bench/Scale-v0",
        schema_version=1,
        task_id=task,
        state=(task, turn),
        generator=GENERATOR,
        turn=turn,
        turn_limit=TURNS + 1,
        status="running",
        observation=observation,
        role="tool",
    )


def _append_rollouts(tree: Tree, branch: Branch, turns: int, rng: np.random.Generator) -> None:
    """Whole rollouts from a node, as the loop appends them."""
    successes = rng.random(branch.count) < 0.5
    for draw, success in enumerate(successes):
        parent = branch.node
        for turn in range(turns):
            last = turn == turns - 1
            observation = f"{OBSERVATION}{len(tree)}"
            parent = tree.append(
                Node(
                    parent=parent,
                    tokens=rng.integers(0, VOCABULARY, SAMPLED + SHOWN * (not last), dtype=np.int32),
                    n_action=SAMPLED,
                    logprobs=-rng.random(SAMPLED, dtype=np.float32),
                    policy_version=0,
                    action=f'<tool_call>{{"name":"calculator","arguments":{{"expression":"{draw}+{turn}"}}}}',
                    observation=observation,
                    snapshot=None if last else _snapshot(tree.task_id, turn, observation),
                    state_key=hashlib.sha256(observation.encode()).hexdigest(),
                    reward=float(success and last),
                    status="done" if last else "running",
                    origin="root" if branch.node == 0 else "continuation",
                    draw=0 if turn else draw,
                    cost=Cost(SAMPLED, SHOWN, PROMPT, 1, 0, 0.0),
                    success=bool(success) if last else None,
                )
            )


class _Stopwatch:
    """CPU seconds of this process by name."""

    def __init__(self) -> None:
        self.seconds: Seconds = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start


def step_of(nodes: int, shape: str, folder: Path | None = None) -> dict[str, Any]:
    """One step of about `nodes` nodes: seconds by stage, resident bytes of the trees, bytes of their file."""
    watch, before = _Stopwatch(), _resident_bytes()
    trees = 1 if shape == "one tree" else max(1, nodes // (NODES_PER_ROOT * GROUP))
    roots = nodes // NODES_PER_ROOT
    rng = keyed_rng("prompts")
    prompts = {str(i): _prompt(str(i), rng) for i in range(trees)}
    ctx = StepContext(run=RunContext(seed=0, tasks=()), step=0, trees=prompts)
    ctx.oracle = lambda places: keyed_rng("answers", len(places)).random(len(places))
    algorithm = _allocating(PublishedTRACE, rollouts=roots, cap=max(2 * GROUP, -(-roots // trees)))
    with watch.timed("plan: prompts"):
        branches = algorithm.plan(ctx)
    _grow(ctx, branches, TURNS, watch)
    with watch.timed("plan: prefixes"):
        branches = algorithm.plan(ctx)
    _grow(ctx, branches, LATER_TURNS, watch)
    resident, count = _resident_bytes() - before, sum(map(len, ctx.trees.values()))
    _plan_jointly(ctx, roots, watch)
    with watch.timed("observe: targets and calibration"):
        algorithm.observe(ctx)
    credits = _credit_every_way(ctx.trees, watch)
    with watch.timed("pack: weights and rows"):
        weights = token_weights(ctx.trees, credits, "token")
        rows = flatten(ctx.trees, credits, weights)
    row_tokens = sum(map(len, rows))
    del rows
    file_bytes = _keep_and_read(ctx.trees, credits, watch)
    return {
        "shape": shape,
        "nodes": count,
        "seconds": watch.seconds,
        "resident_bytes": resident,
        "file_bytes": file_bytes,
        "row_tokens": row_tokens,
    }


def _allocating(kind: type[TRACE], **fields: Any) -> TRACE:
    """Predictions come from a table, so that what is timed is the allocation."""
    return kind(predictor="oracle", continuations=CONTINUATIONS, warmup_steps=0, **fields)


def _grow(ctx: StepContext, branches: Sequence[Branch], turns: int, watch: _Stopwatch) -> None:
    rng = keyed_rng("outcomes", turns)
    with watch.timed("append nodes"):
        for branch in branches:
            _append_rollouts(ctx.trees[branch.task], branch, turns, rng)
    ctx.idle = tuple(task for task, tree in ctx.trees.items() if len(tree) > 1)


def _plan_jointly(ctx: StepContext, roots: int, watch: _Stopwatch) -> None:
    """The joint budget opens the pool, then looks at every anchor of every tree."""
    joint = _allocating(TRACE, rollouts=roots, budget_rule="joint")
    idle, ctx.idle = ctx.idle, ()
    with watch.timed("plan: jointly"):
        joint.plan(ctx)
        ctx.idle = idle
        joint.plan(ctx)


def _credit_every_way(trees: Mapping[str, Tree], watch: _Stopwatch) -> dict[str, Credit]:
    """Every rule of credit; the last one's credits."""
    credits: dict[str, Credit] = {}
    for mode in sorted(ADVANTAGES, key=lambda mode: mode == "edge"):  # the default rule last
        with watch.timed(f"credit: {mode}"):
            credits = credit_trees(trees, mode=mode, weights="path", scale="none")
    return credits


def _keep_and_read(trees: dict[str, Tree], credits: Mapping[str, Credit], watch: _Stopwatch) -> int:
    with watch.timed("tree file: write"):
        file = io.BytesIO()
        pq.write_table(tree_table(0, trees, credits), file, compression="zstd", write_page_checksum=True)
    size = file.tell()
    trees.clear()  # so that they are held once
    with watch.timed("tree file: read"):
        file.seek(0)
        read_trees(pq.read_table(file), "memory")
    return size


def _resident_bytes() -> int:
    """Of this process; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * resource.getpagesize()


# ---- sizes side by side ---------------------------------------------------------------------------------------------


def measure(*, quick: bool = False) -> dict[str, Any]:
    """Every size in both shapes, and for each stage the exponent of its growth: 1 is linear, 2 quadratic."""
    sizes = QUICK_SIZES if quick else SIZES
    cases: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, max_tasks_per_child=1, mp_context=context) as fresh:
        for shape in SHAPES:
            cases += fresh.map(step_of, sizes, [shape] * len(sizes))
    return {
        "cases": cases,
        "exponents": {shape: _exponents([c for c in cases if c["shape"] == shape]) for shape in SHAPES},
        "about": environment_facts(),
    }


def _exponents(cases: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Slope of log seconds over log nodes, by stage; from the two largest sizes, for small ones are constant costs."""
    small, large = cases[-2:]
    over = math.log(large["nodes"] / small["nodes"])
    return {
        stage: math.log(max(seconds, 1e-6) / max(small["seconds"][stage], 1e-6)) / over
        for stage, seconds in large["seconds"].items()
    }


def page(found: Mapping[str, Any]) -> str:
    """The measurement as Markdown."""
    lines = ["# A step of a million nodes", "", *(__doc__ or "").strip().splitlines(), ""]
    for shape, exponents in found["exponents"].items():
        cases = [case for case in found["cases"] if case["shape"] == shape]
        sizes = " | ".join(f"{case['nodes']:,} nodes" for case in cases)
        lines += [f"## {shape.capitalize()}: microseconds of CPU per node", ""]
        lines += [f"| stage | {sizes} | exponent |", "|---|" + "---|" * (len(cases) + 1)]
        for stage, exponent in exponents.items():
            cells = (1e6 * case["seconds"][stage] / case["nodes"] for case in cases)
            lines.append(f"| {stage} | {' | '.join(f'{cell:.2f}' for cell in cells)} | {exponent:.2f} |")
        for name, key in (("resident", "resident_bytes"), ("file (zstd Parquet)", "file_bytes")):
            cells = (case[key] / case["nodes"] for case in cases)
            lines.append(f"| *{name}, bytes per node* | {' | '.join(f'{cell:,.0f}' for cell in cells)} | |")
        lines.append("")
    lines += [
        "The exponent is the slope of log seconds over log nodes between the two largest sizes: 1 is linear, 2 quadratic.",
        f"A node holds {SAMPLED} sampled tokens and, unless it ends an episode, {SHOWN} of an observation and a snapshot.",
        "",
        "Machine and versions: " + ", ".join(f"{k} {v}" for k, v in found["about"].items()),
    ]
    return "\n".join(lines) + "\n"
