"""Ride a lift to a floor and get off there; now and then it stops a floor short.

    <tool_call>{"name":"ride","arguments":{"floors":3}}</tool_call>      <answer>off</answer>

All that changes is in `Trip`, a frozen struct that `advance` replaces; all chance comes from `rng`: so any moment of a trip
can be forked. Importing this module registers the id; `my_env:my_namespace/Lift-v0` imports it where that has not happened.
"""

from collections.abc import Sequence

import gymnasium
import msgspec
import numpy as np

from trace_gym import ForkableEnv, Opening, Tool, Turn
from trace_gym.envs.actions import (
    Answer,
    Call,
    Malformed,
    check_arguments,
    format_answer,
    format_call,
    parse_action,
)
from trace_gym.errors import ConfigError, TaskError

LOWEST, HIGHEST = 0, 9
REACH = 3  # floors in one ride, at most
RIDE = Tool(
    name="ride",
    description="Ride up, or down with a negative number. Tells the floor where the lift stopped.",
    parameters={
        "type": "object",
        "properties": {"floors": {"type": "integer", "enum": [n for n in range(-REACH, REACH + 1) if n]}},
        "required": ["floors"],
    },
    effect="stateful",  # it changes the state, which every snapshot holds
)


class Trip(msgspec.Struct, frozen=True):
    floor: int
    goal: int


FLOORS = range(LOWEST, HIGHEST + 1)
TRIPS = {f"{floor}-{goal}": Trip(floor, goal) for floor in FLOORS for goal in FLOORS if floor != goal}
SPLITS = {
    "train": [task for i, task in enumerate(TRIPS) if i % 5],
    "test": [task for i, task in enumerate(TRIPS) if i % 5 == 0],
}


class LiftEnv(ForkableEnv[Trip]):
    """A lift to ride to a floor. `short`: how often it stops a floor before the one that was asked for."""

    env_id = "my_namespace/Lift-v0"
    state_type = Trip

    def __init__(self, *, short: float = 0.2, max_turns: int = 12) -> None:
        super().__init__()
        if not 0 <= short < 1:
            raise ConfigError(f"short is a probability below 1, not {short!r}")
        self.short, self.max_turns = short, max_turns

    def tasks(self, split: str) -> Sequence[str]:
        if split not in SPLITS:
            raise TaskError(f"no split {split!r}; there are {', '.join(SPLITS)}")
        return SPLITS[split]

    def begin(self, task_id: str, rng: np.random.Generator) -> Opening[Trip]:
        if task_id not in TRIPS:
            raise TaskError(f"no task {task_id!r}; a task is two floors from 0 to 9, such as 2-7")
        trip = TRIPS[task_id]
        shown = f"You are on floor {trip.floor}. Go to floor {trip.goal}."
        return Opening(trip, shown, self.max_turns)

    def advance(self, state: Trip, action: str, rng: np.random.Generator) -> Turn[Trip]:
        act = parse_action(action)  # reads any text, never raises
        if isinstance(act, Answer):
            there = state.floor == state.goal
            return Turn.end(state, "You are there." if there else "The wrong floor.", success=there)
        if (wrong := _wrong(act)) is not None or isinstance(act, Malformed):
            return Turn.go(state, f"error: {wrong}", extra={"format_error": True})
        floors = int(act.arguments["floors"])
        if rng.random() < self.short:
            floors -= 1 if floors > 0 else -1
        floor = min(max(state.floor + floors, LOWEST), HIGHEST)
        return Turn.go(msgspec.structs.replace(state, floor=floor), f"Floor {floor}.")

    def expert_action(self) -> str:
        gap = self.state.goal - self.state.floor
        if gap == 0:
            return format_answer("off")
        return format_call(RIDE.name, {"floors": min(max(gap, -REACH), REACH)})

    def novice_action(self, rng: np.random.Generator) -> str:
        """The expert's, but it often gets off a floor early: a habit for reinforcement learning to break."""
        near = abs(self.state.goal - self.state.floor) == 1
        return format_answer("off") if near and rng.random() < 0.5 else self.expert_action()

    def instructions(self, state: Trip) -> str:
        return (
            "Ride the lift to the floor you are sent to. Make one call per turn, such as "
            f"{format_call(RIDE.name, {'floors': 2})}, and read where it stopped. "
            f"Get off at the right floor with {format_answer('off')}."
        )

    def tools(self, state: Trip) -> Sequence[Tool]:
        return (RIDE,)


def _wrong(act: Call | Malformed) -> str | None:
    """What the agent is told about an action that is no ride; None for one that is."""
    if isinstance(act, Malformed):
        return act.message
    if act.name != RIDE.name:
        return f"there is no tool {act.name!r}; the tool is {RIDE.name}"
    return check_arguments(RIDE.parameters, act.arguments)


gymnasium.register(
    LiftEnv.env_id,
    entry_point="my_env:LiftEnv",
    order_enforce=False,  # gymnasium.make then gives the environment itself, with its snapshot()
    disable_env_checker=True,
)
