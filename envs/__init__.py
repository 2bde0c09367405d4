"""Environments: one module or folder each, registered with gymnasium under `trace_gym/`."""

if __name__ != "trace_gym.envs":
    raise ImportError("import trace_gym.envs")

import gymnasium

gymnasium.register(
    "trace_gym/Math-v0",
    entry_point="trace_gym.envs.math.env:MathEnv",
    order_enforce=False,  # wrappers would hide `snapshot`; ForkableEnv checks the order itself
    disable_env_checker=True,
)
gymnasium.register(
    "trace_gym/ToolAPI-v0",
    entry_point="trace_gym.envs.tool_api.env:ToolAPIEnv",
    order_enforce=False,
    disable_env_checker=True,
)
gymnasium.register(
    "trace_gym/SearchQA-v0",
    entry_point="trace_gym.envs.search_qa.env:SearchQAEnv",
    order_enforce=False,
    disable_env_checker=True,
)
