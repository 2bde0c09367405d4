"""A good environment, and others that differ from it by one defect each: what `check_env` is tested on.

The good one has what goes wrong elsewhere: noise, tools that change, a growing record, and info of its own.
"""

import json
import os
import pickle
import sys
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium
import msgspec
import numpy as np

from trace_gym.env import ForkableEnv, Info, Opening, Snapshot, Tool, Turn
from trace_gym.errors import TaskError
from trace_gym.snapshot import plain_bytes

OPEN = Tool(name="open", description="Open the purse.", parameters={"type": "object", "properties": {}})
PUT = Tool(
    name="put",
    description="Put a coin in; it may roll away.",
    parameters={"type": "object", "properties": {"coin": {"type": "integer", "enum": [1, 2, 5]}}},
    effect="stateful",
)
CLOSED_TOOLS, OPEN_TOOLS = (OPEN,), (OPEN, PUT)


class Purse(msgspec.Struct, frozen=True):
    target: int
    coins: tuple[int, ...] = ()
    is_open: bool = False


class PurseEnv(ForkableEnv[Purse]):
    """Put coins that sum to the target into a purse, once it is open. A coin may roll away (`rolls`)."""

    env_id = "tests/Purse-v0"
    state_type: ClassVar[type[Any]] = Purse
    rolls: float = 0.3

    def tasks(self, split: str) -> Sequence[str]:
        if split not in ("train", "test"):
            raise TaskError(f"no split {split!r}")
        return [str(target) for target in (range(4, 12) if split == "train" else range(12, 16))]

    def begin(self, task_id: str, rng: np.random.Generator) -> Opening[Purse]:
        if task_id not in (*self.tasks("train"), *self.tasks("test")):
            raise TaskError(f"no task {task_id!r}")
        state = self.first_state(int(task_id))
        return Opening(state, f"The purse must hold {task_id}.", self.turn_limit(int(task_id)), {"coins": []})

    def first_state(self, target: int) -> Purse:
        return Purse(target)

    def turn_limit(self, target: int) -> int:
        return 20

    def parse(self, action: str) -> tuple[str, int]:
        """(tool, coin) of a tool call; ("", 0) for anything else."""
        body = action.strip().removeprefix("<tool_call>").removesuffix("</tool_call>")
        try:
            call = json.loads(body)
            name, coin = call["name"], call["arguments"].get("coin", 0)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return "", 0
        return (name, coin) if isinstance(name, str) and isinstance(coin, int) else ("", 0)

    def advance(self, state: Purse, action: str, rng: np.random.Generator) -> Turn[Purse]:
        tool, coin = self.parse(action)
        if tool == "open" and not state.is_open:
            return Turn.go(self.opened(state), "The purse is open.", extra={"coins": list(state.coins)})
        if tool != "put" or not state.is_open or coin not in (1, 2, 5):
            return Turn.go(state, "error: that does nothing", extra={"coins": list(state.coins)})
        return self.judged(state if self.rolled(state, rng) else self.with_coin(state, coin))

    def judged(self, state: Purse) -> Turn[Purse]:
        extra = {"coins": list(state.coins)}
        if (total := sum(state.coins)) >= state.target:
            return Turn.end(state, self.view(state), success=total == state.target, extra=extra)
        return Turn.go(state, self.view(state), extra=extra)

    def rolled(self, state: Purse, rng: np.random.Generator) -> bool:
        return rng.random() < self.rolls

    def opened(self, state: Purse) -> Purse:
        return msgspec.structs.replace(state, is_open=True)

    def with_coin(self, state: Purse, coin: int) -> Purse:
        return msgspec.structs.replace(state, coins=(*state.coins, coin))

    def view(self, state: Purse) -> str:
        return f"{len(state.coins)} coins make {sum(state.coins)}."

    def tools(self, state: Purse) -> Sequence[Tool]:
        return OPEN_TOOLS if state.is_open else CLOSED_TOOLS

    def instructions(self, state: Purse) -> str:
        return f"Fill the purse with {state.target}, in coins of 1, 2 and 5."

    def expert_action(self) -> str:
        state = self.state
        if not state.is_open:
            return '<tool_call>{"name": "open", "arguments": {}}</tool_call>'
        coin = max(coin for coin in (1, 2, 5) if coin <= max(1, state.target - sum(state.coins)))
        return f'<tool_call>{{"name": "put", "arguments": {{"coin": {coin}}}}}</tool_call>'


