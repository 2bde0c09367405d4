"""The comparison's tables: what a cell's row says, and that arms of a seed share its start."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from trace_gym.benchmarks.cells import Interval, Result, area
from trace_gym.benchmarks.trace_report import (
    Row,
    closed_share,
    contrasts,
    main,
    rows,
    starts_of,
    table,
    together,
    whole_curve,
    write_tables,
)


def cell(arm: str, seed: int, points: list[tuple[float, float]], **step: float) -> Result:
    """A cell of two steps, of 1 and of 3 prompts."""
    first = {"policy_tokens": 40.0, "prompts": 1.0, "effective_ratio": 1.0, "mixed_anchors": 2.0}
    second = {"policy_tokens": 100.0, "prompts": 3.0, "effective_ratio": 0.0, "mixed_anchors": 1.0}
    ledger = {"rollout_units": 8.0, "env_steps": 16.0}
    evals = [{"policy_tokens": tokens, "eval_success": success} for tokens, success in points]
    return Result(f"broad/{arm}", seed, 1.0, "abc", [first | ledger, second | ledger | step], evals)


def test_a_row_weighs_steps_by_the_prompts_paid_for_and_counts_per_thousand_tokens() -> None:
    (row,) = rows([cell("grpo", 0, [(0, 0.2), (100, 0.4)])], 100.0)
    assert row["effective_ratio"] == pytest.approx(1 / 4)  # one mixed prompt of four, not the mean of 1 and 0
    assert (row["mixed_anchors_per_1k"], row["prompts_per_1k"]) == (30.0, 40.0)
    assert (row["start"], row["final"], row["area"]) == pytest.approx((0.2, 0.4, 0.3))


def test_an_arm_without_a_start_takes_that_of_its_seed_and_mix() -> None:
    base = [cell("grpo", 0, [(0, 0.2), (100, 0.4)]), cell("grpo", 1, [(0, 0.6), (100, 0.6)])]
    other = cell("trace", 0, [(50, 0.4), (100, 0.4)])
    assert area(other, 100.0, start=0.2) == pytest.approx((0.3 * 50 + 0.4 * 50) / 100)
    assert area(other, 100.0) == pytest.approx(0.4)  # unknown: the first value is held back
    found = rows([*base, other], 100.0)
    assert found[2]["start"] == 0.2 and found[2]["area"] == pytest.approx(0.35)
    tokens, success = whole_curve(other, starts_of([*base, other]))
    assert tokens.tolist() == [0, 50, 100] and success.tolist() == [0.2, 0.4, 0.4]


def test_an_arm_whose_seed_has_lost_its_start_has_no_area() -> None:
    """The first value, 0.4 for 0.2, would stand for it and lift the mean."""
    results = [cell("grpo", 0, [(0, 0.2), (100, 0.4)])]
    results += [cell("trace", seed, [(50, 0.4), (100, 0.4)]) for seed in (0, 1)]
    found = rows(results, 100.0)
    assert found[1]["area"] == pytest.approx(0.35) and np.isnan(found[2]["area"])
    assert "| trace | 2 | 0.400 | +0.000 [+nan, +nan] | 0.350 | +0.050 " in table(found, "broad", ["trace"])


def test_the_table_pairs_by_seed_and_tells_what_did_not_run() -> None:
    results = [cell("grpo", s, [(0, 0.2), (100, 0.3 + 0.1 * s)]) for s in range(3)]
    results += [cell("trace", s, [(100, 0.35 + 0.1 * s)]) for s in (2, 1)]
    broken = Result("broad/joint", 0, 1.0, "abc", [], [], error="no space")
    text = table(rows([*results, broken], 100.0), "broad", ["grpo", "trace", "joint", "dapo"])
    assert "| trace | 2 | 0.500 | +0.050 [+0.050, +0.050] |" in text
    assert "| joint | 0 | no space |" in text and "no space" not in table(
        rows([broken], 100.0), "hard", ["joint"]
    )
    assert "| dapo | 0 | not run |" in text


def test_the_table_tells_greedy_success_where_it_was_measured_and_how_large_the_steps_were() -> None:
    found = rows([cell("grpo", s, [(0, 0.2), (100, 0.3)]) for s in range(2)], 100.0)
    assert "greedy" not in table(found, "broad", ["grpo"])
    results = [
        replace(cell(arm, s, [(0, 0.2), (100, 0.3)]), greedy=0.5 + gain)
        for arm, gain in (("grpo", 0.0), ("trace", 0.1))
        for s in range(2)
    ]
    head, _, base, own = table(rows(results, 100.0), "broad", ["grpo", "trace"]).splitlines()
    names, told = ([x.strip() for x in line.split("|")] for line in (head, own))
    told_by = dict(zip(names, told, strict=True))
    assert (told_by["greedy"], told_by["greedy less grpo's"]) == ("0.600", "+0.100 [+0.100, +0.100]")
    assert (told_by["steps"], told_by["units a step"]) == ("2.00", "4.00")  # 8 units in two steps
    assert "| 0.500 |  |" in base


def test_rules_one_choice_apart_are_compared_where_both_ran() -> None:
    results = [cell("pairs", s, [(0, 0.2), (100, 0.4 + 0.1 * s)]) for s in range(3)]
    results += [cell("edge", s, [(0, 0.2), (100, 0.3 + 0.1 * s)]) for s in (2, 1)]
    lines = contrasts(
        rows(results, 100.0), ["broad", "hard"], [("pairs", "edge"), ("pairs", "dapo")]
    ).splitlines()
    assert lines[2:] == [
        "| broad | pairs less edge | 2 | +0.100 [+0.100, +0.100] | +0.050 [+0.050, +0.050] |"
    ]


def test_seeds_that_share_a_starting_policy_are_one_observation() -> None:
    """Seeds 0 and 2 share one policy, 1 and 3 the other: gains of 0.1 and 0.3, and of 0.0 and 0.2."""
    gain = {0: 0.1, 1: 0.0, 2: 0.3, 3: 0.2}
    results = [cell("grpo", s, [(0, 0.2), (100, 0.3)]) for s in gain]
    results += [cell("trace", s, [(0, 0.2), (100, 0.3 + gain[s])]) for s in gain]
    found = rows(results, 100.0)
    half = 12.706 * (0.1 / 2**0.5) / 2**0.5  # Student's t of one degree of freedom; policies gain 0.2 and 0.1
    (line,) = [x for x in table(found, "broad", ["grpo", "trace"], 2).splitlines() if x.startswith("| trace")]
    assert f"| +0.150 [{0.15 - half:+.3f}, {0.15 + half:+.3f}] |" in line


def test_two_comparisons_together_count_their_starting_policies() -> None:
    """Policies gain 0.1 and 0.3 before (two seeds each), 0.2 and 0.4 now."""

    def comparison(gain: dict[int, float]) -> list[Row]:
        base = [cell("grpo", s, [(0, 0.2), (100, 0.3)]) for s in gain]
        return rows([*base, *(cell("trace", s, [(0, 0.2), (100, 0.3 + g)]) for s, g in gain.items())], 100.0)

    before, now = comparison({0: 0.05, 1: 0.3, 2: 0.15, 3: 0.3}), comparison({0: 0.2, 1: 0.4})
    (line,) = together(before, now, ["broad", "hard"], ["grpo", "trace", "joint"], 2).splitlines()[2:]
    cells = [x.strip() for x in line.split("|")[1:-1]]
    assert [x.split(" [")[0] for x in cells] == ["broad", "trace", "+0.200", "+0.300", "+0.250", "4"]
    assert cells[4] == str(Interval.of([0.1, 0.3, 0.2, 0.4]))


def gains(own: list[float], best: list[float]) -> list[Row]:
    arms = {"none": [0.5] * len(own), "own": own, "best": best, "grpo": [0.1] * len(own)}
    return [
        {"mix": "broad", "arm": arm, "seed": seed, "area": value}
        for arm, values in arms.items()
        for seed, value in enumerate(values)
    ]


def test_the_share_of_the_oracles_gain() -> None:
    share = closed_share(gains([0.52, 0.54, 0.53], [0.58, 0.62, 0.60]), "broad", "own", "best", "none")
    assert share.mean == pytest.approx(0.3) and share.low <= 0.3 <= share.high and share.n == 3
    assert np.isnan(
        closed_share(gains([0.6] * 3, [0.4, 0.6, 0.53]), "broad", "own", "best", "none").mean
    )  # no gain to share


def test_the_command_writes_every_section_and_tells_of_an_arm_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the cells in two folders and an earlier comparison's rows to the page."""
    runs, out = tmp_path / "runs", tmp_path / "out"
    results = [
        cell(arm, s, [(0, 0.2), (80_000, 0.3 + 0.01 * s)]) for arm in ("grpo", "root-group") for s in range(6)
    ]
    failed = Result("broad/joint", 0, 1.0, "abc", [], [], error="no space")
    for number, result in enumerate([*results, failed]):
        (runs / str(number)).mkdir(parents=True)
        (runs / str(number) / "cell.json").write_text(json.dumps(asdict(result)))
    out.mkdir()
    earlier = ["mix,arm,seed,final"] + [
        f"broad,{arm},{s},{f}" for arm, f in (("grpo", 0.1), ("root-group", 0.2)) for s in range(5)
    ]
    (out / "math_before.csv").write_text("\n".join(earlier) + "\n")
    monkeypatch.setattr(
        sys, "argv", ["report", "--math", str(runs), "--relay", str(tmp_path / "none"), "--out", str(out)]
    )
    main()
    page = (out / "README.md").read_text()
    assert "| joint | 0 | no space |" in page and "### math: rules against each other" in page
    (line,) = [
        x
        for x in page.split("with the comparison before")[1].splitlines()
        if x.startswith("| broad | root-group")
    ]
    assert line.endswith("| +0.050 [+0.012, +0.088] | 10 |")  # five policies gained 0.1, five nothing
    assert (out / "math.png").exists() and len((out / "math.csv").read_text().splitlines()) == 14


def test_new_tables_leave_what_was_written_by_hand(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    write_tables(page, "first\n")
    assert page.read_text() == "## Tables\n\nfirst\n"
    page.write_text("# By hand\n\nWords.\n" + "\n" + page.read_text())
    write_tables(page, "second\n")
    assert page.read_text() == "# By hand\n\nWords.\n\n## Tables\n\nsecond\n"
