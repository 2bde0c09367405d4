"""Data sets known by name: what is downloaded is checked, what is cached is whole."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from trace_gym import data
from trace_gym.cli import app
from trace_gym.errors import ConfigError

MEMBERS = ("pack/a.json", "pack/sub/b.py")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the folder for data in it."""
    monkeypatch.setenv("TRACE_GYM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small archive in the place of the package, and the known data set as if it came from there."""
    path = tmp_path / "a.whl"
    with zipfile.ZipFile(path, "w") as file:
        for name in (*MEMBERS, "../escape", "pack/unwanted.py"):
            file.writestr(name, f"content of {name}")
    known = replace(data.KNOWN["bfcl"], sha256=hashlib.sha256(path.read_bytes()).hexdigest(), members=MEMBERS)
    monkeypatch.setitem(data.KNOWN, "bfcl", known)
    monkeypatch.setattr(data, "download", lambda requirement, work, deadline_s: path)
    return path


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def test_the_wanted_files_are_kept_and_nothing_else(cache: Path, wheel: Path) -> None:
    assert "get it: trace-gym data get bfcl" in run("data", "list").stdout
    with pytest.raises(ConfigError, match="run `trace-gym data get bfcl`"):
        data.folder_of("bfcl")
    result = run("data", "get", "bfcl")
    assert result.exit_code == 0 and result.stdout == f"{cache / 'bfcl'}\n"
    kept = {str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()}
    assert kept == {f"bfcl/{name}" for name in MEMBERS}
    assert (cache / "bfcl" / MEMBERS[1]).read_text() == f"content of {MEMBERS[1]}"
    assert data.folder_of("bfcl") == cache / "bfcl"
    assert str(cache / "bfcl") in run("data", "list").stdout


def test_it_is_obtained_once(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data.get("bfcl")
    monkeypatch.setattr(data, "download", lambda *_: pytest.fail("downloaded again"))
    assert data.get("bfcl") == cache / "bfcl"


def test_another_archive_is_refused_and_leaves_nothing(cache: Path, wheel: Path) -> None:
    wheel.write_bytes(wheel.read_bytes() + b"!")
    result = run("data", "get", "bfcl")
    assert result.exit_code == 1 and "SHA-256" in result.stderr
    assert list(cache.iterdir()) == []


def test_what_goes_wrong_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("data", "get", "nothing")
    assert result.exit_code == 1 and "no data set is known as 'nothing'; known: bfcl" in result.stderr
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRACE_GYM_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"cannot write to .*set TRACE_GYM_CACHE"):
        data.get("bfcl")
