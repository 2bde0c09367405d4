"""`trace-gym bench`: the words it takes and the lines it prints."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from tests.benchmarks.test_suite import plain
from tests.support import fake_worker
from trace_gym.benchmarks import pool, runner
from trace_gym.benchmarks.display import SuiteDisplay, brief, clock
from trace_gym.benchmarks.runner import Done
from trace_gym.cli import app


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["bench", *words])


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pool, "WORKER", ("-m", fake_worker.__name__))
    monkeypatch.setattr(runner, "POLL_S", 0.05)
    path = tmp_path / "small.yaml"
    algorithms = {"grpo": {"name": "grpo"}, "raises": {"name": "grpo", "group": 4}}
    path.write_text(yaml.safe_dump(plain(seeds=[0], algorithms=algorithms)))
    return path


@pytest.mark.parametrize("verb", ["run", "report", "list"])
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    assert f"trace-gym bench {verb}" in run(verb, "--help").stdout and verb in run("--help").stdout


def test_the_list_names_every_shipped_suite_with_its_command() -> None:
    text = run("list").stdout
    for name in ("ablation", "cpu", "paper", "smoke", "smollm2"):
        assert f"trace-gym bench run {name}\n" in text
    assert "trace-gym bench speed\n" in text and "trace-gym bench run speed" not in text


def test_speed_is_a_command_of_its_own() -> None:
    result = run("run", "speed")
    assert result.exit_code == 0 and result.stdout == "speed is a command of its own: trace-gym bench speed\n"


def test_a_suite_runs_goes_on_and_is_reported(small: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    result = run("run", str(small), "--out", out, "--workers", "1")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("1/2  relay grpo seed 0: -> 0.300 in 0 s; ") and lines[0].endswith(" left")
    assert lines[1] == "2/2  relay raises seed 0: failed: it raised; that was the last"
    assert lines[2].startswith("1 cells are done, 1 failed; ") and lines[3].endswith(": it raised")
    assert lines[-1] == f"next: trace-gym bench report {out}"
    assert len(run("run", str(small), "--out", out).stdout.splitlines()) == 3, "nothing is run again"
    assert "failed: it raised" in run("run", str(small), "--out", out, "--retry-failed").stdout
    written = run("report", out).stdout.splitlines()
    assert f"{out}/report/index.html" in written and all(Path(path).is_file() for path in written)


def test_what_is_left_is_told_and_the_status_is_that_of_an_interrupt(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trace_gym.benchmarks.runner.run_suite", lambda *words, **more: Done([], 2))
    result = run("run", str(small), "--out", str(tmp_path / "out"))
    assert result.exit_code == 130 and "2 cells are left: the same command goes on" in result.stderr


def test_a_dry_run_runs_nothing(small: Path, tmp_path: Path) -> None:
    result = run("run", str(small), "--dry-run", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0 and "2 cells (2 train)" in result.stdout and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "smok"), "there is no suite 'smok'; did you mean 'smoke'?"),
        (("run", "nowhere.yaml"), "nowhere.yaml cannot be read"),
        (("report", "nowhere"), "trace-gym bench run"),
    ],
)
def test_a_mistake_is_one_line(words: tuple[str, ...], message: str) -> None:
    result = run(*words)
    assert result.exit_code == 1 and result.stderr.startswith("error: ") and message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_times_and_endings_in_few_words() -> None:
    assert (clock(59.6), clock(3725)) == ("1:00", "1:02:05")
    assert brief({"status": "failed", "reason": "a\n  b"}) == "failed: a b"
    assert brief({"status": "done", "kind": "warmup", "seconds": 5}) == "policy made in 5 s"


def test_hostile_reasons_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    SuiteDisplay().note("\x1b[2J[red]x")
    assert capsys.readouterr().out == "\N{REPLACEMENT CHARACTER}[2J[red]x\n"
