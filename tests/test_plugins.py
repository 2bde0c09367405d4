"""Algorithms and environments by name: built-in, third-party, broken."""

import dataclasses
import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import pytest

from trace_gym.algorithms.grpo import GRPO
from trace_gym.env import ForkableEnv
from trace_gym.errors import ConfigError, PluginError, TraceGymError
from trace_gym.plugins import (
    GROUP,
    algorithm_class,
    algorithm_fields,
    algorithm_names,
    describe_fields,
    make_algorithm,
    make_env,
)

HEADER = """
from __future__ import annotations
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated
import numpy as np
from pydantic import Field
from trace_gym.algorithm import Algorithm
if TYPE_CHECKING:
    import torch

class Base(Algorithm):
    def plan(self, ctx): return []
    def credit(self, ctx): return {}

"""

Install = Callable[[str, dict[str, str]], None]
Module = Callable[[str, str], str]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """Writes an importable module and returns its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, code: str) -> str:
        (tmp_path / f"{name}.py").write_text(HEADER + code)
        return name

    return write


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs the metadata of a distribution with algorithm entry points."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(distribution: str, points: dict[str, str]) -> None:
        info = tmp_path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in points.items()]
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n" + "\n".join(lines))

    return write


# ---- finding --------------------------------------------------------------------------------------------------------


def test_built_in_algorithms_are_entry_points_like_any_other() -> None:
    assert algorithm_names()["grpo"] == "trace-gym"
    assert algorithm_class("grpo") is GRPO


def test_a_distribution_adds_an_algorithm(module: Module, install: Install) -> None:
    module("pluginmod_a", "@dataclass(kw_only=True)\nclass Mine(Base):\n    size: int = 3\n")
    install("their-plugin", {"mine": "pluginmod_a:Mine"})
    assert algorithm_names()["mine"] == "their-plugin"
    algorithm = make_algorithm("mine", {"size": 5})
    assert algorithm_fields(algorithm)["size"] == 5


def test_a_module_and_class_need_no_registration(module: Module) -> None:
    module("pluginmod_b", "class Mine(Base):\n    pass\n")
    assert algorithm_class("pluginmod_b:Mine").__name__ == "Mine"


def test_an_unknown_name_is_told_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"no algorithm 'gpro'; did you mean 'grpo'\? registered are .*grpo.*module:Class"
    ):
        algorithm_class("gpro")


def test_a_checkout_that_was_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trace_gym.plugins.entry_points", lambda group: importlib.metadata.EntryPoints())
    with pytest.raises(ConfigError, match=r"pip install -e \."):
        algorithm_class("grpo")


def test_two_distributions_with_one_name_are_both_named(module: Module, install: Install) -> None:
    module("pluginmod_c", "class Mine(Base):\n    pass\n")
    install("plugin-one", {"twice": "pluginmod_c:Mine"})
    install("plugin-two", {"twice": "pluginmod_c:Mine"})
    for ask in (lambda: algorithm_class("twice"), algorithm_names):
        with pytest.raises(
            PluginError, match="'twice' is claimed by distributions 'plugin-one' and 'plugin-two'"
        ):
            ask()
    assert algorithm_class("grpo") is GRPO  # the others still work


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise RuntimeError('boom\\nboom')", "cannot be imported: RuntimeError: boom boom"),
        ("import a_package_nobody_has", "No module named 'a_package_nobody_has'"),
        ("def Mine(): pass", "not a subclass"),
        ("class Mine: pass", "not a subclass"),
        ("class Mine(Algorithm): pass", "does not implement plan and credit"),
        ("class Mine(Algorithm):\n    def plan(self, ctx): return []", "does not implement credit"),
        ("Other = 1", "cannot be imported: AttributeError"),
    ],
)
def test_a_plug_in_that_cannot_be_used_is_named_with_its_distribution(
    module: Module, install: Install, code: str, message: str
) -> None:
    name = f"pluginmod_{abs(hash(code))}"
    module(name, code)
    install("their-plugin", {"mine": f"{name}:Mine"})
    with pytest.raises(PluginError) as caught:
        algorithm_class("mine")
    text = str(caught.value)
    assert message in text and "'their-plugin'" in text and f"{name}:Mine" in text and "\n" not in text


# ---- fields ---------------------------------------------------------------------------------------------------------


def test_fields_are_converted_to_their_types() -> None:
    algorithm = make_algorithm("grpo", {"group": "4", "clip_low": 1, "scale": "none"})
    assert isinstance(algorithm, GRPO)
    assert (algorithm.group, algorithm.clip_low, algorithm.scale) == (4, 1.0, "none")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"grup": 4}, "unknown field 'grup'; did you mean 'group'?"),
        ({"group": "many"}, "group: Input should be a valid integer"),
        ({"scale": "wide"}, "scale: Input should be 'none', 'batch_std' or 'group_std', not 'wide'"),
        ({"kl": None}, "kl: Input should be a valid number"),
    ],
)
def test_a_wrong_field_is_told_with_all_fields_and_defaults(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_algorithm("grpo", given)
    line = str(caught.value)
    assert message in line and "\n" not in line
    for field in dataclasses.fields(GRPO):
        assert f"{field.name}={field.default!r}" in line


def test_several_wrong_fields_are_a_line_each() -> None:
    with pytest.raises(ConfigError) as caught:
        make_algorithm("grpo", {"grup": 1, "kl": "x", "scale": 1})
    lines = str(caught.value).split("\n")
    assert ["its fields are" in line for line in lines] == [False, False, True]


def test_all_fields_make_an_equal_algorithm() -> None:
    algorithm = make_algorithm("grpo", {"group": 3, "kl": 0.1})
    assert make_algorithm("grpo", algorithm_fields(algorithm)) == algorithm


def test_private_state_of_any_type_is_none_of_the_settings(module: Module) -> None:
    name = module(
        "pluginmod_d",
        """
