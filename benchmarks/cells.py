"""Training runs side by side: the cells of a comparison, run once each, in worker processes, and read back as tables.

    cell = (arm, seed): one `train` with the comparison's settings, the arm's and the seed's

Invariants: arms of one seed share everything but their own settings (start, task order, evaluation tasks and seeds), so
differences are taken within a seed; a finished cell is never run again, an unfinished one starts anew; a cell that fails
says why and stops nobody. Each worker uses one thread: two cells on two cores beat one cell on two.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import stats

__all__ = [
    "FINISHED",
    "Cell",
    "Floats",
    "Interval",
    "Result",
    "area",
    "curve",
    "paired",
    "read_cells",
    "read_results",
    "run_cells",
]

Floats = npt.NDArray[np.float64]
POLL_S = 0.5
FINISHED = "cell.json"


@dataclass(frozen=True, slots=True)
class Cell:
    """One training run of a comparison. `settings` are overrides as `trace-gym train` takes them."""

    arm: str
    seed: int
    settings: tuple[str, ...]
    greedy: bool = True  # evaluate the final policy greedily too

    def folder(self, out: Path) -> Path:
        return out / self.arm / f"seed-{self.seed}"


@dataclass(frozen=True, slots=True)
class Result:
    """What a finished cell left: rows of its steps and evaluations, and the final policy's greedy success."""

    arm: str
    seed: int
    seconds: float
    commit: str
    metrics: list[dict[str, float]] = field(repr=False)
    evals: list[dict[str, float]] = field(repr=False)
    greedy: float = float("nan")
    error: str = ""


def run_cells(
    cells: Sequence[Cell],
    out: Path,
    *,
    workers: int = 2,
    batch: int = 1,
    say: Callable[[str], None] = print,
) -> list[Result]:
    """Run what has not been run yet, `workers` processes at a time with `batch` cells each; returns all results there are."""
    if len({cell.folder(out) for cell in cells}) < len(cells):
        raise ValueError("two cells share an arm and a seed, and so a folder")
    left = [cell for cell in cells if not (cell.folder(out) / FINISHED).exists()]
    waiting = [left[i : i + batch] for i in range(0, len(left), batch)]
    running: dict[int, tuple[subprocess.Popen[bytes], list[Cell]]] = {}
    begin, done = time.monotonic(), 0
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                process = _start(waiting[0], out)
                running[process.pid] = process, waiting.pop(0)
            time.sleep(POLL_S)
            for pid in [pid for pid, (process, _) in running.items() if process.poll() is not None]:
                for cell in running.pop(pid)[1]:
                    done += 1
                    left_s = (time.monotonic() - begin) / done * (len(left) - done)
                    say(
                        f"{done}/{len(left)} {cell.arm} seed {cell.seed}: {_brief(cell, out)}; {left_s / 60:.0f} min left"
                    )
    finally:
        for process, _ in running.values():
            process.kill()
    return read_cells(cells, out)


def _start(cells: Sequence[Cell], out: Path) -> subprocess.Popen[bytes]:
    out.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        shutil.rmtree(cell.folder(out), ignore_errors=True)
        cell.folder(out).mkdir(parents=True)
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with open(cells[0].folder(out) / "log.txt", "wb") as log:
        described = json.dumps([asdict(cell) for cell in cells])
        command = [sys.executable, "-m", "trace_gym.benchmarks.cells", str(out)]
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.PIPE, env=one_thread)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has died already: its log says why
        process.stdin.write(described.encode())
        process.stdin.close()
    return process


def _brief(cell: Cell, out: Path) -> str:
    found = read_cells([cell], out)
    if not found:
        log = cell.folder(out) / "log.txt"
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        return f"broke ({lines[-1] if lines else 'its process ended before it'})"
    if found[0].error:
        return found[0].error
    success = curve(found[0])[1]
    return f"{success[0]:.3f} -> {success[-1]:.3f} in {found[0].seconds:.0f} s"


