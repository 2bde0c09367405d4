"""Decision processes small enough to be solved: exact success probabilities and exact policy gradients.

A `TabularSpec` numbers the states that an environment shows and says where every action leads. With h turns left,

    V_h(s) = sum_a pi(a|s) Q_h(s,a)        Q_h(s,a) = sum_k chance_k(s,a) V_{h-1}(outcome_k(s,a))

with V(solved) = 1, V(failed) = 0, V_0 = 0. The gradient is the policy gradient theorem's, summed over the turns. Invariant: the
observation names the state; so what a snapshot shows, with its turns left, is all that its value depends on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from trace_gym.engine import IntArray
from trace_gym.env import Snapshot
from trace_gym.errors import EnvironmentContractError

__all__ = [
    "HasTable",
    "TabularSpec",
    "policy_gradient",
    "softmax",
    "start_success",
    "success",
    "success_table",
]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class TabularSpec:
    """An environment as a table of S states, A actions and K outcomes each. Every start is as frequent as any other."""

    actions: tuple[str, ...]  # [A] the action texts
    observations: Mapping[str, int]  # every observation the policy can be shown -> its state
    features: IntArray  # [S, F] what states have in common, such as their kind; counted from 0
    initial_logits: Floats  # [S, A] of the policy to start with
    outcomes: npt.NDArray[np.int64]  # [S, A, K] next state; S is solved and S + 1 is failed: the episode ends
    chances: Floats  # [S, A, K] their probabilities
    starts: npt.NDArray[np.int64]  # [starts] states that episodes begin in
    turn_limit: int

    @property
    def states(self) -> int:
        return len(self.initial_logits)

    def state(self, observation: str) -> int:
        """The state that an observation shows. Raises `EnvironmentContractError` for one that the table lacks."""
        try:
            return self.observations[observation]
        except KeyError:
            shown = f"{observation:.80}"
            raise EnvironmentContractError(
                f"the environment's table has no state that shows {shown!r}"
            ) from None

    def locate(self, snapshots: Sequence[Snapshot]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """State [n] and turns left [n] of running episodes: indices into `success_table`."""
        states = [self.state(snapshot.observation) for snapshot in snapshots]
        turns = [snapshot.turn_limit - snapshot.turn for snapshot in snapshots]
        return np.array(states, dtype=np.int64), np.array(turns, dtype=np.int64)

    @property
    def fingerprint(self) -> str:
        """Equal for tables in which a policy's entries mean the same."""
        digest = hashlib.sha256(repr((self.actions, sorted(self.observations.items()))).encode())
        for array in (self.outcomes, self.chances, self.starts):
            digest.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


@runtime_checkable
class HasTable(Protocol):
    """An environment that can be solved."""

    def tabular(self) -> TabularSpec:
        """The table that its episodes follow."""


def softmax(logits: npt.ArrayLike, temperature: float = 1.0) -> Floats:
    """Probabilities [..., A]."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    weights = np.exp(scaled - scaled.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)  # type: ignore[no-any-return]


def action_values(spec: TabularSpec, values: Floats) -> Floats:
    """Q [S, A] with one turn more than `values` [S] has."""
    after = np.append(values, (1.0, 0.0))
    return (spec.chances * after[spec.outcomes]).sum(-1)  # type: ignore[no-any-return]


def success_table(spec: TabularSpec, probabilities: Floats) -> Floats:
    """[turn_limit + 1, S] success probability by turns left and state, of a policy that acts by `probabilities` [S, A]."""
    table: Floats = np.zeros((spec.turn_limit + 1, spec.states))
    for turns in range(1, spec.turn_limit + 1):
        table[turns] = (probabilities * action_values(spec, table[turns - 1])).sum(-1)
    return table


def start_success(spec: TabularSpec, probabilities: Floats) -> Floats:
    """[starts] success probability of an episode from each start."""
    at_start: Floats = success_table(spec, probabilities)[spec.turn_limit, spec.starts]
    return at_start


def success(spec: TabularSpec, probabilities: Floats) -> float:
    """Success probability of an episode: the mean over starts."""
    return float(start_success(spec, probabilities).mean())


def policy_gradient(
    spec: TabularSpec,
    logits: npt.ArrayLike,
    temperature: float = 1.0,
    *,
    starts: Sequence[int] | None = None,
) -> Floats:
    """[S, A] exact gradient of `success` by the logits: sum over turns of visits x pi x (Q - V) / temperature.

    `starts` are the states that episodes begin in (`spec.state` of a task's prompt), if not all of the table's.
    """
    first = spec.starts if starts is None else np.asarray(starts, dtype=np.int64)
    probabilities = softmax(logits, temperature)
    table = success_table(spec, probabilities)
    visits = np.zeros(spec.states + 2)
    np.add.at(visits, first, 1.0 / len(first))
    gradient = np.zeros_like(probabilities)
    for turns in range(spec.turn_limit, 0, -1):
        here = visits[: spec.states, None] * probabilities  # [S, A]
        gradient += here * (action_values(spec, table[turns - 1]) - table[turns][:, None])
        visits = np.zeros(spec.states + 2)
        np.add.at(visits, spec.outcomes, here[:, :, None] * spec.chances)
    return gradient / temperature
