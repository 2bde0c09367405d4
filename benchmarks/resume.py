"""Kill a training run at random moments and resume it: do the numbers come out as if nothing had happened?

    python -m trace_gym.benchmarks.resume POLICY --kills 20

Each trial starts a deterministic run in a process of its own, kills it with SIGKILL at a random moment, resumes it to the end,
and compares every recorded number (times excepted) and the final weights with those of a run that nobody interrupted. Moments
are drawn uniformly over the uninterrupted run's duration, loading included.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trace_gym.config import dump_config, load_config
from trace_gym.runs import RunFolder

__all__ = ["main"]

SETTINGS = (
    "deterministic=true",
    "budget.steps=12",
    "eval.tasks=32",
    "eval.every_steps=5",
    "rollout.prompts_per_step=4",
    "rollout.max_tokens=32",
    "log.checkpoint_every_steps=3",
)


def _start(*words: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "trace_gym.cli", "train", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _numbers(run: RunFolder) -> tuple[list[dict[str, float | str]], bytes]:
    rows = [*run.metrics(), *run.evals()]
    timed = ("seconds", "tokens_per_s")
    weights = (run.policy_folder / "model.safetensors").read_bytes()
    return [{k: v for k, v in row.items() if not k.startswith(timed)} for row in rows], weights


def _only_run(folder: Path) -> Path | None:
    return next(folder.iterdir(), None) if folder.exists() else None


def _trial(config: Path, folder: Path, after_s: float) -> tuple[RunFolder, int]:
    """A run killed after `after_s`, then resumed; and how many steps it had recorded when it died."""
    child = _start(str(config), f"out={folder}")
    time.sleep(after_s)
    child.send_signal(signal.SIGKILL)
    child.wait()
    path = _only_run(folder)
    steps = len(RunFolder.open(path).metrics()) if path is not None and (path / "config.yaml").exists() else 0
    if path is None or not (path / "config.yaml").exists():
        path = None  # it died before the run began: there is nothing to resume
        _start(str(config), f"out={folder / 'again'}").wait()
    else:
        _start("--resume", str(path)).wait()
    return RunFolder.open(path or _only_run(folder / "again") or folder), steps


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("policy")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(words)
    rng = np.random.default_rng(given.seed)
    with tempfile.TemporaryDirectory() as place:
        folder, config = Path(place), Path(place) / "run.yaml"
        own = ("env.options.difficulty=1-3", f"policy.path={Path(given.policy).resolve()}")
        config.write_text(dump_config(load_config(None, [*own, *SETTINGS])))
        start = time.monotonic()
        _start(str(config), f"out={folder / 'whole'}").wait()
        duration = time.monotonic() - start
        whole = _numbers(RunFolder.open(_only_run(folder / "whole") or folder))
        trials = []
        for kill in range(given.kills):
            after_s = float(rng.uniform(0, duration))
            run, steps = _trial(config, folder / f"kill-{kill}", after_s)
            same = _numbers(run) == whole
            trials.append({"killed_after_s": round(after_s, 2), "steps_recorded": steps, "same": same})
            print(
                f"kill {kill + 1}: after {after_s:.1f} s, {steps} steps recorded, same in the end: {same}",
                flush=True,
            )
    equal = sum(bool(t["same"]) for t in trials)
    print(
        json.dumps({"duration_s": round(duration, 1), "kills": len(trials), "same": equal, "trials": trials})
    )


if __name__ == "__main__":
    main()
