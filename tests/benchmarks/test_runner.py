"""Running a suite: once each, resumed, past failures, one runner at a time, in an order that leaves whole seeds."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.benchmarks.test_suite import plain, world
from tests.support import fake_worker
from trace_gym.benchmarks import pool, runner
from trace_gym.benchmarks.expansion import Cell
from trace_gym.benchmarks.records import read_table
from trace_gym.benchmarks.runner import Done, Progress, run_suite
from trace_gym.benchmarks.suite import Suite
from trace_gym.errors import ConfigError

GRPO = {"name": "grpo"}


class Listener:
    """Remembers what it is told."""

    def __init__(self, act: Callable[[Cell], None] = lambda cell: None) -> None:
        self.ended_cells: list[str] = []
        self.notes: list[str] = []
        self.last: Progress | None = None
        self.act = act

    def progress(self, now: Progress) -> None:
        self.last = now

    def ended(self, cell: Cell, record: dict[str, Any], now: Progress) -> None:
        self.ended_cells.append(cell.label)
        self.last = now
        self.act(cell)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "WORKER", ("-m", fake_worker.__name__))
    monkeypatch.setattr(runner, "POLL_S", 0.05)


def suite(**changes: Any) -> Suite:
    return Suite.model_validate(plain(**changes))


def run(
    out: Path, listener: Listener | None = None, *, workers: int = 1, again: bool = False, **changes: Any
) -> Done:
    return run_suite(
        suite(**changes), out, workers=workers, watcher=listener or Listener(), retry_failed=again
    )


def started(out: Path) -> list[str]:
    path = out / "started.txt"
    return path.read_text().splitlines() if path.exists() else []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot make the folder .*; name another with --out"):
        run(tmp_path / "file" / "out")


@pytest.mark.usefixtures("fake")
def test_every_cell_runs_once_and_again_only_when_its_settings_change(tmp_path: Path) -> None:
    listener = Listener()
    done = run(tmp_path, listener)
    order = ["relay grpo seed 0", "relay four seed 0", "relay grpo seed 1", "relay four seed 1"]
    assert started(tmp_path) == order == listener.ended_cells and done.left == 0
    assert listener.last is not None and (listener.last.done, listener.last.total) == (4, 4)
    assert run(tmp_path).records == done.records and len(started(tmp_path)) == 4
    run(tmp_path, algorithms={"grpo": GRPO, "four": {"name": "grpo", "group": 5}})
    assert started(tmp_path)[4:] == ["relay four seed 0", "relay four seed 1"]
    with pytest.raises(ConfigError, match="holds the suite 'small'"):
        run(tmp_path, name="other")


@pytest.mark.usefixtures("fake")
def test_cells_that_fail_are_recorded_and_stop_nobody(tmp_path: Path) -> None:
    names = {"grpo": GRPO, "dies": GRPO, "raises": GRPO, "last": GRPO}
    done = run(tmp_path, seeds=[0], algorithms=names)
    reasons = {r["algorithm"]: r["reason"] for r in done.records if r["status"] == "failed"}
    assert reasons["raises"] == "it raised" and len(reasons) == 2
    assert "killed by SIGKILL; it last said: about to die" in reasons["dies"]
    assert [r["algorithm"] for r in done.records if r["status"] == "done"] == ["grpo", "last"]
    table = {r["algorithm"]: r["status"] for r in read_table(tmp_path)}
    assert table == {"grpo": "done", "dies": "failed", "raises": "failed", "last": "done"}
    before, fewer = len(started(tmp_path)), {"grpo": GRPO, "raises": GRPO}
    run(tmp_path, seeds=[0], algorithms=fewer)
    assert len(started(tmp_path)) == before
    run(tmp_path, seeds=[0], algorithms=fewer, again=True)
    assert started(tmp_path)[before:] == ["relay raises seed 0"]


@pytest.mark.usefixtures("fake")
def test_a_cell_past_its_deadline_is_stopped(tmp_path: Path) -> None:
    done = run(tmp_path, seeds=[0], algorithms={"hangs": GRPO}, baseline="hangs", deadline_s=0.5)
    assert [r["reason"] for r in done.records] == ["took longer than 0.5 s and was stopped"]


@pytest.mark.usefixtures("fake")
def test_what_needs_a_policy_waits_for_it_and_fails_with_it(tmp_path: Path) -> None:
    part = {"settings": {"env": {"id": "trace_gym/Math-v0"}}, "budget": 10, "warmup": {"policies": 2}}
    done = run(tmp_path, seeds=[0, 1], environments={"m": part}, algorithms={"grpo": GRPO})
    assert started(tmp_path) == ["m warmup seed 0", "m warmup seed 1", "m grpo seed 0"]
    lost = done.records[-1]
    assert lost["status"] == "failed" and lost["reason"] == "its policy could not be made: it raised"


@pytest.mark.usefixtures("fake")
def test_rates_are_tuned_first_and_kept_with_the_results(tmp_path: Path) -> None:
    rates = {"grid": [0.1, 0.5, 0.9], "seeds": [7], "tune": "baseline"}
    done = run(tmp_path, environments=world(rates=rates))
    assert started(tmp_path)[:3] == [f"relay grpo seed 7 at lr {rate}" for rate in (0.1, 0.5, 0.9)]
    assert {r["rate"] for r in done.records if r["kind"] == "train"} == {0.5}, "what the fake likes best"
    assert len(done.records) == 7 and done.left == 0


@pytest.mark.usefixtures("fake")
def test_one_runner_at_a_time(tmp_path: Path) -> None:
    with open(tmp_path / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another runner is at work"):
            run(tmp_path)
    assert run(tmp_path).left == 0


@pytest.mark.usefixtures("fake")
def test_an_interrupt_lets_the_running_cell_end(tmp_path: Path) -> None:
    assert threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    listener = Listener(act=lambda cell: os.kill(os.getpid(), signal.SIGINT))
    done = run(tmp_path, listener)
    assert len(started(tmp_path)) == len(done.records) == 1 and done.left == 3
    assert "Ctrl-C again" in listener.notes[0] and signal.getsignal(signal.SIGINT) is before
    assert len(read_table(tmp_path)) == 1
    assert run(tmp_path).left == 0 and len(started(tmp_path)) == 4


@pytest.mark.usefixtures("fake")
def test_two_workers_run_two_cells_at_a_time(tmp_path: Path) -> None:
    seen: list[int] = []
    listener = Listener()
    listener.progress = lambda now: seen.append(len(now.running))  # type: ignore[method-assign]
    run(tmp_path, listener, workers=2, seeds=[0, 1, 2])
    assert max(seen) == 2 and sorted(started(tmp_path)) == sorted(set(started(tmp_path)))


@pytest.mark.timeout(600)  # processes of their own, slow to start on a busy machine
def test_a_killed_runner_leaves_nobody_behind_and_is_gone_on_with(tmp_path: Path) -> None:
    """Real cells of Relay: kill -9 in the middle, then the same suite again; one cell cannot be run at all."""
    changes = plain(
        seeds=[0, 1],
        algorithms={"grpo": {"name": "grpo", "group": 4}, "tree_grpo": {"name": "tree_grpo"}},
        environments={
            **world(budget=300),
            "broken": {
                "settings": {"env": {"id": "trace_gym/Relay-v0", "options": {"kinds": 0}}},
                "budget": 9,
                "seeds": [0],
            },
        },
        settings={"policy": {"path": "tabular"}, "eval": {"tasks": 0}, "log": {"tensorboard": False}},
    )
    file, out = tmp_path / "small.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(changes))
    program = (
        "import sys; from pathlib import Path; from trace_gym.benchmarks.suite import load_suite\n"
        "from trace_gym.benchmarks.display import SuiteDisplay; from trace_gym.benchmarks.runner import run_suite\n"
        "run_suite(load_suite(sys.argv[1]), Path(sys.argv[2]), workers=1, watcher=SuiteDisplay())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(file), str(out)], stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 300
        while not (kept := list(out.rglob("result.json"))) and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    written = {path: path.read_bytes() for path in kept}
    assert written
    while True:  # until its worker has noticed
        try:
            done = run_suite(Suite.model_validate(changes), out, workers=1, watcher=Listener())
            break
        except ConfigError as error:
            assert "another runner" in str(error)
            time.sleep(0.05)
    assert all(path.read_bytes() == text for path, text in written.items()), "finished cells are left alone"
    by_status = {(r["environment"], r["algorithm"], r["seed"]): r["status"] for r in done.records}
    assert len(by_status) == 6 and done.left == 0
    assert [k for k, status in by_status.items() if status == "failed"] == [
        ("broken", "grpo", 0),
        ("broken", "tree_grpo", 0),
    ]
    assert all("kinds" in r["reason"] for r in done.records if r["status"] == "failed")
    found = [r for r in read_table(out) if r["status"] == "done"]
    assert all(
        r["metrics"][-1]["policy_tokens"] <= 300 and "exact_success" in r["metrics"][-1] for r in found
    )
    for r in found:
        shares = [sum(v for k, v in row.items() if k.startswith("tokens_")) for row in r["spending"]]
        assert sum(shares) == r["metrics"][-1]["policy_tokens"], "every sampled token has a place"
    assert json.loads((out / "suite.json").read_text())["name"] == "small"


@pytest.mark.usefixtures("fake")
def test_a_disk_that_fills_up_leaves_the_suites_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path)
    before = (tmp_path / "suite.json").read_text()

    def full(path: Path, data: str, **options: Any) -> int:
        with open(path, "w") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            run(tmp_path)
    assert (tmp_path / "suite.json").read_text() == before
    assert run(tmp_path).left == 0
    (tmp_path / "suite.json").write_text(before[:10])  # whoever did this
    with pytest.raises(ConfigError, match=r"suite\.json cannot be read"):
        run(tmp_path)
