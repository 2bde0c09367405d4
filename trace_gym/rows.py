"""Rows that come one at a time and end up in a Parquet file.

    metrics.parquet   the rows, all but the newest        metrics.jsonl   these, a line each: [number of the row, the row]

A Parquet file can only be written whole, which for every row would be O(n^2) bytes. So a row becomes a line, until the lines
come to a 64th of what the file holds; then, which is at once while there are few, the file is written anew and the lines go.
Invariants: a row is on the disk when `append` returns; the file holds the first rows, and lines that it holds too are passed
over. So a process may be killed at any moment, and who reads the lines before the file misses nothing while rows are written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa

from trace_gym.disk import parquet, read_parquet, refusing, sync, write_whole
from trace_gym.errors import PluginError, RunError
from trace_gym.text import clean_text

__all__ = ["Row", "RowFile"]

Row = dict[str, float | str]
SHARE = 64  # of the file's rows, one may be a line


class RowFile:
    """See the module. For one writer; its methods raise `RunError` when the disk refuses or a file is corrupt."""

    def __init__(self, path: Path) -> None:
        self._path, self._lines = path, path.with_suffix(".jsonl")
        self._rows: list[Row] | None = None
        self._in_file = -1  # rows; -1: whether a line may follow is not known

    @property
    def rows(self) -> list[Row]:
        """All rows, each with the columns it had, as they were when they were first asked for or written here since."""
        if self._rows is None:
            lines = list(self._read_lines())  # first: see the module
            table = read_parquet(self._path).to_pylist() if self._path.exists() else []
            rows = [{k: v for k, v in row.items() if v is not None} for row in table]
            for number, row in lines:
                if number == len(rows):
                    rows.append(row)
            self._rows = rows
        return self._rows

    def append(self, row: Mapping[str, float | str]) -> None:
        """Add a row. Rows need not have the same columns."""
        rows, added = self.rows, {clean_text(name): _plain(name, value) for name, value in row.items()}
        if (len(rows) + 1 - self._in_file) * SHARE > self._in_file:
            self._write([*rows, added])
        else:
            self._write_line(len(rows), added)
            rows.append(added)

    def forget_from(self, step: int) -> None:
        """Drop the rows whose `step` is that or later."""
        rows = [row for row in self.rows if float(row["step"]) < step]
        if len(rows) < len(self.rows):
            self._write(rows)

    def settle(self) -> None:
        """Bring all rows into the file."""
        if self._lines.exists():
            self._write(self.rows)

    def _write(self, rows: list[Row]) -> None:
        self._in_file = -1
        write_whole(self._path, parquet(_table(rows)))
        self._rows = rows  # only once the disk has it
        with refusing(self._lines):
            self._lines.unlink(missing_ok=True)
        self._in_file = len(rows)

    def _write_line(self, number: int, row: Row) -> None:
        in_file, self._in_file = self._in_file, -1  # a torn line is the last
        with refusing(self._lines):
            fresh = not self._lines.exists()
            with open(self._lines, "ab") as file:
                file.write(json.dumps([number, row]).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            if fresh:
                sync(self._lines.parent)
        self._in_file = in_file

    def _read_lines(self) -> Iterator[tuple[int, Row]]:
        """What a kill or a full disk has left of the last line is no row."""
        try:
            lines = self._lines.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return
        except OSError as error:
            raise RunError(f"{self._lines} cannot be read: {error.strerror}") from error
        for place, line in enumerate(lines):
            try:
                number, row = json.loads(line)
                fits = type(number) is int and all(
                    isinstance(v, bool | int | float | str) for v in row.values()
                )
            except (ValueError, TypeError, AttributeError, RecursionError):
                fits = False
            if fits:
                yield number, row
            elif place + 1 < len(lines):
                raise RunError(f"{self._lines} is corrupt in line {place + 1}; delete it or restore a copy")


def _plain(name: str, value: object) -> float | str:
    """A number or a string that Parquet can hold; numpy's and torch's scalars become Python's."""
    if not isinstance(value, bool | int | float | str) and hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, bool | int | float | str):
        raise PluginError(
            f"the metric {name!r} is a {type(value).__name__}; a metric is a number or a string"
        )
    return clean_text(value) if isinstance(value, str) else value


def _table(rows: list[Row]) -> pa.Table:
    """Rows as columns: the union of their keys in order of appearance, null where a row has no value."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def _column(values: list[float | str | None]) -> pa.Array:
    """One type for the whole column: text if any value is text, whole numbers if all are, else floating point."""
    present = [value for value in values if value is not None]
    if any(isinstance(value, str) for value in present):
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    if all(isinstance(value, int) and abs(value) < 2**63 for value in present):
        return pa.array([None if value is None else int(value) for value in values], pa.int64())
    return pa.array([None if value is None else float(value) for value in values], pa.float64())
