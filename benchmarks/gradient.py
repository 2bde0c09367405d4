"""The whole policy gradient that each credit rule gives, every turn of it, against Relay's exact one.

    python -m trace_gym.benchmarks.gradient            mode x weights x expansion, as a table

Trees are grown by the real loop and turned into a gradient by the real packing and loss, without clipping and with a constant
normaliser; the mean over trees is compared with the gradient of the success probability, turn by turn:

    ratio at station t = <estimate, exact> / <exact, exact>   over the table's entries of that station

1 is unbiased; 0 teaches nothing there. What a step makes of a rule is its direction, bias and noise together:

    cosine = <estimate, exact> / (|estimate| |exact|) over all stations, mean over steps
    taught = share of the turns paid for whose advantage is not 0

Expansions: none; uniform, continuations of prefixes drawn at random; active, TRACE's
own with an oracle predictor, whose choice depends on the outcomes seen.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch

from trace_gym.actor import Actor, build_actor
from trace_gym.algorithm import RunContext, StepContext
from trace_gym.algorithms.credit import CreditMode, NodeWeights, credit_trees
from trace_gym.algorithms.trace import TRACE
from trace_gym.config import load_config
from trace_gym.exact import policy_gradient
from trace_gym.ledger import Budget, Ledger
from trace_gym.oracle import make_oracle
from trace_gym.pack import flatten
from trace_gym.policy import Policy, TensorBatch
from trace_gym.rollout import grow_trees, plant_trees
from trace_gym.runs import environment_facts

__all__ = ["DEPTH", "EXPANSIONS", "RULES", "Measured", "Rule", "Testbed", "ratios"]

Floats = npt.NDArray[np.float64]
Expansion = Literal["none", "uniform", "active"]
EXPANSIONS: tuple[Expansion, ...] = get_args(Expansion)
Rule = tuple[CreditMode, NodeWeights]
RULES: tuple[Rule, ...] = tuple(itertools.product(get_args(CreditMode), get_args(NodeWeights)))
DEPTH = 3


class Measured(NamedTuple):
    """How a rule's gradient compares with the exact one."""

    ratio: Floats  # [DEPTH] by station
    error: Floats  # [DEPTH] its standard error over steps
    cosine: float  # of a step's whole gradient, mean over steps; 0 for a step without any
    taught: float  # share of turns with an advantage other than 0


@dataclass(slots=True)
class Testbed:
    """One kind of runner, `DEPTH` stations with dead ends, and the policy that the table starts with."""

    success: float = 0.3
    rollouts: int = 4  # of each tree from the prompt
    continuations: int = 2  # per rollout
    seed: int = 0

    def actor(self) -> Actor:
        """Relay with one kind, so that the pool's tasks are independent repetitions."""
        options = (
            f"{{kinds: 1, depth: {DEPTH}, slack: 1, actions: 3, mix: {{'{self.success}': 1}}, world: 3}}"
        )
        return build_actor(
            load_config(None, ["policy.path=tabular", "env.id=trace_gym/Relay-v0", f"env.options={options}"]),
            learns=True,
        )

    def trees(self, actor: Actor, expansion: Expansion, step: int, count: int) -> StepContext:
        """`count` trees of the same prompt, every stream keyed by `step`."""
        config = load_config(None, ["policy.path=tabular", "env.id=trace_gym/Relay-v0"])
        tasks = actor.env.tasks("train")[:count]
        run, ledger = RunContext(seed=self.seed, tasks=tasks), Ledger()
        ctx = plant_trees(actor.env, tasks, actor.renderer, run, step, Budget())
        ctx.oracle = make_oracle(config, actor).of(ctx, ledger)
        algorithm = TRACE(
            pool=count,
            rollouts=self.rollouts * count,
            group=self.rollouts,
            continuations=self.continuations,
            root_stage="uniform",
            prefix_stage="off" if expansion == "none" else expansion,
            predictor="oracle",
            warmup_steps=0,
        )
        return grow_trees(
            algorithm,
            ctx,
            engine=actor.engine,
            renderer=actor.renderer,
            env=actor.env,
            settings=actor.settings,
            ledger=ledger,
        )


