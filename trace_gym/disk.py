"""How a run's files get onto the disk, and back.

Invariant: a file is replaced whole and a reader sees the old or the new one; what the disk refuses is a `RunError`.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trace_gym.errors import RunError

__all__ = ["parquet", "read_parquet", "refusing", "sync", "write_whole"]


def write_whole(path: Path, data: bytes) -> None:
    """Replace `path` by `data` such that a reader, or a crash, sees the old file or the new one and nothing between. Raises
    `RunError`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with refusing(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)  # the rename itself


@contextlib.contextmanager
def refusing(path: Path) -> Iterator[None]:
    """The disk's refusals as `RunError`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"cannot write {path}: {reason}; what was written before is intact") from error


def sync(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def parquet(table: pa.Table) -> bytes:
    """The table as a file's bytes, with checksums."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def read_parquet(path: Path) -> pa.Table:
    """The table in a file. Raises `RunError` where it is corrupt."""
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
