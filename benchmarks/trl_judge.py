"""TRL as an independent judge: do its GRPO loss and gradient equal ours on the same chains and the same model?

TRL brings dependencies of its own, so it gets a virtual environment of its own, made in a checkout of this project by

    python -m venv trlvenv
    trlvenv/bin/pip install -c constraints-cpu.txt torch==2.13.0 trl==1.16.0 -e '.[train]'

    trlvenv/bin/python -m trace_gym.benchmarks.trl_judge        prints the table; exit status 1 when the two disagree

Both sides get the same chains (our engine samples them from a tiny random Llama) and the same weights in two model objects.
Ours: `GRPO.credit`, `token_weights`, `flatten`, micro-batches of `TensorBatch`, `GRPO.loss`. Theirs: `GRPOTrainer` with a
rollout function that hands over the chains; its own methods pad and mask them, judge the rewards, compute old and reference
log-probs and the loss. None of its code is repeated here, but some of the names used are private: hence the pinned version.

Where advantages are divided by the group's spread TRL adds 1e-4 to it and we add 1e-6, so both losses are fed ours; what the
two make of the rewards is compared on its own. Unscaled advantages (Dr. GRPO) are each side's own all the way.

Our KL term is the GRPO paper's (arXiv 2402.03300, equation 4), which is TRL's with `use_bias_correction_kl=False`. TRL by
default multiplies it by the differentiable ratio (arXiv 2512.02556): another gradient, shown in rows expected to differ.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import torch
import transformers
import trl

from trace_gym.algorithm import Credit, Normalise, RunContext, StepContext
from trace_gym.algorithms.credit import EPSILON
from trace_gym.algorithms.grpo import GRPO
from trace_gym.engine import Request
from trace_gym.engines.transformers import TransformersEngine
from trace_gym.pack import flatten, token_weights
from trace_gym.policy import Policy, TensorBatch, micro_batches
from trace_gym.tiny import load_policy_folder, make_model, make_tokenizer, save
from trace_gym.tree import Node, Tree

__all__ = ["main"]

TOLERANCE = 1e-4
GROUP, MAX_TOKENS, TEMPERATURE, VOCABULARY = 4, 48, 0.8, 261
MICRO_BATCH_TOKENS = 256  # several micro-batches a step
TRL_EPSILON = 1e-4  # what TRL adds to a group's standard deviation
Gradient = dict[str, torch.Tensor]
Numbers = npt.NDArray[np.float64]

# TRL's name of a loss: our name of its normaliser
NORMALISE: dict[str, Normalise] = {"grpo": "sequence", "dr_grpo": "constant", "dapo": "token"}


@dataclass(frozen=True, slots=True)
class Variant:
    """One comparison: TRL's name for the loss and what else is switched on."""

    loss_type: str
    moved: bool = False  # the weights have moved since the old log-probs were taken
    _: KW_ONLY
    kl: float = 0.0
    clip_high: float = 0.2
    turns: int = 1  # at most so many turns a chain
    noise: float = 0.0  # spread of the engine's error in log-probs; above 0 switches TRL's correction on
    default_kl: bool = False  # TRL's default KL term instead of the one in the GRPO paper
    wrong: bool = False  # our normaliser is off by one token on purpose and the judge must see it

    @property
    def name(self) -> str:
        extras = {
            f"beta {self.kl:g}": self.kl > 0,
            f"clip high {self.clip_high:g}": self.clip_high != 0.2,
            "multi-turn": self.turns > 1,
            "engine off": self.noise > 0,
            "TRL's default KL": self.default_kl,
            "ours wrong on purpose": self.wrong,
        }
        shown = [text for text, on in extras.items() if on]
        return ", ".join([self.loss_type, "moved" if self.moved else "fresh", *shown])

    @property
    def scaled(self) -> bool:
        """Whether advantages are divided by the group's spread."""
        return self.loss_type != "dr_grpo"

    @property
    def alike(self) -> bool:
        """Whether the two sides ought to agree."""
        return not (self.wrong or self.default_kl)