def gradient(actor: Actor, ctx: StepContext, mode: CreditMode, weights: NodeWeights) -> tuple[Floats, float]:
    """[S, A] ascent direction of the step's loss, per tree, by the real packing, log-probs and loss; share of taught turns."""
    algorithm = TRACE(clip_low=1e9, clip_high=1e9, mismatch_cap=0.0, predictor="constant")
    credits = credit_trees(ctx.trees, mode=mode, weights=weights, scale="none")
    turns = sum(len(tree) - 1 for tree in ctx.trees.values())
    taught = sum(int((np.nan_to_num(c.advantage[1:]) != 0).sum()) for c in credits.values()) / turns
    share = {
        task: np.where(np.isnan(c.advantage), 0.0, c.weight) / len(ctx.trees) for task, c in credits.items()
    }
    rows = flatten(ctx.trees, credits, share)
    model = actor.model
    model.zero_grad(set_to_none=True)
    if rows:
        batch = TensorBatch.of(rows, torch.device("cpu"))
        loss, _ = algorithm.loss(Policy(model).logprobs(batch.tokens, batch.weight > 0), batch)
        loss.backward()
    grad = model.logits.grad
    return np.zeros(tuple(model.logits.shape)) if grad is None else -grad.numpy().astype(np.float64), taught


def ratios(
    bed: Testbed, expansion: Expansion, *, steps: int, trees: int, rules: Sequence[Rule] = RULES
) -> dict[Rule, Measured]:
    """Every rule's gradient beside the exact one, over `steps` steps of `trees` trees, the same for all rules."""
    actor = bed.actor()
    spec = actor.model.spec
    exact = policy_gradient(spec, spec.initial_logits)[
        :DEPTH
    ]  # the one kind's stations; then comes its dead end
    found: dict[Rule, list[Floats]] = {rule: [] for rule in rules}
    cosines: dict[Rule, list[float]] = {rule: [] for rule in rules}
    shares: dict[Rule, list[float]] = {rule: [] for rule in rules}
    for step in range(steps):
        ctx = bed.trees(actor, expansion, step, trees)
        for mode, weights in rules:
            whole, taught = gradient(actor, ctx, mode, weights)
            estimate = whole[:DEPTH]
            found[mode, weights].append((estimate * exact).sum(-1) / (exact * exact).sum(-1))
            length = float(np.linalg.norm(estimate) * np.linalg.norm(exact))
            shares[mode, weights].append(taught)
            cosines[mode, weights].append(float((estimate * exact).sum()) / length if length else 0.0)
    return {
        rule: Measured(
            np.mean(values, axis=0),
            np.std(values, axis=0, ddof=1) / np.sqrt(steps),
            float(np.mean(cosines[rule])),
            float(np.mean(shares[rule])),
        )
        for rule, values in found.items()
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--trees", type=int, default=64, help="per step")
    arguments = parser.parse_args()
    bed = Testbed()
    print(
        f"Exact success {bed.success}, {DEPTH} stations, {bed.rollouts} rollouts a tree, {bed.continuations} continuations"
        f" a rollout, {arguments.steps * arguments.trees} trees an expansion. Ratio to the exact gradient ± standard error.\n"
    )
    heads = [
        [*(f"{e}: station {t + 1}" for t in range(DEPTH)), f"{e}: cosine", f"{e}: taught"] for e in EXPANSIONS
    ]
    print("| advantage | weights | " + " | ".join(name for head in heads for name in head) + " |")
    print("|---|---|" + "---|" * sum(map(len, heads)))
    columns = [ratios(bed, e, steps=arguments.steps, trees=arguments.trees) for e in EXPANSIONS]
    for rule in columns[0]:
        cells = []
        for measured in (column[rule] for column in columns):
            cells += [f"{m:.2f} ± {s:.2f}" for m, s in zip(measured.ratio, measured.error, strict=True)]
            cells += [f"{measured.cosine:.3f}", f"{measured.taught:.2f}"]
        print(f"| {rule[0]} | {rule[1]} | " + " | ".join(cells) + " |")
    print("\n" + ", ".join(f"{k} {v}" for k, v in environment_facts().items()))


if __name__ == "__main__":
    main()
