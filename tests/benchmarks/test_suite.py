"""Suites: what a file may say, which cells it comes to, and when two cells are the same."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from trace_gym.benchmarks.expansion import Cell, expand
from trace_gym.benchmarks.suite import Suite, load_suite, shipped
from trace_gym.config import TrainConfig, load_config
from trace_gym.errors import ConfigError


def plain(**changes: Any) -> dict[str, Any]:
    """A small suite; changes replace whole parts."""
    relay = {
        "settings": {
            "env": {"id": "trace_gym/Relay-v0", "options": {"kinds": 4}},
            "policy": {"path": "tabular"},
        },
        "seeded": ["env.options.world"],
        "budget": 100,
    }
    base = {
        "name": "small",
        "title": "small",
        "seeds": [0, 1],
        "settings": {"eval": {"tasks": 0}},
        "algorithms": {"grpo": {"name": "grpo"}, "four": {"name": "grpo", "group": 4}},
        "environments": {"relay": relay},
    }
    return base | changes


def suite(**changes: Any) -> Suite:
    return Suite.model_validate(plain(**changes))


def world(**changes: Any) -> dict[str, Any]:
    return {"relay": plain()["environments"]["relay"] | changes}


def test_cells_come_seed_by_seed_and_know_their_settings() -> None:
    cells = expand(suite())
    assert [(c.algorithm, c.seed) for c in cells] == [("grpo", 0), ("four", 0), ("grpo", 1), ("four", 1)]
    config = TrainConfig.model_validate(cells[3].config)
    assert config.algorithm["group"] == 4 and config.algorithm["name"] == "grpo" and config.seed == 1
    assert config.env.options == {"kinds": 4, "world": 1} and config.budget.policy_tokens == 100
    assert config.eval.every_tokens == 25


def test_all_fields_of_an_algorithm_are_written_out() -> None:
    config: Any = expand(suite())[0].config
    assert config["algorithm"]["group"] == 8 and config["algorithm"]["scale"] == "group_std"


def test_before_training_only_the_baseline_is_measured() -> None:
    measured = [config["eval"]["at_start"] for c in expand(suite()) if (config := dict[str, Any](c.config))]
    assert measured == [True, False, True, False]


def test_equal_settings_are_one_cell_and_changed_ones_another() -> None:
    keys = [c.key for c in expand(suite())]
    assert len(set(keys)) == 4 and keys == [c.key for c in expand(suite())]
    other = [c.key for c in expand(suite(settings={"eval": {"tasks": 0}, "optim": {"lr": 0.5}}))]
    assert not set(keys) & set(other)
    one = [
        c.key
        for c in expand(suite(algorithms={"grpo": {"name": "grpo"}, "four": {"name": "grpo", "group": 5}}))
    ]
    assert [a == b for a, b in zip(keys, one, strict=True)] == [True, False, True, False]


def test_expected_cost_and_where_it_lies_do_not_change_a_cell() -> None:
    slow = expand(suite(environments=world(cell_seconds=999)))
    assert [c.key for c in slow] == [c.key for c in expand(suite())]


def test_a_cell_goes_through_json(tmp_path: Path) -> None:
    import json

    cell = expand(suite(environments=world(warmup={"steps": 3}, settings=plain()["settings"])))[0]
    again = Cell(**json.loads(json.dumps(cell.describe())))
    assert again.key == cell.key and again == cell


def test_seeds_share_as_many_policies_as_the_warm_up_makes() -> None:
    settings = {"env": {"id": "trace_gym/Math-v0"}}
    cells = expand(
        suite(
            seeds=[0, 1, 2],
            environments={"m": {"settings": settings, "budget": 10, "warmup": {"policies": 2}}},
        )
    )
    made = [c for c in cells if c.kind == "warmup"]
    assert [c.seed for c in made] == [0, 1] and cells[:2] == made
    starts = {c.seed: c.start for c in cells if c.kind == "train"}
    assert starts == {0: made[0].key, 1: made[1].key, 2: made[0].key}


def test_another_warm_up_is_another_cell_for_all_that_start_from_it() -> None:
    def keys(steps: int) -> set[str]:
        part = {"settings": {"env": {"id": "trace_gym/Math-v0"}}, "budget": 10, "warmup": {"steps": steps}}
        return {c.key for c in expand(suite(environments={"m": part}))}

    assert not keys(3) & keys(4)


# ---- tuning ---------------------------------------------------------------------------------------------------------


RATES = {"grid": [0.1, 0.2], "seeds": [7, 8]}


def test_cells_wait_for_their_rate_which_is_the_best_on_other_seeds() -> None:
    tuned = suite(environments=world(rates=RATES))
    cells = expand(tuned)
    tuning = [c for c in cells if c.kind == "tune"]
    assert len(tuning) == 2 * 2 * 2 and {c.seed for c in tuning} == {7, 8}
    assert all(c.waits for c in cells if c.kind == "train")
    areas = {c.key: 0.1 for c in tuning} | {
        c.key: 0.9 for c in tuning if c.algorithm == "four" and c.rate == 0.2 and c.seed == 7
    }
    settled = {(c.algorithm, c.seed): c for c in expand(tuned, areas) if c.kind == "train"}
    assert settled["four", 0].rate == 0.2 and not settled["four", 0].waits
    assert settled["grpo", 0].rate == 0.1  # a tie goes to the smaller


def test_the_baselines_rate_can_be_everybodys() -> None:
    tuned = suite(environments=world(rates={**RATES, "tune": "baseline"}))
    tuning = [c for c in expand(tuned) if c.kind == "tune"]
    assert {c.algorithm for c in tuning} == {"grpo"}
    areas = {c.key: float(c.rate or 0) for c in tuning}
    assert {c.rate for c in expand(tuned, areas) if c.kind == "train"} == {0.2}


def test_a_rate_with_a_failed_run_is_out_and_without_any_nothing_runs() -> None:
    tuned = suite(environments=world(rates={**RATES, "tune": "baseline"}))
    tuning = [c for c in expand(tuned) if c.kind == "tune"]
    areas = {c.key: float("nan") if c.rate == 0.2 and c.seed == 7 else 0.1 for c in tuning}
    assert {c.rate for c in expand(tuned, areas) if c.kind == "train"} == {0.1}
    lost = expand(tuned, {c.key: float("nan") for c in tuning})
    assert all("every learning rate failed" in c.refused for c in lost if c.kind == "train")


def test_tuning_is_measured_on_another_split() -> None:
    part = world(rates=RATES)
    part["relay"]["settings"]["eval"] = {"tasks": 4, "split": "dev"}
    with pytest.raises(ConfigError, match="tuned on 'dev', the split that is reported"):
        expand(suite(environments=part))
    del part["relay"]["settings"]["eval"]["split"]
    splits = {
        dict[str, Any](c.config)["eval"]["split"]
        for c in expand(suite(environments=part))
        if c.kind == "tune"
    }
    assert splits == {"dev"}


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "none"}, "'none' is none of the algorithms"),
        ({"environments": world(rates={**RATES, "seeds": [1]})}, "cannot be one that is reported"),
        ({"environments": world(only=["four"])}, "baseline 'grpo' has to run"),
        ({"environments": world(algorithms={"five": {}})}, "'five' is none"),
        ({"seeds": [1, 1]}, "each once"),
        ({"environments": {}}, "has environments and algorithms"),
        (
            {"environments": world(warmup={"pretrained": "x", "d_model": 8})},
            "d_model is of a policy made from nothing",
        ),
        ({"unit": "env_steps", "environments": world(rates=RATES)}, "curves over policy tokens"),
        ({"algorithms": {"../grpo": {"name": "grpo"}}}, "pattern"),
    ],
)
def test_a_suite_that_cannot_be_meant_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(plain(**changes)))
    with pytest.raises(ConfigError, match=message) as error:
        load_suite(str(path))
    assert str(path) in str(error.value)


def test_a_wrong_setting_names_the_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"suite small, relay, grpo: .*unknown key optim\.rate"):
        expand(suite(settings={"optim": {"rate": 1}}))
    with pytest.raises(ConfigError, match="groop"):
        expand(suite(algorithms={"grpo": {"name": "grpo", "groop": 1}}))
    both = world(warmup={"steps": 2})
    with pytest.raises(ConfigError, match="both name the policy"):
        expand(suite(environments=both))


def test_a_line_is_named_and_so_is_a_suite_that_was_meant(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("title: x\nseeds: [0]\nsedes: 3\n")
    with pytest.raises(ConfigError, match=r"line 3: sedes"):
        load_suite(str(path))
    with pytest.raises(ConfigError, match="did you mean 'smoke'"):
        load_suite("smok")


def test_every_shipped_suite_can_be_expanded() -> None:
    assert set(shipped()) == {"ablation", "cpu", "demo", "learn", "paper", "smoke", "smollm2", "speed"}
    for name in shipped():
        loaded = load_suite(name)
        assert loaded.name == name and (loaded.command or len(expand(loaded)) > 1)


def test_the_cpu_suite_has_all_algorithms_in_all_worlds() -> None:
    from trace_gym.plugins import algorithm_names

    cpu = load_suite("cpu")
    used = {str(fields["name"]) for fields in cpu.algorithms.values()}
    assert used == {name for name, owner in algorithm_names().items() if owner == "trace-gym"}
    cells = expand(cpu)
    worlds = {c.environment for c in cells}
    assert worlds == {"math", "search_qa", "tool_api", "relay"}
    for name in worlds:
        assert {c.algorithm for c in cells if c.environment == name and c.kind == "train"} == set(
            cpu.algorithms
        )
    hours = sum(c.seconds for c in cells) / 3600
    assert hours < 2 * 2, "two hours on two cores"


def test_the_timed_steps_settings_are_settings() -> None:
    from trace_gym.benchmarks.speed_step import SETTINGS

    assert load_config(None, SETTINGS).engine.max_context == 1024