VARIANTS = (
    *(Variant(name, moved, kl=kl) for name in NORMALISE for kl in (0.0, 0.1) for moved in (False, True)),
    *(Variant(name, True, kl=0.1, turns=3) for name in NORMALISE),
    Variant("dapo", True, clip_high=0.4),
    Variant("grpo", True, kl=0.1, turns=3, noise=0.5),
    Variant("dr_grpo", True, wrong=True),
    Variant("grpo", False, kl=0.1, default_kl=True),
    Variant("grpo", True, kl=0.1, default_kl=True),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far two losses, two gradients and two sets of advantages lie apart."""

    variant: Variant
    ours: float
    theirs: float
    loss: float
    gradient: float
    advantage: float  # between each side's own
    explained: float  # what is left of it once both add the same epsilon
    clipped: float  # share of tokens, as TRL counts them

    @property
    def agrees(self) -> bool:
        return max(self.loss, self.gradient, self.explained) <= TOLERANCE

    @property
    def passed(self) -> bool:
        return self.agrees == self.variant.alike


# ---- the batch ------------------------------------------------------------------------------------------------------


def rewards_of_groups(rng: np.random.Generator) -> list[list[float]]:
    """0/1 and graded rewards; the first group's are all equal, so that it teaches nothing but counts in the mean."""
    mixed = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]]
    return [[1.0] * GROUP, *mixed, *rng.random((3, GROUP)).tolist()]


def grow_trees(engine: TransformersEngine, variant: Variant, rng: np.random.Generator) -> dict[str, Tree]:
    """Star trees of chains with 1 to `turns` turns; prompts and turns of all lengths."""
    trees: dict[str, Tree] = {}
    for number, rewards in enumerate(rewards_of_groups(rng)):
        prompt = rng.integers(2, VOCABULARY, int(rng.integers(3, 20))).astype(np.int32)
        tree = trees[f"task {number}"] = Tree(f"task {number}", [Node.prompt(prompt, "", None)])
        for reward in rewards:
            parent, turns = 0, int(rng.integers(1, variant.turns + 1))
            for left in range(turns)[::-1]:
                node = next_turn(engine, tree, parent, variant, rng, last=left == 0)
                parent = tree.append(replace(node, reward=reward if left == 0 else 0.0))
    return trees


