"""Algorithms: one module each, found through the entry-point group `trace_gym.algorithms`."""

if __name__ != "trace_gym.algorithms":
    raise ImportError("import trace_gym.algorithms")
