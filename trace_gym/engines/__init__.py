"""Engines that sample from a policy: one module each, imported by name, so that this package loads neither torch nor vllm."""
