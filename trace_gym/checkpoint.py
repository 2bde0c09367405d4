"""What a run needs to go on as if it had never stopped.

A checkpoint is a folder `checkpoints/step-000012/`: trained weights, optimiser, algorithm, ledger and the number of the next
step. Random streams are keyed by step, so no generator needs saving. The folder is written beside its place, every file
flushed, and renamed; its manifest holds each file's SHA-256, so a half-written or damaged checkpoint is never loaded: the one
before it is. Reading runs no code (safetensors, JSON, `weights_only`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from trace_gym.algorithm import Algorithm
from trace_gym.disk import sync
from trace_gym.errors import RunError
from trace_gym.ledger import Cost, Ledger
from trace_gym.update import Updater

__all__ = ["load_newest", "save_checkpoint"]

KEPT = 2  # the newest, and one to fall back on


def save_checkpoint(
    folder: Path, next_step: int, *, model: Any, updater: Updater, algorithm: Algorithm, ledger: Ledger
) -> None:
    """Write `folder/step-…`. Raises `RunError` when the disk refuses; older checkpoints are then untouched."""
    place = folder / f"step-{next_step:06d}"
    fresh = folder / f".{place.name}.{os.getpid()}"
    about = {
        "next_step": next_step,
        "updates": updater.updates,
        "total": asdict(ledger.total),
        "seconds": ledger.seconds,
    }
    trained = {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    try:
        folder.mkdir(exist_ok=True)
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        save_file(trained, fresh / "weights.safetensors")
        torch.save(updater.optimizer.state_dict(), fresh / "optimizer.pt")
        torch.save(_to_tensors(algorithm.state_dict()), fresh / "algorithm.pt")
        (fresh / "about.json").write_text(json.dumps(about))
        manifest = {path.name: _digest(path) for path in sorted(fresh.iterdir())}
        (fresh / "manifest.json").write_text(json.dumps(manifest))
        for path in fresh.iterdir():
            sync(path)
        sync(fresh)
        if place.exists():
            shutil.rmtree(place)
        fresh.rename(place)
        sync(folder)
        for old in _found(folder)[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap what the disk says
        shutil.rmtree(fresh, ignore_errors=True)
        raise RunError(f"cannot write {place}: {error}; what was written before is intact") from error


def load_newest(
    folder: Path, *, model: Any, updater: Updater, algorithm: Algorithm, ledger: Ledger
) -> tuple[int, list[str]]:
    """Load the newest whole checkpoint into the objects given.

    Returns the next step (0 when there is none) and a line for each checkpoint that had to be passed over. A failure leaves
    the objects half loaded only if a checkpoint with a sound manifest does not fit them: `RunError`.
    """
    notes = []
    for place in _found(folder):
        reason = _damage(place)
        if reason:
            notes.append(f"checkpoint {place.name} passed over: {reason}")
            continue
        about = json.loads((place / "about.json").read_text())
        try:
            _load_weights(model, load_file(place / "weights.safetensors"))
            updater.optimizer.load_state_dict(torch.load(place / "optimizer.pt", weights_only=True))
            algorithm.load_state_dict(_to_arrays(torch.load(place / "algorithm.pt", weights_only=True)))
        except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
            raise RunError(f"{place} does not fit this policy and algorithm: {error}") from error
        updater.updates = int(about["updates"])
        ledger.total, ledger.seconds = Cost(**about["total"]), dict(about["seconds"])
        return int(about["next_step"]), notes
    return 0, notes


def _found(folder: Path) -> list[Path]:
    """Checkpoints, newest first."""
    return sorted((p for p in folder.glob("step-*") if p.is_dir()), reverse=True)


def _damage(place: Path) -> str:
    """Why a checkpoint cannot be used; empty when every file is what the manifest says."""
    try:
        manifest = json.loads((place / "manifest.json").read_text())
        wrong = [name for name, digest in manifest.items() if _digest(place / name) != digest]
    except (OSError, ValueError, AttributeError) as error:
        return f"it is incomplete ({error})"
    return f"{wrong[0]} is damaged" if wrong else ""


def _load_weights(model: Any, saved: Mapping[str, torch.Tensor]) -> None:
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if own.keys() != saved.keys():
        raise ValueError("it holds other parameters")
    with torch.no_grad():
        for name, parameter in own.items():
            if parameter.shape != saved[name].shape:
                raise ValueError(f"{name} has another shape")
            parameter.copy_(saved[name])


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_tensors(value: Any) -> Any:
    """Arrays as tensors, for `weights_only` refuses numpy's."""
    if isinstance(value, np.ndarray):
        return {"__array__": torch.from_numpy(np.ascontiguousarray(value))}
    if isinstance(value, Mapping):
        return {key: _to_tensors(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_to_tensors(part) for part in value]
    return value


def _to_arrays(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"__array__"}:
            return value["__array__"].numpy()
        return {key: _to_arrays(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_to_arrays(part) for part in value]
    return value
