"""Numbers for comparing algorithms over few seeds: bootstrap intervals, interquartile means, performance profiles.

The method is that of Agarwal et al. 2021 (Deep RL at the Edge of the Statistical Precipice, arXiv 2108.13264): seeds are drawn
with replacement within each environment, and every figure comes with a percentile interval. Scores are matrices [S, E] of seeds
by environments. Draws come from a generator that is passed in, so a page comes out the same every time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

__all__ = [
    "DRAWS",
    "Estimate",
    "bootstrap",
    "iqm",
    "mean",
    "paired",
    "probability_of_improvement",
    "profile",
    "profile_bands",
]

Floats = npt.NDArray[np.float64]
DRAWS = 5000
ENDS = (2.5, 97.5)  # percentiles
TRIM = 0.25  # of each end


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic with its 95 % percentile interval; nan ends where there are too few seeds to draw from."""

    value: float
    low: float
    high: float
    n: int  # seeds

    @property
    def apart(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def mean(scores: Floats) -> Floats:
    """[...] the mean of scores [..., S, E]."""
    return np.asarray(scores.mean(axis=(-2, -1)))


def iqm(scores: Floats) -> Floats:
    """[...] the mean of the middle half of scores [..., S, E]."""
    flat = scores.reshape(*scores.shape[:-2], -1)
    return np.asarray(stats.trim_mean(flat, TRIM, axis=-1))


def bootstrap(scores: Floats, statistic: Callable[[Floats], Floats], rng: np.random.Generator) -> Estimate:
    """`statistic` of scores [S, E], with seeds drawn anew within each environment."""
    seeds, worlds = scores.shape
    value = float(statistic(scores))
    if seeds < 2:
        return Estimate(value, float("nan"), float("nan"), seeds)
    draws = rng.integers(seeds, size=(DRAWS, seeds, worlds))
    low, high = np.percentile(statistic(scores[draws, np.arange(worlds)]), ENDS)
    return Estimate(value, float(low), float(high), seeds)


def paired(one: Mapping[int, float], other: Mapping[int, float], rng: np.random.Generator) -> Estimate:
    """The mean of `one - other` over the seeds that both have."""
    seeds = sorted(one.keys() & other.keys())
    differences = np.array([one[seed] - other[seed] for seed in seeds])
    differences = differences[~np.isnan(differences)]
    if not len(differences):
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    return bootstrap(differences[:, None], mean, rng)


def probability_of_improvement(one: Floats, other: Floats) -> float:
    """Mean over environments of the chance that a run of `one` [S, E] beats a run of `other` [T, E]; ties count half."""
    wins = (one[:, None] > other[None]).mean(axis=(0, 1))
    ties = (one[:, None] == other[None]).mean(axis=(0, 1))
    return float((wins + ties / 2).mean())


def profile(scores: Floats, thresholds: Floats) -> Floats:
    """[T] the share of runs, over all environments, that score more than each threshold."""
    return np.asarray((scores[None] > thresholds[:, None, None]).mean(axis=(1, 2)))


def profile_bands(scores: Floats, thresholds: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """[T], [T] the ends of the pointwise 95 % intervals of the profile; nan for a single seed."""
    seeds, worlds = scores.shape
    if seeds < 2:
        nothing = np.full(len(thresholds), np.nan)
        return nothing, nothing
    draws = rng.integers(seeds, size=(DRAWS // 10, seeds, worlds))
    found = np.stack([profile(scores[draw, np.arange(worlds)], thresholds) for draw in draws])
    low, high = np.percentile(found, ENDS, axis=0)
    return low, high
