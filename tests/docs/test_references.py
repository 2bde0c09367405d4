"""The generated references name everything that there is, and what they say of it is not empty."""

import csv
import inspect
import re
import subprocess
import sys

import gymnasium
import pytest

from docs.generate import algorithms, benchmarks, commands, environments, settings
from docs.generate.repository import ROOT
from docs.generate.text import block, cell, code, prose, table, takes
from trace_gym.config import TrainConfig, load_config
from trace_gym.envs import ENTRY_POINTS
from trace_gym.plugins import algorithm_class, algorithm_names, describe_fields

pytestmark = pytest.mark.checkout


@pytest.fixture(scope="module")
def environments_page() -> str:
    return environments.page()


def part(page: str, title: str) -> str:
    """The part of a page below `## title`."""
    match = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert match, title
    return match[1]


def rows(text: str) -> dict[str, list[str]]:
    """The rows of a part's tables by their first cell; a bar inside `code` or after a backslash ends no cell."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    found = [re.findall(r"\| ((?:`[^`]*`|\\.|[^|`\\])*)", line) for line in lines]
    return {row[0].strip().strip("`"): [cell.strip() for cell in row] for row in found}


@pytest.mark.parametrize("env_id", ENTRY_POINTS)
def test_every_environment_and_every_option_is_told(env_id: str, environments_page: str) -> None:
    assert [spec.id for spec in environments.specs()] == sorted(ENTRY_POINTS)
    told = rows(part(environments_page, env_id).partition("Options\n")[2].partition("\n### ")[0])
    maker = type(gymnasium.make(env_id).unwrapped)
    expected = inspect.signature(maker).parameters
    assert list(told) == list(expected)
    for name, option in expected.items():
        assert told[name][2] == code(repr(option.default))
        assert len(told[name][3]) > 4, f"{env_id}: {name} has no meaning"


@pytest.mark.parametrize("env_id", ENTRY_POINTS)
def test_every_tool_is_told_with_its_effect_and_the_episode_is_real(
    env_id: str, environments_page: str
) -> None:
    text = part(environments_page, env_id)
    env = gymnasium.make(env_id)
    task = env.unwrapped.tasks("test")[0]  # type: ignore[attr-defined]
    observation, info = env.reset(seed=0, options={"task": task})
    for tool in info["tools"]:
        assert re.search(rf'"{tool["function"]["name"]}: (pure|stateful|recorded|irreversible)"', text)
    assert info["system"] in text and observation in text and "Reward 1, `success` True" in text
    counts = rows(text.partition("Tasks\n")[2].partition("\n### ")[0])
    assert counts["test"][1] == f"{len(env.unwrapped.tasks('test')):,}"  # type: ignore[attr-defined]


def test_every_algorithm_is_told_with_every_field() -> None:
    page = algorithms.page()
    ours = [name for name, owner in algorithm_names().items() if owner == "trace-gym"]
    assert {"trace", "grpo"} <= set(ours)
    common = rows(part(page, "Fields of all"))
    for name in ours:
        text = part(page, name)
        inherited = re.search(r"fields and the paper are those of `(\w+)`", text)
        told = common | (rows(part(page, inherited[1])) if inherited else {}) | rows(text)
        cls = algorithm_class(name)
        for field, default in algorithms.settable(cls).items():
            assert told[field][2] == code(str(default)), f"{name}.{field}"
            assert told[field][3], f"{name}.{field} has no meaning"
        assert set(re.findall(r"(\w+)=", describe_fields(cls))) <= set(told)
        paper = (inspect.getmodule(cls) or cls).__doc__ or ""
        assert inherited or prose(paper).splitlines()[0] in text


def test_every_setting_is_told_with_its_default_and_can_be_set_by_that_name() -> None:
    page = settings.page()
    keys = settings.settings()
    told = rows(page)
    assert list(told) == keys and {"seed", "optim.lr", "policy.lora.rank", "budget.steps"} <= set(keys)
    assert all(row[1] and row[3] for row in told.values())
    given = [f"{key}={told[key][2].strip('`')}" for key in keys]
    assert load_config(None, given) == TrainConfig()  # each default is told as it would be written


def test_bounds_and_choices_are_told() -> None:
    told = rows(settings.page())
    assert told["optim.lr"][1] == "number or `null` above 0"
    assert told["policy.device"][1] == "`auto` or `cpu` or `cuda`"
    assert told["seed"][1] == "whole number from 0"


def test_every_command_is_told_with_its_help() -> None:
    names = [name for name, _ in commands.commands()]
    assert {"trace-gym train", "trace-gym trees", "trace-gym data get", "trace-gym model list"} <= set(names)
    done = subprocess.run(
        [sys.executable, "-m", "trace_gym.cli", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    listed = re.findall(r"^  ([a-z][\w-]*) ", done.stdout.partition("Commands:")[2], re.MULTILINE)
    assert len(listed) > 8 and {f"trace-gym {name}" for name in listed} <= set(names)
    page = commands.page()
    for name, text in commands.commands():
        assert (
            f"{'#' * len(name.split())} {name}\n" in page
            and text in page
            and text.startswith("Usage: trace-gym")
        )


def test_every_recorded_page_is_listed_with_its_command_and_cost() -> None:
    found = {link: command for _, link, _, command in benchmarks.rows()}
    assert {"speed/loop.md", "trace/README.md", "supervised/summary.md"} <= set(found) and set(
        benchmarks.COSTS
    ) <= set(found)
    text = benchmarks.page()
    for link, command in found.items():
        assert (ROOT / "benchmarks/results" / link).is_file()
        assert f"(results/{link})" in text and command in text and "`" in command


def test_the_costs_are_those_on_record() -> None:
    """Runs and seconds of the comparison, from its own table."""
    told = benchmarks.COSTS["trace/README.md"]
    for name, words in (("math", "Math-v0: {} runs of {:.0f} s"), ("relay", "Relay: {} of {:.0f} s")):
        with (ROOT / f"benchmarks/results/trace/{name}.csv").open() as file:
            seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
        assert words.format(len(seconds), sum(seconds) / len(seconds)) in told


# ---- text as mark-up ------------------------------------------------------------------------------------------------


def test_text_stays_text() -> None:
    assert cell("a|b *c* <d> `e|f` x_y") == "a\\|b \\*c\\* \\<d\\> `e|f` x\\_y"
    assert code("a`b") == "`` a`b ``" and code("a|b\nc") == "`a|b c`"
    assert block("```\nx\n```").startswith("````text\n") and block("```\nx\n```").endswith("\n````")
    assert prose("See <b>:\n\n    f(x) = <y>\n\n    more\n\nEnd.") == (
        "See \\<b\\>:\n\n```text\nf(x) = <y>\n\nmore\n```\n\nEnd."
    )
    assert table(["a"], [["b"]]) == "| a |\n| --- |\n| b |"


def test_words_to_choose_from_are_spelled_out() -> None:
    assert takes("Stage", "trace_gym.algorithms.trace") == "`active`, `uniform`, `off`"
    assert takes("Literal['a', 'b']", "trace_gym.algorithms.trace") == "`a`, `b`"
    assert takes("int | None", "trace_gym.algorithms.trace") == "`int | None`"
