"""`trace_gym/Relay-v0`: a runner of some kind passes station after station; at each, one action is right.

    a right action      the next station; past the last one the task is solved. With probability `slip` the runner stays
    a wrong one         costs a turn, or at some stations leads into a dead end, or ends the episode (preset `last`)
    any other text      costs a turn; but at the closed station of a `never` kind "open" passes, and nothing else does

"open" is not among the actions of the table's policy: for it, those kinds cannot be solved. The episode ends with success,
with a fall, or when depth + slack turns are used; a runner in a dead end is told so and goes on, without hope, until then.
Everything is known exactly (`tabular()`): `trace_gym.exact` solves it, `policy.path=tabular` learns it. Tasks of a kind differ
in nothing but their number, and both splits hold every kind equally often; so a policy is judged on the kinds it was trained
on. A snapshot belongs to an environment made with the same options.

    env = gymnasium.make("trace_gym/Relay-v0", mix="hard", depth=6)
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import ClassVar

import msgspec
import numpy as np

from trace_gym.env import ForkableEnv, Opening, Turn
from trace_gym.envs.relay.world import DEAD, FALL, MOVE, STAY, World, make_world, shown
from trace_gym.errors import ConfigError, SnapshotError, TaskError
from trace_gym.exact import TabularSpec, softmax

__all__ = ["RelayEnv", "RelayState"]

KEY = "open"
TASKS = {"train": 4096, "test": 1024}  # at least: rounded up to whole rounds of the kinds
MOST = {"depth": 100, "slack": 100, "kinds": 4096}


class RelayState(msgspec.Struct, frozen=True):
    """Where a runner is. `place` counts stations from 0; the number of stations stands for the dead end."""

    kind: int
    place: int = 0


class RelayEnv(ForkableEnv[RelayState]):
    """A runner passes stations; the chance of success is known exactly from everywhere. Task ids are `difficulty/number`.

    `mix`: a preset (see `world`), or shares of the difficulties trivial, medium, hard, never and of numbers, each a start
    success, such as {medium: 1, "0.02": 3}. `depth`: stations. `slack`: turns that may be wasted, at least 1. `dead_ends`: the
    probability that a station has one. `actions`: to choose from. `kinds`: how many. `slip`: the probability that a right
    action fails. `spread`: how much the stations of a kind differ for the initial policy, the standard deviation of the right
    action's log-odds; 0 is not at all. `world`: the seed that everything fixed is drawn from. Raises `ConfigError` for what
    makes no sense.
    """

    env_id: ClassVar[str] = "trace_gym/Relay-v0"
    state_type: ClassVar[type[msgspec.Struct]] = RelayState

    def __init__(
        self,
        mix: str | Mapping[str, float] = "broad",
        *,
        depth: int = 5,
        slack: int = 2,
        dead_ends: float = 0.5,
        actions: int = 4,
        kinds: int = 32,
        slip: float = 0.0,
        spread: float = 1.5,
        world: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("depth", depth), ("slack", slack), ("kinds", kinds)):
            if type(value) is not int or not 1 <= value <= MOST[name]:
                raise ConfigError(f"{name} is a whole number from 1 to {MOST[name]}, not {value!r}")
        if type(actions) is not int or not 2 <= actions <= 26:
            raise ConfigError(f"actions is a whole number from 2 to 26, not {actions!r}")
        if not 0 <= dead_ends <= 1 or not 0 <= slip < 1 or not 0 <= spread <= 10:
            raise ConfigError("dead_ends is a probability, slip one below 1, spread a number from 0 to 10")
        if type(world) is not int or world < 0:
            raise ConfigError(f"world is a seed, a whole number from 0, not {world!r}")
        names = tuple(string.ascii_lowercase[:actions])
        self._index = {name: i for i, name in enumerate(names)}
        self._slip = float(slip)
        self._error = f"Not an action: write one of {', '.join(names)}. "
        self._system = (
            f"Pass {depth} stations within {depth + slack} turns. Write one word a turn: {', '.join(names)}. "
            "Which one is right depends on the kind of runner and on the station."
        )
        self._world = make_world(
            mix=mix,
            actions=names,
            depth=depth,
            slack=slack,
            dead_ends=float(dead_ends),
            kinds=kinds,
            slip=self._slip,
            spread=float(spread),
            error=self._error,
            seed=world,
        )
        self._tasks, self._kinds = _number_tasks(self._world)

    # ---- tasks ------------------------------------------------------------------------------------------------------

    def tasks(self, split: str) -> Sequence[str]:
        """Ids of train or test. Raises `TaskError` for another split."""
        if split not in self._tasks:
            raise TaskError(f"Relay has no split {split!r}; it has {', '.join(self._tasks)}")
        return self._tasks[split]

    def begin(self, task_id: str, rng: np.random.Generator) -> Opening[RelayState]:
        if task_id not in self._kinds:
            first = self._tasks["train"][0]
            raise TaskError(f"Relay has no task {task_id!r}; tasks() lists them, such as {first!r}")
        state = RelayState(self._kinds[task_id])
        return Opening(state, self._shown(state), self._world.spec.turn_limit)

    def instructions(self, state: RelayState) -> str:
        return self._system

    # ---- turns ------------------------------------------------------------------------------------------------------

    def advance(self, state: RelayState, action: str, rng: np.random.Generator) -> Turn[RelayState]:
        word, (kind, place, depth) = action.strip(), (state.kind, state.place, self._world.depth)
        index = self._index.get(word)
        if word == KEY and self._closed(state):
            return self._pass(state)
        if index is None:
            text = self._error + self._shown(state)
            return Turn.go(state, text, role="user", extra={"format_error": True})
        effect = STAY if place == depth else self._world.effects[kind, place, index]
        if effect == FALL:
            return Turn.end(state, f"Kind {kind}: fell.", role="user", success=False)
        if effect == MOVE and not (self._slip and rng.random() < self._slip):
            return self._pass(state)
        after = RelayState(kind, depth) if effect == DEAD else state
        return Turn.go(after, self._shown(after), role="user")

    def _pass(self, state: RelayState) -> Turn[RelayState]:
        if state.place == self._world.depth - 1:
            return Turn.end(state, f"Kind {state.kind}: arrived.", role="user", success=True)
        after = RelayState(state.kind, state.place + 1)
        return Turn.go(after, self._shown(after), role="user")

    def _closed(self, state: RelayState) -> bool:
        """Whether this is a station that no action passes."""
        if state.place == self._world.depth:
            return False
        return not (self._world.effects[state.kind, state.place] == MOVE).any()

    def _shown(self, state: RelayState) -> str:
        return shown(state.kind, state.place, self._world.depth)

    def resume(self, state: RelayState) -> None:
        if not (0 <= state.kind < self._world.kinds and 0 <= state.place <= self._world.depth):
            raise SnapshotError(
                f"{self.env_id}: the snapshot's kind or place does not exist here; make it with the same options"
            )

    # ---- what is known ----------------------------------------------------------------------------------------------

    def tabular(self) -> TabularSpec:
        """The table that every episode follows; see `trace_gym.exact`."""
        return self._world.spec

    @property
    def difficulties(self) -> tuple[str, ...]:
        """[kinds] what each kind is called, in the order of `tabular().starts`."""
        return self._world.difficulties

    def state_key(self) -> str:
        """Kind and place; the turns left are not part of it."""
        return f"{self.state.kind}/{self.state.place}"

    def expert_action(self) -> str:
        """The right action; in a dead end, where there is none, the first."""
        if self.state.place == self._world.depth:
            return self._world.spec.actions[0]
        if self._closed(self.state):
            return KEY
        moves = self._world.effects[self.state.kind, self.state.place] == MOVE
        return self._world.spec.actions[int(moves.argmax())]

    def novice_action(self, rng: np.random.Generator) -> str:
        """An action of the initial policy."""
        spec = self._world.spec
        logits = spec.initial_logits[spec.state(self._shown(self.state))]
        return spec.actions[int(rng.choice(len(logits), p=softmax(logits)))]


def _number_tasks(world: World) -> tuple[dict[str, tuple[str, ...]], dict[str, int]]:
    """Ids of each split, and the kind of each id. Kinds take turns."""
    tasks: dict[str, tuple[str, ...]] = {}
    kind_of: dict[str, int] = {}
    for split, least in TASKS.items():
        first = len(kind_of)
        count = -(-least // world.kinds) * world.kinds
        kinds = [i % world.kinds for i in range(count)]
        names = tuple(f"{world.difficulties[kind]}/{first + i}" for i, kind in enumerate(kinds))
        tasks[split] = names
        kind_of |= dict(zip(names, kinds, strict=True))
    return tasks, kind_of
