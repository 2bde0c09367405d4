"""A run's folder: settings, the facts it ran under, a row per step and per evaluation, rollout trees, the policy.

    config.yaml   about.json   metrics.parquet   evals.parquet   trees/step-000012.parquet   policy/

Invariant: a file is either whole or absent, but for the newest rows of a run that goes on (see `rows`). Everything is
written beside its place, flushed to disk and then renamed, so a full disk or a killed process costs the newest row at
most. Reading runs no code from a file: Parquet, JSON, YAML and msgpack only.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trace_gym.algorithm import Credit, Notes
from trace_gym.config import TrainConfig, dump_config, load_config
from trace_gym.disk import parquet, read_parquet, refusing, write_whole
from trace_gym.errors import ConfigError, RunError
from trace_gym.rows import Row, RowFile
from trace_gym.tree import Tree
from trace_gym.treefile import read_trees, tree_table

__all__ = ["RunFolder", "environment_facts"]

PACKAGES = ("trace-gym", "torch", "transformers", "gymnasium", "numpy", "pyarrow", "vllm")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """See the module. Make it with `create` or `open`; any method raises `RunError` when the disk refuses."""

    path: Path
    _files: dict[str, RowFile] = field(default_factory=dict, repr=False, compare=False)  # used so far

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
        self._file("metrics").append(row)

    def metrics(self) -> list[Row]:
        """The rows appended so far, each with the columns it had."""
        return list(self._file("metrics").rows)

    def append_eval(self, row: Mapping[str, float | str]) -> None:
        """Add an evaluation's row."""
        self._file("evals").append(row)

    def evals(self) -> list[Row]:
        """The evaluations appended so far."""
        return list(self._file("evals").rows)

    def settle(self) -> None:
        """Bring all rows into the Parquet files, once no more are to come."""
        for name in ("metrics", "evals"):
            self._file(name).settle()

    def _file(self, name: str) -> RowFile:
        return self._files.setdefault(name, RowFile(self.path / f"{name}.parquet"))

    def forget_after(self, step: int) -> None:
        """Drop rows and trees of `step` and later, so that a resumed run records them once. Evaluations at `step` stay
        unless it is 0: they came before its checkpoint."""
        self._file("metrics").forget_from(step)
        self._file("evals").forget_from(step + 1 if step else 0)
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
        self._write(f"trees/{self.trees_path(step).name}", parquet(table))

    def load_trees(self, step: int) -> list[Tree]:
        """The trees of a step, snapshots included. Raises `RunError` when the file is absent or corrupt."""
        path = self.trees_path(step)
        if not path.exists():
            saved = sorted(int(p.stem.removeprefix("step-")) for p in path.parent.glob("step-*.parquet"))
            has = f"steps {saved[0]} to {saved[-1]}" if saved else "none"
            raise ConfigError(
                f"{self.path} holds no trees of step {step}; it has {has} (see log.trees_every_steps)"
            )
        return read_trees(read_parquet(path), str(path))

    # ---- the disk ---------------------------------------------------------------------------------------------------

    def _write(self, name: str, data: bytes) -> None:
        path = self.path / name
        if path.parent != self.path:
            with refusing(path):
                path.parent.mkdir(exist_ok=True)
        write_whole(path, data)


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