def next_turn(
    engine: TransformersEngine,
    tree: Tree,
    parent: int,
    variant: Variant,
    rng: np.random.Generator,
    *,
    last: bool,
) -> Node:
    limit, seed = int(rng.integers(1, MAX_TOKENS // variant.turns - 4)), int(rng.integers(2**31))
    engine.submit(Request(tree.tokens(parent), max_tokens=limit, seed=seed, temperature=TEMPERATURE))
    (done,) = engine.poll(60.0)
    shown = rng.integers(2, VOCABULARY, 0 if last else int(rng.integers(1, 5))).astype(np.int32)
    noise = rng.normal(0.0, variant.noise, len(done.tokens)).astype(np.float32)
    return replace(
        Node.prompt(np.concatenate([done.tokens, shown]), "", None),
        parent=parent,
        n_action=len(done.tokens),
        logprobs=done.logprobs + noise,
        status="done" if last else "running",
        origin="root",
    )


def rollout_of(trees: Mapping[str, Tree]) -> dict[str, list[list[Any]]]:
    """The chains as TRL takes them, tree by tree: a completion runs from the end of the prompt to the end of the chain."""
    out: dict[str, list[list[Any]]] = {"prompt_ids": [], "completion_ids": [], "logprobs": [], "env_mask": []}
    for tree in trees.values():
        for leaf in tree.leaves():
            turns = [tree[i] for i in tree.path(leaf)[1:]]
            shown = [(0, len(node.tokens) - node.n_action) for node in turns]
            logprobs = [np.pad(node.logprobs, n) for node, n in zip(turns, shown, strict=True)]
            sampled = [np.pad(np.ones(node.n_action, int), n) for node, n in zip(turns, shown, strict=True)]
            out["prompt_ids"].append(tree[0].tokens.tolist())
            out["completion_ids"].append(np.concatenate([node.tokens for node in turns]).tolist())
            out["logprobs"].append(np.concatenate(logprobs).tolist())
            out["env_mask"].append(np.concatenate(sampled).tolist())
    return out


# ---- the two sides --------------------------------------------------------------------------------------------------


class Ours:
    """Our path from trees to a loss, as a training step takes it."""

    def __init__(
        self, policy: Policy, reference: Policy, trees: Mapping[str, Tree], variant: Variant
    ) -> None:
        self.policy = policy
        self.algorithm = GRPO(
            group=GROUP,
            scale="group_std" if variant.scaled else "none",
            normalise=NORMALISE[variant.loss_type],
            constant_tokens=MAX_TOKENS + int(variant.wrong),
            kl=variant.kl,
            clip_high=variant.clip_high,
        )
        run = RunContext(seed=0, tasks=tuple(trees))
        self.credits: Mapping[str, Credit] = self.algorithm.credit(StepContext(run, 0, dict(trees)))
        weights = token_weights(trees, self.credits, self.algorithm.normalise, self.algorithm.constant_tokens)
        rows = flatten(trees, self.credits, weights, keep_zero=variant.kl > 0)
        groups = micro_batches(rows, MICRO_BATCH_TOKENS)
        self.batches = [TensorBatch.of([rows[i] for i in group], policy.device) for group in groups]
        with torch.no_grad():
            for batch in self.batches:
                wanted = batch.weight > 0
                batch.old = policy.logprobs(batch.tokens, wanted) if variant.moved else None
                batch.reference = reference.logprobs(batch.tokens, wanted) if variant.kl > 0 else None

    @property
    def mass(self) -> float:
        """The loss's terms at ratio 1 before they cancel."""
        return sum(float((batch.weight * batch.advantage.abs()).sum()) for batch in self.batches)

    def loss_and_gradient(self) -> tuple[float, Gradient]:
        self.policy.model.zero_grad()
        total = 0.0
        for batch in self.batches:
            loss, _ = self.algorithm.loss(self.policy.logprobs(batch.tokens, batch.weight > 0), batch)
            loss.backward()
            total += float(loss.detach())
        return total, gradient_of(self.policy.model)


class Theirs:
    """TRL's path from the same chains to a loss, by its own trainer."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        trees: Mapping[str, Tree],
        variant: Variant,
        *,
        out: Path,
        group: int = GROUP,
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        self.model = model
        examples = [{"prompt": task, "outcome": r} for task, tree in trees.items() for r in tree.outcomes()]
        self.trainer: Any = trl.GRPOTrainer(
            model=model,
            reward_funcs=lambda outcome, **_: outcome,
            args=trl_config(variant, len(examples), out, group, max_tokens),
            train_dataset=datasets.Dataset.from_list(examples),
            processing_class=tokenizer,
            rollout_func=lambda prompts, trainer: rollout_of(trees),
        )
        self.trainer.current_gradient_accumulation_steps = 1  # else set by the training loop
        if variant.noise > 0:  # the correction belongs to vLLM rollouts: say that these are some
            self.trainer.use_vllm, self.trainer._last_loaded_step = True, self.trainer.state.global_step
        model.train()
        self.inputs = self.trainer._generate_and_score_completions(examples)

    def loss_and_gradient(self) -> tuple[float, Gradient]:
        self.model.zero_grad()
        loss = self.trainer.compute_loss(self.model, self.inputs)
        loss.backward()
        return float(loss.detach()), gradient_of(self.model)

    @property
    def clipped(self) -> float:
        return float(self.trainer._metrics["train"]["clip_ratio/region_mean"][-1])


def trl_config(variant: Variant, batch: int, out: Path, group: int, max_tokens: int) -> trl.GRPOConfig:
    return trl.GRPOConfig(
        output_dir=str(out),
        per_device_train_batch_size=batch,
        num_generations=group,
        max_completion_length=max_tokens,
        temperature=TEMPERATURE,
        loss_type=variant.loss_type,
        scale_rewards="group" if variant.scaled else "none",
        beta=variant.kl,
        use_bias_correction_kl=variant.default_kl,
        epsilon=0.2,
        epsilon_high=variant.clip_high,
        num_iterations=2 if variant.moved else 1,  # above 1 it keeps the old log-probs
        vllm_importance_sampling_mode="token_truncate",
        vllm_importance_sampling_clip_max=GRPO().mismatch_cap,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
    )


def gradient_of(model: torch.nn.Module) -> Gradient:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ---- the judgement --------------------------------------------------------------------------------------------------


def nudge(model: torch.nn.Module, size: float, seed: int) -> None:
    """Add to every weight matrix noise that depends on `seed` alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.add_(torch.randn(p.shape, generator=generator), alpha=size)


def gradient_difference(ours: Gradient, theirs: Gradient) -> float:
    """The worst parameter's largest absolute difference, relative to the largest entry of TRL's gradient there."""
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    return max(float((ours[k] - g).abs().max() / g.abs().max()) for k, g in theirs.items())


def advantages(trees: Mapping[str, Tree], ours: Ours, variant: Variant) -> tuple[Numbers, Numbers]:
    """[B] each chain's advantage, and what it were with TRL's epsilon."""
    own = np.concatenate([ours.credits[task].advantage[tree.leaves()] for task, tree in trees.items()])
    spread = np.repeat([np.std(tree.outcomes(), ddof=1) for tree in trees.values()], GROUP)
    return own, own * (spread + EPSILON) / (spread + TRL_EPSILON) if variant.scaled else own


def relative(ours: Numbers, theirs: Numbers) -> float:
    return float(np.max(np.abs(ours - theirs) / np.maximum(np.abs(theirs), 1e-2)))


def judge(variant: Variant, folder: Path, seed: int) -> Verdict:
    (mine, _), (yours, tokenizer), (start, _) = (load_policy_folder(folder) for _ in range(3))
    for model in (mine, yours):
        nudge(model, 0.02, seed)  # away from the reference, or a KL term would be 0
    rng, policy = np.random.default_rng(seed), Policy(mine, temperature=TEMPERATURE)
    trees = grow_trees(TransformersEngine(mine), variant, rng)
    ours = Ours(policy, Policy(start, temperature=TEMPERATURE), trees, variant)
    theirs = Theirs(yours, tokenizer, trees, variant, out=folder.parent / "trl")
    own, same_epsilon = advantages(trees, ours, variant)
    judged = theirs.inputs["advantages"].double().numpy()
    if variant.scaled:
        theirs.inputs["advantages"] = torch.from_numpy(own).float()
    if variant.moved:
        for model in (mine, yours):
            nudge(model, 0.03, seed + 1)
    (loss, gradient), (their_loss, their_gradient) = ours.loss_and_gradient(), theirs.loss_and_gradient()
    # A loss at ratio 1 is a sum that may cancel to 0: then it is judged against a hundredth of its terms.
    scale = max(abs(their_loss), 1e-2 * ours.mass)
    return Verdict(
        variant,
        loss,
        their_loss,
        loss=abs(loss - their_loss) / scale,
        gradient=gradient_difference(gradient, their_gradient),
        advantage=relative(own, judged),
        explained=relative(same_epsilon, judged),
        clipped=theirs.clipped,
    )


def row(verdict: Verdict) -> str:
    cells = (
        verdict.variant.name,
        NORMALISE[verdict.variant.loss_type],
        f"{verdict.ours:.8f}",
        f"{verdict.theirs:.8f}",
        *(f"{x:.1e}" for x in (verdict.loss, verdict.gradient, verdict.advantage, verdict.explained)),
        f"{verdict.clipped:.0%}",
        "agree" if verdict.variant.alike else "differ",
        "pass" if verdict.passed else "FAIL",
    )
    return f"| {' | '.join(cells)} |"


HEAD = (
    *("TRL's loss, weights", "our `normalise`", "our loss", "TRL's loss", "loss, rel.", "gradient, rel."),
    *("own advantages, rel.", "same epsilon, rel.", "clipped", "expected", "verdict"),
)


def main() -> int:
    logging.getLogger("trl").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
    torch.set_num_threads(1)
    versions = ", ".join(f"{m.__name__} {m.__version__}" for m in (trl, torch, transformers, np))
    capability = torch.backends.cpu.get_cpu_capability()
    print(
        f"Python {platform.python_version()}, {versions}; {platform.system()} {platform.machine()}, ", end=""
    )
    print(f"{os.cpu_count()} cores, {capability}, one thread, fp32. Tolerance {TOLERANCE:g} relative.\n")
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    verdicts = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "policy"
        tokenizer = make_tokenizer([], vocab_size=VOCABULARY)
        model = make_model(tokenizer, d=64, layers=2, seed=0)
        nudge(model, 0.1, 0)  # a random Llama is all but uniform; this one has opinions
        save(folder, model, tokenizer)
        for seed, variant in enumerate(VARIANTS):
            verdicts.append(judge(variant, folder, seed))
            print(row(verdicts[-1]), flush=True)
    passed = sum(verdict.passed for verdict in verdicts)
    print(f"\n{passed} of {len(verdicts)} as they should be.")
    return int(passed < len(verdicts))


if __name__ == "__main__":
    sys.exit(main())
