"""Seconds of an update beside TRL's: the same model, the same chains and, for us, the tree that they were forked in.

TRL needs an environment of its own: `trl_judge` says how to make it. In it, at the top of a checkout,

    trlvenv/bin/python -m trace_gym.benchmarks.speed_trl --out benchmarks/results/speed

Theirs: `compute_loss` of `GRPOTrainer` (its DAPO loss, no adapters, no KL term) and the backward pass, on inputs that its
own methods made of the chains, in whole or in equal parts. Ours: packed rows, `GRPO.loss` and the backward pass. Making
rows and inputs is left out on both sides. Where nothing is shared, both do the same work, and their losses are compared
(TRL adds 1e-4 to the spread that rewards are divided by, we add 1e-6). Where chains were forked in a tree, TRL computes
every chain, for it knows nothing else, and the FLOP ratio (flat rows to packed ones, as in `speed_update`) says what we
should gain at least. Seconds are CPU seconds of one thread (medians, the two in turn); of several sizes of a part the
fastest counts, on either side.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
import trl

from trace_gym.algorithm import RunContext, StepContext
from trace_gym.algorithms.grpo import GRPO
from trace_gym.benchmarks.speed import write_page
from trace_gym.benchmarks.speed_update import AIM, LEAVES, flops, grow, load
from trace_gym.benchmarks.trl_judge import TEMPERATURE, Theirs, Variant
from trace_gym.models import is_cached
from trace_gym.pack import Row, flatten, token_weights
from trace_gym.policy import Policy, TensorBatch
from trace_gym.runs import environment_facts
from trace_gym.tiny import make_tokenizer
from trace_gym.tree import Tree

__all__ = ["main", "measure", "page"]

SMOLLM2 = "smollm2-135m"
AGREE = 1e-3  # of the loss's terms, where both do the same work
VARIANT = Variant("dapo")
ALGORITHM = GRPO(group=LEAVES, normalise="token", mismatch_cap=0.0)  # no engine's log-probs on either side


def group_of(depth: int, ratio: int, length: int, vocabulary: int) -> dict[str, Tree]:
    """A group of 16 scored rollouts of one task: the benchmark's tree, or 16 one-turn chains that share their prompt alone."""
    trees = grow(depth, ratio, length, vocabulary)
    if ratio == 1:  # TRL's groups have one prompt; a token of it is all that is shared
        whole = Tree("0", [replace(trees["0"][0], tokens=np.array([1], dtype=np.int32))])
        for tree in trees.values():
            parent = 0
            for node in tree.nodes[1:]:
                parent = whole.append(replace(node, parent=parent))
        trees = {"0": whole}
    rng = np.random.default_rng(0)
    for tree in trees.values():
        for leaf in tree.leaves():
            node = tree[leaf]  # ends as rollouts do, without an observation
            cut = node.tokens[: node.n_action]
            tree.nodes[leaf] = replace(node, tokens=cut, status="done", reward=float(rng.integers(2)))
    return trees


def rows_of(trees: Mapping[str, Tree]) -> list[Row]:
    credits = ALGORITHM.credit(StepContext(RunContext(seed=0, tasks=tuple(trees)), 0, dict(trees)))
    return flatten(trees, credits, token_weights(trees, credits, "token"))


class Ours:
    def __init__(self, policy: Policy, rows: Sequence[Row]) -> None:
        self.policy, self.rows, self.loss = policy, rows, 0.0

    def batches(self, micro_batch_tokens: int) -> list[TensorBatch]:
        groups = self.policy.micro_batches(self.rows, micro_batch_tokens)
        return [TensorBatch.of([self.rows[i] for i in group], self.policy.device) for group in groups]

    def update(self, batches: Sequence[TensorBatch]) -> None:
        self.policy.model.zero_grad()
        self.loss = 0.0
        for batch in batches:
            loss, _ = ALGORITHM.loss(self.policy.logprobs(batch.tokens, batch.weight > 0), batch)
            loss.backward()
            self.loss += float(loss.detach())


class InParts:
    """TRL's trainer on equal parts of its inputs."""

    def __init__(self, theirs: Theirs) -> None:
        self.theirs, self.loss = theirs, 0.0

    def parts(self, number: int) -> list[dict[str, Any]]:
        inputs, size = self.theirs.inputs, LEAVES // number
        return [
            {
                k: v[i : i + size] if torch.is_tensor(v) and v.dim() and len(v) == LEAVES else v
                for k, v in inputs.items()
            }
            for i in range(0, LEAVES, size)
        ]

    def update(self, parts: Sequence[Mapping[str, Any]]) -> None:
        self.theirs.model.zero_grad()
        self.loss = 0.0
        for part in parts:
            loss = self.theirs.trainer.compute_loss(self.theirs.model, part)
            loss.backward()
            self.loss += float(loss.detach())


