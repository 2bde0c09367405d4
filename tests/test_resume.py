"""Runs that survive: checkpoints, kills, damage, a full stop and a gentle one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.test_train import alternating
from trace_gym import rows
from trace_gym.checkpoint import load_newest, save_checkpoint
from trace_gym.config import TrainConfig, dump_config
from trace_gym.errors import RunError
from trace_gym.observer import Silent
from trace_gym.runs import RunFolder
from trace_gym.train import train

STEPS = 5


def config_for(policy: Path, out: Path, *more: str) -> TrainConfig:
    words = (
        "deterministic=true",
        f"budget.steps={STEPS}",
        "log.checkpoint_every_steps=2",
        "eval.every_steps=2",
    )
    return alternating(policy, out, *words, "eval.tasks=4", *more)


def numbers(run: RunFolder) -> list[dict[str, Any]]:
    """Everything recorded except how long it took."""
    found = [*RunFolder.open(run.path).metrics(), *RunFolder.open(run.path).evals()]
    return [{k: v for k, v in row.items() if not k.startswith(("seconds", "tokens_per_s"))} for row in found]


@pytest.fixture(scope="module")
def whole(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run that nothing interrupted."""
    return train(config_for(policy, tmp_path_factory.mktemp("whole")), Silent())


class StopAt:
    def __init__(self, step: int) -> None:
        self.left = step

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("step", [0, 1, 4])
def test_a_stopped_run_goes_on_to_the_same_numbers(
    policy: Path, tmp_path: Path, whole: RunFolder, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "SHARE", 1)
    config = config_for(policy, tmp_path)
    run = train(config, Silent(), stop=StopAt(step))
    assert len(run.metrics()) == step and not run.policy_folder.exists()
    assert not list(run.path.glob("*.jsonl"))
    again = train(config, Silent(), resume=RunFolder.open(run.path))
    assert again.path == run.path
    np.testing.assert_equal(numbers(again), numbers(whole))
    first, second = ((r.policy_folder / "model.safetensors").read_bytes() for r in (again, whole))
    assert first == second


