"""Rows: none that was added is lost, whenever the process dies; what is written grows with them, not with their square."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_gym import disk
from trace_gym import rows as module
from trace_gym.errors import RunError
from trace_gym.rows import RowFile


def row(n: int) -> dict[str, float | str]:
    return {"step": n, "loss": n / 7, **({"note": f"é{n}"} if n % 3 else {})}


class Killed(BaseException):
    pass


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RowFile:
    """Without waiting for the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    return RowFile(tmp_path / "metrics.parquet")


def names(file: RowFile) -> set[str]:
    return {path.name for path in file._path.parent.iterdir()}


def test_rows_are_written_about_as_often_as_a_file_has_shares(
    file: RowFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, real = [0], disk.parquet

    def counting(table: Any) -> bytes:
        written[0] += table.num_rows
        return real(table)

    monkeypatch.setattr(module, "parquet", counting)
    for n in range(2000):
        file.append(row(n))
        if n % 97 == 0:
            assert RowFile(file._path).rows == file.rows == [row(i) for i in range(n + 1)]
    assert written[0] <= (module.SHARE + 2) * 2000  # 2,001,000 if each row wrote all
    left = 2000 - pq.read_table(file._path).num_rows
    assert 0 <= left <= 2000 / module.SHARE
    file.settle()
    assert names(file) == {"metrics.parquet"} and pq.read_table(file._path).num_rows == 2000
    assert RowFile(file._path).rows == [row(n) for n in range(2000)]


def test_few_rows_are_in_the_file_at_once(file: RowFile) -> None:
    for n in range(module.SHARE):
        file.append(row(n))
        assert pq.read_table(file._path).num_rows == n + 1 and names(file) == {"metrics.parquet"}


@given(
    st.lists(st.sampled_from(["row", "row", "row", "open", "settle", "forget"]), max_size=30),
    st.integers(0, 60),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 40),
)
def test_a_kill_at_any_moment_loses_no_row(
    tmp_path_factory: pytest.TempPathFactory, todo: list[str], moment: int, share: int, torn: int
) -> None:
    """A process that dies as it flushes, renames or removes for the `moment`-th time; then another goes on."""
    path = tmp_path_factory.mktemp("rows") / "metrics.parquet"
    lines = path.with_suffix(".jsonl")
    count, before, doing = 0, 0, ""  # rows that are sure; bytes of lines
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHARE", share)
        patch.setattr(os, "fsync", lambda handle: None)
        with dying(moment):
            file = RowFile(path)
            for doing in todo:
                before = lines.stat().st_size if lines.exists() else 0
                if doing == "row":
                    file.append(row(count))
                    count += 1
                elif doing == "open":
                    file = RowFile(path)
                elif doing == "settle":
                    file.settle()
                else:
                    count = max(0, count - 2)
                    file.forget_from(count)
                doing = ""
        if (
            doing == "row" and lines.exists() and lines.stat().st_size > before
        ):  # perhaps not all reached the disk
            os.truncate(lines, max(before, lines.stat().st_size - torn))
        found = len(RowFile(path).rows)
        assert RowFile(path).rows == [row(n) for n in range(found)]
        assert count <= found <= count + {"row": 1, "forget": 2}.get(doing, 0)  # what it was at may be done
        again = RowFile(path)
        again.forget_from(count)  # as a resumed run does
        for n in range(count, count + 9):
            again.append(row(n))
            assert RowFile(path).rows == [row(i) for i in range(n + 1)]


@contextmanager
def dying(moment: int) -> Iterator[None]:
    left = moment

    def or_dies(real: Callable[..., None]) -> Callable[..., None]:
        def operation(*words: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            real(*words)

        return operation

    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        for name in ("replace", "unlink", "fsync"):
            patch.setattr(os, name, or_dies(getattr(os, name)))
        yield


def test_who_reads_while_rows_are_written_misses_none(file: RowFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines go into the file just after they were read, or before."""
    count, real = 3 * module.SHARE, disk.read_parquet
    for n in range(count):
        file.append(row(n))
    file.settle()
    file.append(row(count))
    assert pq.read_table(file._path).num_rows == count

    def meanwhile(path: Path) -> Any:
        file.settle()
        file.append(row(count + 1))
        return real(path)

    monkeypatch.setattr(module, "read_parquet", meanwhile)
    assert RowFile(file._path).rows == [row(n) for n in range(count + 1)]


@pytest.fixture
def with_lines(file: RowFile) -> Iterator[Path]:
    for n in range(3 * module.SHARE):
        file.append(row(n))
    file.settle()
    for n in range(3 * module.SHARE, 3 * module.SHARE + 2):
        file.append(row(n))
    lines = file._path.with_suffix(".jsonl")
    assert lines.read_bytes().count(b"\n") == 2
    yield file._path


@pytest.mark.parametrize(
    "end", [b'[195, {"step": 19', b"\0" * 50, b"\0" * 50 + b"\n", b"[194, 7]\n", b"[" * 10**5 + b"\n"]
)
def test_a_torn_last_line_is_no_row_and_goes_with_the_next(with_lines: Path, end: bytes) -> None:
    lines, count = with_lines.with_suffix(".jsonl"), 3 * module.SHARE + 2
    lines.write_bytes(lines.read_bytes() + end)
    again = RowFile(with_lines)
    assert again.rows == [row(n) for n in range(count)]
    again.append(row(count))
    again.append(row(count + 1))
    assert RowFile(with_lines).rows == [row(n) for n in range(count + 2)]


def test_a_line_that_is_corrupt_is_told(with_lines: Path) -> None:
    lines = with_lines.with_suffix(".jsonl")
    lines.write_bytes(lines.read_bytes().replace(b"[192, {", b"[192, x", 1))
    with pytest.raises(RunError, match=r"metrics\.jsonl is corrupt in line 1; delete it"):
        RowFile(with_lines).rows  # noqa: B018


def test_a_line_that_finds_no_room_is_told_and_the_next_goes_on(
    with_lines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, count = RowFile(with_lines), 3 * module.SHARE + 2
    file.append(row(count))  # writes all; the next is a line

    def full(handle: int) -> None:
        os.ftruncate(handle, os.fstat(handle).st_size - 5)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            RunError, match=r"cannot write .*metrics\.jsonl: No space left on device; .* intact"
        ):
            file.append(row(count + 1))
    assert len(file.rows) == count + 1
    file.append(row(count + 1))
    assert RowFile(with_lines).rows == file.rows == [row(n) for n in range(count + 2)]
