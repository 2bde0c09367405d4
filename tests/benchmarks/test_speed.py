"""`bench speed`: every part runs, says what it promises, and the checks that stand on its numbers can fail."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from trace_gym.algorithms.credit import ADVANTAGES
from trace_gym.benchmarks import speed, speed_ahead, speed_loop, speed_scale
from trace_gym.benchmarks.speed_loop import PHASES
from trace_gym.cli import app
from trace_gym.errors import ConfigError


def test_the_command_writes_a_page_and_numbers_for_each_part(tmp_path: Path) -> None:
    words = ["bench", "speed", "--quick", "--json", "--only", "env,engine,loop", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    printed = json.loads(done.stdout)
    assert list(printed) == ["engine", "env", "loop"]
    for name, found in printed.items():
        assert json.loads((tmp_path / f"{name}.json").read_text()) == found
        assert (tmp_path / f"{name}.md").read_text().startswith("# ")
    _check_steps(printed["loop"]["steps"]["arms"])


def _check_steps(arms: dict[str, dict[str, float]]) -> None:
    """Equal turns, phases that add up to the step, a predictor that costs something, a baseline whose does not."""
    for arm in arms.values():
        assert arm["turns"] == 32
        assert sum(arm[phase] for phase in PHASES) + arm["the rest"] == pytest.approx(arm["step"])
        assert arm["update"] > 0 and arm["the rest"] > 0
        assert 0 < arm["plan and algorithm"] < arm["overhead"] < 1
    assert arms["trace"]["plan"] > 10 * arms["grpo"]["plan"]


def test_an_unknown_part_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'warp'; there are .*engine.*loop.*scale"):
        list(speed.measure_parts(["warp"], quick=True))


def test_every_part_offers_a_measurement_and_a_page() -> None:
    assert {"engine", "env", "loop", "scale"} <= set(speed.parts_here())


@pytest.mark.parametrize("shape", speed_scale.SHAPES)
def test_a_step_without_a_policy_has_the_nodes_it_was_asked_for(shape: str) -> None:
    case = speed_scale.step_of(960, shape)
    assert 0.95 * 960 < case["nodes"] < 1.1 * 960
    assert len(case["seconds"]) == 8 + len(ADVANTAGES) and min(case["seconds"].values()) >= 0
    assert case["file_bytes"] > 100 * case["nodes"]  # random tokens do not compress away
    assert case["row_tokens"] > 0


def test_exponents_tell_linear_from_quadratic() -> None:
    cases: list[dict[str, Any]] = [
        {"nodes": n, "seconds": {"linear": 2e-6 * n, "quadratic": 3e-9 * n**2}}
        for n in (1_000, 10_000, 100_000)
    ]
    found = speed_scale._exponents(cases)
    assert found["linear"] == pytest.approx(1.0) and found["quadratic"] == pytest.approx(2.0)


def test_both_shapes_of_the_loop_make_their_rollouts() -> None:
    pool = speed_loop.scripted(4)
    one = speed_loop.scripted(4, one_tree=True)
    for found in (pool, one):
        assert found["turns"] >= 4 * speed_loop.GROUP and math.isfinite(found["turns per second"])
        assert 0 < found["of that the environment"] < found["CPU µs per turn"]


def test_overlap_is_measured_by_the_clock_over_equal_steps() -> None:
    found = speed_ahead.measure(quick=True)
    exact, ahead = (found["arms"][name] for name in ("rollout.ahead=0", "rollout.ahead=1"))
    assert exact["steps"] == ahead["steps"] == 1
    assert exact["policy tokens"] == pytest.approx(ahead["policy tokens"], rel=0.2)
    assert exact["wait"] == 0 < ahead["wait"]  # only trees that grew beside an update are waited for
    assert exact["engine"] + exact["update"] <= exact["seconds"]  # one after the other
    assert ahead["update"] + ahead["wait"] <= ahead["seconds"]
    assert "Faster by" in speed_ahead.page(found)
