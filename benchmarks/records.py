"""What finished cells left, as one table: a row a cell, with its curves, steps and settings inside.

    results.parquet     everything a report needs; read_records(out) builds it from the cells' folders or takes it as it is

Reading runs no code from a file: JSON and Parquet only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trace_gym.benchmarks.cells import Result, area
from trace_gym.benchmarks.spending import read_spending
from trace_gym.errors import ConfigError, RunError, TraceGymError
from trace_gym.runs import RunFolder

__all__ = ["TABLE", "area_of", "read_record", "read_table", "result_of", "write_table"]

TABLE = "results.parquet"
PLAIN = ("config", "warmup", "about")  # kept as JSON text: their keys differ from row to row
LISTS = ("metrics", "evals", "spending", "found")
Record = dict[str, Any]


def read_record(folder: Path) -> Record:
    """The result in a cell's folder with the rows of its run. Raises `RunError` when the result cannot be read."""
    try:
        record: Record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{folder / 'result.json'} cannot be read ({error}); delete it to run the cell again"
        ) from error
    record |= {"metrics": [], "evals": [], "spending": []}
    if record["status"] == "done" and record["kind"] != "warmup":
        try:
            run = RunFolder.open(folder / "run")
            record |= {"metrics": run.metrics(), "evals": run.evals(), "spending": read_spending(folder)}
        except TraceGymError as error:  # lost since: the others are there
            record |= {"status": "failed", "reason": f"its run cannot be read: {error}"}
    found: dict[str, dict[str, float]] = record.get("found", {})
    record["found"] = [{"name": name, **row} for name, row in found.items()]
    return {"reason": "", "warmed": {}, **record}


def result_of(record: Record) -> Result:
    """The record as the curves' functions take it."""
    return Result(
        record["algorithm"],
        record["seed"],
        record["seconds"],
        record["about"].get("commit", ""),
        record["metrics"],
        record["evals"],
        error=record["reason"],
    )


def area_of(record: Record) -> float:
    """Mean success over the cell's budget, which is in policy tokens where it is to be tuned; nan for a failed cell."""
    return area(result_of(record), record["budget"]) if record["status"] == "done" else float("nan")


def write_table(out: Path, records: Sequence[Record]) -> Path:
    """All records as one Parquet file, whole or absent."""
    rows = []
    for record in records:
        row = {
            k: v
            for k, v in record.items()
            if k not in ("evaluations", "warmed", "refused", "waits", "keeps_policy")
        }
        row |= {name: json.dumps(record[name], sort_keys=True) for name in PLAIN}
        row |= {name: [_numbers(part) for part in record[name]] for name in LISTS}
        rows.append(row)
    path, fresh = out / TABLE, out / f".{TABLE}"
    pq.write_table(pa.Table.from_pylist(rows), fresh, compression="zstd")
    fresh.rename(path)
    return path


def read_table(path: Path) -> list[Record]:
    """The records of a table, or of the folder it lies in. Raises `ConfigError` where there is none."""
    path = path / TABLE if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(f"there is no {path}: `trace-gym bench run SUITE` writes it")
    try:
        with pq.ParquetFile(path) as file:
            rows: list[Record] = file.read().to_pylist()
        for row in rows:
            row |= {name: json.loads(row[name]) for name in PLAIN}
            row |= {name: [_known(part) for part in row[name] or []] for name in LISTS}
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise RunError(f"{path} is no table of results: {' '.join(str(error).split())[:200]}") from error
    return rows


def _numbers(row: Record) -> Record:
    """The row with every number a float, so that rows of all cells fit one type."""
    return {name: value if isinstance(value, str) else float(value) for name, value in row.items()}


def _known(row: Record) -> Record:
    """The row without the columns that only other rows have."""
    return {name: value for name, value in row.items() if value is not None}
