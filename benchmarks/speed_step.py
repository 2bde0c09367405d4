"""Where a training step's time goes with each engine: SmolLM2 with adapters, one step of GRPO on Math-v0.

    python -m trace_gym.benchmarks.speed_step --engine transformers
    python -m trace_gym.benchmarks.speed_step --engine vllm            where vLLM is (make test-vllm makes .venv-vllm)

Everything but the engine is the same, the seeds too; the engines round differently, so their tokens differ, and with them the
number of tokens: compare seconds per token. CPU seconds are the process's, loading included. Each run writes its engine's
record and the page of all records.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trace_gym import models
from trace_gym.config import load_config
from trace_gym.observer import Silent
from trace_gym.runs import environment_facts
from trace_gym.train import train

__all__ = ["main", "measure", "page"]

MODEL = "smollm2-135m"
RESULTS = Path(__file__).parent / "results" / "speed"
SETTINGS = (
    "env.options.difficulty=1",
    "policy.dtype=bfloat16",
    "policy.lora.rank=16",
    "engine.max_context=1024",
    "engine.cache_gib=1",
    "algorithm.group=8",
    "rollout.prompts_per_step=2",
    "rollout.max_tokens=32",
    "rollout.turn_deadline_s=900",
    "eval.tasks=0",
    "budget.steps=1",
    "log.tensorboard=false",
    "log.trees_every_steps=0",
    "log.checkpoint_every_steps=0",
)
PHASES = ("plant", "plan", "engine", "env", "algorithm", "update", "load")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    models.get(MODEL)
    record = measure(f"policy.path={MODEL}", f"engine.kind={given.engine}")
    record |= {"engine": given.engine, "about": environment_facts()}
    out: Path = given.out
    out.mkdir(parents=True, exist_ok=True)
    (out / f"step-{given.engine}.json").write_text(json.dumps(record, indent=1) + "\n")
    text = page([json.loads(file.read_text()) for file in sorted(out.glob("step-*.json"))])
    (out / "step.md").write_text(text)
    print(text)


def measure(*overrides: str) -> dict[str, Any]:
    """The step's metrics, and the CPU seconds of the whole run."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as out:
        run = train(load_config(None, (*SETTINGS, *overrides, f"out={out}")), Silent())
        (row,) = run.metrics()
    return {
        "metrics": dict(row),
        "cpu_seconds": time.process_time() - start,
        "load_average": os.getloadavg()[0],
    }


def page(records: Sequence[Mapping[str, Any]]) -> str:
    """The records as a page."""
    lines = [
        "# A training step by phase",
        "",
        f"{MODEL}, bfloat16, adapters of rank 16, 16 rollouts of Math-v0 at difficulty 1, turns of at most 32 tokens, on a CPU."
        " Wall seconds; environment steps run beside the engine.",
        "",
        "| engine | sampled tokens | prompt tokens processed | from the cache | "
        + " | ".join(PHASES)
        + " | whole step | CPU seconds of the run |",
        "|" + "---|" * (6 + len(PHASES)),
    ]
    for record in records:
        row = record["metrics"]
        counts = [f"{float(row[n]):,.0f}" for n in ("policy_tokens", "prompt_tokens", "cached_tokens")]
        seconds = [f"{float(row.get(f'seconds_{phase}', 0.0)):.2f}" for phase in PHASES]
        total = [f"{float(row['seconds']):.1f}", f"{record['cpu_seconds']:.0f}"]
        lines.append("| " + " | ".join([record["engine"], *counts, *seconds, *total]) + " |")
    lines.append("")
    for record in records:
        facts = ", ".join(f"{name} {value}" for name, value in record["about"].items())
        lines += [
            f"{record['engine']}: load average {record['load_average']:.1f}; {facts}."
            f" `python -m trace_gym.benchmarks.speed_step --engine {record['engine']}`",
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    main()
