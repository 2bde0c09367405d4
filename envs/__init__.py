"""Environments: one module or folder each, registered with gymnasium under `trace_gym/`."""

if __name__ != "trace_gym.envs":
    raise ImportError("import trace_gym.envs")

import gymnasium

ENTRY_POINTS = {
    "trace_gym/Math-v0": "trace_gym.envs.math.env:MathEnv",
    "trace_gym/Relay-v0": "trace_gym.envs.relay.env:RelayEnv",
    "trace_gym/SearchQA-v0": "trace_gym.envs.search_qa.env:SearchQAEnv",
    "trace_gym/ToolAPI-v0": "trace_gym.envs.tool_api.env:ToolAPIEnv",
}

for env_id, entry_point in ENTRY_POINTS.items():
    gymnasium.register(
        env_id,
        entry_point=entry_point,
        order_enforce=False,  # wrappers would hide `snapshot`; ForkableEnv checks the order itself
        disable_env_checker=True,
    )
