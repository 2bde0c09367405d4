"""The errors' page: every class is explained, every message of the code is on it, and real errors are found there."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import gymnasium
import pytest

import trace_gym.envs  # noqa: F401
from docs.generate import errors as generated
from docs.generate.repository import ROOT
from docs.generate.text import code
from trace_gym import Snapshot, TraceGymError, errors
from trace_gym.config import load_config
from trace_gym.ledger import Budget
from trace_gym.plugins import algorithm_class, make_algorithm, make_env
from trace_gym.runs import RunFolder

pytestmark = pytest.mark.checkout


@pytest.fixture(scope="module")
def page() -> str:
    return generated.page()


@pytest.fixture(scope="module")
def found() -> list[generated.Message]:
    return list(generated.messages())


def test_every_class_is_explained_and_no_other() -> None:
    own = [group for group in generated.groups() if group.title == group.error]
    assert {group.error for group in own} == set(errors.__all__) - {"TraceGymError"}
    assert all(len(group.advice) > 40 for group in own)


def test_every_group_has_files_that_exist_and_messages(found: list[generated.Message]) -> None:
    for group in generated.groups():
        assert all((ROOT / file).exists() for file in group.files), group.title
        assert any(group.takes(message) for message in found) or group.error in ("BudgetError",), group.title


def test_every_message_stands_below_its_class(page: str, found: list[generated.Message]) -> None:
    parts = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert len(found) > 300
    for message in found:
        if any(map(str.isalpha, message.text)):
            assert code(message.text) in parts[message.error], message


def test_few_messages_are_filled_in_from_end_to_end(found: list[generated.Message]) -> None:
    """Such a message says nothing on the page: its words come from elsewhere (a library, a list of complaints)."""
    blank = {m.file for m in found if not any(map(str.isalpha, m.text))}
    assert len(blank) <= 10, blank


def test_every_place_that_raises_is_found(found: list[generated.Message]) -> None:
    """By another way than the generator's: each `raise SomeError(` line of the sources gave a message of its file and class."""
    known = {(m.file, m.error) for m in found}
    places = 0
    for folder in generated.FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            for name in re.findall(r"\braise (\w+)\(", path.read_text(encoding="utf-8")):
                if name in errors.__all__:
                    places += 1
                    assert (path.relative_to(ROOT).as_posix(), name) in known, path
    assert places > 250


def words(tmp_path: Path) -> list[Callable[[], object]]:
    env = make_env("trace_gym/Math-v0")
    return [
        lambda: load_config(None, ["optim.lrr=1"]),
        lambda: load_config(None, ["seed"]),
        lambda: load_config(None, ["optim=3"]),
        lambda: make_env("trace_gym/Math-v0", {"dificulty": 3}),
        lambda: make_env("trace_gym/Math-v0", {"difficulty": "9"}),
        lambda: make_algorithm("grpo", {"group": 1}),
        lambda: algorithm_class("no_such"),
        lambda: algorithm_class("no_such_module:X"),
        lambda: env.step("x"),
        lambda: env.tasks("tset"),
        lambda: Snapshot.from_bytes(b"junk"),
        lambda: RunFolder.open(tmp_path),
        lambda: Budget(policy_tokens=-1),
        lambda: gymnasium.make("trace_gym/SearchQA-v0", retriever="http://user:word@host/retrieve"),
        lambda: gymnasium.make("trace_gym/ToolAPI-v0", source="nothing"),
    ]


def test_errors_that_happen_are_on_the_page(found: list[generated.Message], tmp_path: Path) -> None:
    patterns = [
        re.compile(".+".join(re.escape(part) for part in m.text.split(generated.FILLED)), re.DOTALL)
        for m in found
        if len(re.sub(r"[\W_]", "", m.text)) > 12
    ]
    for number, fails in enumerate(words(tmp_path)):
        with pytest.raises(TraceGymError) as caught:
            fails()
        line = str(caught.value)
        assert any(pattern.search("." + line + ".") for pattern in patterns), (number, line)


def test_what_an_expression_may_say() -> None:
    source = """
LIMIT = "ten"
TABLE = {"a": "one", "b": "two"}

def said(x):
    if x:
        text = f"short {x}"
    else:
        text = "long"
    return f"{LIMIT}: {text}"

ConfigError("plain" if x else f"with {x}")
ConfigError(said(x))
ConfigError(TABLE[x])
ConfigError(x)
"""
    tree = ast.parse(source)
    names = generated._definitions(tree)
    texts = [
        generated._texts(n.value.args[0], names)
        for n in tree.body
        if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)
    ]
    assert texts == [["plain", "with …"], ["ten: short …", "ten: long"], ["one", "two"], ["…"]]
