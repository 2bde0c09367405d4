"""Comparisons: each cell runs once, broken ones stop nobody, and the numbers are the textbook's."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from trace_gym.benchmarks import cells as module
from trace_gym.benchmarks.cells import Cell, Interval, Result, area, curve, paired, read_cells, run_cells

RELAY = (
    "policy.path=tabular",
    "env.id=trace_gym/Relay-v0",
    "env.options.kinds=4",
    "budget.steps=2",
    "rollout.prompts_per_step=2",
    "eval.tasks=0",
    "log.trees_every_steps=0",
    "log.checkpoint_every_steps=0",
    "log.tensorboard=false",
)
GOOD = Cell("good", 1, RELAY, greedy=False)
WRONG = Cell("wrong", 1, (*RELAY, "algorithm.name=nothing"), greedy=False)


class Finished:
    """A process that has ended."""

    pid = 0

    def poll(self) -> int:
        return 0

    def kill(self) -> None: ...


class Here:
    """Does a batch's work in this process, as a worker would; `dies` after as many cells."""

    def __init__(self, dies: int = 99) -> None:
        self.started: list[str] = []
        self.dies = dies

    def __call__(self, cells: Sequence[Cell], out: Path) -> Any:
        for i, cell in enumerate(cells):
            self.started.append(f"{cell.arm}/{cell.seed}")
            cell.folder(out).mkdir(parents=True, exist_ok=True)
            if i < self.dies:
                module._work(cell, out)
        process = Finished()
        process.pid = len(self.started)
        return process


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.02)


@pytest.mark.timeout(600)  # a process of its own: slow to start where the machine is busy
def test_a_batch_in_a_worker_process_runs_past_a_mistake(tmp_path: Path) -> None:
    said: list[str] = []
    wrong, good = run_cells([WRONG, GOOD], tmp_path, workers=1, batch=2, say=said.append)
    assert "nothing" in wrong.error and wrong.metrics == []
    assert not good.error and [row["step"] for row in good.metrics] == [0.0, 1.0]
    assert "exact_success" in good.metrics[0] and np.isnan(good.greedy) and good.seconds > 0
    assert len(said) == 2 and "nothing" in said[0] and "->" in said[1]


def test_finished_cells_are_not_run_again_and_unfinished_ones_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [Cell("good", seed, RELAY, greedy=False) for seed in (1, 2)]
    first = Here(dies=1)
    monkeypatch.setattr(module, "_start", first)
    said: list[str] = []
    (one,) = run_cells(cells, tmp_path, batch=2, say=said.append)
    assert "broke" in said[1]
    (cells[1].folder(tmp_path) / "leftover").mkdir()
    again = Here()
    monkeypatch.setattr(module, "_start", again)
    results = run_cells(cells, tmp_path, say=said.append)
    assert again.started == ["good/2"] and [r.seed for r in results] == [1, 2]
    assert results[0] == one
    third = Here()
    monkeypatch.setattr(module, "_start", third)
    assert run_cells(cells, tmp_path, say=said.append) == results and third.started == []


def test_an_unfinished_cell_starts_in_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nothing:
        def __init__(self, *words: Any, **more: Any) -> None:
            self.stdin = (tmp_path / "stdin").open("wb")

    monkeypatch.setattr("subprocess.Popen", Nothing)
    left = GOOD.folder(tmp_path) / "run" / "metrics.parquet"
    left.parent.mkdir(parents=True)
    left.touch()
    module._start([GOOD], tmp_path)
    assert not left.exists()
    (told,) = json.loads((tmp_path / "stdin").read_text())
    assert Cell(**told | {"settings": tuple(told["settings"])}) == GOOD


def test_any_error_is_its_cells_own_and_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*words: Any) -> Any:
        raise AssertionError("not probabilities")

    monkeypatch.setattr("trace_gym.train.train", broken)
    GOOD.folder(tmp_path).mkdir(parents=True)
    module._work(GOOD, tmp_path)
    (result,) = read_cells([GOOD], tmp_path)
    assert result.error == "AssertionError: not probabilities" and "Traceback" in capsys.readouterr().err


def test_cells_that_would_share_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="share"):
        run_cells([GOOD, Cell("good", 1, (*RELAY, "optim.lr=0.5"))], tmp_path)


# ---- numbers --------------------------------------------------------------------------------------------------------


def test_intervals_are_students() -> None:
    x = np.random.default_rng(0).normal(0.2, 1.0, 10)
    found = Interval.of(x)
    low, high = stats.t.interval(0.95, 9, loc=x.mean(), scale=stats.sem(x))
    assert (found.mean, found.low, found.high) == pytest.approx((x.mean(), low, high)) and found.n == 10
    assert str(Interval(0.1, -0.05, 0.25, 3)) == "+0.100 [-0.050, +0.250]"
    one = Interval.of([0.5])
    assert one.mean == 0.5 and np.isnan(one.low) and np.isnan(Interval.of([]).mean)
    assert Interval.of([1.0, float("nan"), 3.0]).n == 2


def test_paired_differences_are_the_paired_t_test() -> None:
    rng = np.random.default_rng(1)
    one = {seed: float(rng.normal()) for seed in range(10)}
    other = {seed: value + float(rng.normal(0.3, 0.2)) for seed, value in one.items()}
    found = paired(one, other | {99: 5.0})
    keys = sorted(one)
    test = stats.ttest_rel([one[k] for k in keys], [other[k] for k in keys])
    interval = test.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high)) and found.n == 10
    assert (test.pvalue < 0.05) == (found.high < 0 or found.low > 0)


def result(exact: Sequence[tuple[float, float]] = (), held_out: Sequence[tuple[float, float]] = ()) -> Result:
    rows = [{"policy_tokens": t, "exact_success": s} for t, s in exact]
    return Result("arm", 0, 1.0, "", rows, [{"policy_tokens": t, "eval_success": s} for t, s in held_out])


def test_the_curve_is_of_exact_success_where_it_is_known() -> None:
    both = result([(10, 0.2), (20, 0.4)], [(0, 0.9), (20, 0.8)])
    assert [x.tolist() for x in curve(both)] == [[10, 20], [0.2, 0.4]]
    assert [x.tolist() for x in curve(result([], [(0, 0.9), (20, 0.8)]))] == [[0, 20], [0.9, 0.8]]
    assert all(len(x) == 0 for x in curve(result()))


def test_the_area_is_the_mean_success_over_the_budget() -> None:
    held_out = result([], [(0, 0.2), (50, 0.4), (80, 0.8)])
    by_hand = (50 * 0.3 + 30 * 0.6 + 20 * 0.8) / 100  # the last value is held from 80 to 100
    assert area(held_out, 100) == pytest.approx(by_hand)
    assert area(result([], [(0, 0.5), (120, 0.5)]), 100) == pytest.approx(0.5)
    assert np.isnan(area(result(), 100))


def test_large_steps_cost_no_area() -> None:
    """An exact curve starts after the first step; with the same success throughout, arms must not differ by step size."""
    small, large = result([(5, 0.4), (100, 0.4)]), result([(50, 0.4), (100, 0.4)])
    assert area(small, 100) == area(large, 100) == pytest.approx(0.4)


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    GOOD.folder(tmp_path).mkdir(parents=True)
    kept = result([(1, 0.5)])
    (GOOD.folder(tmp_path) / "cell.json").write_text(json.dumps(asdict(kept)))
    (read,) = read_cells([WRONG, GOOD], tmp_path)
    assert np.isnan(read.greedy) and read.metrics == kept.metrics
