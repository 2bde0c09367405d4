"""Every allocation and credit rule on Relay, where success is known exactly: arms x ten paired seeds at equal sampled tokens.

    python -m trace_gym.benchmarks.trace_relay --out runs/trace-relay           tunes, runs what is missing

A seed draws a world (kinds, stations, the right actions, the initial policy) and every random stream; arms of a seed share it
all. The learning rate of each arm is the best of one small grid by mean area under the curve on other seeds. Success is the
exact success of the policy over all kinds, not a sample, so differences carry no evaluation noise. The rules with
`treepo_plain` credit were thought of after the first ten worlds had been looked at, so `AGAIN` runs them, and what they are
compared with, on ten others.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from trace_gym.benchmarks.cells import Cell, area, read_cells, run_cells

__all__ = ["AGAIN", "ARMS", "BUDGET", "CONTROLS", "MIXES", "RATES", "cells", "tuned"]

BUDGET = 6_000  # sampled tokens: one each turn
RATES = (0.2, 0.4, 0.8, 1.6, 3.2)
SEEDS = tuple(range(10))
FRESH_SEEDS = tuple(range(10, 20))
TUNING_SEEDS = (100, 101)
MIXES = ("broad", "hard")
CONTROLS = (
    "medium",
    "never",
    "first",
    "last",
)  # difficulty mixes where choosing should not help, or help in one way only
COMMON = (
    "policy.path=tabular",
    "env.id=trace_gym/Relay-v0",
    "env.options.kinds=32",
    f"budget.policy_tokens={BUDGET}",
    "eval.tasks=0",
    "log.trees_every_steps=0",
    "log.checkpoint_every_steps=0",
    "log.tensorboard=false",
)
# prompts a step, for 64 rollout units: the others take 8
PROMPTS = {"tree_grpo": 13, "treepo": 13, "treepo-grouped": 13, "bpo": 12, "arpo": 11}
EDGES = ("group=8", "advantage=edge", "weights=path")
SUBGROUPS = ("advantage=treepo_plain", "weights=leaf")
# 64 rollout units a step, as grpo's eight groups of eight
STAGES = ("selection=greedy", "prefix_stage=active", "continuations=2")
TRACE = ("name=trace", "pool=64", "rollouts=32", *STAGES, *EDGES, "width=32")
ROOTS = ("name=trace", "pool=64", "rollouts=64", "selection=greedy", "prefix_stage=off", *EDGES, "width=32")
PAIRS = (
    *("name=trace", "pool=64", "rollouts=26", "group=2", "continuations=3", "width=32"),
    *("selection=sample", "prefix_stage=active"),
)  # pairs of rollouts of many prompts, each continued three times
ARMS: Mapping[str, tuple[str, ...]] = {
    "grpo": ("name=grpo",),
    "loo": ("name=grpo", "advantage=loo", "scale=none"),
    "grpo-plain": ("name=grpo", "advantage=treepo_plain", "scale=none"),
    "grpo-edge": ("name=grpo", "advantage=edge", "scale=none"),
    "rloo": ("name=rloo",),
    "gigpo": ("name=gigpo",),
    "dapo": ("name=dapo", "pool=64", "prompts=4"),
    "pcl": ("name=pcl", "pool=64", "width=32"),
    "tree_grpo": ("name=tree_grpo",),
    "treepo": ("name=treepo",),
    "treepo-grouped": ("name=treepo", "average=grouped"),
    "arpo": ("name=arpo",),
    "bpo": ("name=bpo",),
    "trace": TRACE,
    "trace-leaf": (*TRACE, "target=leaf", "epsilon=0"),
    "root-only": ROOTS,
    "root-group": (*ROOTS, "selection=group"),
    "root-sample": (*ROOTS, "selection=sample"),
    "prefix-only": (*TRACE, "root_stage=uniform"),
    "random-prefixes": (*TRACE, "prefix_stage=uniform"),
    "trace-uniform": (*TRACE, "root_stage=uniform", "prefix_stage=uniform", "group=3"),
    "uniform-uniform": (*TRACE, "root_stage=uniform", "prefix_stage=uniform"),
    "sibling": (*TRACE, "root_stage=uniform", "prefix_stage=uniform", "advantage=sibling"),
    "joint": (*TRACE, "budget_rule=joint"),
    "trace-subgroups": (*TRACE, *SUBGROUPS),
    "trace-leaf-mean": (*TRACE, "advantage=leaf_mean", "weights=leaf"),
    "joint-prior-1": (*TRACE, "budget_rule=joint", "prior_rollouts=1"),
    "joint-subgroups": (*TRACE, "budget_rule=joint", *SUBGROUPS),
    "pairs": (*PAIRS, *SUBGROUPS),
    "pairs-edge": (*PAIRS, "advantage=edge", "weights=path"),
    "pairs-edge-leaf": (*PAIRS, "advantage=edge", "weights=leaf"),
    "pairs-path": (*PAIRS, "advantage=treepo_plain", "weights=path"),
    "pairs-grouped": (*PAIRS, "advantage=treepo_grouped", "weights=leaf"),
    "pairs-random": (*PAIRS, *SUBGROUPS, "prefix_stage=uniform"),
    "pairs-uniform": (*PAIRS, *SUBGROUPS, "root_stage=uniform", "prefix_stage=uniform"),
    "trace-oracle": (*TRACE, "predictor=oracle"),
    "root-oracle": (*ROOTS, "predictor=oracle"),
    "joint-oracle": (*TRACE, "budget_rule=joint", "predictor=oracle"),
    "root-group-oracle": (*ROOTS, "selection=group", "predictor=oracle"),
    "root-sample-oracle": (*ROOTS, "selection=sample", "predictor=oracle"),
    "pairs-oracle": (*PAIRS, *SUBGROUPS, "predictor=oracle"),
    "trace-ensemble": (*TRACE, "predictor=ensemble"),
    "trace-beta": (*TRACE, "predictor=beta"),
    "trace-constant": (*TRACE, "predictor=constant"),
    "trace-shuffled": (*TRACE, "predictor=shuffled"),
    "trace-inverted": (*TRACE, "predictor=inverted"),
}


PICTURED = (
    "grpo",
    "tree_grpo",
    "treepo",
    "trace",
    "root-only",
    "root-sample",
    "joint",
    "pairs",
    "trace-oracle",
    "pairs-oracle",
)
HARD = (
    *("grpo", "pcl", "tree_grpo", "treepo", "trace", "root-only", "root-sample", "joint", "trace-oracle"),
    *("trace-subgroups", "pairs", "pairs-grouped", "pairs-uniform", "pairs-oracle"),
)
ORACLES = (
    ("trace", "trace-oracle", "trace-uniform"),
    ("root-only", "root-oracle", "grpo-edge"),
    ("root-group", "root-group-oracle", "grpo-edge"),
    ("root-sample", "root-sample-oracle", "grpo-edge"),
    ("joint", "joint-oracle", "trace-uniform"),
    ("pairs", "pairs-oracle", "pairs-uniform"),
)  # a rule, the same with the exact predictor, the same without any: what prediction is worth
CONTRASTS = (
    ("pairs", "pairs-edge"),
    ("pairs", "pairs-edge-leaf"),
    ("pairs", "pairs-path"),
    ("pairs", "pairs-random"),
    ("pairs", "pairs-uniform"),
    ("pairs", "pairs-grouped"),
    ("pairs", "treepo"),
    ("pairs-uniform", "treepo"),
    ("pairs-oracle", "pairs"),
    ("trace", "trace-uniform"),
    ("trace", "trace-constant"),
    ("trace-subgroups", "trace"),
    ("trace-subgroups", "trace-leaf-mean"),
    ("treepo", "treepo-grouped"),
    ("grpo-plain", "grpo"),
)
AGAIN = ("grpo", "treepo", "root-sample", "trace", "pairs", "pairs-random", "pairs-uniform", "pairs-oracle")
CONTROLLED = ("grpo", "trace", "root-only", "pairs")  # arms that run on the control mixes


def cells(
    arms: Sequence[str], mixes: Sequence[str], seeds: Sequence[int], rate: Mapping[str, float]
) -> list[Cell]:
    """Seed by seed, so that an interrupted comparison is still paired."""
    return [
        Cell(
            f"{mix}/{arm}/lr-{rate[arm]:g}",
            seed,
            (
                *COMMON,
                f"env.options.mix={mix}",
                f"env.options.world={seed}",
                f"optim.lr={rate[arm]}",
                f"rollout.prompts_per_step={PROMPTS.get(arm, 8)}",
                *(f"algorithm.{setting}" for setting in ARMS[arm]),
            ),
            greedy=False,
        )
        for seed in seeds
        for mix in mixes
        for arm in arms
    ]


def tuned(arms: Sequence[str], out: Path, *, workers: int, mix: str = "broad") -> dict[str, float]:
    """The learning rate of each arm with the largest mean area on the tuning seeds; ties go to the smaller."""
    grid = [cell for rate in RATES for cell in cells(arms, [mix], TUNING_SEEDS, dict.fromkeys(arms, rate))]
    run_cells(grid, out, workers=workers, batch=len(TUNING_SEEDS) * 4)
    best = {}
    for arm in arms:
        areas = []
        for rate in RATES:
            found = read_cells(cells([arm], [mix], TUNING_SEEDS, {arm: rate}), out)
            areas.append(float(np.mean([area(r, BUDGET) for r in found if not r.error] or [-1.0])))
        best[arm] = RATES[int(np.argmax(areas))]
    return best


def main() -> None:
    """Tune, then run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/trace-relay"))
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    rate = tuned(tuple(ARMS), asked.out, workers=asked.workers)
    print("learning rates: " + ", ".join(f"{arm} {lr:g}" for arm, lr in rate.items()), flush=True)
    todo = cells(tuple(ARMS), ["broad"], SEEDS, rate)
    todo += cells(HARD, ["hard"], SEEDS, rate)
    todo += cells(CONTROLLED, CONTROLS, SEEDS, rate)
    todo += cells(AGAIN, ["broad"], FRESH_SEEDS, rate)
    run_cells(todo, asked.out, workers=asked.workers, batch=20, say=lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
