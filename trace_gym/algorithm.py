"""What makes one algorithm differ from another: where to spend rollouts, and what each turn's share in the outcome was.

The loop calls `plan` at the start of a step and whenever a tree has become idle, `observe` and `credit` once the step's
trees are complete, and `loss` on batches of tokens. Hyper-parameters are keyword-only dataclass fields; what an algorithm
learns is private state behind `state_dict`. Core code never asks which algorithm it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from trace_gym.engine import FloatArray, IntArray
from trace_gym.errors import PluginError
from trace_gym.ledger import Budget, Purse
from trace_gym.seeding import Part, keyed_rng
from trace_gym.tree import Tree

if TYPE_CHECKING:
    import torch

__all__ = [
    "Algorithm",
    "Branch",
    "Credit",
    "LossBatch",
    "Metrics",
    "Normalise",
    "Notes",
    "Oracle",
    "Place",
    "RunContext",
    "StepContext",
    "check_credits",
    "check_notes",
]

Metrics = dict[str, float]
Normalise = Literal["token", "sequence", "constant"]
Place = tuple[str, int]  # (task, node of its tree in this step)
Oracle = Callable[
    [Sequence[Place]], npt.NDArray[np.float64]
]  # success probability [n] of the present policy from n places


@dataclass(frozen=True, slots=True)
class Branch:
    """`count` new rollouts of a task from a node of its tree: 0 is the prompt, any other an anchor."""

    task: str
    node: int = 0
    count: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Credit:
    """What a tree teaches: an advantage and a weight per node. An advantage of nan leaves the turn out of the loss."""

    advantage: npt.NDArray[np.float64]  # [N]
    weight: npt.NDArray[np.float64]  # [N]


@dataclass(frozen=True, slots=True, eq=False)
class Notes:
    """What an algorithm thought about a tree, for people who look at it; nothing learns from it."""

    predicted: npt.NDArray[np.float64]  # [N] success probability from each node; nan where nobody asked
    why: Mapping[int, str] = field(
        default_factory=dict
    )  # node -> why rollouts were started there, or were not


@dataclass(frozen=True, slots=True)
class RunContext:
    """What holds for a whole run."""

    seed: int
    tasks: Sequence[str]  # the training split
    vocabulary: int = 0
    embeddings: Callable[[], FloatArray] | None = (
        None  # the policy's input embeddings [vocabulary, d], fetched when called
    )


@dataclass(slots=True)
class StepContext:
    """What an algorithm may look at during a step. Only the loop writes to it."""

    run: RunContext
    step: int
    trees: dict[str, Tree]  # by task, in pool order; a tree changes only while its own rollouts end
    purse: Purse = field(default_factory=lambda: Purse(Budget()))
    idle: tuple[str, ...] = ()  # trees whose last planned rollout has just ended, in pool order
    refused: int = 0  # planned rollouts that the budget no longer covered
    unplanted: dict[str, str] = field(default_factory=dict)  # tasks that could not begin, and why
    oracle: Oracle | None = None  # where there is one; what it costs is never billed

    @property
    def pool(self) -> tuple[str, ...]:
        """The step's tasks; their rendered prompts are node 0 of their trees."""
        return tuple(self.trees)

    @property
    def budget(self) -> Budget:
        """What is left to plan with."""
        return self.purse.left

    def rng(self, *key: Part) -> np.random.Generator:
        """A generator keyed by (run seed, step, key). Key it by task where a plan is made per tree, so that the order
        in which trees become idle does not matter."""
        return keyed_rng(self.run.seed, "algorithm", self.step, *key)

    def history(self, task: str, node: int) -> list[IntArray]:
        """The tokens of each turn on the path to `node`, the prompt's first."""
        tree = self.trees[task]
        return [tree[i].tokens for i in tree.path(node)]


def check_credits(ctx: StepContext, credits: object, algorithm: str) -> None:
    """Raise `PluginError` for anything that must not reach the loss; an advantage of inf would train in silence."""
    if not isinstance(credits, Mapping):
        raise PluginError(
            f"{algorithm}.credit() returned a {type(credits).__name__}; return {{task: Credit}}"
        )
    for task, credit in credits.items():
        where = f"{algorithm}.credit(), task {task!r}:"
        if task not in ctx.trees or not isinstance(credit, Credit):
            raise PluginError(f"{where} return a Credit for tasks of the step's pool")
        shape = (len(ctx.trees[task]),)
        if np.shape(credit.advantage) != shape or np.shape(credit.weight) != shape:
            raise PluginError(
                f"{where} advantage and weight need one entry for each of the tree's {shape[0]} nodes"
            )
        if np.isinf(credit.advantage).any() or not (np.isfinite(credit.weight) & (credit.weight >= 0)).all():
            raise PluginError(f"{where} an advantage is infinite, or a weight negative or not finite")