class SteadyPurseEnv(PurseEnv):
    """Without noise."""

    rolls = 0.0


class IrreversiblePurseEnv(PurseEnv):
    """Good: its last coin is posted, which cannot be undone."""

    def judged(self, state: Purse) -> Turn[Purse]:
        turn = super().judged(state)
        if not turn.terminated:
            return Turn.go(state, turn.observation, extra=turn.extra, irreversible=sum(state.coins) >= 3)
        success = bool(turn.success)
        return Turn.end(state, turn.observation, success=success, extra=turn.extra, irreversible=True)


class ChattyPurseEnv(PurseEnv):
    """Good: it prints, in this process and in others."""

    def view(self, state: Purse) -> str:
        print("a coin falls")
        return super().view(state)


# ---- state that a snapshot does not hold ---------------------------------------------------------------------


class ForgottenGenerator(PurseEnv):
    def begin(self, task_id: str, rng: np.random.Generator) -> Opening[Purse]:
        self.own_rng = np.random.default_rng(rng.integers(2**32))
        return super().begin(task_id, rng)

    def rolled(self, state: Purse, rng: np.random.Generator) -> bool:
        return self.own_rng.random() < 0.3


class CounterOutside(PurseEnv):
    def begin(self, task_id: str, rng: np.random.Generator) -> Opening[Purse]:
        self.asked = 0
        return super().begin(task_id, rng)

    def advance(self, state: Purse, action: str, rng: np.random.Generator) -> Turn[Purse]:
        self.asked = getattr(self, "asked", 0) + 1
        return super().advance(state, action, rng)

    def view(self, state: Purse) -> str:
        return f"{super().view(state)} That was turn {self.asked}."


class NeedsOldInstance(PurseEnv):
    def begin(self, task_id: str, rng: np.random.Generator) -> Opening[Purse]:
        opening = super().begin(task_id, rng)
        self.mottos = {**getattr(self, "mottos", {}), opening.state.target: "thrift"}
        return opening

    def view(self, state: Purse) -> str:
        return f"{super().view(state)} {self.mottos[state.target]}"


class SharedCache(PurseEnv):
    """What once happened to a coin happens to it in every later episode of the process."""

    cache: ClassVar[dict[Purse, bool]] = {}

    def rolled(self, state: Purse, rng: np.random.Generator) -> bool:
        drawn = super().rolled(state, rng)
        return self.cache.setdefault(state, drawn)


class OrderDependent(PurseEnv):
    """One board for all instances, set up anew by reset and restore: wrong as soon as two take turns."""

    board: ClassVar[Purse]

    def begin(self, task_id: str, rng: np.random.Generator) -> Opening[Purse]:
        opening = super().begin(task_id, rng)
        type(self).board = opening.state
        return opening

    def resume(self, state: Purse) -> None:
        type(self).board = state

    def advance(self, state: Purse, action: str, rng: np.random.Generator) -> Turn[Purse]:
        turn = super().advance(type(self).board, action, rng)
        type(self).board = turn.state
        return turn


class HashedStart(PurseEnv):
    """Seeds something by `hash`, which every process salts anew."""

    def instructions(self, state: Purse) -> str:
        return f"{super().instructions(state)} It has the number {hash(str(state.target))}."


class WordOrder(PurseEnv):
    """Shows a set, whose order is another one in another process."""

    def view(self, state: Purse) -> str:
        words = {"copper", "silver", "gold", "nickel", "tin", "zinc", "brass", "iron"}
        return f"{super().view(state)} Of {', '.join(words)}."


