"""`trace-gym demo`: the shipped suite, made small, from nothing to a page, trees and policies."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from trace_gym.benchmarks import suite as suites
from trace_gym.cli.app import app
from trace_gym.runs import RunFolder

SMALL = {"steps": 60, "demonstrations": 300, "d_model": 32, "layers": 1, "seconds": 5}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite `demo` with a barely warmed-up policy and a hundredth of the budget."""
    demo = suites.load_suite("demo")
    world = demo.environments["math"]
    settings = {**world.settings, "eval": {"tasks": 8, "greedy": False}}
    tiny = world.model_copy(
        update={"warmup": suites.Warmup.model_validate(SMALL), "budget": 2000, "settings": settings}
    )
    copy = demo.model_copy(update={"environments": {"math": tiny}})
    monkeypatch.setattr(suites, "load_suite", lambda name: copy)


@pytest.mark.slow
def test_the_demo_ends_with_a_page_two_runs_and_what_to_do_next(small: None, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    result = CliRunner().invoke(app, ["demo", "--out", str(out), "--workers", "2"])
    assert result.exit_code == 0, result.output
    assert "<html" in (out / "report" / "index.html").read_text()
    runs = {path.parts[-4]: RunFolder.open(path.parent) for path in out.glob("cells/**/run/config.yaml")}
    assert {"grpo", "trace"} <= {name for path in out.glob("cells/**/run") for name in path.parts}, runs
    (trace,) = out.glob("cells/**/trace/**/run")
    assert RunFolder.open(trace).load_trees(0), "there are trees to open"
    assert (RunFolder.open(trace).policy_folder / "model.safetensors").exists()
    assert f"trace-gym view {trace}" in result.output
    again = CliRunner().invoke(app, ["demo", "--out", str(out)])
    assert again.exit_code == 0, "what is there is not run again"


def test_a_failed_cell_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    demo = suites.load_suite("demo")
    world = demo.environments["math"].model_copy(
        update={"warmup": None, "settings": {"policy": {"path": str(tmp_path / "nothing")}}}
    )
    copy = demo.model_copy(update={"environments": {"math": world}})
    monkeypatch.setattr(suites, "load_suite", lambda name: copy)
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo"), "--workers", "1"])
    assert result.exit_code == 1 and "--retry-failed" in result.output
