"""A tiny noisy environment and a scripted policy for it: walk from 0 to the goal; the ground slips now and then."""

import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from trace_gym.engine import Request
from trace_gym.env import ForkableEnv, Opening, Turn
from trace_gym.errors import TaskError
from trace_gym.render import PlainRenderer

RENDERER = PlainRenderer()


class Walk(msgspec.Struct, frozen=True):
    position: int
    goal: int


class WalkEnv(ForkableEnv[Walk]):
    """`+` and `-` move one step, `stop` ends; a step slips to nowhere with chance `slip`. Task id = the goal.

    The actions `raise`, `hang` and `void` misbehave, for tests of faults.
    """

    env_id = "tests/Walk-v0"
    state_type = Walk

    def __init__(self, slip: float = 0.2, turn_limit: int = 8) -> None:
        super().__init__()
        self.slip, self.turn_limit = slip, turn_limit

    def begin(self, task_id: str, rng: np.random.Generator) -> Opening[Walk]:
        if task_id not in self.tasks("train"):
            raise TaskError(f"no task {task_id!r}")
        goal = int(task_id)
        return Opening(Walk(0, goal), f"walk to {goal}", turn_limit=self.turn_limit)

    def advance(self, state: Walk, action: str, rng: np.random.Generator) -> Turn[Walk]:
        if action == "raise":
            raise RuntimeError("the ground opened")
        if action == "hang":
            time.sleep(1.0)
        if action == "void":
            return Turn.go(state, "the ground is gone", irreversible=True)
        if action == "stop":
            won = state.position == state.goal
            return Turn.end(state, "arrived" if won else "lost", success=won)
        if action not in ("+", "-"):
            return Turn.go(state, "say + or - or stop", extra={"format_error": True})
        step = 0 if rng.random() < self.slip else 1 if action == "+" else -1
        state = Walk(state.position + step, state.goal)
        return Turn.go(state, f"at {state.position}")

    def tasks(self, split: str) -> Sequence[str]:
        if split not in ("train", "test"):
            raise TaskError(f"no split {split!r}")
        return ("1", "2", "3")

    def expert_action(self) -> str:
        distance = self.state.goal - self.state.position
        return "stop" if distance == 0 else "+" if distance > 0 else "-"


def walker(
    choose: Callable[[np.random.Generator], str],
) -> Callable[[Request, np.random.Generator], Sequence[int]]:
    """A scripted policy that says what `choose` draws."""
    return lambda request, rng: RENDERER.encode(choose(rng))


def random_walk(rng: np.random.Generator) -> str:
    return str(rng.choice(["+", "+", "-", "stop", "what?"]))
