"""Stands in for `trace_gym.benchmarks.worker`: quick, and as unreliable as a cell's algorithm is called."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from trace_gym.benchmarks.expansion import Cell
from trace_gym.benchmarks.worker import write_result
from trace_gym.config import TrainConfig
from trace_gym.runs import RunFolder

OUT = Path(sys.argv[-1])


def leave_a_run(cell: Cell) -> None:
    """Success that rises with the learning rate up to 0.5 and with the seed."""
    folder = OUT / cell.key
    run = RunFolder.create(folder, "run", config=TrainConfig())
    rate = cell.rate or 0.1
    end = 0.5 - abs(rate - 0.5) / 2 + cell.seed / 100
    for step, success in enumerate((0.1, end)):
        tokens = cell.budget * (step + 1) / 2
        row = {"step": float(step), "policy_tokens": tokens, "exact_success": success, "prompts": 2.0}
        run.append_metrics({**row, "effective_ratio": 0.5, "seconds_engine": 1.0})


def main() -> None:
    for line in sys.stdin:
        cell = Cell(**json.loads(line))
        (OUT / cell.key).mkdir(parents=True, exist_ok=True)
        with open(OUT / "started.txt", "a") as started:
            started.write(f"{cell.label}\n")
        if cell.algorithm == "dies":
            (OUT / cell.key / "log.txt").write_text("about to die\n")
            os.kill(os.getpid(), signal.SIGKILL)
        if cell.algorithm == "hangs":
            time.sleep(60)
        if cell.algorithm == "raises" or (cell.kind == "warmup" and cell.seed == 1):
            write_result(
                cell, OUT, {"status": "failed", "reason": "it raised", "seconds": 0.1, "cpu_seconds": 0.1}
            )
        else:
            if cell.kind != "warmup":
                leave_a_run(cell)
            write_result(cell, OUT, {"status": "done", "seconds": 0.1, "cpu_seconds": 0.1})
        print(cell.key, flush=True)


if __name__ == "__main__":
    main()