def read_cells(cells: Sequence[Cell], out: Path) -> list[Result]:
    """The results of the finished cells among `cells`, in their order."""
    return read_results([path for cell in cells if (path := cell.folder(out) / FINISHED).exists()])


def read_results(paths: Sequence[Path]) -> list[Result]:
    """The results in these files."""
    return [Result(**json.loads(path.read_text())) for path in paths]


def _work(cell: Cell, out: Path) -> None:
    """Runs in a worker process: the cell's training, its results in one file, written at the end."""
    from trace_gym.config import load_config
    from trace_gym.errors import TraceGymError
    from trace_gym.evaluate import evaluate_policy
    from trace_gym.observer import Silent
    from trace_gym.runs import environment_facts
    from trace_gym.train import train

    folder, start, commit = cell.folder(out), time.perf_counter(), environment_facts().get("commit", "")
    settings = [*cell.settings, f"seed={cell.seed}", f"out={folder}", "name=run"]
    try:
        config = load_config(None, settings)
        run = train(config, Silent())
        greedy = float("nan")
        if cell.greedy:
            final = config.policy.model_copy(update={"path": str(run.policy_folder)})
            greedy = evaluate_policy(config.model_copy(update={"policy": final}), greedy=True).success
        rows = [
            [{k: float(v) for k, v in row.items()} for row in part] for part in (run.metrics(), run.evals())
        ]
        result = Result(cell.arm, cell.seed, time.perf_counter() - start, commit, rows[0], rows[1], greedy)
        shutil.rmtree(run.policy_folder, ignore_errors=True)
    except Exception as error:  # whatever it was, the batch's other cells go on
        traceback.print_exc()  # into the log
        why = str(error) if isinstance(error, TraceGymError) else f"{type(error).__name__}: {error}"
        result = Result(cell.arm, cell.seed, time.perf_counter() - start, commit, [], [], error=why)
    fresh = folder / f".{FINISHED}"
    fresh.write_text(json.dumps(asdict(result)))
    fresh.rename(folder / FINISHED)


# ---- numbers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with the 95 % interval of Student's t over seeds; nan ends for fewer than two."""

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float] | Floats) -> Interval:
        x = np.asarray(values, dtype=np.float64)
        x = x[~np.isnan(x)]
        if len(x) < 2:
            return cls(float(x.mean()) if len(x) else float("nan"), float("nan"), float("nan"), len(x))
        half = float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
        return cls(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half, len(x))

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Interval:
    """The mean difference `one - other` over the seeds that both have."""
    return Interval.of([one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())])


def curve(result: Result) -> tuple[Floats, Floats]:
    """Sampled tokens and success: the exact one after each step where it is known, else the held-out one of evaluations.
    Both are empty for a cell that failed."""
    exact = [(row["policy_tokens"], row["exact_success"]) for row in result.metrics if "exact_success" in row]
    held_out = [(row["policy_tokens"], row["eval_success"]) for row in result.evals]
    tokens, success = np.array(exact or held_out, dtype=np.float64).reshape(-1, 2).T
    return tokens, success


def area(result: Result, budget: float, *, start: float | None = None) -> float:
    """Mean success over the budget: the trapezoid under the curve, nan without one.

    `start` is success before training, where it was measured elsewhere; without it the curve's first value is held back to 0,
    for an exact curve starts after the first step, and the tokens of that step must not count as failure; nan where it should
    have been measured and was not, and then the area is nan. The last value is held to `budget`.
    """
    tokens, success = curve(result)
    if not len(tokens):
        return float("nan")
    if tokens[0] > 0:
        tokens = np.insert(tokens, 0, 0.0)
        success = np.insert(success, 0, success[0] if start is None else start)
    tokens = np.append(np.minimum(tokens, budget), budget)
    success = np.append(success, success[-1])
    return float(np.trapezoid(success, tokens) / budget)


if __name__ == "__main__":
    for described in json.load(sys.stdin):
        _work(Cell(**described | {"settings": tuple(described["settings"])}), Path(sys.argv[1]))