def compare(
    name: str,
    depth: int,
    ratio: int,
    length: int,
    repeats: int,
    *,
    tokenizer: Any,
    out: Path,
) -> dict[str, float]:
    mine, yours = load(name), load(name)
    trees = group_of(depth, ratio, length, min(261, mine.config.vocab_size))
    rows = rows_of(trees)
    ours = Ours(Policy(mine, temperature=TEMPERATURE), rows)
    theirs = InParts(Theirs(yours, tokenizer, trees, VARIANT, out=out, group=LEAVES, max_tokens=4 * length))
    expected = flops(mine, rows)
    runs: dict[tuple[str, int], Callable[[], None]] = {}
    for size in (length * 4, length * LEAVES * 2):
        runs["ours", size] = partial(ours.update, ours.batches(size))
    for number in (1, 4):
        runs["theirs", number] = partial(theirs.update, theirs.parts(number))
    took: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
    for _ in range(repeats):
        for key, run in runs.items():
            start = time.process_time()
            run()
            took[key].append(time.process_time() - start)
    best = {
        side: min(median(t) for (who, _), t in took.items() if who == side) for side in ("ours", "theirs")
    }
    runs["theirs", 1]()
    mass = sum(float((row.weight * np.abs(row.advantage)).sum()) for row in rows)
    return {
        "depth": depth,
        "ratio": ratio,
        "flop_ratio": expected["flat"] / expected["packed"],
        "ours_s": best["ours"],
        "theirs_s": best["theirs"],
        "loss_apart": abs(ours.loss - theirs.loss) / mass if ratio == 1 else float("nan"),
    }


def measure(*, quick: bool = False) -> dict[str, Any]:
    """Numbers for `page`."""
    logging.getLogger("trl").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
    torch.set_num_threads(1)
    tokenizer = make_tokenizer([], vocab_size=261)
    grid = [("tiny", d, r, 256, 3) for d, r in ((1, 1), (3, 1), (1, 4), (3, 2), (3, 4), (3, 8), (6, 4))]
    if is_cached(SMOLLM2):
        grid += [(SMOLLM2, 1, 1, 48, 1), (SMOLLM2, 3, 4, 80, 1)]
    if quick:
        grid = [("tiny", 1, 1, 64, 1), ("tiny", 3, 4, 64, 1)]
    with tempfile.TemporaryDirectory() as out:
        rows = [
            {"model": name, **compare(name, d, r, length, repeats, tokenizer=tokenizer, out=Path(out))}
            for name, d, r, length, repeats in grid
        ]
    about = environment_facts() | {"trl": trl.__version__}
    return {"about": about, "rows": rows}


HEAD = ("model", "turns", "token ratio", "FLOP ratio", "TRL s", "ours s", "faster by", "aim", "losses apart")


def page(found: Mapping[str, Any]) -> str:
    """The numbers as Markdown."""
    lines = ["# An update beside TRL's", "", *(__doc__ or "").strip().splitlines()[2:], ""]
    lines += [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    missed = []
    for row in found["rows"]:
        faster = row["theirs_s"] / row["ours_s"]
        aim = 1.0 if row["ratio"] == 1 else AIM * row["flop_ratio"]
        name = f"{row['model']}, {row['depth']} turns, ratio {row['ratio']}"
        if faster < aim:
            missed.append(f"{name}: {faster:.2f} < {aim:.2f}")
        if row["loss_apart"] > AGREE:
            missed.append(f"{name}: the losses differ")
        apart = "" if row["ratio"] != 1 else f"{row['loss_apart']:.0e}"
        cells = [
            row["model"],
            row["depth"],
            row["ratio"],
            f"{row['flop_ratio']:.2f}",
            f"{row['theirs_s']:.3f}",
        ]
        cells += [f"{row['ours_s']:.3f}", f"{faster:.2f}", f"{aim:.2f}", apart]
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    lines += ["", f"Aims: TRL's speed on chains, {AIM} of the FLOP ratio on trees."]
    lines += ["Missed: " + "; ".join(missed) + "." if missed else "All met."]
    lines += ["", "Machine and versions: " + ", ".join(f"{k} {v}" for k, v in found["about"].items())]
    return "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for trl.md and trl.json")
    parser.add_argument(
        "--quick", action="store_true", help="a look at the machinery; the numbers mean nothing"
    )
    given = parser.parse_args(words)
    found = measure(quick=given.quick)
    text = page(found)
    if given.out:
        write_page(given.out, "trl", found, text)
    print(text)


if __name__ == "__main__":
    main()
