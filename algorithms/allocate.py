"""Where a budget of rollouts shows both outcomes: how many from each prompt, how many from each prefix.

    V_root(v, m) = 1 - v^m - (1-v)^m      chance that m rollouts of a prompt hold a success and a failure
    V_pref(f, k) = 1 - (1-f)^k            chance that one of k continuations ends otherwise than the rollout they leave

(TRACE, arXiv 2606.11119.) v is a predicted success probability, f a predicted flip chance. All functions are pure and exact in
their sums; ties are broken by the generator given.

Invariant behind the greedy rules: with u = v(1-v) the gain of V_root's k-th unit is u (v^(k-2) + (1-v)^(k-2)) for k >= 2, and
the first unit alone gains nothing. Sharing the opening pair's 2u among its two units makes the gains per unit u, u, u,
u - 2u^2, ..., which never rise, so taking units by gain is optimal up to the one unit that a pair may not fit into. V_pref's
gains f (1-f)^(k-1) fall, so greedy is exact there. Several predictions per prompt (an ensemble) are averaged after V, not
before: E[V(v)] differs from V(E[v]), and a prompt that nobody knows from one measured at 0.5.
"""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

__all__ = [
    "allocate_prefixes",
    "allocate_roots",
    "inclusion_probabilities",
    "prefix_value",
    "root_value",
    "sample_roots",
    "select_groups",
]

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

OPENING = 2  # rollouts that open a prompt: one alone shows no contrast
SLACK = 1e-6  # how far rounding may carry a prediction beyond 0 and 1


def root_value(v: npt.ArrayLike, m: npt.ArrayLike) -> Floats:
    """V_root(v, m), broadcast; 0 for m < 2."""
    v, m = np.asarray(v, dtype=np.float64), np.asarray(m)
    return np.where(m < OPENING, 0.0, 1.0 - v ** np.maximum(m, 1) - (1.0 - v) ** np.maximum(m, 1))


def prefix_value(f: npt.ArrayLike, k: npt.ArrayLike) -> Floats:
    """V_pref(f, k), broadcast; 0 for k = 0."""
    return np.asarray(1.0 - (1.0 - np.asarray(f, dtype=np.float64)) ** np.asarray(k))


def _predictions(p: npt.ArrayLike) -> Floats:
    """[K, n] probabilities, from [n] or [K, n]. A predictor's nan would lose part of the budget in silence."""
    members = np.atleast_2d(np.asarray(p, dtype=np.float64))
    assert ((members > -SLACK) & (members < 1.0 + SLACK)).all(), f"not probabilities: {members}"
    return np.clip(members, 0.0, 1.0)


