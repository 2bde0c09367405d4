"""docs/bench.md: its suite is one, and every key of an environment is told."""

import re
from pathlib import Path

from trace_gym.benchmarks.expansion import expand
from trace_gym.benchmarks.suite import Suite, World, load_suite

PAGE = (Path(__file__).parents[2] / "docs" / "bench.md").read_text(encoding="utf-8")


def test_the_example_is_a_suite(tmp_path: Path) -> None:
    path = tmp_path / "larger.yaml"
    path.write_text(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0])
    cells = expand(load_suite(str(path)))
    assert [sum(c.kind == kind for c in cells) for kind in ("warmup", "tune", "train")] == [1, 2, 6]


def test_every_key_is_told() -> None:
    told = set(re.findall(r"`(\w+)`", PAGE.split("## What a run leaves")[0])) | set(
        re.findall(r"^(\w+):", PAGE, re.MULTILINE)
    )
    assert set(World.model_fields) <= told
    assert set(Suite.model_fields) - told <= {"name", "about", "command", "title"}
