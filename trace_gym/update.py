"""One step's update of the policy: rows in, changed weights and metrics out.

Invariant: the loss is a sum over the step's tokens whose weights already hold the normaliser, so neither the micro-batch size
nor the layout changes the gradient.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from trace_gym.algorithm import Algorithm, Metrics
from trace_gym.pack import Row
from trace_gym.policy import Policy, TensorBatch

__all__ = ["Updater", "warm_up", "warm_up_and_decay"]


@dataclass(slots=True)
class Updater:
    """The optimiser and what it needs. `reference` is the frozen starting policy, for algorithms with a KL term."""

    policy: Policy
    optimizer: torch.optim.Optimizer
    lr: Callable[[int], float]  # learning rate by number of updates so far
    max_grad_norm: float = 1.0
    minibatches: int = 1
    micro_batch_tokens: int = 16384
    reference: Policy | None = None
    updates: int = 0  # optimiser steps so far

    def update(self, algorithm: Algorithm, rows: Sequence[Row], rng: np.random.Generator) -> Metrics:
        """One pass over `rows` in `minibatches` optimiser steps. No rows, no step."""
        if not rows:
            return {"loss": 0.0, "grad_norm": 0.0, "lr": self.lr(self.updates), "skipped_updates": 1.0}
        parts = np.array_split(rng.permutation(len(rows)), min(self.minibatches, len(rows)))
        chosen = [[rows[i] for i in part] for part in parts]
        batches = [
            list(self._batches(part, with_old=len(parts) > 1)) for part in chosen
        ]  # log-probs before the first step
        totals: defaultdict[str, float] = defaultdict(float)
        for group in batches:
            for name, value in self._step(algorithm, group, scale=len(parts)).items():
                totals[name] += value / len(parts)
        return dict(totals)

    def _batches(self, rows: Sequence[Row], *, with_old: bool) -> list[TensorBatch]:
        out = []
        for group in self.policy.micro_batches(rows, self.micro_batch_tokens):
            batch = TensorBatch.of([rows[i] for i in group], self.policy.device)
            wanted = batch.weight > 0
            with torch.no_grad():
                if with_old:
                    batch.old = self.policy.logprobs(batch.tokens, wanted)
                if self.reference is not None:
                    batch.reference = self.reference.logprobs(batch.tokens, wanted)
            out.append(batch)
        return out

    def _step(self, algorithm: Algorithm, batches: Sequence[TensorBatch], *, scale: int) -> Metrics:
        """One optimiser step. `scale` undoes that each mini-batch holds a part of the step's weight."""
        self.optimizer.zero_grad(set_to_none=True)
        mass = sum(float(batch.weight.sum()) for batch in batches)
        metrics: defaultdict[str, float] = defaultdict(float)
        for batch in batches:
            logprobs = self.policy.logprobs(batch.tokens, batch.weight > 0)
            loss, extra = algorithm.loss(logprobs, batch)
            (loss * scale).backward()
            metrics["loss"] += float(loss.detach()) * scale
            share = float(batch.weight.sum()) / mass if mass > 0 else 0.0
            for name, value in extra.items():
                metrics[name] += value * share
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm))
        metrics["grad_norm"], metrics["lr"] = norm, self.lr(self.updates)
        if not math.isfinite(norm):
            metrics["skipped_updates"] = 1.0  # one broken batch must not destroy the weights
            return dict(metrics)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(self.updates)
        self.optimizer.step()
        self.updates += 1
        return dict(metrics)


def warm_up(lr: float, steps: int) -> Callable[[int], float]:
    """Linear from lr / steps to `lr` over the first `steps` updates, then constant."""
    return lambda updates: lr * min(1.0, (updates + 1) / max(1, steps))


def warm_up_and_decay(lr: float, steps: int, total: int) -> Callable[[int], float]:
    """Linear warm-up over `steps` updates, then a cosine down to a tenth of `lr` at `total`."""

    def schedule(updates: int) -> float:
        if updates < steps:
            return lr * (updates + 1) / steps
        done = min(1.0, (updates - steps) / max(1, total - steps))
        return lr * (0.1 + 0.45 * (1.0 + math.cos(math.pi * done)))

    return schedule
