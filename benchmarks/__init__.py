"""Benchmarks: suites, the runner that measures them, and the report."""

if __name__ != "trace_gym.benchmarks":
    raise ImportError("import trace_gym.benchmarks")
