"""Run folders: what is written is read back, what cannot be written harms nothing, what is corrupt is refused."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.trees import star
from trace_gym.algorithm import Credit
from trace_gym.config import load_config
from trace_gym.errors import ConfigError, TraceGymError
from trace_gym.runs import RunFolder, environment_facts
from trace_gym.tree import same_tree

CONFIG = load_config(None, ["seed=7", "env.options.difficulty=2", "algorithm.group=4"])

NUMBERS = st.floats(allow_nan=False) | st.integers(-(2**70), 2**70) | st.booleans()
ROWS = st.lists(
    st.dictionaries(st.sampled_from(["step", "loss", "success", "x"]), NUMBERS, min_size=1),
    min_size=1,
    max_size=4,
)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", "test", config=CONFIG)


# ---- making and opening ---------------------------------------------------------------------------------------------


def test_a_run_is_opened_with_its_settings_and_facts(run: RunFolder) -> None:
    again = RunFolder.open(run.path)
    assert again == run and again.config() == CONFIG
    facts = again.about()
    assert (
        facts["python"] == ".".join(map(str, sys.version_info[:3])) and "numpy" in facts and "cores" in facts
    )
    assert again.policy_folder == run.path / "policy" and not again.policy_folder.exists()
    assert again.metrics() == [] and again.evals() == []


def test_facts_of_the_caller_join_the_environments(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "test", config=CONFIG, facts={"device": "cpu"})
    assert run.about()["device"] == "cpu"


def test_a_name_in_use_gets_a_number(tmp_path: Path) -> None:
    names = [RunFolder.create(tmp_path, "a", config=CONFIG).path.name for _ in range(3)]
    assert names == ["a", "a-2", "a-3"]


def test_a_folder_without_settings_is_no_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match="no run folder"):
            RunFolder.open(path)


def test_a_place_that_cannot_hold_folders_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for parent in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(ConfigError, match="cannot make") as caught:
            RunFolder.create(parent, "a", config=CONFIG)
        assert "out=FOLDER" in str(caught.value)


def test_the_commit_is_told_in_a_checkout_alone() -> None:
    in_checkout = (Path(__file__).parent.parent / ".git").exists()
    assert in_checkout or "commit" not in environment_facts()


# ---- rows -----------------------------------------------------------------------------------------------------------


def test_rows_come_back_each_with_its_own_columns(run: RunFolder) -> None:
    rows: list[dict[str, float | str]] = [
        {"step": 0, "loss": 1.5},
        {"step": 1, "success": 0.25, "kind": "a\ud800\x00"},
        {"loss": float("nan")},
    ]
    for row in rows:
        run.append_metrics(row)
    back = RunFolder.open(run.path).metrics()
    assert back == run.metrics() or np.isnan(back[2]["loss"])
    assert back[0] == rows[0] and back[1] == {"step": 1, "success": 0.25, "kind": "a?\x00"}
    assert back[2].keys() == {"loss"} and np.isnan(back[2]["loss"])
    table = pq.read_table(run.path / "metrics.parquet")
    assert table.column_names == ["step", "loss", "success", "kind"] and table.num_rows == 3
    assert table.schema.field("step").type == pa.int64()


@given(ROWS)
@settings(max_examples=40)
def test_any_numbers_come_back_equal(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, float]]
) -> None:
    run = RunFolder(tmp_path_factory.mktemp("run"))
    for row in rows:
        run.append_eval(row)
    back = RunFolder(run.path).evals()
    assert [numbers(row) for row in back] == [numbers(row) for row in rows]


def numbers(row: Mapping[str, float | str]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items()}


def test_a_run_goes_on_after_it_was_opened_again(run: RunFolder) -> None:
    run.append_metrics({"step": 0})
    RunFolder.open(run.path).append_metrics({"step": 1})
    assert RunFolder.open(run.path).metrics() == [{"step": 0}, {"step": 1}]


def test_numpy_scalars_become_numbers_and_other_things_are_refused(run: RunFolder) -> None:
    run.append_metrics({"a": np.float32(0.5), "b": np.int64(3)})  # type: ignore[dict-item]
    assert RunFolder.open(run.path).metrics() == [{"a": 0.5, "b": 3}]
    with pytest.raises(TraceGymError, match="the metric 'c' is a list"):
        run.append_metrics({"c": [1]})  # type: ignore[dict-item]
    assert len(run.metrics()) == 1


# ---- trees ----------------------------------------------------------------------------------------------------------


def test_trees_come_back_with_their_credits_beside_them(run: RunFolder) -> None:
    trees = {"task": star([0.0, 1.0])}
    run.save_trees(12, trees, {"task": Credit(np.array([np.nan, -1.0, 1.0]), np.ones(3))})
    assert run.trees_path(12).name == "step-000012.parquet"
    assert same_tree(RunFolder.open(run.path).load_trees(12)[0], trees["task"])
    assert pq.read_table(run.trees_path(12))["advantage"].to_pylist()[1:] == [-1.0, 1.0]


def test_a_step_without_trees_is_told_with_the_ones_there_are(run: RunFolder) -> None:
    with pytest.raises(ConfigError, match="no trees of step 3; it has none"):
        run.load_trees(3)
    for step in (2, 4):
        run.save_trees(step, {"task": star([1.0])})
    with pytest.raises(ConfigError, match="no trees of step 3; it has steps 2 to 4"):
        run.load_trees(3)


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"not parquet at all" * 100, pickle.dumps({"a": 1})])
def test_a_corrupt_file_is_one_line_that_names_it(run: RunFolder, damage: bytes) -> None:
    run.save_trees(0, {"task": star([1.0])})
    run.append_metrics({"step": 0})
    for path in (run.trees_path(0), run.path / "metrics.parquet"):
        path.write_bytes(damage)
    again = RunFolder.open(run.path)
    for read, name in (
        (lambda: again.load_trees(0), "step-000000.parquet"),
        (again.metrics, "metrics.parquet"),
    ):
        with pytest.raises(TraceGymError) as caught:
            read()
        assert name in str(caught.value) and "delete it or restore a copy" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_truncated_or_flipped_tree_file_is_refused_unless_it_holds_the_same_trees(run: RunFolder) -> None:
    run.save_trees(0, {"task": star([0.0, 1.0, 1.0])})
    path = run.trees_path(0)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    want = run.load_trees(0)[0]
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), size=3):
            data[place] ^= int(rng.integers(1, 256))
        path.write_bytes(data if rng.random() < 0.8 else data[: int(rng.integers(0, len(data)))])
        try:
            assert same_tree(run.load_trees(0)[0], want)  # the damage was in a part that nobody reads
        except TraceGymError:
            refused += 1
    assert refused > 50


# ---- a disk that refuses --------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_line_and_earlier_rows_stay(run: RunFolder) -> None:
    run.append_metrics({"step": 0, "loss": 1.0})
    code = f"""
