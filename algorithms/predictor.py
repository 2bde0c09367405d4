"""The study coach: how likely is the present policy to succeed from here? Asked by the allocator, never by the gradient.

A predictor answers for places, which are nodes of the step's trees, and learns from their backed-up values. What it answers
is [K, n]: K members of an ensemble, or K = 1 for a point estimate or a single posterior draw. `make_predictor` knows them all:

    network     one small network for prompts and prefixes (TRACE, arXiv 2606.11119); see `forecast`
    ensemble    five of them, which disagree about what they have not seen
    beta        counts per prompt that are slowly forgotten (MoPPS, arXiv 2507.04632); a prefix gets its prompt's value
    oracle      the exact success probability, where the environment knows it
    constant, shuffled, inverted    controls: 0.5; the network's answers at the wrong places; their opposite

Every answer depends on (run seed, step, what was learned, the places asked about) and on no global generator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from trace_gym.algorithm import Metrics, RunContext, StepContext
from trace_gym.errors import ConfigError

__all__ = [
    "Beta",
    "Constant",
    "Inverted",
    "Oracle",
    "Place",
    "Predictor",
    "PredictorKind",
    "PredictorSettings",
    "Shuffled",
    "by_task",
    "by_tree",
    "calibration",
    "make_predictor",
]

Place = tuple[str, int]  # (task, node of its tree); node 0 is the prompt
Float64Array = npt.NDArray[np.float64]
PredictorKind = Literal["network", "ensemble", "beta", "constant", "shuffled", "inverted", "oracle"]
BINS = 10  # of the expected calibration error


class Predictor(Protocol):
    """`start` once, then any number of `predict` and `learn`. What was learned is in `state_dict`: plain data and arrays."""

    def start(self, run: RunContext) -> None:
        """Before the first step, and before `load_state_dict` in a resumed run."""

    def predict(self, ctx: StepContext, places: Sequence[Place]) -> Float64Array:
        """[K, n] success probability at each place, by member."""

    def learn(
        self, ctx: StepContext, places: Sequence[Place], targets: Float64Array, weights: Float64Array
    ) -> Metrics:
        """Learn the backed-up value `targets` [n] of distinct places; `weights` [n] says how much each is worth. A target
        of nan is not scored and teaches nothing."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictorSettings:
    """Settings of all kinds; a predictor reads those that concern it."""

    width: int = 128  # of a network's layers
    layers: int = 2
    heads: int = 4
    members: int = 5  # of an ensemble
    thompson: bool = False  # ensemble and beta: one draw instead of all members or of the mean
    epochs: int = 3  # of a network, per step
    replay_steps: int = 8  # older rows are forgotten
    batch: int = 128  # rollouts per update
    lr: float = 3e-4  # of a network's Transformer
    wide_lr: float = 3e-2  # of the table beside it
    weight_decay: float = 0.01
    forgetting: float = 0.9  # beta: the share of its counts that a prompt keeps from one step to the next
    prior: float = 2.0  # beta: the rollouts that the prior is worth


def make_predictor(kind: PredictorKind, settings: PredictorSettings) -> Predictor:
    """The predictor of this kind. Raises `ConfigError` for values that cannot work."""
    if kind == "constant":
        return Constant()
    if kind == "oracle":
        return Oracle()
    if kind == "beta":
        return Beta(settings)
    from trace_gym.algorithms.forecast import Network  # torch, which the others do without

    network = Network(settings if kind == "ensemble" else replace(settings, members=1, thompson=False))
    if kind == "shuffled":
        return Shuffled(network)
    if kind == "inverted":
        return Inverted(network)
    if kind in ("network", "ensemble"):
        return network
    raise ConfigError(f"there is no predictor {kind!r}; use one of {', '.join(PredictorKind.__args__)}")  # type: ignore[attr-defined]


# ---- how good were the predictions? ---------------------------------------------------------------------------------


