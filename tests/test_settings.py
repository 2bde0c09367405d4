"""Settings as text: what YAML means here, overrides, origins, and text that is no settings at all."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_gym.errors import ConfigError
from trace_gym.settings import Settings, flow, setting

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def value_of(text: str) -> Any:
    settings = Settings()
    settings.override(f"key={text}")
    return settings.values["key"]


@given(PLAIN)
def test_a_value_written_on_one_line_reads_back_equal(value: Any) -> None:
    assert "\n" not in flow(value)
    back = value_of(flow(value))
    assert back == value and type(back) is type(value)


@given(TEXT)
def test_a_word_that_looks_like_something_else_stays_a_word(word: str) -> None:
    assert value_of(flow(word)) == word


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E+3", 1000.0),
        ("-.5", -0.5),
        ("1.", 1.0),
        (".inf", float("inf")),
        ("250_000", 250_000),
        ("-7", -7),
        ("true", True),
        ("null", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("010", "010"),
        ("2026-11-23", "2026-11-23"),
        ("0x1F", "0x1F"),
        ("a b", "a b"),
        ("a=b", "a=b"),
        ("'3'", "3"),
        ("[1, x, 2e1]", [1, "x", 20.0]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)
def test_scalars_mean_what_they_look_like(text: str, value: object) -> None:
    got = value_of(text)
    assert got == value and type(got) is type(value)


def test_overrides_nest_replace_and_keep_their_neighbours() -> None:
    settings = Settings({"a": {"b": 1, "c": 2}, "d": 3})
    for text in ("a.b=9", "a.e.f=x", "d.g=4", setting("h", "1")):
        settings.override(text)
    assert settings.values == {"a": {"b": 9, "c": 2, "e": {"f": "x"}}, "d": {"g": 4}, "h": "1"}


def test_an_override_leaves_the_values_it_was_given_alone() -> None:
    given_values = {"a": {"b": {"c": 1}}}
    Settings(dict(given_values)).override("a.b.c=2")
    assert given_values == {"a": {"b": {"c": 1}}}


@pytest.mark.parametrize("text", ["lr", "=1", "a..b=1", "a.=1", "a b=1", "--lr=1\n.x=2"])
def test_what_is_no_setting_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="key=value"):
        Settings().override(text)


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "a: b: c",
        "*x",
        "!!python/object/apply:os.system [id]",
        "a\x00",
        "{a: 1, a: 2}",
        "[{a: 1, a: 2}]",
        "{[1]: 2}",
        "1" * 5000,
    ],
)
def test_values_that_are_no_yaml_are_refused_on_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        value_of(text)
    assert "\n" not in str(caught.value) and "override" in str(caught.value)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ConfigError, match="nested too deeply"):
        value_of("[" * 5000 + "]" * 5000)


def test_aliases_that_swell_are_refused_before_anybody_shows_them(tmp_path: Path) -> None:
    lines = ["a0: &a0 {k: 1}"] + [f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}" for i in range(1, 60)]
    path = tmp_path / "many.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="aliases stand for more than 100,000 values"):
        Settings.read(path)
    path.write_text("a: &a {k: 1}\nb: *a\nc: [*a, *a]\n")
    assert Settings.read(path).values == {"a": {"k": 1}, "b": {"k": 1}, "c": [{"k": 1}, {"k": 1}]}


def test_a_file_gives_values_and_the_line_of_each(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("seed: 3\noptim:\n  # a comment\n  lr: 1e-3\n")
    settings = Settings.read(path)
    assert settings.values == {"seed": 3, "optim": {"lr": 1e-3}}
    assert settings.origin(("optim", "lr")) == f"{path}, line 4: "
    assert settings.origin(("optim", "lr", "inner")) == f"{path}, line 4: "
    assert settings.origin(("optim",)) == f"{path}, line 2: "
    assert settings.origin(("other",)) == ""
    settings.override("optim={lr: 2}")
    assert settings.origin(("optim", "lr")) == "override 'optim={lr: 2}': "


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n", "null\n"])
def test_an_empty_file_is_no_settings(tmp_path: Path, text: str) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text(text)
    assert Settings.read(path).values == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: 1\nname: a\nseed: 2\n", "line 3: the key 'seed' stands here twice"),
        (b"- 1\n- 2\n", "not a list"),
        (b"seed: [1\n", "run.yaml, line 2: "),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"? [a]\n: 1\n", "line 1: a key must be a word"),
        (b"a: 1\n---\nb: 2\n", "expected a single document"),
        (b"a: !!python/name:os.system\n", "line 1"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        Settings.read(path)
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match=r"the config file .* cannot be read"):
            Settings.read(path)
