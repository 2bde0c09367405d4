"""A suite's page from a table made by hand: its numbers against calculations of their own, and nothing left unsaid."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.benchmarks.test_page import HOSTILE, Tags
from trace_gym.benchmarks import figures
from trace_gym.benchmarks.comparison import Comparison, read_comparison
from trace_gym.benchmarks.page import to_markdown
from trace_gym.benchmarks.records import read_table, write_table
from trace_gym.benchmarks.report import blocks, write_report
from trace_gym.benchmarks.spending import spent
from trace_gym.benchmarks.suite import Suite
from trace_gym.errors import ConfigError, RunError

BUDGET = 100
WORLD = {"settings": {"env": {"id": "trace_gym/Relay-v0"}}, "budget": BUDGET}
FINAL = {  # by environment, algorithm and seed; the held-out success at 90 tokens
    "one": {"grpo": (0.2, 0.3, 0.4), "trace": (0.3, 0.5, 0.4)},
    "two": {"grpo": (0.6, 0.7, 0.5), "trace": (0.5, 0.7, 0.9)},
}


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of a page's time."""
    for name in ("curves", "effective", "calibration", "spending", "wall_clock", "profiles"):
        monkeypatch.setattr(figures, name, lambda *words: b"<svg/>")


def suite(**changes: Any) -> Suite:
    base = {
        "name": "hand",
        "title": "made by hand",
        "seeds": [0, 1, 2],
        "algorithms": {"grpo": {"name": "grpo"}, "trace": {"name": "trace"}},
        "environments": {"one": WORLD, "two": WORLD},
    }
    return Suite.model_validate(base | changes)


def step(tokens: float, **more: float) -> dict[str, float]:
    phases = {"seconds_engine": tokens / 10, "seconds_update": tokens / 30}
    return {
        "policy_tokens": tokens,
        "rollout_units": tokens / 5,
        "prompts": 2.0,
        "effective_ratio": 0.5,
        **phases,
        **more,
    }


def record(world: str, algorithm: str, seed: int, **changes: Any) -> dict[str, Any]:
    """A cell with a curve 0.1 at 0 (told by the baseline's cell), 0.2 at 40, `FINAL` at 90."""
    final = FINAL[world][algorithm][seed]
    points = ((1.0, 40.0, 0.2), (2.0, 90.0, final))
    evals = [{"step": n, "policy_tokens": tokens, "eval_success": success} for n, tokens, success in points]
    if algorithm == "grpo":
        evals.insert(0, {"step": 0.0, "policy_tokens": 0.0, "eval_success": 0.1})
    spending = [
        {"step": 0.0, **spent([]), "pool": 8.0, "skipped": 6.0, "tokens_root": 30.0, "tokens_prefix_1": 10.0}
    ]
    base = {
        "kind": "train",
        "environment": world,
        "algorithm": algorithm,
        "seed": seed,
        "key": f"cells/{world}/{algorithm}/seed-{seed}-x",
        "digest": "x",
        "status": "done",
        "reason": "",
        "rate": 0.1,
        "start": "",
        "budget": BUDGET,
        "seconds": 9.0,
        "cpu_seconds": 8.0,
        "config": {"algorithm": {"name": algorithm}, "env": {"id": "x"}},
        "warmup": {},
        "about": {"commit": "abc"},
        "metrics": [step(40.0, root_brier=0.3), step(90.0, prompts=6.0, effective_ratio=0.9, root_brier=0.1)],
        "evals": evals,
        "spending": spending,
        "found": [],
    }
    return base | changes


def everything() -> list[dict[str, Any]]:
    return [record(w, a, s) for w in FINAL for a in FINAL[w] for s in range(3)]


def comparison(tmp_path: Path, records: Sequence[dict[str, Any]] | None = None, **changes: Any) -> Comparison:
    write_table(tmp_path, everything() if records is None else records)
    (tmp_path / "suite.json").write_text(suite(**changes).model_dump_json())
    return read_comparison(tmp_path)


def page(tmp_path: Path) -> str:
    write_report(tmp_path, tmp_path / "report")
    return (tmp_path / "report" / "README.md").read_text()


