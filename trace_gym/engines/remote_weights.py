"""New weights for a vLLM server on another host, through a folder that both see.

The server reads safetensors files when it is told to (`collective_rpc`, which it offers when started with
VLLM_SERVER_DEV_MODE=1) and forgets what it computed under the old weights. A version is a folder of its own, written under
another name first, so that what is read is whole; the one before is removed once the server has the new one. All of them lie
in a folder that no other engine has, so runs may share what they were given: versions are numbers that each of them uses.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from trace_gym.engine import Weights
from trace_gym.errors import EngineError

__all__ = ["WeightsFolder"]


class WeightsFolder:
    """See the module. `control(path, body)` calls one of the server's routes and raises `EngineError` if that fails."""

    def __init__(self, folder: str, control: Callable[[str, object], None]) -> None:
        # Not tempfile's, which the server's user could not read.
        self._folder, self._control = Path(folder).absolute() / f"run-{secrets.token_hex(8)}", control
        self._last: Path | None = None

    def replace(self, weights: Weights, version: int) -> None:
        """Have the server sample from `weights`. Nothing to write: it only forgets what it has cached."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights}
        if tensors:
            fresh = self._write(tensors, version)
            arguments = {"weights_path": str(fresh)}
            self._control("/collective_rpc", {"method": "reload_weights", "kwargs": arguments})
            if self._last not in (None, fresh):
                shutil.rmtree(self._last, ignore_errors=True)
            self._last = fresh
        self._control("/reset_prefix_cache", None)

    def close(self) -> None:
        """Remove what was written: the server holds it in its own memory."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, tensors: dict[str, object], version: int) -> Path:
        from safetensors.torch import save_file

        fresh, part = self._folder / f"version-{version}", self._folder / f".version-{version}"
        try:
            for old in (part, fresh):
                shutil.rmtree(old, ignore_errors=True)
            part.mkdir(parents=True)
            save_file(tensors, part / "model.safetensors")  # type: ignore[arg-type]
            part.rename(fresh)
        except OSError as error:
            raise EngineError(
                f"engine.weights_folder: cannot write {fresh}: {error.strerror or error}"
            ) from error
        return fresh