def allocate_roots(
    v: npt.ArrayLike, budget: int, *, cap: int = 16, epsilon: float = 0.1, rng: np.random.Generator
) -> Counts:
    """[P] rollouts per prompt, at most `cap` each, that sum to min(budget, P * cap) and maximise the sum of V_root.

    `v` is [P], or [K, P] for K predictions of each prompt, over which V_root is averaged. A share `epsilon` of the budget goes
    to prompts drawn at random, a pair each, whatever is predicted, so that a wrong prediction can be found out. Ties open
    more prompts rather than deepen one, in random order.
    """
    members = _predictions(v)  # [K, P]
    prompts = members.shape[1]
    budget = min(budget, prompts * cap)
    counts = np.zeros(prompts, dtype=np.int64)
    if budget <= 0:
        return counts
    order = rng.permutation(prompts)  # of equals, the first here comes first
    explored = min(int(epsilon * budget / OPENING + rng.random()), prompts, budget // OPENING)
    if cap >= OPENING:
        counts[order[:explored]] = OPENING
        order = np.roll(order, -explored)
    # the rest can only go to those already open or to the best pairs: leave the long tail out of the sorting
    tail = order[: len(order) - explored] if cap >= OPENING else order
    u = (members * (1.0 - members)).mean(axis=0)[tail]
    best = tail[np.argsort(-u, kind="stable")[: budget // min(cap, OPENING) + 1]]
    among = np.concatenate([best, order[len(tail) :]])
    counts[among] = _take_best(_unit_gains(members[:, among], cap), counts[among], budget)
    return counts


def _unit_gains(members: Floats, cap: int) -> Floats:
    """[cap, P] mean gain of each prompt's k-th unit, the opening pair's shared between its two."""
    v, w = members, 1.0 - members
    u = v * w
    gains = np.empty((cap, members.shape[1]))
    gains[: OPENING + 1] = u.mean(axis=0)
    v_power, w_power = v, w  # v^(k-2), for k = 3
    for k in range(4, cap + 1):
        v_power, w_power = v_power * v, w_power * w
        gains[k - 1] = (u * (v_power + w_power)).mean(axis=0)
    return np.minimum.accumulate(gains, axis=0)  # equal but for rounding


def _take_best(gains: Floats, taken: Counts, budget: int) -> Counts:
    """Go on from `taken` units a prompt to `budget` in all, best gains first; of equals lower units, then first prompts."""
    cap, prompts = gains.shape
    counts = taken.copy()
    free = np.arange(cap)[:, None] >= taken  # [cap, P]
    wanted = budget - int(counts.sum())
    if wanted <= 0:
        return counts
    flat = np.where(free, gains, -np.inf).ravel()  # by unit, then prompt
    limit = np.partition(flat, flat.size - wanted)[flat.size - wanted]
    chosen = np.flatnonzero(flat > limit)
    equals = np.flatnonzero(flat == limit)
    # a pair's halves are equals: keep them together, or the tie would open prompts by halves
    unit, prompt = np.divmod(equals, prompts)
    equals = equals[np.lexsort((unit, prompt, np.maximum(unit, OPENING - 1)))]
    chosen = np.concatenate([chosen, equals[: wanted - len(chosen)]])
    counts += np.bincount(chosen % prompts, minlength=prompts)
    return _mend_half_opened(counts, gains)


def _mend_half_opened(counts: Counts, gains: Floats) -> Counts:
    """A prompt left with one unit gives it to the best open prompt; where all are full, it takes one from the worst."""
    cap, prompts = gains.shape
    single = np.flatnonzero(counts == 1)
    if len(single) == 0 or cap < OPENING:
        return counts
    assert len(single) == 1, "only the last unit can fail to fit"
    alone = int(single[0])
    columns = np.arange(prompts)
    room = (counts >= OPENING) & (counts < cap)
    if room.any():
        best = int(np.where(room, gains[np.minimum(counts, cap - 1), columns], -np.inf).argmax())
        counts[[alone, best]] += [-1, 1]
    elif cap > OPENING and (counts > OPENING).any():
        last = np.where(counts > OPENING, gains[np.maximum(counts - 1, 0), columns], np.inf)
        counts[[int(last.argmin()), alone]] += [-1, 1]
    return counts


def allocate_prefixes(f: npt.ArrayLike, budget: int, *, rng: np.random.Generator) -> Counts:
    """[n] continuations per prefix that sum to `budget` and maximise the sum of V_pref; none where there is no prefix.

    `f` is [n], or [K, n] for K predictions of each flip chance, over which V_pref is averaged. Equals in random order.
    """
    members = _predictions(f)  # [K, n]
    prefixes = members.shape[1]
    counts = np.zeros(prefixes, dtype=np.int64)
    if prefixes == 0:
        return counts
    place = rng.permutation(prefixes)
    heap = [(-gain, int(place[i]), i) for i, gain in enumerate(members.mean(axis=0))]
    heapq.heapify(heap)
    keep = 1.0 - members  # chance that one more continuation ends as the rollout did
    left = keep.copy()
    for _ in range(max(0, budget)):
        _, order, i = heap[0]
        counts[i] += 1
        gain = float((members[:, i] * left[:, i]).mean())  # f (1-f)^k, k taken so far
        left[:, i] *= keep[:, i]
        heapq.heapreplace(heap, (-gain, order + prefixes, i))
    return counts


def select_groups(
    v: npt.ArrayLike, budget: int, *, group: int, epsilon: float = 0.1, rng: np.random.Generator
) -> Counts:
    """[P] groups of `group` rollouts for the prompts whose groups will most probably hold both outcomes.

    V_root counts prompts with a contrast, and is best served by many small groups; this rule counts the rollouts that have one
    [ours; with a point estimate the order is that of PCL, arXiv 2510.01135: nearest 0.5]. A share `epsilon` of the groups goes
    to prompts drawn at random. The sum is the largest multiple of `group` within the budget and the pool.
    """
    members = _predictions(v)
    groups = min(budget // group, members.shape[1])
    order = rng.permutation(members.shape[1])
    explored = min(int(epsilon * groups + rng.random()), groups)
    rest = order[explored:]
    worth = root_value(members[:, rest], group).mean(axis=0)
    chosen = np.concatenate([order[:explored], rest[np.argsort(-worth, kind="stable")][: groups - explored]])
    counts = np.zeros(members.shape[1], dtype=np.int64)
    counts[chosen] = group
    return counts


def inclusion_probabilities(scores: Floats, expected: int) -> Floats:
    """[P] probabilities proportional to `scores`, none above 1, that sum to min(expected, prompts with a score)."""
    chances = np.zeros(len(scores))
    open_, left = scores > 0, float(expected)
    while open_.any() and left > 1e-12:
        share = np.where(open_, scores * (left / scores[open_].sum()), 0.0)
        full = open_ & (share >= 1.0)
        if not full.any():
            return np.where(open_, share, chances)
        chances[full] = 1.0
        open_ &= ~full
        left = expected - float(chances.sum())
    return chances


def sample_roots(
    v: npt.ArrayLike, budget: int, *, group: int, floor: float = 0.1, rng: np.random.Generator
) -> tuple[Counts, Floats]:
    """[P] counts and [P] inclusion probabilities: groups of `group` rollouts for prompts *drawn* with probability
    proportional to sqrt(v (1-v)) + `floor`, without replacement.

    Ranking and cutting trains what nearly works and starves the rest; drawing keeps coverage, and dividing a prompt's weight
    by its probability keeps the uniform objective (Horvitz and Thompson 1952). Systematic sampling in random order, so
    the probabilities are exact.
    """
    members = _predictions(v)  # [K, P]
    prompts = members.shape[1]
    scores = np.sqrt(members * (1.0 - members)).mean(axis=0) + floor
    chances = inclusion_probabilities(scores, min(budget // group, prompts))
    order = rng.permutation(prompts)
    passed = np.floor(np.cumsum(chances[order]) + rng.random() + 1e-9)
    counts = np.zeros(prompts, dtype=np.int64)
    counts[order] = group * (np.diff(passed, prepend=0.0) > 0)
    return counts, chances
