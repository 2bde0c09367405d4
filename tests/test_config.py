"""The settings of a run: defaults, bounds, where a mistake came from, and YAML that loads back equal."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from trace_gym.config import RolloutConfig, TrainConfig, dump_config, load_config
from trace_gym.errors import ConfigError
from trace_gym.ledger import Budget
from trace_gym.rollout import RolloutSettings

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10)


def loaded(tmp_path: Path, text: str, *overrides: str) -> TrainConfig:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides)


def mistake(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    return str(caught.value)


def sections(config: BaseModel) -> list[BaseModel]:
    inside = [getattr(config, name) for name in type(config).model_fields]
    return [config, *(part for value in inside if isinstance(value, BaseModel) for part in sections(value))]


def test_the_defaults_need_no_file() -> None:
    config = load_config()
    assert config.env.id == "trace_gym/Math-v0" and config.algorithm == {"name": "grpo"}
    assert config.budget.policy_tokens == 250_000


def test_every_setting_is_described_and_sections_are_frozen_and_strict() -> None:
    for section in sections(load_config()):
        assert section.model_config["frozen"] and section.model_config["extra"] == "forbid"
        for name, field in type(section).model_fields.items():
            assert field.description or isinstance(getattr(section, name), BaseModel), name


def test_the_file_comes_first_and_then_the_overrides_in_order(tmp_path: Path) -> None:
    config = loaded(
        tmp_path, "seed: 1\noptim: {lr: 1e-3, warmup_steps: 9}\n", "optim.lr=2e-3", "seed=2", "seed=3"
    )
    assert (config.seed, config.optim.lr, config.optim.warmup_steps) == (3, 2e-3, 9)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert loaded(tmp_path, "") == load_config()


def test_a_budget_replaces_the_default_one() -> None:
    budget = load_config(None, ["budget.steps=5"]).budget
    assert (budget.steps, budget.policy_tokens) == (5, None)
    assert {f.name for f in fields(Budget)} <= type(budget).model_fields.keys()


def test_a_setting_of_the_algorithm_keeps_the_default_name() -> None:
    assert load_config(None, ["algorithm.group=4"]).algorithm == {"name": "grpo", "group": 4}


def test_rollout_settings_are_named_as_the_loop_names_them() -> None:
    config, settings = RolloutConfig(), RolloutSettings()
    for field in fields(RolloutSettings):
        if field.name == "lockstep":  # follows from `deterministic`
            continue
        assert getattr(config, field.name) == getattr(settings, field.name)


def test_home_folders_are_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    config = load_config(None, ["policy.path=~/model", "out=~/runs"])
    assert (config.policy.path, config.out) == ("/home/someone/model", "/home/someone/runs")


# ---- round trip -----------------------------------------------------------------------------------------------------


@given(
    st.dictionaries(
        WORDS,
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    ),
    st.floats(1e-9, 1.0),
    WORDS.filter(lambda word: not word.startswith("~")),
    st.none() | st.integers(1, 10**15),
)
def test_a_dumped_config_loads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any], lr: float, path: str, steps: int | None
) -> None:
    plain = {
        "env": {"options": options},
        "optim": {"lr": lr, "betas": [0.5, 0.25]},
        "policy": {"path": path, "template_args": options},
        "budget": {"steps": steps, "env_steps": 7},
        "algorithm": {"name": "grpo", "scale": "none", "deep": {"x": [1, {"y": "no"}]}},
    }
    config = TrainConfig.model_validate(plain)
    file = tmp_path_factory.getbasetemp() / "dumped.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(file) == config


def test_a_dump_shows_every_setting_with_its_meaning() -> None:
    text = dump_config(load_config())
    assert "  max_grad_norm: 1.0  # gradients are scaled down to this norm\n" in text
    for section in sections(load_config()):
        for name in type(section).model_fields:
            assert f"{name}:" in text


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optim.lrr=1", ["override 'optim.lrr=1'", "unknown key optim.lrr", "'optim.lr'", "--print-config"]),
        ("lr=1", ["unknown key lr", "did you mean 'optim.lr'"]),
        ("learning_rate=1", ["did you mean 'optim.lr'"]),
        ("optim.learning_rate=1", ["did you mean 'optim.lr'"]),
        ("sed=1", ["did you mean 'seed'"]),
        ("budget.step=3", ["did you mean 'budget.steps'"]),
        ("qqqqqq=1", ["unknown key qqqqqq ("]),
        ("optim.lr=0", ["optim.lr", "greater than 0", "not 0"]),
        ("optim.lr=.inf", ["optim.lr", "finite"]),
        ("optim.lr=fast", ["optim.lr", "valid number", "'fast'"]),
        ("optim.lr.x=3", ["override 'optim.lr.x=3'", "valid number"]),
        ("optim.betas=[0.9]", ["optim.betas"]),
        ("rollout.threads=2.5", ["rollout.threads", "integer"]),
        ("policy.device=gpu", ["'auto', 'cpu' or 'cuda'"]),
        ("name=../elsewhere", ["name", "'../elsewhere'"]),
        ("env=trace_gym/Math-v0", ["env is a section", "env.id", "'trace_gym/Math-v0'"]),
        ("algorithm=grpo", ["algorithm is a section", "algorithm.name"]),
        ("algorithm.name=3", ["algorithm", "trace-gym algorithms"]),
        ("budget={}", ["set one limit at least", "budget.steps"]),
        ("env.options=[&a [*a]]", ["env.options is a section"]),
        ("env.options={a: &a [*a]}", ["env.options"]),
        ("policy.path=", ["policy.path", "valid string"]),
        ("policy.path=''", ["policy.path"]),
        ('env.id="\\ud800"', ["env.id"]),
        ('env.options.x="\\ud800"', ["env.options"]),
    ],
)
def test_a_mistake_is_one_line_that_says_what_and_where(override: str, parts: list[str]) -> None:
    text = mistake(override)
    assert "\n" not in text and "override" in text
    for part in parts:
        assert part in text


def test_several_mistakes_are_a_line_each() -> None:
    lines = mistake("optim.lr=-1", "nonsense=2", "eval.draws=0").split("\n")
    assert len(lines) == 3 and all(line.startswith("override") for line in lines)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("optim.lr: 1e-3", ["unknown key optim.lr; in a file, write it nested: optim: {lr: …}"]),
        ("1: 2", ["Keys should be strings"]),
        ("null: 2", ["Keys should be strings"]),
        ("optim: {1: 2}", ["line 1: ", "Keys should be strings"]),
        ("<<: {seed: 2}", ["line 1: ", "unknown key <<"]),
        ("seed: 1e999", ["line 1: ", "seed"]),
        ("trace_gym/Math-v0", ["not a str"]),
    ],
)
def test_odd_files_are_refused(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_a_mistake_in_a_file_names_the_file_and_the_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, "seed: 1\noptim:\n  lr: 3e-4\n  momentum: 0.9\n")
    assert str(caught.value).startswith(f"{tmp_path / 'run.yaml'}, line 4: unknown key optim.momentum")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("engine.kind=openai",), "needs engine.url"),
        (("engine.kind=openai", "engine.url=http://h/v1", "engine.sleep=true"), "no use for engine.sleep"),
        (("engine.kind=vllm", "engine.url=http://h/v1"), "engine.kind=vllm has no use for engine.url"),
        (("engine.model=m", "engine.key_env=K"), "no use for engine.model, engine.key_env"),
        (("engine.kind=sglang",), "engine.kind"),
    ],
)
def test_an_engine_is_given_only_what_it_can_use(overrides: tuple[str, ...], said: str) -> None:
    assert said in mistake(*overrides)