def calibration(predicted: Float64Array, realised: Float64Array) -> Metrics:
    """`brier`, `ece` and `rank_correlation` (Spearman) of predictions [n] against realised values [n] in [0, 1].

    The Brier score is the mean squared error; the expected calibration error compares means in ten bins of equal width
    (Guo et al. 2017, arXiv 1706.04599, equation 3), where a realised value may be a fraction. Pairs with a nan are left out;
    what is undefined is nan, as is the rank correlation of fewer than two different values.
    """
    paired = ~(np.isnan(predicted) | np.isnan(realised))
    p, y = np.asarray(predicted)[paired], np.asarray(realised)[paired]
    if not len(p):
        return {"brier": np.nan, "ece": np.nan, "rank_correlation": np.nan}
    bins = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, weights=p - y, minlength=BINS)  # n_bin * (mean prediction - mean outcome)
    ranks = _ranks(p), _ranks(y)
    defined = all(np.ptp(rank) > 0 for rank in ranks)
    return {
        "brier": float(np.mean((p - y) ** 2)),
        "ece": float(np.abs(gaps).sum() / len(p)),
        "rank_correlation": float(np.corrcoef(*ranks)[0, 1]) if defined else np.nan,
    }


def _ranks(values: Float64Array) -> Float64Array:
    """[n] ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)


# ---- the simple ones ------------------------------------------------------------------------------------------------


class Constant:
    """0.5 everywhere: every prompt and prefix is worth the same."""

    def start(self, run: RunContext) -> None:
        pass

    def predict(self, ctx: StepContext, places: Sequence[Place]) -> Float64Array:
        return np.full((1, len(places)), 0.5)

    def learn(
        self, ctx: StepContext, places: Sequence[Place], targets: Float64Array, weights: Float64Array
    ) -> Metrics:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class Oracle(Constant):
    """What the environment knows about the present policy; here alone an answer can be exactly 0 or 1."""

    def predict(self, ctx: StepContext, places: Sequence[Place]) -> Float64Array:
        oracle: Any = ctx.oracle
        if oracle is None:
            raise ConfigError(
                "the oracle predictor has nobody to ask: set oracle.kind=sampled, or a policy whose success is known exactly "
                "(policy.path=tabular env.id=trace_gym/Relay-v0), or use a predictor that learns (network, ensemble or beta)"
            )
        answers = np.asarray(oracle(places), dtype=np.float64).reshape(1, len(places))
        return np.where(
            np.isnan(answers), 0.5, answers
        )  # of a sampled oracle whose rollouts all broke: nothing is known


class Beta:
    """A Beta posterior per prompt, from the successes and failures of its root rollouts.

    MoPPS (arXiv 2507.04632): with discount g (`forgetting`) and prior (a0, b0), each step makes
    a <- g a + (1 - g) a0 + successes and b likewise: counts fade, the prior stays. Ours: all prompts fade with every step,
    visited or not, for the policy moves anyway; and the prior's mean is the running mean success of all prompts, (S + 1) /
    (N + 2) over the faded counts, so that a prompt never tried gets that.
    """

    def __init__(self, settings: PredictorSettings) -> None:
        forgetting, prior = settings.forgetting, settings.prior
        if not 0.0 <= forgetting <= 1.0 or not prior > 0.0:
            raise ConfigError(
                f"forgetting={forgetting} must be from 0 to 1 and prior={prior} above 0, for the beta predictor"
            )
        self.forgetting, self.prior, self.thompson = forgetting, prior, settings.thompson
        self._counts: dict[str, tuple[float, float]] = {}  # successes, failures as of step `_step`
        self._step = 0

    def start(self, run: RunContext) -> None:
        pass

    def predict(self, ctx: StepContext, places: Sequence[Place]) -> Float64Array:
        """[1, n] posterior mean; with `thompson` one draw per prompt and step, which its prefixes share."""
        self._fade(ctx.step)
        mean = self._running_mean()
        value = {task: self._value(ctx, task, mean) for task in {task for task, _ in places}}
        return np.array([[value[task] for task, _ in places]], dtype=np.float64)

    def learn(
        self, ctx: StepContext, places: Sequence[Place], targets: Float64Array, weights: Float64Array
    ) -> Metrics:
        """Targets of prompts, each with its number of root rollouts as its weight; prefixes are passed over."""
        roots = [i for i, (_, node) in enumerate(places) if node == 0 and not np.isnan(targets[i])]
        if not roots:
            return {}
        y, n = np.asarray(targets)[roots], np.asarray(weights)[roots]
        before = self.predict(ctx, [places[i] for i in roots])[0]
        for i in roots:
            successes, failures = self._counts.get(places[i][0], (0.0, 0.0))
            won = float(weights[i] * targets[i])
            self._counts[places[i][0]] = successes + won, failures + float(weights[i]) - won
        return {"predictor_loss": float(np.average((before - y) ** 2, weights=n)) if n.sum() else np.nan}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step, "counts": {task: list(pair) for task, pair in self._counts.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._step = int(state["step"])
        self._counts = {task: (float(s), float(f)) for task, (s, f) in state["counts"].items()}

    def _fade(self, step: int) -> None:
        """Bring the counts to `step`; within a step nothing fades."""
        if step > self._step:
            kept = self.forgetting ** (step - self._step)
            self._counts = {task: (s * kept, f * kept) for task, (s, f) in self._counts.items()}
            self._step = step

    def _running_mean(self) -> float:
        won = sum(s for s, _ in self._counts.values())
        return (won + 1.0) / (won + sum(f for _, f in self._counts.values()) + 2.0)

    def _value(self, ctx: StepContext, task: str, mean: float) -> float:
        successes, failures = self._counts.get(task, (0.0, 0.0))
        a, b = successes + self.prior * mean, failures + self.prior * (1.0 - mean)
        if self.thompson:
            return float(np.clip(ctx.rng("predictor", "thompson", task).beta(a, b), 1e-6, 1 - 1e-6))
        return a / (a + b)


def by_tree(places: Sequence[Place]) -> Iterator[list[int]]:
    """Indices of the places that are answered together: each tree that has a prefix among them, then all other prompts. So an
    answer about a tree does not depend on which others are asked about with it."""
    trees = dict.fromkeys(task for task, node in places if node > 0)
    groups: dict[str | None, list[int]] = {task: [] for task in (*trees, None)}
    for i, (task, _) in enumerate(places):
        groups[task if task in trees else None].append(i)
    return (group for group in groups.values() if group)


def by_task(places: Sequence[Place]) -> dict[str, list[int]]:
    """Indices of each task's places, in their order."""
    owned: dict[str, list[int]] = {}
    for i, (task, _) in enumerate(places):
        owned.setdefault(task, []).append(i)
    return owned


