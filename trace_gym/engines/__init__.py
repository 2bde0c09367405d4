"""Engines that sample from a policy, one module each: importing this package loads neither torch nor vllm."""