@dataclass(kw_only=True)
class Mine(Base):
    size: int = 3
    _rng: np.random.Generator = field(init=False)
    _memory: torch.Tensor = field(init=False, default=None)
    def __post_init__(self): self._rng = np.random.default_rng(0)
""",
    )
    algorithm = make_algorithm(f"{name}:Mine", {"size": 5})
    assert algorithm_fields(algorithm)["size"] == 5 and "_rng" not in describe_fields(type(algorithm))
    with pytest.raises(ConfigError, match="unknown field '_rng'"):
        make_algorithm(f"{name}:Mine", {"_rng": 1})


def test_constraints_required_fields_and_post_init_are_heeded(module: Module) -> None:
    name = module(
        "pluginmod_e",
        """
@dataclass(kw_only=True)
class Mine(Base):
    size: Annotated[int, Field(ge=1)]
    names: list[str] = field(default_factory=lambda: ["a"])
    def __post_init__(self):
        if self.size == 13: raise ValueError("13 is unlucky")
        if self.size == 14: raise KeyError("a bug")
""",
    )
    label = f"{name}:Mine"
    with pytest.raises(ConfigError, match=r"size: Input should be greater than or equal to 1, not 0"):
        make_algorithm(label, {"size": 0})
    with pytest.raises(ConfigError, match=r"size must be given .*size=\(required\), names=\['a'\]"):
        make_algorithm(label, {})
    with pytest.raises(ConfigError, match="names\\[1\\]: Input should be a valid string"):
        make_algorithm(label, {"size": 1, "names": ["a", 2]})
    with pytest.raises(ConfigError, match="13 is unlucky"):
        make_algorithm(label, {"size": 13})
    with pytest.raises(PluginError, match="cannot be constructed: KeyError"):
        make_algorithm(label, {"size": 14})


def test_a_forgotten_decorator_is_pointed_out(module: Module) -> None:
    name = module("pluginmod_f", "class Mine(Base):\n    size: int = 3\n")
    with pytest.raises(ConfigError, match=r"unknown field 'size' \(Mine must be decorated with @dataclass"):
        make_algorithm(f"{name}:Mine", {"size": 4})


def test_a_field_whose_type_cannot_be_checked_is_the_plug_ins_fault(module: Module) -> None:
    name = module("pluginmod_g", "@dataclass(kw_only=True)\nclass Mine(Base):\n    size: Nowhere = 3\n")
    make_algorithm(f"{name}:Mine", {})
    with pytest.raises(PluginError, match=r"Mine\.size has a type"):
        make_algorithm(f"{name}:Mine", {"size": 4})


# ---- environments ---------------------------------------------------------------------------------------------------


def test_an_environment_is_made_with_its_options() -> None:
    env = make_env("trace_gym/Math-v0", {"difficulty": 2})
    assert isinstance(env, ForkableEnv) and env.spec is not None and env.spec.kwargs == {"difficulty": 2}


@pytest.mark.parametrize(
    ("env_id", "options", "kind", "message"),
    [
        ("trace_gym/Mat-v0", {}, ConfigError, "Math.*trace-gym envs"),
        ("trace_gym/Math-v99", {}, ConfigError, "v99.*trace-gym envs"),
        ("", {}, ConfigError, "Malformed.*trace-gym envs"),
        ("no_such_module:x/Y-v0", {}, ConfigError, "no_such_module"),
        (
            "trace_gym/Math-v0",
            {"sorce": "x"},
            ConfigError,
            "no option 'sorce'; did you mean 'source'.*difficulty=",
        ),
        ("trace_gym/Math-v0", {"difficulty": "x"}, ConfigError, "difficulty 'x'"),
        (
            "trace_gym/Math-v0",
            {"max_episode_steps": 3},
            ConfigError,
            "max_episode_steps is gymnasium.make's own",
        ),
        ("CartPole-v1", {}, PluginError, "not a ForkableEnv; wrap it in trace_gym.ReplayEnv"),
    ],
)
def test_an_environment_that_cannot_be_made_is_one_clear_line(
    env_id: str, options: dict[str, object], kind: type[TraceGymError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        make_env(env_id, options)
    assert "\n" not in str(caught.value)


def test_a_constructor_that_breaks_is_the_plug_ins_fault(module: Module) -> None:
    module(
        "pluginmod_h",
        """
import gymnasium
def broken(): raise RuntimeError("no database")
gymnasium.register("pluginmod/Broken-v0", entry_point=broken)
""",
    )
    with pytest.raises(
        PluginError, match="pluginmod_h:pluginmod/Broken-v0 cannot be made: RuntimeError: no database"
    ):
        make_env("pluginmod_h:pluginmod/Broken-v0")
