"""README.md and docs/runs.md: their examples run and print what they say, their tables name every column."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from trace_gym import Ledger, RunContext, ScriptedEngine
from trace_gym.algorithms.grpo import GRPO
from trace_gym.config import TrainConfig
from trace_gym.evaluate import Evaluation, evaluation_row
from trace_gym.ledger import Budget, Cost
from trace_gym.plugins import make_env
from trace_gym.render import PlainRenderer
from trace_gym.rollout import RolloutSettings, grow_trees, plant_trees
from trace_gym.runs import RunFolder
from trace_gym.treefile import SCHEMA

ROOT = Path(__file__).parent.parent
README, RUNS, CONTRIBUTING = (
    (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/runs.md", "CONTRIBUTING.md")
)
CALL = '<tool_call>{"name":"calculator","arguments":{"expression":"6*7"}}</tool_call>'


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run_python(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_forking_example_prints_what_the_readme_says(tmp_path: Path) -> None:
    code, printed = re.findall(r"```python\n(.*?)```\n\nprints\n\n```\n(.*?)```", README, re.DOTALL)[0]
    assert run_python(code, tmp_path) == printed


def test_the_readmes_algorithm_is_the_guides_and_runs_from_the_folder_it_stands_in(tmp_path: Path) -> None:
    source = python_blocks(README)[1]
    assert source in python_blocks(CONTRIBUTING)
    (tmp_path / "mean_baseline.py").write_text(source)
    script = "import sys; sys.path.remove(''); from trace_gym.cli import main; main()"  # as an installed script has it
    done = subprocess.run(
        [
            *(sys.executable, "-c", script, "train", "--print-config"),
            "algorithm.name=mean_baseline:MeanBaseline",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and "  rollouts: 8" in done.stdout, done.stderr


@pytest.mark.checkout
def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert {"docs/runs.md", "examples/"} <= set(links)
    assert all((ROOT / link).exists() for link in links)


def test_every_column_of_trees_costs_and_evaluations_has_a_meaning() -> None:
    row = Evaluation(1, 1, 0, 1.0, 1.0, 1.0, 0.0, 1.0, {})
    evals = [name.removeprefix("eval_") for name in evaluation_row("eval", row)]
    explained = set(re.findall(r"`(\w+)`", RUNS))
    assert {*SCHEMA.names, *evals, *Cost.__dataclass_fields__} <= explained


def test_a_node_is_entered_again_as_the_page_says(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    env, renderer = make_env("trace_gym/Math-v0"), PlainRenderer()
    run = RunContext(seed=0, tasks=env.tasks("train"))
    ctx = plant_trees(env, ["word/train/2/0"], renderer, run, 0, Budget())
    engine = ScriptedEngine(lambda request, rng: renderer.encode(CALL))
    settings = RolloutSettings(max_tokens=200)
    grow_trees(
        GRPO(group=2),
        ctx,
        engine=engine,
        renderer=renderer,
        env=env,
        settings=settings,
        ledger=Ledger(),
    )
    RunFolder.create(tmp_path / "runs", "train", config=TrainConfig()).save_trees(0, ctx.trees)
    assert f"{CALL} -> 42 ; an expert goes on: (" in run_python(python_blocks(RUNS)[0], tmp_path)
