"""Every error a user can cause, in one hierarchy.

    TraceGymError
    ├── ConfigError          a setting, file or command-line value is wrong
    ├── PluginError          a third-party algorithm or environment could not be used
    ├── TaskError            a task, or a file of tasks, is unknown or malformed
    ├── EnvironmentContractError   an environment breaks a rule of ForkableEnv
    ├── EpisodeError         a method was called at the wrong time (step after the end, …)
    ├── SnapshotError        a snapshot is corrupt, too large, or belongs to another environment
    │   ├── ReplayDivergence      a replayed episode gave other observations than the recorded one
    │   └── IrreversibleError     the episode did something that no fork can undo
    ├── RenderError          a chat template cannot be used turn by turn
    ├── EngineError          generation failed or the engine died
    ├── RunError             a run's folder cannot be written or read
    ├── ExternalError        a service gave no answer, or the record of its answers cannot be used
    ├── JudgeError           answers cannot be judged: no worker process could be started
    └── BudgetError          a budget is malformed or was asked for more than it holds

Messages are one line and say what to do. Our own bugs raise `AssertionError` or whatever Python raises.
"""

__all__ = [
    "BudgetError",
    "ConfigError",
    "EngineError",
    "EnvironmentContractError",
    "EpisodeError",
    "ExternalError",
    "IrreversibleError",
    "JudgeError",
    "PluginError",
    "RenderError",
    "ReplayDivergence",
    "RunError",
    "SnapshotError",
    "TaskError",
    "TraceGymError",
]


class TraceGymError(Exception):
    """The parent of every error a user can cause."""


class ConfigError(TraceGymError):
    """A setting, file or command-line value is wrong."""


class PluginError(TraceGymError):
    """A third-party algorithm or environment could not be used."""


class TaskError(TraceGymError):
    """A task, or a file of tasks, is unknown or malformed."""


class EnvironmentContractError(TraceGymError):
    """An environment breaks a rule of `ForkableEnv`."""


class EpisodeError(TraceGymError):
    """A method was called at the wrong time, such as `step` after the end."""


class SnapshotError(TraceGymError):
    """A snapshot is corrupt, too large, or belongs to another environment."""


class ReplayDivergence(SnapshotError):
    """A replayed episode gave other observations than the recorded one."""


class IrreversibleError(SnapshotError):
    """The episode did something that no fork can undo."""


class RenderError(TraceGymError):
    """A chat template cannot be used turn by turn."""


class EngineError(TraceGymError):
    """Generation failed or the engine died."""


class RunError(TraceGymError):
    """A run's folder cannot be written or read."""


class ExternalError(TraceGymError):
    """A service gave no answer, or the record of its answers cannot be used."""


class JudgeError(TraceGymError):
    """Answers cannot be judged: no worker process could be started."""


class BudgetError(TraceGymError):
    """A budget is malformed or was asked for more than it holds."""
