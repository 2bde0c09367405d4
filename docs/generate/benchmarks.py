"""The page on running the measurements again: the table of benchmarks/results, with what each costs where that is on record."""

from __future__ import annotations

import re

from docs.generate.repository import ROOT
from docs.generate.text import table

__all__ = ["COSTS", "page", "rows"]

UNKNOWN = "not on record"
COSTS = {  # as recorded on the pages themselves; 2 CPU cores
    "supervised/summary.md": "about 8 minutes a seed",
    "cpu/README.md": "59 minutes by two workers",
    "smollm2/summary.md": "40 steps of 28 s, then evaluations",
    "tools.md": "1 min 46 s for BFCL's judge",
    "trace/README.md": "Math-v0: 150 runs of 72 s, Relay: 840 of 2 s; Relay's tuning half as many again",
}

HEAD = """# Reproduce the benchmarks

Every recorded figure comes from a command; the pages say more on machine and commit. From a checkout (`make .venv`), with
`trace-gym` and `python` of `.venv/bin`:

{table}

Costs are those of the recorded runs, on 2 CPU cores; no page was recorded on a GPU.

- Policies that a command asks for (`POLICY`, `--policies`) are made by `trace-gym warmup`; the page says with which options.
- With `deterministic=true` the same settings on the same machine give the same numbers, to the last bit. Without it, and across
  machines, floating-point sums are taken in another order: compare means over seeds and their intervals.
- Timings move by a factor of two between runs on one machine. Ratios within one run hold.
- A comparison of arms is paired: arms of a seed share the starting policy, the order of tasks and the evaluation's draws. It
  can be interrupted: the command runs what is missing.
- What can be exact is a test, not a measurement (`make test`): that a fork is exact, that budgets are never exceeded, that a
  resumed run equals an uninterrupted one, that `edge` advantages give the exact gradient on Relay.

A GPU or vLLM is looked at by `make gpu-check` and the tests marked `vllm`; see [GPU set-up](gpu.md)."""


def page() -> str:
    """The page."""
    cells = [
        [f"[{name}](results/{link})", what, command, COSTS.get(link, UNKNOWN)]
        for name, link, what, command in rows()
    ]
    return HEAD.replace("{table}", table(["page", "what", "command", "cost"], cells))


def rows() -> list[tuple[str, ...]]:
    """Name, link, subject and command of every page, from benchmarks/results/README.md."""
    text = (ROOT / "benchmarks/results/README.md").read_text(encoding="utf-8")
    return re.findall(r"^\| \[([^\]]+)\]\(([^)]+)\) \| (.*) \| (.*) \|$", text, re.MULTILINE)