def table(text: str, heading: str) -> dict[str, dict[str, str]]:
    """The first table below a heading, by the first cell of its rows."""
    lines = text.split(heading, 1)[1].split("\n| ", 1)[1].split("\n\n", 1)[0].splitlines()
    rows = [[cell.replace("\\", "").strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return {row[0]: dict(zip(rows[0], row, strict=False)) for row in rows[2:]}


def test_rows_go_through_the_table(tmp_path: Path) -> None:
    write_table(tmp_path, everything())
    assert read_table(tmp_path) == everything()
    assert read_table(tmp_path / "results.parquet") == everything()


def test_success_is_read_off_the_curve_and_held_to_the_budget(tmp_path: Path) -> None:
    run = comparison(tmp_path).of("one", "trace")[1]
    assert run.start == 0.1 and run.tokens.tolist() == [0, 40, 90], "the start is the baseline's of that seed"
    assert run.success_at(20) == pytest.approx(0.15) and run.success_at(65) == pytest.approx(0.35)
    assert run.final == 0.5 and run.spent == 90
    by_hand = (40 * 0.15 + 50 * 0.35 + 10 * 0.5) / 100
    assert run.area == pytest.approx(by_hand)
    assert run.mean("effective_ratio", "prompts") == pytest.approx((2 * 0.5 + 6 * 0.9) / 8)


@pytest.mark.usefixtures("no_pictures")
def test_intervals_are_counted_where_there_are_any(tmp_path: Path) -> None:
    assert "2 intervals are shown" in page_of(tmp_path, everything())
    single = [line for line in everything() if line["seed"] == 0]
    text = page_of(tmp_path, single, seeds=[0])
    assert "| trace | 1 |" in text and "intervals are shown" not in text


@pytest.mark.usefixtures("no_pictures")
def test_an_environments_table(tmp_path: Path) -> None:
    comparison(tmp_path)
    row = table(page(tmp_path), "## one: at 100 policy tokens")["trace"]
    differences = np.array([0.1, 0.2, 0.0])
    assert row["seeds"] == "3" and row["start"] == "0.100" and row["final"] == "0.400"
    assert row["final less grpo's"] == f"{differences.mean():+.3f} [+0.000, +0.200]"
    assert float(row["area less grpo's"].split()[0]) == pytest.approx(
        (differences * 25 + differences * 10).mean() / 100
    )
    assert (row["effective ratio"], row["policy tokens spent"], row["learning rate"]) == ("0.80", "90", "0.1")
    assert table(page(tmp_path), "## one: at 100")["grpo"]["final less grpo's"] == ""


@pytest.mark.usefixtures("no_pictures")
def test_all_environments_together(tmp_path: Path) -> None:
    found = comparison(tmp_path)
    assert found.common() == (("one", "two"), ("grpo", "trace"), (0, 1, 2))
    rows = table(page(tmp_path), "## All environments together")
    scores = sorted([*FINAL["one"]["trace"], *FINAL["two"]["trace"]])
    assert rows["trace"]["interquartile mean"].split()[0] == f"{np.mean(scores[1:-1]):.3f}"
    pooled = [t - g for w in FINAL for t, g in zip(FINAL[w]["trace"], FINAL[w]["grpo"], strict=True)]
    assert rows["trace"]["final less grpo's"].split()[0] == f"{np.mean(pooled):+.3f}"
    wins = [
        np.mean([(t > g) + (t == g) / 2 for t in FINAL[w]["trace"] for g in FINAL[w]["grpo"]]) for w in FINAL
    ]
    assert rows["trace"]["chance to beat grpo"] == f"{np.mean(wins):.2f}"


@pytest.mark.usefixtures("no_pictures")
def test_only_seeds_that_all_have_are_put_together(tmp_path: Path) -> None:
    records = [
        r
        for r in everything()
        if not (r["algorithm"] == "trace" and r["environment"] == "two" and r["seed"] == 1)
    ]
    assert comparison(tmp_path, records).common()[2] == (0, 2)
    assert "each with seeds 0, 2" in page(tmp_path)
    assert table(page(tmp_path), "## two: at 100")["trace"]["seeds"] == "2"


@pytest.mark.usefixtures("no_pictures")
def test_a_difference_tells_when_the_baseline_lacks_seeds(tmp_path: Path) -> None:
    """A failed run of the baseline takes its pair with it, though the row's own seeds are all there."""
    lost = [r for r in everything() if (r["algorithm"], r["environment"], r["seed"]) != ("grpo", "one", 1)]
    comparison(tmp_path, lost)
    row = table(page(tmp_path), "## one: at 100")["trace"]
    assert row["seeds"] == "3" and row["final less grpo's"] == "+0.050 [+0.000, +0.100] (2 of 3 seeds)"
    assert row["area less grpo's"].endswith("(2 of 3 seeds)")
    assert "of 3 seeds" not in table(page(tmp_path), "## two: at 100")["trace"]["final less grpo's"]


@pytest.mark.usefixtures("no_pictures")
def test_areas_without_the_start_of_their_seed_are_not_averaged(tmp_path: Path) -> None:
    """The baseline's run measures it. Where that failed, the first measurement, 0.2 for 0.1, would stand for it."""
    lost = [r for r in everything() if (r["algorithm"], r["environment"], r["seed"]) != ("grpo", "one", 1)]
    runs = comparison(tmp_path, lost).of("one", "trace")
    assert [np.isnan(run.area) for run in runs] == [False, True, False]
    assert runs[1].start is None and runs[1].final == 0.5 and runs[1].tokens.tolist() == [40, 90]
    row = table(page(tmp_path), "## one: at 100")["trace"]
    areas = [(40 * 0.15 + 50 * (0.2 + final) / 2 + 10 * final) / 100 for final in (0.3, 0.4)]
    assert float(row["area"].removesuffix(" (2 of 3 seeds)")) == pytest.approx(np.mean(areas), abs=6e-4)
    assert row["start"] == "0.100 (2 of 3 seeds)"
    assert row["final"] == "0.400"
    assert float(row["area less grpo's"].split()[0]) == pytest.approx((0.1 * 0.35 + 0) / 2, abs=6e-4)
    nobody = [r for r in lost if r["algorithm"] != "grpo"]
    run = comparison(tmp_path, nobody).of("one", "trace")[1]
    assert run.area == pytest.approx((40 * 0.2 + 50 * 0.35 + 10 * 0.5) / 100), "alike for all"
    assert table(page(tmp_path), "## one: at 100")["trace"]["start"] == "–"


@pytest.mark.usefixtures("no_pictures")
def test_algorithms_left_out_of_the_whole_are_named(tmp_path: Path) -> None:
    assert "Left out" not in page_of(tmp_path, everything())
    more = [record("one", "trace", s) | {"algorithm": "pcl", "key": f"p{s}"} for s in range(3)]
    text = page_of(
        tmp_path, everything() + more, algorithms={n: {"name": n} for n in ("grpo", "trace", "pcl")}
    )
    assert "no finished run in some of them: pcl." in text and "## All environments together" in text


def page_of(tmp_path: Path, records: Sequence[dict[str, Any]], **changes: Any) -> str:
    comparison(tmp_path, records, **changes)
    return page(tmp_path)


@pytest.mark.usefixtures("no_pictures")
def test_where_tokens_and_seconds_went_and_how_good_predictions_were(tmp_path: Path) -> None:
    comparison(tmp_path)
    text = page(tmp_path)
    row = next(iter(table(text, "## Where the budget went").values()))
    assert (row["skipped"], row["from prompts"], row["after turn 1"]) == ("0.75", "0.75", "0.25")
    row = next(iter(table(text, "## Where the seconds went").values()))
    assert (row["engine"], row["update"], row["seconds a cell"]) == ("0.75", "0.25", "9")


@pytest.mark.usefixtures("no_pictures")
def test_thirds_of_training(tmp_path: Path) -> None:
    steps = [step(t, root_brier=b) for t, b in ((10.0, 0.4), (30.0, 0.2), (50.0, 9.0), (90.0, 0.1))]
    records = [r | {"metrics": steps} for r in everything()]
    comparison(tmp_path, records)
    row = next(iter(table(page(tmp_path), "## Calibration of the predictors").values()))
    assert row["root brier"] == "0.30 → 0.10"


def test_budgets_in_other_units_are_looked_up_by_step(tmp_path: Path) -> None:
    run = comparison(
        tmp_path, unit="rollout_units", environments={"one": {**WORLD, "budget": 20}, "two": WORLD}
    ).runs[0]
    assert run.at.tolist() == [0, 8, 18] and run.tokens.tolist() == [0, 40, 90]


def test_what_failed_is_told_and_hostile_text_stays_text(tmp_path: Path) -> None:
    lost = record("one", "trace", 1) | {
        "status": "failed",
        "reason": HOSTILE,
        "metrics": [],
        "evals": [],
        "spending": [],
    }
    records = [lost if r["key"] == lost["key"] else r for r in everything()]
    records[0] = records[0] | {
        "about": {"commit": HOSTILE},
        "config": {"env": {"id": HOSTILE}, "algorithm": {}},
    }
    comparison(tmp_path, records, title=HOSTILE[:150], about="50 % of `it` is $x_1$ <b>")
    assert "1 train failed" in page(tmp_path) and "## Failed cells" in page(tmp_path)
    tags = Tags()
    tags.feed((tmp_path / "report" / "index.html").read_text())
    assert not {tag for tag, _ in tags.seen} & {"script", "b", "a", "svg"}
    assert table(page(tmp_path), "## one: at 100")["trace"]["seeds"] == "2"


@pytest.mark.usefixtures("no_pictures")
def test_final_sets_and_tuning_are_told(tmp_path: Path) -> None:
    sets = [{"name": "greedy", "eval_success": 0.75}]
    tuned = [
        record("one", "grpo", 0) | {"kind": "tune", "rate": rate, "key": f"t{rate}"} for rate in (0.1, 0.2)
    ]
    comparison(
        tmp_path,
        [r | {"found": sets} for r in everything()] + tuned,
        environments={"one": {**WORLD, "rates": {"grid": [0.1, 0.2], "seeds": [9]}}, "two": WORLD},
    )
    text = page(tmp_path)
    assert "0.1: 0.180, 0.2: 0.180" in text.replace("\\", "") and "| dev |" in text
    assert table(text, "## Further evaluation sets")["one"]["success"] == "0.750"


def test_the_same_results_make_the_same_page(tmp_path: Path) -> None:
    comparison(tmp_path)
    first = {path.name: path.read_bytes() for path in write_report(tmp_path, tmp_path / "a")}
    again = {path.name: path.read_bytes() for path in write_report(tmp_path / "a", tmp_path / "a")}
    assert (
        first == again
        and {"README.md", "index.html", "results.parquet", "suite.json", "profiles.svg"} <= first.keys()
    )


def test_a_table_that_is_none_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bench run"):
        write_report(tmp_path, tmp_path)
    (tmp_path / "results.parquet").write_text("no")
    with pytest.raises(RunError, match="no table of results"):
        read_table(tmp_path)
    write_table(tmp_path, [record("one", "grpo", 0) | {"status": "failed", "reason": "x"}])
    with pytest.raises(ConfigError, match=r"suite\.json"):
        write_report(tmp_path, tmp_path)
    (tmp_path / "suite.json").write_text(json.dumps(suite().model_dump(mode="json")))
    with pytest.raises(ConfigError, match="no training cell"):
        write_report(tmp_path, tmp_path)


def test_one_run_alone_makes_a_page(tmp_path: Path) -> None:
    found = comparison(tmp_path, [record("one", "trace", 0)])
    assert "Without a finished run: grpo" in to_markdown(blocks(found))


def test_a_curve_is_marked_where_success_was_measured(tmp_path: Path) -> None:
    runs = comparison(tmp_path).of("one", "grpo")
    grid = np.linspace(0, 90, figures.POINTS)
    assert {tuple(run.tokens) for run in runs} == {(0, 40, 90)}
    assert figures._measured(grid, runs) == [0, 11, 24]  # 11 steps of 3.75 are 41.25: the nearest
    assert figures._measured(grid, [replace(runs[0], tokens=np.arange(91.0))]) == [0, 6, 12, 18, 24]
