"""What a fork costs: 16 continuations of one 1,000-token prefix beside 16 requests with prefixes of their own.

    python -m trace_gym.benchmarks.speed_fork --engine transformers
    python -m trace_gym.benchmarks.speed_fork --engine vllm            where vLLM is (make test-vllm makes .venv-vllm)

SmolLM2-135M-Instruct in bfloat16, random prefixes, 16 new tokens each. A round measures three cases in turn: fresh prefixes
in an empty cache; forks in an empty cache, so that their prefix is computed once; forks again, their prefix being there, as
it is after the rollout that they continue. Both engines run in this process, so that CPU seconds are all of it: they are what
to compare on a machine with other work. Each run writes its engine's record and the page of all records.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trace_gym import models
from trace_gym.engine import Completion, Engine, IntArray, Request
from trace_gym.runs import environment_facts

__all__ = ["facts", "main", "make", "measure", "page"]

MODEL = "smollm2-135m"
RESULTS = Path(__file__).parent / "results" / "speed"
FORKS, PREFIX, NEW, ROUNDS = 16, 1000, 16, 3
CONTEXT, CACHE_GIB = 2048, 1.5
CASES = ("fresh", "forks", "forks, prefix there")
Record = dict[str, Any]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args(words)
    folder, out = models.get(MODEL), given.out
    engine = make(given.engine, folder)
    try:
        record = measure(engine, rounds=given.rounds)
    finally:
        engine.close()
    out.mkdir(parents=True, exist_ok=True)
    record |= {"engine": given.engine, "about": facts(given.engine)}
    (out / f"fork-{given.engine}.json").write_text(json.dumps(record, indent=1) + "\n")
    records = [json.loads(file.read_text()) for file in sorted(out.glob("fork-*.json"))]
    text = page(records)
    (out / "fork.md").write_text(text)
    print(text)


def facts(kind: str) -> dict[str, str]:
    """The machine and the versions that matter."""
    found = environment_facts()
    if kind == "vllm":
        import vllm

        found |= {"vllm": vllm.__version__}
    return found


def make(kind: str, folder: Path) -> Engine:
    """The engine to measure, with the model in `folder`."""
    if kind == "vllm":
        from trace_gym.engines.vllm_start import start

        return start(str(folder), dtype="bfloat16", max_batch=FORKS, max_context=CONTEXT, cache_gib=CACHE_GIB)
    from transformers import AutoModelForCausalLM

    from trace_gym.engines.transformers import TransformersEngine

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, trust_remote_code=False)
    return TransformersEngine(
        model.eval(), max_batch=FORKS, max_context=CONTEXT, kept_rows=2, cache_gib=CACHE_GIB
    )


def measure(
    engine: Engine,
    *,
    rounds: int = ROUNDS,
    forks: int = FORKS,
    prefix: int = PREFIX,
    vocabulary: int = 49_152,
) -> Record:
    """Of every case: prefix tokens processed and cached, seconds and CPU seconds, one number a round."""
    rng = np.random.default_rng(0)
    cases: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
    _ask(
        engine, [rng.integers(3, vocabulary, 64).astype(np.int32)], first_seed=0
    )  # the first pass of all is slow
    for number in range(rounds):
        fresh = [rng.integers(3, vocabulary, prefix).astype(np.int32) for _ in range(forks)]
        common = [rng.integers(3, vocabulary, prefix).astype(np.int32)] * forks
        for case, prompts in zip(CASES, (fresh, common, common), strict=True):
            if case != CASES[2]:
                engine.load((), version=number)  # an empty cache
            cases[case].append(_ask(engine, prompts, first_seed=1000 * number))
    return {
        "forks": forks,
        "prefix": prefix,
        "new": NEW,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "cases": cases,
    }


def _ask(engine: Engine, prompts: Sequence[IntArray], *, first_seed: int) -> dict[str, float]:
    start, start_cpu = time.perf_counter(), time.process_time()
    for seed, prompt in enumerate(prompts, first_seed):
        engine.submit(Request(prompt, max_tokens=NEW, seed=seed))
    done: list[Completion] = []
    while len(done) < len(prompts):
        done += engine.poll(1.0)
    failed = [c.error for c in done if c.finish != "length"]
    assert not failed, failed
    return {
        "processed": sum(c.processed_tokens for c in done),
        "cached": sum(c.cached_tokens for c in done),
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - start_cpu,
    }


def page(records: Sequence[Mapping[str, Any]]) -> str:
    """The records as a page."""
    first = records[0]
    lines = [
        "# What a fork costs",
        "",
        f"{first['forks']} continuations of {first['new']} tokens each: from one {first['prefix']:,}-token prefix (forks), or"
        f" each from a prefix of its own (fresh). {MODEL}, bfloat16, on a CPU. Tokens and seconds are medians over rounds,"
        " the cases one after the other in each round; `times` is the median over rounds of fresh CPU seconds divided by the"
        " case's.",
        "",
        "| engine | case | prefix tokens processed | from the cache | seconds | CPU seconds | times |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in records:
        fresh = [row["cpu_seconds"] for row in record["cases"][CASES[0]]]
        for case, rows in record["cases"].items():
            names = ("processed", "cached", "seconds", "cpu_seconds")
            processed, cached, seconds, cpu = (float(np.median([row[n] for row in rows])) for n in names)
            times = float(np.median([f / row["cpu_seconds"] for f, row in zip(fresh, rows, strict=True)]))
            lines.append(
                f"| {record['engine']} | {case} | {processed:,.0f} | {cached:,.0f} | {seconds:.1f} | {cpu:.1f} | {times:.1f} |"
            )
    lines.append("")
    for record in records:
        facts = ", ".join(f"{name} {value}" for name, value in record["about"].items())
        lines.append(
            f"{record['engine']}: rounds: {len(record['cases'][CASES[0]])}, {record['threads']} threads, load average"
            f" {record['load_average']:.1f}; {facts}. `python -m trace_gym.benchmarks.speed_fork --engine {record['engine']}`"
        )
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    main()