@pytest.mark.parametrize("share", [rows.SHARE, 1])  # the last rows are in the file, or are lines beside it
def test_what_was_recorded_after_the_checkpoint_is_recorded_once(
    policy: Path, tmp_path: Path, whole: RunFolder, share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dying between a step's record and its checkpoint must not leave the step twice."""
    monkeypatch.setattr(rows, "SHARE", share)

    class Dying(Silent):
        def step(self, metrics: Any) -> None:
            if metrics["step"] == 4.0:
                raise KeyboardInterrupt

    config = config_for(policy, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(config, Dying())
    (path,) = tmp_path.iterdir()
    assert len(RunFolder.open(path).metrics()) == 5  # step 4 was recorded, the checkpoint is at step 4
    assert (path / "metrics.jsonl").exists() == (share == 1)
    again = train(config, Silent(), resume=RunFolder.open(path))
    assert pq.read_table(path / "metrics.parquet").num_rows == STEPS and not list(path.glob("*.jsonl"))
    np.testing.assert_equal(numbers(again), numbers(whole))


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    policy: Path,
    tmp_path: Path,
    whole: RunFolder,
) -> None:
    notes: list[str] = []

    class Listening(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    config = config_for(policy, tmp_path)
    run = train(config, Silent(), stop=StopAt(4))
    newest = run.path / "checkpoints" / "step-000004" / "weights.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    again = train(config, Listening(), resume=RunFolder.open(run.path))
    assert any("step-000004 passed over" in note and "damaged" in note for note in notes)
    assert "going on with step 2" in notes
    np.testing.assert_equal(numbers(again), numbers(whole))


SCRIPT = """
import sys
from pathlib import Path
from trace_gym.config import load_config
from trace_gym.observer import Silent
from trace_gym.runs import RunFolder
from trace_gym.train import train
config = load_config(Path(sys.argv[1]))
run = RunFolder.open(sys.argv[2]) if len(sys.argv) > 2 else None
train(config, Silent(), resume=run)
"""


@pytest.mark.parametrize("after_s", [0.3, 1.2])
def test_a_killed_process_resumes(policy: Path, tmp_path: Path, whole: RunFolder, after_s: float) -> None:
    file, out = tmp_path / "run.yaml", tmp_path / "runs"
    file.write_text(dump_config(config_for(policy, out)))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    child = subprocess.Popen([sys.executable, "-c", SCRIPT, str(file)], env=environment)
    while not list(out.glob("*/metrics.parquet")) and child.poll() is None:
        time.sleep(0.02)
    time.sleep(after_s)
    child.send_signal(signal.SIGKILL)
    child.wait()
    (path,) = out.iterdir()
    run = RunFolder.open(path)
    again = train(run.config(), Silent(), resume=run)
    assert [row["step"] for row in again.metrics()] == list(range(STEPS))
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads == "1":  # with other thread counts sums are rounded differently in the two processes
        np.testing.assert_equal(numbers(again), numbers(whole))


class Parts:
    """The least that a checkpoint needs."""

    def __init__(self) -> None:
        import torch

        from trace_gym.algorithms.grpo import GRPO
        from trace_gym.ledger import Ledger
        from trace_gym.policy import Policy
        from trace_gym.update import Updater

        self.model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.updater = Updater(Policy(self.model), optimizer, lr=lambda n: 0.1)
        self.algorithm, self.ledger = GRPO(), Ledger()

    def all(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("model", "updater", "algorithm", "ledger")}


def test_an_algorithms_state_comes_back_with_its_arrays(tmp_path: Path) -> None:
    saved: list[Any] = []
    parts = Parts()
    state = {
        "replay": [np.arange(3.0), {"step": 4, "name": "beta"}],
        "counts": np.ones((2, 2), dtype=np.int64),
    }
    parts.algorithm.state_dict = lambda: state  # type: ignore[method-assign]
    parts.algorithm.load_state_dict = saved.append  # type: ignore[assignment, method-assign]
    save_checkpoint(tmp_path / "c", 3, **parts.all())
    assert load_newest(tmp_path / "c", **parts.all()) == (3, [])
    np.testing.assert_equal(saved[0], state)


def test_only_the_newest_two_are_kept_and_leftovers_are_ignored(tmp_path: Path) -> None:
    parts, folder = Parts(), tmp_path / "c"
    for step in (1, 2, 3):
        save_checkpoint(folder, step, **parts.all())
    (folder / "step-000009").mkdir()  # a crash could leave no such thing, a person might
    step, notes = load_newest(folder, **parts.all())
    assert step == 3 and "step-000009 passed over" in notes[0]
    assert sorted(p.name for p in folder.iterdir()) == ["step-000002", "step-000003", "step-000009"]


def test_a_checkpoint_of_another_policy_is_refused(tmp_path: Path) -> None:
    import torch

    parts = Parts()
    save_checkpoint(tmp_path / "c", 1, **parts.all())
    parts.model = torch.nn.Linear(3, 3)
    with pytest.raises(RunError, match="does not fit"):
        load_newest(tmp_path / "c", **parts.all())


def test_a_full_disk_is_one_line_and_the_older_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, folder = Parts(), tmp_path / "c"
    save_checkpoint(folder, 1, **parts.all())

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trace_gym.checkpoint.save_file", full)
    with pytest.raises(RunError, match="No space left"):
        save_checkpoint(folder, 2, **parts.all())
    assert load_newest(folder, **parts.all())[0] == 1
    assert [p.name for p in folder.iterdir()] == ["step-000001"]
    manifest = json.loads((folder / "step-000001" / "manifest.json").read_text())
    assert set(manifest) == {"weights.safetensors", "optimizer.pt", "algorithm.pt", "about.json"}


def trace_gym(*words: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd(), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "trace_gym.cli", *words]
    pipe, out = subprocess.PIPE, subprocess.STDOUT
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=out, text=True)


def test_control_c_ends_after_the_step_and_resume_goes_on(policy: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(config_for(policy, tmp_path / "runs", "budget.steps=40", "eval.tasks=0")))
    child = trace_gym("train", str(file))
    while not list((tmp_path / "runs").glob("*/metrics.parquet")) and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    said, _ = child.communicate(timeout=60)
    (path,) = (tmp_path / "runs").iterdir()
    steps = len(RunFolder.open(path).metrics())
    assert child.returncode == 0 and 0 < steps < 40
    assert "stopping after this step" in said and f"--resume {path}" in " ".join(said.split())
    refused = trace_gym("train", "--resume", str(path), "seed=2")
    assert "error: --resume goes on with the run's own settings" in refused.communicate(timeout=60)[0]
    nowhere = trace_gym("train", "--resume", str(tmp_path / "nothing"))
    assert nowhere.communicate(timeout=60)[0].startswith("error: ") and nowhere.returncode == 1