class DiesElsewhere(PurseEnv):
    """Takes a process down with it, if that is not the one that runs the tests."""

    def resume(self, state: Purse) -> None:
        if sys.argv[0] == "-c":
            os._exit(3)


class StaleTools(PurseEnv):
    """A step that changes the tools does not show them."""

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        observation, reward, terminated, truncated, info = super().step(action)
        info.pop("tools", None)
        return observation, reward, terminated, truncated, info


# ---- state that is no value ----------------------------------------------------------------------------------


class ListPurse(msgspec.Struct, frozen=True):
    target: int
    coins: list[int]
    is_open: bool = False


class AliasedList(PurseEnv):
    state_type: ClassVar[type[Any]] = ListPurse

    def first_state(self, target: int) -> Any:
        return ListPurse(target, [])

    def with_coin(self, state: Any, coin: int) -> Any:
        state.coins.append(coin)
        return state


class MutablePurse(msgspec.Struct):
    target: int
    coins: tuple[int, ...] = ()
    is_open: bool = False


class NotFrozen(PurseEnv):
    state_type: ClassVar[type[Any]] = MutablePurse

    def first_state(self, target: int) -> Any:
        return MutablePurse(target)


class Bag:
    """Something that only pickle could carry."""

    coins: tuple[int, ...] = ()


class BagPurse(Purse, frozen=True):
    bag: Any = None


class PickleOnly(PurseEnv):
    state_type = BagPurse

    def first_state(self, target: int) -> Purse:
        return BagPurse(target, bag=Bag())


class PickledInside(PurseEnv):
    state_type = BagPurse

    def first_state(self, target: int) -> Purse:
        return BagPurse(target, bag=pickle.dumps([target]))


class WeightPurse(Purse, frozen=True):
    weight: float = 0.5


class ChangedByBytes(PurseEnv):
    """Keeps an integer in a float field: 3 goes out and 3.0 comes back."""

    state_type = WeightPurse

    def first_state(self, target: int) -> Purse:
        return WeightPurse(target, weight=target)


# ---- restore and fork that do something else -------------------------------------------------------------------


class ObservationChanged(PurseEnv):
    def restore(self, snapshot: Snapshot, *, seed: int | None = None) -> tuple[str, Info]:
        observation, info = super().restore(snapshot, seed=seed)
        return f"{observation} (restored)", info


class SeedIgnored(PurseEnv):
    def restore(self, snapshot: Snapshot, *, seed: int | None = None) -> tuple[str, Info]:
        return super().restore(snapshot)


class TakesAnything(PurseEnv):
    def _refuse_foreign(self, snapshot: Snapshot) -> None:
        pass


class CrashesOnDamage(PurseEnv):
    def restore(self, snapshot: Snapshot, *, seed: int | None = None) -> tuple[str, Info]:
        state = msgspec.msgpack.decode(
            plain_bytes(snapshot.state, ""), type=Purse
        )  # msgspec's own error escapes
        return super().restore(msgspec.structs.replace(snapshot, state=state), seed=seed)


class ForksToItself(PurseEnv):
    def fork(self) -> "ForksToItself":
        return self


class KeyHasNoise(PurseEnv):
    def state_key(self) -> str:
        return self.snapshot().digest


# ---- chance from elsewhere -------------------------------------------------------------------------------------


class GlobalRandom(PurseEnv):
    def rolled(self, state: Purse, rng: np.random.Generator) -> bool:
        return np.random.random() < 0.3  # noqa: NPY002 (the defect)


class SeedsGlobal(PurseEnv):
    def begin(self, task_id: str, rng: np.random.Generator) -> Opening[Purse]:
        np.random.seed(0)  # noqa: NPY002 (the defect)
        return super().begin(task_id, rng)


class FreshEntropy(PurseEnv):
    def rolled(self, state: Purse, rng: np.random.Generator) -> bool:
        return np.random.default_rng().random() < 0.3


# ---- what is shown -----------------------------------------------------------------------------------------------


