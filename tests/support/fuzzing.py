"""Hostile model text: strings glued together from markup, code and awkward characters, fed to an environment.

Among the pieces are programs that would write a file called `executed` into the working folder, in Python, in a shell and in a
template. Whoever runs text leaves it there.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from trace_gym.env import ForkableEnv

__all__ = ["CANARY", "feed", "strings"]

CANARY = "executed"
PIECES = (
    "<tool_call>", "</tool_call>", "<answer>", "</answer>", "<think>", "</think>", '{"name":"', '","arguments":{', "}}",
    f"__import__('os').system('touch {CANARY}')", f"open('{CANARY}','w')", f"$(touch {CANARY})", f"; touch {CANARY};",
    f"`touch {CANARY}`", f"{{{{open('{CANARY}','w')}}}}", "eval(", "exec(", "\x00", "\ud800", "9" * 30, "[[[[", "null", "1e999",
    "-1", "9**9**9", "\u202e", "\u0130", "\u200b", " ", "\n", "é", "|im_end|", "<|im_end|>", "\\", "'", '"', "%s", "../../etc",
)  # fmt: skip


def strings(rng: np.random.Generator, count: int, own: tuple[str, ...] = ()) -> list[str]:
    """`count` texts of 1 to 13 pieces, of these and of an environment's `own`."""
    pieces = PIECES + own
    return [
        "".join(pieces[int(i)] for i in rng.integers(len(pieces), size=int(rng.integers(1, 14))))
        for _ in range(count)
    ]


def feed(env: ForkableEnv[Any], count: int, *, seed: int, own: tuple[str, ...] = ()) -> float:
    """Step `env` with `count` texts, from states on the way of an expert's episodes; the longest step in seconds."""
    rng = np.random.default_rng(seed)
    tasks, longest = env.tasks("train"), 0.0
    for place, text in enumerate(strings(rng, count, own)):
        if place % 50 == 0:
            task = {"task": tasks[int(rng.integers(len(tasks)))]}
            env.reset(seed=place, options=task)
            for _ in range(int(rng.integers(0, 3))):
                env.step(env.expert_action())
                if env.snapshot().status != "running":
                    env.reset(seed=place, options=task)
            mark = env.snapshot()
        env.restore(mark)
        began = time.perf_counter()
        observation, *_ = env.step(text)
        longest = max(longest, time.perf_counter() - began)
        assert env.observation_space.contains(observation)
    assert not Path(CANARY).exists(), "text was executed"
    return longest
