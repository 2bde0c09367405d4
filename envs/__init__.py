"""Environments: one module or folder each, registered with gymnasium under `trace_gym/`."""

if __name__ != "trace_gym.envs":
    raise ImportError("import trace_gym.envs")
