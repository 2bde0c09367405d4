"""The smallest forkable environment: reach a target exactly by saying 1, 2 or 3, and now and then be misheard.

    env = gymnasium.make("examples/Count-v0")
    env.reset(seed=0, options={"task": "7"})
    twin = env.fork()

All that changes is in `Count`, a frozen struct that `advance` replaces; all chance comes from `rng`. That is what
makes every state forkable. `trace_gym.check_env("examples/Count-v0")` tries the rest of the contract.
"""

from collections.abc import Sequence

import gymnasium
import msgspec
import numpy as np

from trace_gym.env import ForkableEnv, Opening, Turn
from trace_gym.errors import TaskError

SPLITS = {"train": range(4, 12), "test": range(12, 16)}  # the task id is the target


class Count(msgspec.Struct, frozen=True):
    target: int
    total: int = 0


class CountEnv(ForkableEnv[Count]):
    """`misheard` is the chance that another number is added than the one that was said."""

    env_id = "examples/Count-v0"
    state_type = Count

    def __init__(self, *, misheard: float = 0.1, max_turns: int = 12) -> None:
        super().__init__()
        self.misheard, self.max_turns = misheard, max_turns

    def tasks(self, split: str) -> Sequence[str]:
        if split not in SPLITS:
            raise TaskError(f"no split {split!r}; there are {', '.join(SPLITS)}")
        return [str(target) for target in SPLITS[split]]

    def begin(self, task_id: str, rng: np.random.Generator) -> Opening[Count]:
        if not any(task_id in self.tasks(split) for split in SPLITS):
            raise TaskError(f"no task {task_id!r}; a task is a number from 4 to 15")
        return Opening(Count(int(task_id)), f"Reach {task_id}. The total is 0.", self.max_turns)

    def advance(self, state: Count, action: str, rng: np.random.Generator) -> Turn[Count]:
        if action.strip() not in ("1", "2", "3"):
            return Turn.go(state, "Say 1, 2 or 3.", role="user", extra={"format_error": True})
        heard = int(rng.integers(1, 4)) if rng.random() < self.misheard else int(action)
        after = msgspec.structs.replace(state, total=state.total + heard)
        observation = f"Heard {heard}. The total is {after.total}."
        if after.total < state.target:
            return Turn.go(after, observation, role="user")
        return Turn.end(after, observation, success=after.total == state.target, role="user")

    def expert_action(self) -> str:
        return str(min(3, self.state.target - self.state.total))

    def instructions(self, state: Count) -> str:
        return "You are counting. Say one number from 1 to 3 in each turn, and nothing else."


gymnasium.register(
    "examples/Count-v0",
    entry_point="examples.count_env:CountEnv",
    order_enforce=False,  # gymnasium.make then gives the environment itself, with its snapshot()
    disable_env_checker=True,
)
