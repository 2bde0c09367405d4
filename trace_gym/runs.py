"""A run's folder: settings, the facts it ran under, a row per step and per evaluation, rollout trees, the policy.

    config.yaml   about.json   metrics.parquet   evals.parquet   trees/step-000012.parquet   policy/

Invariant: a file is either whole or absent. Everything is written beside its place, flushed to disk and then renamed,
so a full disk or a killed process costs the newest row at most. Reading runs no code from a file: Parquet, JSON, YAML
and msgpack only.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trace_gym.algorithm import Credit, Notes
from trace_gym.config import TrainConfig, dump_config, load_config
from trace_gym.errors import ConfigError, PluginError, RunError
from trace_gym.text import clean_text
from trace_gym.tree import Tree
from trace_gym.treefile import read_trees, tree_table

__all__ = ["RunFolder", "environment_facts"]

Row = dict[str, float | str]
PACKAGES = ("trace-gym", "torch", "transformers", "gymnasium", "numpy", "pyarrow", "vllm")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """See the module. Make it with `create` or `open`; any method raises `RunError` when the disk refuses."""

    path: Path
    _rows: dict[str, list[Row]] = field(
        default_factory=dict, repr=False, compare=False
    )  # files read or written so far

    @classmethod
    def create(
        cls, parent: str | Path, name: str, *, config: TrainConfig, facts: Mapping[str, str] | None = None
    ) -> RunFolder:
        """A new folder `parent/name`, or `name-2`, `name-3`, … where that exists; `facts` join the environment's."""
        run = cls(_new_folder(Path(parent), name))
        run._write("config.yaml", dump_config(config).encode())
        about = environment_facts() | dict(facts or {})
        run._write("about.json", json.dumps(about, indent=2).encode())
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The run in an existing folder. Raises `ConfigError` where there is none."""
        run = cls(Path(path))
        if not (run.path / "config.yaml").is_file():
            raise ConfigError(f"{path} is no run folder: it holds no config.yaml")
        return run

    @property
    def policy_folder(self) -> Path:
        """Where the final policy goes; the training loop writes it."""
        return self.path / "policy"

    def config(self) -> TrainConfig:
        """The run's settings, as they were."""
        return load_config(self.path / "config.yaml")

    def about(self) -> dict[str, Any]:
        """The facts the run was made under."""
        try:
            facts: dict[str, Any] = json.loads((self.path / "about.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path / 'about.json'} cannot be read: {error}") from error
        return facts

    # ---- rows -------------------------------------------------------------------------------------------------------

    def append_metrics(self, row: Mapping[str, float | str]) -> None:
        """Add a step's row. Rows need not have the same columns."""
        self._append("metrics", row)

    def metrics(self) -> list[Row]:
        """The rows appended so far, each with the columns it had."""
        return list(self._read("metrics"))

    def append_eval(self, row: Mapping[str, float | str]) -> None:
        """Add an evaluation's row."""
        self._append("evals", row)

    def evals(self) -> list[Row]:
        """The evaluations appended so far."""
        return list(self._read("evals"))

    def _append(self, file: str, row: Mapping[str, float | str]) -> None:
        rows = [*self._read(file), {clean_text(name): _plain(name, value) for name, value in row.items()}]
        self._write(f"{file}.parquet", _parquet(_row_table(rows)))
        self._rows[file] = rows  # only once the disk has it

    def _read(self, name: str) -> list[Row]:
        if name not in self._rows:
            path = self.path / f"{name}.parquet"
            table = _read_parquet(path).to_pylist() if path.exists() else []
            self._rows[name] = [{k: v for k, v in row.items() if v is not None} for row in table]
        return self._rows[name]

    def forget_after(self, step: int) -> None:
        """Drop rows and trees of `step` and later, so that a resumed run records them once. Evaluations at `step` stay
        unless it is 0: they came before its checkpoint."""
        for name, limit in (("metrics", step), ("evals", step + 1 if step else 0)):
            rows = [row for row in self._read(name) if float(row["step"]) < limit]
            if len(rows) < len(self._read(name)):
                self._write(f"{name}.parquet", _parquet(_row_table(rows)))
                self._rows[name] = rows
        for path in (self.path / "trees").glob("step-*.parquet"):
            if int(path.stem.removeprefix("step-")) >= step:
                try:
                    path.unlink()
                except OSError as error:
                    raise RunError(f"cannot remove {path}: {error.strerror}") from error

    # ---- trees ------------------------------------------------------------------------------------------------------

    def trees_path(self, step: int) -> Path:
        """The file of a step's trees."""
        return self.path / "trees" / f"step-{step:06d}.parquet"

    def save_trees(
        self,
        step: int,
        trees: Mapping[str, Tree],
        credits: Mapping[str, Credit] | None = None,
        notes: Mapping[str, Notes] | None = None,
    ) -> None:
        """Keep a step's trees, a row per node. Text is kept with lone surrogates replaced."""
        table = tree_table(step, trees, credits or {}, notes or {})
        self._write(f"trees/{self.trees_path(step).name}", _parquet(table))

    def load_trees(self, step: int) -> list[Tree]:
        """The trees of a step, snapshots included. Raises `RunError` when the file is absent or corrupt."""
        path = self.trees_path(step)
        if not path.exists():
            saved = sorted(int(p.stem.removeprefix("step-")) for p in path.parent.glob("step-*.parquet"))
            has = f"steps {saved[0]} to {saved[-1]}" if saved else "none"
            raise ConfigError(
                f"{self.path} holds no trees of step {step}; it has {has} (see log.trees_every_steps)"
            )
        return read_trees(_read_parquet(path), str(path))

    # ---- the disk ---------------------------------------------------------------------------------------------------

    def _write(self, name: str, data: bytes) -> None:
        path = self.path / name
        try:
            if path.parent != self.path:
                path.parent.mkdir(exist_ok=True)
            _write_whole(path, data)
        except OSError as error:
            reason = error.strerror or str(error)
            raise RunError(f"cannot write {path}: {reason}; what was written before is intact") from error


def _new_folder(parent: Path, name: str) -> Path:
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
        except FileExistsError:
            if parent.exists() and not parent.is_dir():
                raise ConfigError(
                    f"cannot make a run folder in {parent}: it is a file; set out=FOLDER"
                ) from None
            number += 1
        except OSError as error:
            raise ConfigError(
                f"cannot make the run folder {path}: {error.strerror}; set out=FOLDER"
            ) from error
        else:
            return path


def _write_whole(path: Path, data: bytes) -> None:
    """Replace `path` by `data` such that a reader, or a crash, sees the old file or the new one and nothing between."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def _read_parquet(path: Path) -> pa.Table:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
        table.validate(full=True)  # text is UTF-8: Parquet's reader takes any bytes for it
        return table
    except (OSError, ValueError, pa.ArrowException) as error:
        brief = " ".join(str(error).split())[:200]
        raise RunError(
            f"{path} is corrupt or no Parquet file ({brief}); delete it or restore a copy"
        ) from error


def _plain(name: str, value: object) -> float | str:
    """A number or a string that Parquet can hold; numpy's and torch's scalars become Python's."""
    if not isinstance(value, bool | int | float | str) and hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, bool | int | float | str):
        raise PluginError(
            f"the metric {name!r} is a {type(value).__name__}; a metric is a number or a string"
        )
    return clean_text(value) if isinstance(value, str) else value


def _row_table(rows: list[Row]) -> pa.Table:
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


# ---- facts ----------------------------------------------------------------------------------------------------------


def environment_facts() -> dict[str, str]:
    """Versions, machine and, in a checkout, the commit: what one needs to know to run a run again."""
    facts = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
    }
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            facts[package] = importlib.metadata.version(package)
    return facts | _commit(Path(__file__).resolve().parent.parent)


def _commit(folder: Path) -> dict[str, str]:
    """The commit that `folder` is a checkout of. A folder that merely lies inside one (site-packages) has none."""
    if not (folder / ".git").exists():
        return {}
    head = _git(folder, "rev-parse", "HEAD")
    if not head:
        return {}
    return {
        "commit": head
        + (" with changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    }


def _git(folder: Path, *command: str) -> str:
    try:
        done = subprocess.run(
            ["git", *command], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