# ---- controls made from another predictor ---------------------------------------------------------------------------


class Shuffled:
    """Another's answers, dealt out at random: right on the whole, wrong in each case.

    The places of a tree that has a prefix among them are permuted within that tree, so what is said of the tree's level stays,
    whichever trees a call happens to be about; all other prompts are permuted among each other.
    """

    def __init__(self, inner: Predictor) -> None:
        self.inner = inner

    def start(self, run: RunContext) -> None:
        self.inner.start(run)

    def predict(self, ctx: StepContext, places: Sequence[Place]) -> Float64Array:
        answers = self.inner.predict(ctx, places)
        shuffled = np.array(answers)
        for group in by_tree(places):
            where = places[group[0]]
            order = ctx.rng("predictor", "shuffled", *where, len(group)).permutation(len(group))
            shuffled[:, group] = answers[:, [group[i] for i in order]]
        return shuffled

    def learn(
        self, ctx: StepContext, places: Sequence[Place], targets: Float64Array, weights: Float64Array
    ) -> Metrics:
        return self.inner.learn(ctx, places, targets, weights)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.inner.load_state_dict(state)


class Inverted(Shuffled):
    """1 less another's answer. The uncertainty v (1 - v) stays; which prefix of a failed rollout looks promising turns over."""

    def predict(self, ctx: StepContext, places: Sequence[Place]) -> Float64Array:
        return 1.0 - self.inner.predict(ctx, places)
