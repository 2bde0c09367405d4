"""Dry runs: everything that can be checked without weights and network is, and what is missing is a line each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.test_suite import plain, suite, world
from trace_gym.benchmarks.expansion import expand
from trace_gym.benchmarks.preview import absent, check_present, preview
from trace_gym.benchmarks.suite import Suite, load_suite, shipped
from trace_gym.errors import ConfigError


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any data set or weights, and without network."""
    for name in ("TRACE_GYM_CACHE", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    monkeypatch.setattr(
        "huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "cache" / "hub")
    )

    def refuse(*words: Any, **more: Any) -> Any:
        raise AssertionError("a dry run reaches for the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    return tmp_path


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("name", [name for name in shipped() if name != "speed"])
def test_every_shipped_suite_passes_its_dry_run_offline(name: str) -> None:
    loaded = load_suite(name)
    lines = preview(loaded, workers=2)
    text = "\n".join(lines)
    assert loaded.title in lines[0] and "by 2" in text
    for world_name, part in loaded.environments.items():
        assert any(line.startswith(f"{world_name}: trace_gym/") for line in lines)
        assert (
            f"{len(loaded.seeds_of(part)) * len(loaded.algorithms_of(part))} cells of {part.budget:,}" in text
        )


@pytest.mark.usefixtures("bare")
def test_the_papers_suite_lists_what_is_to_be_downloaded() -> None:
    missing = [
        line for line in preview(load_suite("paper"), workers=1) if line.startswith("to be downloaded")
    ]
    names = (
        "DeepScaleR-Preview-Dataset",
        "hotpotqa/hotpot_qa",
        "data set bfcl",
        "Qwen/Qwen3-8B",
        "Qwen/Qwen3-14B",
    )
    for name in names:
        assert sum(name in line and name.split()[-1] in line.split("(")[0] for line in missing) == 1, name
    assert len(missing) == len(set(missing))
    with pytest.raises(ConfigError) as error:
        check_present(load_suite("paper"))
    assert len(str(error.value).splitlines()) == len(missing)


def test_the_papers_m_and_n_cost_every_algorithm_the_same() -> None:
    paper = load_suite("paper")
    assert paper.unit == "rollout_units"
    m, n = (paper.algorithms["trace_published"][name] for name in ("rollouts", "continuations"))
    assert (m, n) == (1024, 2)
    cells = [c for c in expand(paper) if c.kind == "train"]
    assert {c.budget for c in cells} == {100 * 1024 * (1 + 2 / 2)}


@pytest.mark.usefixtures("bare")
def test_smollm2_says_how_to_get_its_weights() -> None:
    (missing,) = absent(load_suite("smollm2"), expand(load_suite("smollm2")))
    assert missing.how == "trace-gym model get smollm2-135m"


def test_all_settings_of_every_cell_can_be_seen() -> None:
    lines = preview(suite(environments=world(rates={"grid": [0.1, 0.2], "seeds": [7]})), workers=1, full=True)
    assert "  4 cells of 100 policy tokens: grpo, four; seeds 0, 1" in lines
    assert "  learning rate of 0.1, 0.2, tuned on dev, seeds 7" in lines
    assert "8 cells (4 tune, 4 train); expected" in lines[-1] or any(
        "8 cells (4 tune, 4 train)" in line for line in lines
    )
    assert sum("its learning rate is tuned first" in line for line in lines) == 4
    assert sum(line.strip() == "group: 4" for line in lines) == 4


Change = Callable[[dict[str, Any]], None]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"env": {"id": "trace_gym/Relay-v0", "options": {"kins": 3}}}, "no option 'kins'"),
        ({"env": {"id": "trace_gym/Rely-v0"}}, "did you mean"),
        ({"policy": {"path": "nowhere/at/all"}}, "no policy folder"),
        ({"env": {"id": "trace_gym/Math-v0"}, "policy": {"path": "policy"}}, "give the suite a warmup"),
    ],
)
def test_what_no_download_would_mend_is_an_error(settings: dict[str, Any], message: str) -> None:
    part = plain()["environments"]["relay"]
    mended = {**part, "settings": {**part["settings"], **settings}, "seeded": []}
    with pytest.raises(ConfigError, match=message):
        preview(Suite.model_validate(plain(environments={"relay": mended})), workers=1)


def test_a_task_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    part = {
        "settings": {"env": {"id": "trace_gym/Math-v0", "options": {"source": "gone.jsonl"}}},
        "budget": 9,
        "warmup": {},
    }
    lines = preview(suite(environments={"m": part}), workers=1)
    assert "to be downloaded: file gone.jsonl (the suite's file says where it comes from)" in lines
