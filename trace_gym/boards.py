"""Metrics for dashboards, beside the Parquet files that are the record: TensorBoard where it is installed, wandb on request.

Invariant: a dashboard is a copy. What goes wrong with one is told once and never stops a run.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trace_gym.errors import ConfigError

__all__ = ["Boards"]


class Boards:
    """`write` sends a row of numbers to every dashboard that is on. `first_step`: what a resumed run goes on with."""

    def __init__(
        self, folder: Path, *, tensorboard: bool, wandb: str, first_step: int, note: Callable[[str], None]
    ) -> None:
        self._note = note
        self._writer: Any = None
        self._wandb: Any = None
        if tensorboard and importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            try:
                self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)
            except Exception as error:
                self._off(first_step, error)
        if wandb:
            if importlib.util.find_spec("wandb") is None:
                raise ConfigError("log.wandb is set, but wandb is not installed: pip install wandb")
            module: Any = importlib.import_module("wandb")
            self._wandb = module.init(
                project=wandb, name=folder.name, id=folder.name, resume="allow", dir=str(folder)
            )

    def write(self, row: Mapping[str, Any], step: int) -> None:
        """Numbers only; nan and infinity are left out."""
        numbers = {k: float(v) for k, v in row.items() if isinstance(v, int | float) and math.isfinite(v)}
        try:
            if self._writer is not None:
                for name, value in numbers.items():
                    self._writer.add_scalar(name, value, step)
                self._writer.flush()
            if self._wandb is not None:
                self._wandb.log(numbers, step=step)
        except Exception as error:  # each dashboard raises its own
            self._off(step, error)

    def close(self) -> None:
        """Flush and let go."""
        for finish in (self._writer and self._writer.close, self._wandb and self._wandb.finish):
            if finish is not None:
                try:
                    finish()
                except Exception as error:
                    self._note(f"a dashboard may lack its last rows: {type(error).__name__}: {error}")

    def _off(self, step: int, error: Exception) -> None:
        self._note(f"dashboards are off from step {step}: {type(error).__name__}: {error}")
        self._writer = self._wandb = None
