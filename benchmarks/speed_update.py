"""Seconds and memory of a policy update, packed beside flat, on trees whose rollouts share more or less of their history.

    python -m trace_gym.benchmarks.speed_update --out benchmarks/results/speed

An update here is old rows in, gradients out: forward, loss, backward. Both layouts get the same rows and try the same
micro-batch sizes; of each the fastest counts. Seconds are those of the process's CPU on one thread (medians, the two
layouts in turn), for those of a clock mean little on a machine that does other things too. What to expect is the FLOP
ratio: multiplications of the linear maps, of attention between pairs that see each other, and of the output head where it
is read, counted from the model's shapes for each layout, padding left out. Peak memory is that of a process of its own that
takes every row in one pass, above what it held before.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch

from trace_gym.algorithm import Credit
from trace_gym.algorithms.grpo import GRPO
from trace_gym.benchmarks.speed import write_page
from trace_gym.benchmarks.speed_engine import tiny_llama
from trace_gym.models import is_cached, resolve
from trace_gym.pack import Row, flatten, pack
from trace_gym.policy import Policy, TensorBatch
from trace_gym.runs import environment_facts
from trace_gym.tiny import load_policy_folder
from trace_gym.tree import Node, Tree

__all__ = ["main", "measure", "page"]

SMOLLM2 = "smollm2-135m"
LEAVES = 16
RATIOS, DEPTHS = (1, 2, 4, 8), (1, 3, 6)
AIM, AIM_OF_CHAINS = 0.8, 0.95  # share of the FLOP ratio; at ratio 1
Layout = Literal["flat", "packed"]
LAYOUTS: tuple[Layout, ...] = ("flat", "packed")
Cell = dict[str, float]


def grow(depth: int, ratio: int, length: int, vocabulary: int) -> dict[str, Tree]:
    """One tree of 16 rollouts of about `length` tokens and `depth` turns, whose paths hold `ratio` times its tokens.

    Ratio 1 is 16 chains that share nothing. Two thirds of a turn are sampled; turns differ in length by up to a quarter.
    """
    rng = np.random.default_rng((depth, ratio))
    fans = _fans(depth, ratio)
    if ratio == 1:
        turn = 0.75 * length / depth
    else:
        turn = (LEAVES / ratio - 1) * length / (sum(np.cumprod(fans)) - depth)
    prompt = max(1, round(length - depth * turn))
    trees: dict[str, Tree] = {}
    for number in range(LEAVES if ratio == 1 else 1):
        tree = Tree(str(number), [Node.prompt(_tokens(rng, prompt, vocabulary), "", None)])
        level = [0]
        for fan in fans:
            level = [
                tree.append(_turn(rng, parent, turn, vocabulary)) for parent in level for _ in range(fan)
            ]
        trees[tree.task_id] = tree
    return trees


def _fans(depth: int, ratio: int) -> list[int]:
    """How many turns follow each turn, level by level: 16 leaves in all, forks late where much is shared."""
    if ratio == 1:
        return [1] * depth
    if depth == 1:
        return [LEAVES]
    if ratio == 2:
        return [8, *[1] * (depth - 2), 2]
    return {3: [4, 2, 2], 6: [2, 2, 1, 1, 2, 2]}[depth]


def _turn(rng: np.random.Generator, parent: int, length: float, vocabulary: int) -> Node:
    tokens = _tokens(rng, max(2, round(length * rng.uniform(0.75, 1.25))), vocabulary)
    sampled = max(1, 2 * len(tokens) // 3)
    logprobs = np.full(sampled, -1.0, dtype=np.float32)
    bare = Node.prompt(tokens, "", None)
    return replace(bare, parent=parent, n_action=sampled, logprobs=logprobs, origin="root")


def _tokens(rng: np.random.Generator, n: int, vocabulary: int) -> Any:
    return rng.integers(1, vocabulary, n).astype(np.int32)


def rows_of(trees: Mapping[str, Tree]) -> list[Row]:
    credits = {
        task: Credit(np.resize([1.0, -1.0], len(tree)), np.ones(len(tree))) for task, tree in trees.items()
    }
    return flatten(trees, credits, {task: c.weight for task, c in credits.items()})


# ---- what to expect -------------------------------------------------------------------------------------------------


def flops(model: Any, rows: Sequence[Row]) -> dict[Layout, float]:
    """Of forward and backward pass (three times the forward's), without padding."""
    used = [row.tokens[: np.flatnonzero(row.weight)[-1]] for row in rows]
    packed = pack(used)
    read = [np.flatnonzero(row.weight) - 1 for row in rows]
    at = {int(p) for path, places in zip(packed.paths, read, strict=True) for p in path[places]}
    depths = np.concatenate([np.arange(len(tokens)) for tokens in used])
    return {
        "flat": _flops(model, depths, sum(len(places) for places in read)),
        "packed": _flops(model, packed.position, len(at)),
    }


def _flops(model: Any, depths: Any, read: int) -> float:
    head = model.get_output_embeddings()
    linear = sum(
        m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head
    )
    config = model.config
    width = config.num_attention_heads * getattr(
        config, "head_dim", config.hidden_size // config.num_attention_heads
    )
    pairs = float(np.sum(depths + 1))
    forward = 2.0 * linear * len(depths) + 4.0 * width * config.num_hidden_layers * pairs
    return float(3.0 * (forward + 2.0 * head.weight.numel() * read))


# ---- measuring ------------------------------------------------------------------------------------------------------


def load(name: str) -> Any:
    model = tiny_llama() if name == "tiny" else load_policy_folder(resolve(name))[0]
    return model.float().eval()


def update(policy: Policy, rows: Sequence[Row], micro_batch_tokens: int) -> None:
    """One accumulation of gradients over `rows`."""
    policy.model.zero_grad()
    for group in policy.micro_batches(rows, micro_batch_tokens):
        batch = TensorBatch.of([rows[i] for i in group], policy.device)
        loss, _ = GRPO().loss(policy.logprobs(batch.tokens, batch.weight > 0), batch)
        loss.backward()


def seconds(
    policies: Mapping[Layout, Policy], rows: Sequence[Row], sizes: Sequence[int], repeats: int
) -> dict[Layout, tuple[float, int]]:
    """For each layout the best of the sizes' medians, and that size."""
    found: dict[tuple[Layout, int], list[float]] = {}
    for _ in range(repeats):
        for size in sizes:
            for layout in LAYOUTS:
                start = time.process_time()
                update(policies[layout], rows, size)
                found.setdefault((layout, size), []).append(time.process_time() - start)
    return {
        layout: min((median(times), size) for (own, size), times in found.items() if own == layout)
        for layout in LAYOUTS
    }


def cells(
    name: str, grid: Sequence[tuple[int, int]], length: int, sizes: Sequence[int], repeats: int
) -> Iterator[Cell]:
    model = load(name)
    policies = {layout: Policy(model, layout=layout) for layout in LAYOUTS}
    for depth, ratio in grid:
        rows = rows_of(grow(depth, ratio, length, model.config.vocab_size))
        for policy in policies.values():
            update(policy, rows[:1], 10**9)  # whatever happens the first time only
        expected, took = flops(model, rows), seconds(policies, rows, sizes, repeats)
        flat_tokens = sum(len(row) for row in rows)
        yield {
            "depth": depth,
            "flat_tokens": flat_tokens,
            "packed_tokens": len(pack([row.tokens for row in rows])),
            "token_ratio": flat_tokens / len(pack([row.tokens for row in rows])),
            "flop_ratio": expected["flat"] / expected["packed"],
            "aimed_ratio": ratio,
            **{f"{layout}_s": took[layout][0] for layout in LAYOUTS},
            **{f"{layout}_micro_batch_tokens": took[layout][1] for layout in LAYOUTS},
            "flat_gflops_per_s": expected["flat"] / took["flat"][0] / 1e9,
            "packed_gflops_per_s": expected["packed"] / took["packed"][0] / 1e9,
        }


def peak_mb(name: str, layout: Layout, depth: int, ratio: int, length: int) -> float:
    """MB above what was held before, measured in a process of its own; nan where the system does not say."""
    arguments = ("--peak", name, layout, str(depth), str(ratio), str(length))
    done = subprocess.run(
        [sys.executable, "-m", "trace_gym.benchmarks.speed_update", *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout.split()[-1])


def _peak_here(name: str, layout: Layout, depth: int, ratio: int, length: int) -> float:
    torch.set_num_threads(1)
    model = load(name)
    policy = Policy(model, layout=layout)
    rows = rows_of(grow(depth, ratio, length, model.config.vocab_size))
    ramp = np.arange(8, dtype=np.float32)
    update(policy, [Row(rows[0].tokens[:8], ramp, ramp, -ramp)], 10**9)  # from here on there are gradients
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return float("nan")
    reset.write_text("5")  # the high-water mark starts at what is held now
    before = _kb(status, "VmRSS")
    update(policy, rows, 10**9)
    return (_kb(status, "VmHWM") - before) / 1e3


def _kb(status: Path, name: str) -> float:
    return float(next(line for line in status.read_text().splitlines() if line.startswith(name)).split()[1])


def measure(*, quick: bool = False) -> dict[str, Any]:
    """Numbers for `page`. SmolLM2-135M takes part where it is in the cache."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plans: dict[str, dict[str, Any]] = {
        "tiny": {
            "grid": [(d, r) for r in RATIOS for d in DEPTHS],
            "length": 256,
            "sizes": (1024, 4096),
            "repeats": 3,
        }
    }
    if is_cached(SMOLLM2) and not quick:
        few = [(3, 1), (3, 2), (3, 4), (3, 8), (1, 4), (6, 4)]
        plans[SMOLLM2] = {"grid": few, "length": 80, "sizes": (320, 1280), "repeats": 1}
    if quick:
        plans["tiny"] |= {"grid": [(1, 2), (3, 4)], "length": 64, "sizes": (1024,), "repeats": 1}
    try:
        found: dict[str, Any] = {"about": environment_facts(), "models": {}}
        for name, plan in plans.items():
            done = list(cells(name, **plan))
            for cell in done:
                if not quick and cell["depth"] == 3 and (name == "tiny" or cell["aimed_ratio"] == 4):
                    place = (int(cell["depth"]), int(cell["aimed_ratio"]), plan["length"])
                    cell |= {f"{layout}_peak_mb": peak_mb(name, layout, *place) for layout in LAYOUTS}
            found["models"][name] = done
        return found
    finally:
        torch.set_num_threads(threads)


# ---- telling it -----------------------------------------------------------------------------------------------------

HEAD = (
    *("turns", "tokens flat", "packed", "token ratio", "FLOP ratio", "flat s", "packed s", "faster by"),
    *("share of the FLOP ratio", "GFLOP/s flat", "packed", "peak MB flat", "packed"),
)


def page(found: Mapping[str, Any]) -> str:
    """The numbers as Markdown."""
    lines = ["# An update, packed beside flat", "", *(__doc__ or "").strip().splitlines()[2:], ""]
    missed = []
    for name, done in found["models"].items():
        lines += [f"## {name}", "", f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
        for cell in done:
            faster = cell["flat_s"] / cell["packed_s"]
            share = faster / cell["flop_ratio"]
            lines.append(f"| {' | '.join(_cells(cell, faster, share))} |")
            aim = AIM_OF_CHAINS if cell["aimed_ratio"] == 1 else AIM
            if share < aim:
                missed.append(
                    f"{name}, {cell['depth']} turns, token ratio {cell['token_ratio']:.1f}: {share:.2f} < {aim}"
                )
        lines.append("")
    lines.append(f"Aims: {AIM_OF_CHAINS} of flat's speed at ratio 1, {AIM} of the FLOP ratio above.")
    lines += ["Missed: " + "; ".join(missed) + "." if missed else "All met."]
    lines += ["", "Machine and versions: " + ", ".join(f"{k} {v}" for k, v in found["about"].items())]
    return "\n".join(lines) + "\n"


def _cells(cell: Cell, faster: float, share: float) -> list[str]:
    times = [f"{cell[f'{x}_s']:.3f} ({cell[f'{x}_micro_batch_tokens']})" for x in LAYOUTS]
    peaks = [f"{cell[f'{x}_peak_mb']:.0f}" if f"{x}_peak_mb" in cell else "" for x in LAYOUTS]
    speeds = [f"{cell[f'{x}_gflops_per_s']:.1f}" for x in LAYOUTS]
    ratios = [f"{cell[x]:.2f}" for x in ("token_ratio", "flop_ratio")]
    tokens = [str(cell[f"{x}_tokens"]) for x in LAYOUTS]
    return [str(cell["depth"]), *tokens, *ratios, *times, f"{faster:.2f}", f"{share:.2f}", *speeds, *peaks]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for update.md and update.json")
    parser.add_argument(
        "--quick", action="store_true", help="a look at the machinery; the numbers mean nothing"
    )
    parser.add_argument("--peak", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.peak:
        name, layout, *place = given.peak
        depth, ratio, length = (int(x) for x in place)
        print(_peak_here(name, layout, depth, ratio, length))
        return
    found = measure(quick=given.quick)
    text = page(found)
    if given.out:
        write_page(given.out, "update", found, text)
    print(text)


if __name__ == "__main__":
    main()