class InfoAliased(PurseEnv):
    def _info(self, now: Snapshot) -> Info:
        info: Info = {**now.extra, "task_id": now.task_id, "role": now.role}
        return info if now.success is None else {**info, "success": now.success}


class RepeatsInfo(PurseEnv):
    """Returns one and the same dict every time."""

    def _info(self, now: Snapshot) -> Info:
        if not hasattr(self, "kept"):
            self.kept: Info = {}
        self.kept.clear()
        self.kept.update(super()._info(now))
        return self.kept


class NoSuccess(PurseEnv):
    def _info(self, now: Snapshot) -> Info:
        info = super()._info(now)
        info.pop("success", None)
        return info


class HalfCharacters(PurseEnv):
    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        observation, *rest = super().step(action)
        return f"{observation}\ud800", *rest  # type: ignore[return-value]


class ObjectInInfo(PurseEnv):
    def _info(self, now: Snapshot) -> Info:
        return {**super()._info(now), "env": [Bag()]}


class NoTasks(PurseEnv):
    def tasks(self, split: str) -> Sequence[str]:
        return super().tasks(split)[:0]


class EarlyReward(PurseEnv):
    def judged(self, state: Purse) -> Turn[Purse]:
        turn = super().judged(state)
        return turn if turn.terminated else Turn.go(state, turn.observation, extra=turn.extra, reward=0.1)


class TooLong(PurseEnv):
    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation * 1000, reward, terminated, truncated, info


# ---- turns and tasks ---------------------------------------------------------------------------------------------


class StepsOn(PurseEnv):
    """Allows `step` after the end."""

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        now = self._episode()
        if now.status != "running":
            return now.observation, 0.0, True, False, self._info(now)
        return super().step(action)


class RaisesOnGarbage(PurseEnv):
    def parse(self, action: str) -> tuple[str, int]:
        call = json.loads(action.removeprefix("<tool_call>").removesuffix("</tool_call>"))
        return call["name"], call["arguments"].get("coin", 0)


class RaisesOnStrangeCoins(PurseEnv):
    """Total at the start, and no more once the purse is open."""

    def advance(self, state: Purse, action: str, rng: np.random.Generator) -> Turn[Purse]:
        if state.is_open and '"arguments": null' in action:
            raise AttributeError("null has no coin")
        return super().advance(state, action, rng)


class NoRoom(SteadyPurseEnv):
    def turn_limit(self, target: int) -> int:
        """Exactly what the solution takes."""
        turns = 1
        while target:
            target -= max(coin for coin in (1, 2, 5) if coin <= target)
            turns += 1
        return turns


class CannotReset(PurseEnv):
    def begin(self, task_id: str, rng: np.random.Generator) -> Opening[Purse]:
        if task_id in self.tasks("test"):
            raise TaskError("the test split has no data")
        return super().begin(task_id, rng)


class LostExpert(PurseEnv):
    def expert_action(self) -> str:
        return '<tool_call>{"name": "open", "arguments": {}}</tool_call>'


class ShuffledTasks(PurseEnv):
    def tasks(self, split: str) -> Sequence[str]:
        return [str(i) for i in np.random.default_rng().permutation([int(t) for t in super().tasks(split)])]


class TakesAnyTask(PurseEnv):
    def begin(self, task_id: str, rng: np.random.Generator) -> Opening[Purse]:
        return super().begin(task_id if task_id in self.tasks("train") else "4", rng)


class RewardsTime(PurseEnv):
    """Calls it a success when time is up."""

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        observation, reward, terminated, truncated, info = super().step(action)
        if truncated:
            info["success"] = True
        return observation, reward, terminated, truncated, info


class Counting(gymnasium.Wrapper[str, str, str, str]):
    """A wrapper with a count of its own."""

    turns = 0

    def step(self, action: str) -> tuple[str, Any, bool, bool, Info]:
        self.turns += 1
        observation, reward, terminated, truncated, info = super().step(action)
        return f"{self.turns}: {observation}", reward, terminated, truncated, info
