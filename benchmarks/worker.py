"""What a worker process does: cells told on stdin as JSON lines, one at a time; the key of each on stdout once it has ended.

A cell leaves `result.json` in its folder, written at the end and in one piece: with it the cell is finished, without it it
never was. What a cell prints goes to its `log.txt`. The process ends when stdin does, even in the middle of a cell: nobody
waits for it any more.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_gym.benchmarks.expansion import Cell
from trace_gym.benchmarks.spending import Spending
from trace_gym.errors import TraceGymError

if TYPE_CHECKING:
    from trace_gym.config import TrainConfig

__all__ = ["RESULT", "main", "run_cell", "write_result"]

RESULT = "result.json"
LOG = "log.txt"
RUN = "run"  # the run's folder inside the cell's
POLICY = "policy"  # a warm-up's, inside the cell's


def main() -> None:
    """See the module."""
    out, told = Path(sys.argv[1]), os.fdopen(os.dup(1), "w")
    waiting: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(waiting,), daemon=True).start()
    while True:
        cell = Cell(**json.loads(waiting.get()))
        folder = out / cell.key
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / LOG, "ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        run_cell(cell, out)
        told.write(cell.key + "\n")
        told.flush()


def _listen(waiting: queue.Queue[str]) -> None:
    for line in sys.stdin:
        waiting.put(line)
    os._exit(0)  # the runner is gone, or needs nobody any more


def run_cell(cell: Cell, out: Path) -> None:
    """Do the cell's work and write its result, whatever happens in it."""
    clock, cpu = time.perf_counter(), time.process_time()
    try:
        found = _warm_up(cell, out) if cell.kind == "warmup" else _train(cell, out)
        found = {"status": "done", **found}
    except Exception as error:  # whatever it was, other cells go on
        traceback.print_exc()
        known = isinstance(error, TraceGymError)
        found = {"status": "failed", "reason": str(error) if known else f"{type(error).__name__}: {error}"}
    found |= {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - cpu}
    write_result(cell, out, found)


def write_result(cell: Cell, out: Path, found: Mapping[str, Any]) -> None:
    """The cell's description and what was found, as its result file."""
    from trace_gym.runs import environment_facts

    folder = out / cell.key
    folder.mkdir(parents=True, exist_ok=True)
    row = {"key": cell.key, "digest": cell.digest, **cell.describe(), "about": environment_facts(), **found}
    fresh = folder / f".{RESULT}"
    with open(fresh, "w", encoding="utf-8") as file:
        json.dump(row, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(folder / RESULT)


def _warm_up(cell: Cell, out: Path) -> dict[str, Any]:
    """Make a policy in the cell's folder."""
    from trace_gym.config import EnvConfig, PolicyConfig
    from trace_gym.display import LiveDisplay
    from trace_gym.plugins import make_env
    from trace_gym.warmup import cold_start, warmup

    settings: dict[str, Any] = dict(cell.config)
    env = EnvConfig.model_validate(settings["env"])
    made = make_env(env.id, env.options)
    given = {name: value for name, value in cell.warmup.items() if name != "pretrained"}
    more: dict[str, Any] = {"env": made, "seed": cell.seed, "observer": LiveDisplay(), **given}
    if cell.warmup["pretrained"]:
        policy = PolicyConfig.model_validate(settings["policy"])
        return {"warmed": cold_start(out / cell.key / POLICY, policy=policy, **more)}
    return {"warmed": warmup(out / cell.key / POLICY, **more)}


def _train(cell: Cell, out: Path) -> dict[str, Any]:
    """Train, measure the final policy on the cell's evaluation sets, and drop the weights unless they are to be kept."""
    from trace_gym.config import TrainConfig
    from trace_gym.runs import RunFolder
    from trace_gym.train import train

    folder = out / cell.key
    settings: dict[str, Any] = {**cell.config, "out": str(folder), "name": RUN}
    if cell.start:
        settings["policy"] = {**settings["policy"], "path": str(out / cell.start / POLICY)}
    config = TrainConfig.model_validate(settings)
    resumed = (folder / RUN / "checkpoints").is_dir()
    if not resumed:
        shutil.rmtree(folder / RUN, ignore_errors=True)
    with Spending(folder, forget=not resumed) as watching:
        run = train(config, watching, resume=RunFolder.open(folder / RUN) if resumed else None)
    found = {name: _evaluate(config, run.policy_folder, how) for name, how in cell.evaluations.items()}
    if not cell.keeps_policy:
        shutil.rmtree(run.policy_folder, ignore_errors=True)
        shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
    return {"found": found}


def _evaluate(config: TrainConfig, policy: Path, how: Mapping[str, Any]) -> dict[str, float]:
    from trace_gym.config import EvalConfig
    from trace_gym.evaluate import evaluate_policy, evaluation_row

    names = ("split", "tasks", "draws")
    env = config.env.model_copy(update={"options": {**config.env.options, **how["options"]}})
    changed = config.model_copy(
        update={
            "env": env,
            "policy": config.policy.model_copy(update={"path": str(policy)}),
            "eval": EvalConfig.model_validate({name: how[name] for name in names}),
        }
    )
    return evaluation_row("eval", evaluate_policy(changed, greedy=how["greedy"]))


if __name__ == "__main__":
    main()
