"""trace_gym: teach language-model agents by reinforcement learning on environments whose every state can be forked.

    env = gymnasium.make("trace_gym/Math-v0")     # importing trace_gym registers the ids
    twin = env.fork()                             # any state, any time

`docs/design.md` is the map. Importing this package loads neither torch nor transformers.
"""

import trace_gym.envs as _envs  # noqa: F401  (registers the environment ids)
from trace_gym._version import __version__
from trace_gym.algorithm import Algorithm, Branch, Credit, RunContext, StepContext
from trace_gym.check import check_env
from trace_gym.engine import Completion, Engine, Request, ScriptedEngine
from trace_gym.env import ForkableEnv, Opening, Snapshot, Tool, Turn
from trace_gym.errors import TraceGymError
from trace_gym.ledger import Budget, Cost, Ledger
from trace_gym.replay import ReplayEnv
from trace_gym.tree import Node, Tree

__all__ = [
    "Algorithm",
    "Branch",
    "Budget",
    "Completion",
    "Cost",
    "Credit",
    "Engine",
    "ForkableEnv",
    "Ledger",
    "Node",
    "Opening",
    "ReplayEnv",
    "Request",
    "RunContext",
    "ScriptedEngine",
    "Snapshot",
    "StepContext",
    "Tool",
    "TraceGymError",
    "Tree",
    "Turn",
    "__version__",
    "check_env",
]
