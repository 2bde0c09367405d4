"""A disk that refuses in the middle of a run: one line, earlier data intact, and `--resume` goes on once there is room."""

import contextlib
import os
import resource
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.test_resume import config_for, numbers, whole
from trace_gym.boards import Boards
from trace_gym.cli import app
from trace_gym.errors import ConfigError, RunError
from trace_gym.finetune import load_frozen
from trace_gym.observer import Silent
from trace_gym.runs import RunFolder
from trace_gym.tiny import save
from trace_gym.train import train

__all__ = ["whole"]  # the fixture: the run that nothing interrupted

SMALL_DISK = "6m"


@contextlib.contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    """A file system of its own at `place`. Skips where this process may not make one."""
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no file system can be made here: {error}")
    if done.returncode:
        pytest.skip(f"no file system can be made here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextlib.contextmanager
def files_no_larger_than(limit: int) -> Iterator[None]:
    """Writing past it fails as on a full disk, for whatever writes, compiled code included."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def fill(folder: Path) -> Path:
    """Leave no byte free."""
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return filler


class After(Silent):
    """Does something once a step has been recorded."""

    def __init__(self, step: int, action: Callable[[], object]) -> None:
        self._step, self._action = step, action
        self.notes: list[str] = []

    def step(self, metrics: Any) -> None:
        if metrics["step"] == self._step:
            self._action()

    def note(self, text: str) -> None:
        self.notes.append(text)


def one_line(error: BaseException, run: Path) -> None:
    text = str(error)
    assert "\n" not in text and text.endswith(f"to go on afterwards: trace-gym train --resume {run}")
    assert "cannot write" in text and "intact" in text


@pytest.mark.parametrize("full_after", [0, 2])
def test_a_disk_that_fills_up_in_the_middle_of_a_run(
    policy: Path, tmp_path: Path, whole: RunFolder, full_after: int
) -> None:
    with mounted(tmp_path / "disk", f"size={SMALL_DISK}") as disk:
        config, path = config_for(policy, disk), disk / "train"
        with pytest.raises(RunError, match="No space left on device") as caught:
            train(config, After(full_after, lambda: fill(disk)))
        one_line(caught.value, path)
        run = RunFolder.open(path)
        assert [row["step"] for row in run.metrics()] == list(range(full_after + 1))
        assert all(tree.nodes for step in range(full_after + 1) for tree in run.load_trees(step))
        still = CliRunner().invoke(app, ["train", "--resume", str(path)])
        assert still.exit_code == 1 and still.stderr.startswith("error: cannot write ")
        assert still.stderr.count("\n") == 1
        (disk / "filler").unlink()
        again = train(config, Silent(), resume=RunFolder.open(path))
        np.testing.assert_equal(numbers(again), numbers(whole))
        first, second = ((r.policy_folder / "model.safetensors").read_bytes() for r in (again, whole))
        assert first == second


@pytest.mark.parametrize(("step", "what"), [(1, "checkpoints/step-000002"), (4, "policy")])
def test_a_single_file_too_many(policy: Path, tmp_path: Path, whole: RunFolder, step: int, what: str) -> None:
    """Weights no longer fit where rows and trees still do: at a checkpoint, and at the very end."""
    config, path = config_for(policy, tmp_path), tmp_path / "train"
    with contextlib.ExitStack() as later:
        full = After(step, lambda: later.enter_context(files_no_larger_than(100_000)))
        with pytest.raises(RunError) as caught:
            train(config, full)
    one_line(caught.value, path)
    assert f"cannot write {path / what}:" in str(caught.value)
    assert not (path / what).exists()
    assert not list(path.glob("**/.*"))  # and nothing half written
    again = train(config, Silent(), resume=RunFolder.open(path))
    np.testing.assert_equal(numbers(again), numbers(whole))


def test_a_policy_that_cannot_be_replaced_stays(policy: Path, tmp_path: Path) -> None:
    from trace_gym.config import PolicyConfig

    learner, tokenizer = load_frozen(PolicyConfig(path=str(policy)))
    folder = tmp_path / "mine"
    save(folder, learner.model, tokenizer)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with files_no_larger_than(100_000), pytest.raises(RunError, match=r"cannot write .*mine.*intact"):
        save(folder, learner.model, tokenizer)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


# TensorBoard's own thread dies of it:
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dashboard_without_room_does_not_stop_a_run(tmp_path: Path) -> None:
    notes: list[str] = []
    before = set(threading.enumerate())
    with mounted(tmp_path / "disk", "size=256k") as disk:
        fill(disk)
        boards = Boards(disk, tensorboard=True, wandb="", first_step=0, note=notes.append)
        for step in range(3):
            boards.write({"success": 0.5}, step)
        boards.close()
        for thread in set(threading.enumerate()) - before:
            thread.join(30)  # it dies in this test, not in the next
    assert any("dashboard" in note and "OSError" in note for note in notes)


@pytest.fixture
def unwritable(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody may write into: root needs a read-only file system for that."""
    place = tmp_path / "locked"
    if os.geteuid() == 0:
        with mounted(place, "ro") as folder:
            yield folder
        return
    place.mkdir(mode=0o555)
    yield place
    place.chmod(0o755)


def test_a_folder_that_nobody_may_write_into(policy: Path, unwritable: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot make the run folder .*set out=FOLDER"):
        train(config_for(policy, unwritable), Silent())
    for words in (
        ("warmup", "--out", str(unwritable / "policy"), "--steps", "1"),
        ("warmup", "--from", str(policy), "--out", str(unwritable / "policy"), "--steps", "1"),
        ("demo", "--out", str(unwritable / "demo")),
        (
            "train",
            f"policy.path={policy}",
            f"out={unwritable / 'deep' / 'runs'}",
            "budget.steps=1",
            "eval.tasks=0",
        ),
    ):
        done = CliRunner().invoke(app, list(words))
        assert done.exit_code == 1 and done.stderr.startswith("error: cannot "), (
            words,
            done.output,
            done.exception,
        )
        assert done.stderr.count("\n") == 1 and str(unwritable) in done.stderr