def check_notes(ctx: StepContext, notes: object, algorithm: str) -> None:
    """Raise `PluginError` for notes that do not fit the step's trees."""
    if not isinstance(notes, Mapping):
        raise PluginError(f"{algorithm}.notes() returned a {type(notes).__name__}; return {{task: Notes}}")
    for task, note in notes.items():
        where = f"{algorithm}.notes(), task {task!r}:"
        if task not in ctx.trees or not isinstance(note, Notes):
            raise PluginError(f"{where} return Notes for tasks of the step's pool")
        size = len(ctx.trees[task])
        if np.shape(note.predicted) != (size,) or np.isinf(note.predicted).any():
            raise PluginError(f"{where} predicted needs a number or nan for each of the tree's {size} nodes")
        if not all(isinstance(text, str) and 0 <= node < size for node, text in note.why.items()):
            raise PluginError(f"{where} why maps nodes of the tree to texts")


class LossBatch(Protocol):
    """What `loss` sees besides the log-probs. All tensors [B, T]; tokens with weight 0 do not count."""

    advantage: torch.Tensor
    weight: torch.Tensor  # includes the normaliser: a step's losses are sums, whatever the micro-batches
    behaviour: torch.Tensor  # log-probs that the engine sampled under
    old: (
        torch.Tensor | None
    )  # the trainer's log-probs before the step's first update; None where they are the present ones
    reference: torch.Tensor | None  # log-probs of the frozen reference policy; None without a KL term


@dataclass(kw_only=True)
class Algorithm:
    """Subclass it, implement `plan` and `credit`, and name the class in the entry-point group `trace_gym.algorithms`."""

    pool: int = 0  # tasks in a step's pool, to choose from; 0 leaves it to rollout.prompts_per_step
    clip_low: float = 0.2
    clip_high: float = 0.2  # asymmetric clipping (DAPO's "clip higher", arXiv 2503.14476) when above clip_low
    normalise: Normalise = "token"  # see `pack.token_weights`
    constant_tokens: int = 256  # tokens a rollout counts for when `normalise` is "constant"
    kl: float = 0.0  # weight of the KL term against the starting policy
    mismatch_cap: float = (
        2.0  # cap of the importance weight between trainer and engine; 0 switches the correction off
    )

    def start(self, ctx: RunContext) -> None:
        """Once, before the first step."""

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        """Rollouts to start now. [] while nothing is pending ends the step."""
        raise NotImplementedError

    def observe(self, ctx: StepContext) -> Metrics:
        """After the step's trees are complete and before `credit`; a predictor learns here."""
        return {}

    def credit(self, ctx: StepContext) -> Mapping[str, Credit]:
        """Advantage and weight of every node, per task. Tasks left out teach nothing."""
        raise NotImplementedError

    def notes(self, ctx: StepContext) -> Mapping[str, Notes]:
        """After `credit`, and only where the step's trees are kept: what to keep beside them for people."""
        return {}

    def loss(self, logprobs: torch.Tensor, batch: LossBatch) -> tuple[torch.Tensor, Metrics]:
        """Clipped policy gradient (PPO, arXiv 1707.06347, equation 7), a sum over the batch. `logprobs` is [B, T]."""
        old = logprobs.detach() if batch.old is None else batch.old
        ratio = (logprobs - old).exp()
        clipped = ratio.clamp(1.0 - self.clip_low, 1.0 + self.clip_high)
        surrogate = (ratio * batch.advantage).minimum(clipped * batch.advantage)
        mismatch = (old - batch.behaviour).exp()
        if self.mismatch_cap > 0:
            surrogate = surrogate * mismatch.clamp(max=self.mismatch_cap)
        loss = -(surrogate * batch.weight).sum()
        counted = batch.weight > 0
        share = batch.weight / batch.weight.sum().clamp(min=1e-12)
        metrics = {
            "clip_fraction": float((((ratio * batch.advantage) > (clipped * batch.advantage)) * share).sum()),
            "mismatch": float((((mismatch - 1.0).abs()) * share).sum()),
        }
        if self.kl > 0 and batch.reference is not None:
            # GRPO's equation 4, the k3 estimator (Schulman 2020): never negative and unbiased in value; its gradient, on
            # policy, is that of KL(reference || policy), not of KL(policy || reference)
            log_ratio = (batch.reference - logprobs).where(counted, 0.0 * logprobs)
            kl = ((log_ratio.exp() - 1.0 - log_ratio) * batch.weight).sum()
            loss = loss + self.kl * kl
            metrics["kl"] = float(kl.detach()) / max(float(batch.weight.sum()), 1e-12)
        return loss, metrics

    def state_dict(self) -> dict[str, Any]:
        """What was learned, as plain data and arrays."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""