import resource
from trace_gym.errors import TraceGymError
from trace_gym.runs import RunFolder
run = RunFolder.open({str(run.path)!r})
run.metrics()
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))  # writing past it fails as on a full disk
try:
    run.append_metrics({{"step": 1}})
except TraceGymError as error:
    print(error)
print(len(run.metrics()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    said, rows = done.stdout.splitlines()
    assert "cannot write" in said and "metrics.parquet" in said and "intact" in said and rows == "1"
    assert RunFolder.open(run.path).metrics() == [{"step": 0, "loss": 1.0}]
    assert sorted(p.name for p in run.path.iterdir()) == ["about.json", "config.yaml", "metrics.parquet"]


def test_a_crash_before_the_rename_leaves_the_old_file(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.append_metrics({"step": 0})

    def crash(source: object, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        run.append_metrics({"step": 1})
    assert RunFolder.open(run.path).metrics() == [{"step": 0}] == run.metrics()
    assert not [p for p in run.path.iterdir() if p.name.startswith(".")]


def test_a_folder_that_vanished_is_one_line(run: RunFolder) -> None:
    for path in run.path.iterdir():
        path.unlink()
    run.path.rmdir()
    with pytest.raises(TraceGymError, match="cannot write"):
        run.append_metrics({"step": 0})
    with pytest.raises(TraceGymError, match="cannot write"):
        run.save_trees(0, {"task": star([1.0])})


def test_a_corrupt_about_file_is_told(run: RunFolder) -> None:
    (run.path / "about.json").write_text("{")
    with pytest.raises(TraceGymError, match=r"about\.json"):
        run.about()
    assert json.dumps(run.config().algorithm)
