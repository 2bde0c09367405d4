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
from trace_gym.envs.actions import Answer, Malformed, check_arguments, format_answer, format_call, parse_action
from trace_gym.errors import ConfigError, TaskError

REACH = 3  # floors in one ride, at most
RIDE = Tool(
    name="ride",
    description="Ride up, or down with a negative number. Tells the floor where the lift stopped.",
    parameters={
        "type": "object",
        "properties": {"floors": {"type": "integer", "enum": [-3, -2, -1, 1, 2, 3]}},
        "required": ["floors"],
    },
    effect="stateful",  # it changes the state, which every snapshot holds
)


class Trip(msgspec.Struct, frozen=True):
    floor: int
    goal: int


TRIPS = {f"{floor}-{goal}": Trip(floor, goal) for floor in range(10) for goal in range(10) if floor != goal}
SPLITS = {"train": [id for i, id in enumerate(TRIPS) if i % 5], "test": list(TRIPS)[::5]}


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
        act = parse_action(action)  # reads any text, and never raises
        if isinstance(act, Answer):
            there = state.floor == state.goal
            return Turn.end(state, "You are there." if there else "The wrong floor.", success=there)
        if isinstance(act, Malformed):
            wrong: str | None = act.message
        elif act.name != RIDE.name:
            wrong = f"there is no tool {act.name!r}; the tool is ride"
        else:
            wrong = check_arguments(RIDE.parameters, act.arguments)
        if wrong is not None:
            return Turn.go(state, f"error: {wrong}", extra={"format_error": True})
        ...
