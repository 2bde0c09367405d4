"""What a relay is made of: kinds of runners, the stations of each, and what every action does there.

A world is drawn once from a seed and never changes. Invariant: with the initial logits, a runner of a kind called D succeeds
with exactly the probability that D declares (`START`; a number declares itself), whatever the stations are like; kinds called
`never` look like `medium` ones, and one of their stations is closed to every action.

Presets. The last four are controls: the gain expected of choosing prompts or prefixes is nil, or of one sort alone.

    broad    a third each of trivial, medium, hard          hard     three fifths hard, a fifth each of the others
    medium   all alike: choosing prompts gains nothing      never    a quarter each of the three, and of never
    first    as broad; the first turn decides alone: continuing a prefix shows nothing new
    last     as broad; the last turn decides alone: every prefix is worth what its prompt is
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from trace_gym.errors import ConfigError
from trace_gym.exact import TabularSpec, softmax, start_success

__all__ = ["DEAD", "FALL", "MOVE", "PRESETS", "START", "STAY", "World", "make_world"]

STAY, MOVE, DEAD, FALL = range(4)  # costs a turn · passes the station · no way on any more · ends the episode

START = {"trivial": 0.95, "medium": 0.5, "hard": 0.05, "never": 0.5}  # never: if its blocked station were not
LARGE = 60.0  # log-odds of a certain action
BISECTIONS = 60
REACHED = 1e-6

Layout = Literal["every", "first", "last"]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_THIRDS = {"trivial": 1 / 3, "medium": 1 / 3, "hard": 1 / 3}
PRESETS: dict[str, tuple[dict[str, float], Layout]] = {
    "broad": (_THIRDS, "every"),
    "hard": ({"trivial": 0.2, "medium": 0.2, "hard": 0.6}, "every"),
    "medium": ({"medium": 1.0}, "every"),
    "never": ({"trivial": 0.25, "medium": 0.25, "hard": 0.25, "never": 0.25}, "every"),
    "first": (_THIRDS, "first"),
    "last": (_THIRDS, "last"),
}


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """`effects` [kinds, stations, A] says what each action does; `difficulties` [kinds] what each kind is called.

    A place is a station, or `depth` for the dead end. State numbers are kind x (depth + 1) + place.
    """

    effects: Ints
    difficulties: tuple[str, ...]
    spec: TabularSpec

    @property
    def depth(self) -> int:
        return int(self.effects.shape[1])

    @property
    def kinds(self) -> int:
        return len(self.effects)


def shown(kind: int, place: int, depth: int) -> str:
    """The observation of a place."""
    return f"Kind {kind}: a dead end." if place == depth else f"Kind {kind}: station {place + 1} of {depth}."


def make_world(
    *,
    mix: str | Mapping[str, float],
    actions: tuple[str, ...],
    depth: int,
    slack: int,
    dead_ends: float,
    kinds: int,
    slip: float,
    spread: float,
    error: str,
    seed: int,
) -> World:
    """Draw a world. `error` is what precedes an observation after a text that is no action. Raises `ConfigError`."""
    shares, layout = _mix(mix)
    rng = np.random.Generator(np.random.PCG64(seed))
    difficulties = _apportion(shares, kinds, rng)
    open_effects = _effects(rng, layout, (kinds, depth, len(actions)), dead_ends)
    effects = _block(rng, open_effects, difficulties)
    targets = np.array([_target(name) for name in difficulties])
    shifts = spread * rng.standard_normal((kinds, depth))
    logits = _initial_logits(open_effects, targets, shifts, slack, slip)
    spec = _spec(effects, logits, slack, slip, actions, error)
    return World(effects, difficulties, spec)


# ---- drawing --------------------------------------------------------------------------------------------------------


def _mix(mix: str | Mapping[str, float]) -> tuple[Mapping[str, float], Layout]:
    """Shares that add up to 1, and where the right action matters."""
    if isinstance(mix, str):
        if mix not in PRESETS:
            raise ConfigError(
                f"mix={mix!r}: the presets are {', '.join(PRESETS)}; or give shares, such as {{medium: 1, hard: 2}}"
            )
        return PRESETS[mix]
    shares = {name: float(share) for name, share in mix.items()}
    total = sum(shares.values())
    if min(shares.values(), default=-1.0) < 0 or not 0 < total < float("inf"):
        raise ConfigError("mix: the shares of difficulties are numbers from 0, not all of them 0")
    return {name: share / total for name, share in shares.items()}, "every"


def _target(name: str) -> float:
    """The start success that a difficulty declares."""
    if name in START:
        return START[name]
    try:
        target = float(name)
    except ValueError:
        target = -1.0
    if not 0 < target < 1:
        raise ConfigError(f"mix: {name!r} is none of {', '.join(START)} and no number between 0 and 1")
    return target


def _apportion(shares: Mapping[str, float], kinds: int, rng: np.random.Generator) -> tuple[str, ...]:
    """A difficulty for each kind, by largest remainders, in random order."""
    names, wanted = list(shares), np.array([share * kinds for share in shares.values()])
    counts = np.floor(wanted + 1e-9).astype(int)
    for index in np.argsort(counts - wanted, kind="stable")[: kinds - counts.sum()]:
        counts[index] += 1
    return tuple(rng.permutation(np.repeat(names, counts)).tolist())


def _effects(rng: np.random.Generator, layout: Layout, shape: tuple[int, int, int], dead_ends: float) -> Ints:
    """[kinds, stations, A]: one right action at each station that matters; everywhere else any action is right."""
    kinds, depth, actions = shape
    right = rng.integers(actions, size=(kinds, depth))
    dead = rng.random((kinds, depth)) < dead_ends
    effects = np.full(shape, MOVE, dtype=np.int64)
    wrong = np.where(dead, DEAD, STAY)
    if layout != "every":
        matters = 0 if layout == "first" else depth - 1
        wrong[:] = MOVE
        wrong[:, matters] = DEAD if layout == "first" else FALL
    effects[:] = wrong[:, :, None]
    np.put_along_axis(effects, right[:, :, None], MOVE, axis=2)
    return effects


def _block(rng: np.random.Generator, effects: Ints, difficulties: tuple[str, ...]) -> Ints:
    """Close one station of each `never` kind."""
    blocked = effects.copy()
    for kind, name in enumerate(difficulties):
        station = int(
            rng.integers(effects.shape[1])
        )  # drawn for each, so that the shares do not shift the stream
        if name == "never":
            blocked[kind, station] = STAY
    return blocked


# ---- the table ------------------------------------------------------------------------------------------------------


def _spec(
    effects: Ints, logits: Floats, slack: int, slip: float, actions: tuple[str, ...], error: str
) -> TabularSpec:
    kinds, depth, count = effects.shape
    places = depth + 1
    states = kinds * places
    here = np.arange(states).reshape(kinds, places)
    following = here + 1
    following[:, depth - 1] = states  # past the last station: solved
    ends = np.stack(np.broadcast_arrays(here, following, here[:, -1:], states + 1), -1)  # by effect
    outcomes = np.broadcast_to(here[:, :, None, None], (kinds, places, count, 2)).copy()
    outcomes[:, :depth, :, 0] = np.take_along_axis(ends[:, :depth], effects, axis=2)
    chances = np.zeros((kinds, places, count, 2))
    chances[:, :, :, 0] = 1.0
    chances[:, :depth][effects == MOVE] = (1.0 - slip, slip)
    texts = [shown(kind, place, depth) for kind in range(kinds) for place in range(places)]
    observations = {text: state for state, text in enumerate(texts)}
    kind_of, place_of = np.divmod(np.arange(states), places)
    return TabularSpec(
        actions=actions,
        observations=observations | {error + text: state for text, state in observations.items()},
        features=np.stack([kind_of, kinds + place_of], 1).astype(np.int32),
        initial_logits=logits,
        outcomes=outcomes.reshape(states, count, 2),
        chances=chances.reshape(states, count, 2),
        starts=here[:, 0].copy(),
        turn_limit=depth + slack,
    )


def _initial_logits(effects: Ints, targets: Floats, shifts: Floats, slack: int, slip: float) -> Floats:
    """[S, A]: the right action's log-odds at a station are its shift plus a number of its kind, which is found by bisection.

    Wrong actions share the rest; where every action is right, all are as likely.
    """
    kinds, depth, count = effects.shape
    right = effects == MOVE
    choice = right.sum(2, keepdims=True) < count  # [kinds, stations, 1]
    names = tuple(map(str, range(count)))
    table = _spec(effects, np.zeros((kinds * (depth + 1), count)), slack, slip, names, "")

    def logits(ease: Floats) -> Floats:
        odds = ease[:, None] + shifts + np.log(count - 1)  # against each wrong action
        values = np.where(right, odds[:, :, None], 0.0) * choice
        return np.concatenate([values, np.zeros((kinds, 1, count))], 1).reshape(-1, count)

    low, high = np.full(kinds, -LARGE), np.full(kinds, LARGE)
    best = start_success(table, softmax(logits(high)))
    if (best < targets - REACHED).any():
        raise ConfigError(
            f"a start success of {targets.max():g} cannot be reached with slip={slip:g} and slack={slack}: "
            f"the best policy has {best.min():.3f}; lower slip or raise slack"
        )
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        enough = start_success(table, softmax(logits(middle))) >= targets
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return logits((low + high) / 2)
