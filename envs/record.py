"""The record: what external services have answered, so that they answer every fork alike.

A request is plain JSON; its key is the SHA-256 of its canonical text. The first answer to a request is written and
flushed to disk before anyone sees it, and from then on it is the answer: in `live` mode a known request is answered from
the record and an unknown one goes out, in `replay` mode nothing ever goes out.

Invariant: rows are only added, and two readers of one request, in whatever thread or process, get equal answers. What
`ask` raises is not recorded, so a failure that may pass is asked again; an answer such as 404 is an answer.

One SQLite file in rollback-journal mode holds it: it can be copied, committed and read from a read-only folder. A `Record`
is cheap, holds no connection until it is used, and may be forked, pickled (path and mode) and shared by threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from trace_gym.errors import ConfigError, ExternalError

__all__ = ["Mode", "Record", "default_path"]

Mode = Literal["live", "replay"]

MAX_REQUEST_CHARS = 262_144
MAX_ANSWER_CHARS = 4 << 20
MAX_RECORD_BYTES = 4 << 30
BUSY_TIMEOUT_S = 15.0
FLUSH = "FULL"  # an answer is on the disk, not only in the system's memory, before it is seen

APPLICATION_ID = 0x54474152  # "TGAR"; says in the file's header whose it is
LAYOUT = 1
PAGE_BYTES = 4096
TABLE = (
    "CREATE TABLE answers (key BLOB PRIMARY KEY, request TEXT NOT NULL, answer TEXT NOT NULL, "
    "digest BLOB NOT NULL, recorded_at REAL NOT NULL)"
)


def default_path(name: str) -> Path:
    """Where a record is kept unless a file is named: `records/` under $TRACE_GYM_CACHE, else under the user's cache."""
    own, shared = os.environ.get("TRACE_GYM_CACHE"), os.environ.get("XDG_CACHE_HOME")
    root = Path(own) if own else Path(shared or Path.home() / ".cache") / "trace_gym"
    return root.expanduser().absolute() / "records" / f"{name}.sqlite"


class Record:
    """Answers kept in the file `path`, which `live` mode makes where it is missing.

    Raises `ConfigError` for an unknown mode; whatever is wrong with the file is an `ExternalError` at the first use.
    """

    def __init__(self, path: str | Path, *, mode: Mode = "live") -> None:
        if mode not in get_args(Mode):
            raise ConfigError(f"the mode of a record is 'live' or 'replay', not {mode!r}")
        self.path = Path(path).absolute()
        self.mode: Mode = mode
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        _RECORDS.add(self)

    def __reduce__(self) -> tuple[Callable[..., Record], tuple[Path, Mode]]:
        return _record, (self.path, self.mode)

    def answer(self, request: Mapping[str, Any], ask: Callable[[], Any], *, known: bool = True) -> Any:
        """The recorded answer to `request`, or what `ask()` returns, recorded first. Both are plain JSON values.

        With `known=False` live mode does not look: it always asks and returns what it was told; the record keeps the
        first answer for `replay`. Raises `ExternalError` where the record cannot be used, is too full, or, in replay,
        does not know the request; and whatever `ask` raises.
        """
        text = _canonical(request, MAX_REQUEST_CHARS, "request")
        key = hashlib.sha256(text.encode()).digest()
        found = self._find(key) if known or self.mode == "replay" else None
        if found is not None:
            return json.loads(found)
        if self.mode == "replay":
            raise ExternalError(
                f"the record {self.path} holds no answer to {_brief(text)}: in replay mode nothing goes out; "
                "run once with mode=live, or name the record that was made with this request"
            )
        fresh = _canonical(ask(), MAX_ANSWER_CHARS, "answer")
        kept = self._add(key, text, fresh)
        return json.loads(kept if known else fresh)

    def __len__(self) -> int:
        """How many requests have an answer."""
        with self._using() as connection:
            return int(connection.execute("SELECT COUNT(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    # ---- the file --------------------------------------------------------------------------------------------

    def _find(self, key: bytes) -> str | None:
        with self._using() as connection:
            row = connection.execute("SELECT answer, digest FROM answers WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        answer, digest = row
        if not isinstance(answer, str) or hashlib.sha256(answer.encode()).digest() != digest:
            raise ExternalError(self._damaged("an answer does not match its checksum"))
        return answer

    def _add(self, key: bytes, request: str, answer: str) -> str:
        """Add the answer unless there is one by now; the answer that stands."""
        with self._using() as connection, _writing(connection):
            row = connection.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
            if row is not None:
                return str(row[0])
            digest = hashlib.sha256(answer.encode()).digest()
            values = (key, request, answer, digest, time.time())
            connection.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?)", values)
        return answer

    @contextlib.contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        """The open connection, for this thread alone; SQLite's errors become ours."""
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = self._open()
                yield self._connection
            except sqlite3.Error as error:
                raise ExternalError(self._explain(error)) from error

    def _open(self) -> sqlite3.Connection:
        replay = self.mode == "replay"
        if replay and not self.path.is_file():
            raise ExternalError(f"there is no record {self.path}; make it by a run with mode=live")
        if not replay:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ExternalError(f"cannot write the record {self.path}: {error.strerror}") from error
        uri = f"{self.path.as_uri()}?mode={'ro' if replay else 'rwc'}"
        connection = sqlite3.connect(
            uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute(f"PRAGMA synchronous = {FLUSH}")
            if not replay:
                connection.execute(f"PRAGMA max_page_count = {MAX_RECORD_BYTES // PAGE_BYTES}")
                _lay_out(connection)
            self._check(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check(self, connection: sqlite3.Connection) -> None:
        """Raises `ExternalError` unless the file is a record that this release reads."""
        owner = connection.execute("PRAGMA application_id").fetchone()[0]
        if owner != APPLICATION_ID:
            raise ExternalError(f"{self.path} is not a record of trace_gym; name another file")
        layout = connection.execute("PRAGMA user_version").fetchone()[0]
        if layout != LAYOUT:
            raise ExternalError(
                f"{self.path} has layout {layout}, this release reads {LAYOUT}; record it again"
            )

    def _explain(self, error: sqlite3.Error) -> str:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code of an extended one
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return (
                f"the record {self.path} was in use by others for {BUSY_TIMEOUT_S:g} s; give each run its own"
            )
        if code == sqlite3.SQLITE_FULL:
            return f"the record {self.path} is full ({MAX_RECORD_BYTES >> 30} GiB, or the disk is); name another file"
        if code == sqlite3.SQLITE_READONLY and self.mode == "replay":
            return f"a write to the record {self.path} was cut short; open it once with mode=live to mend it"
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            return (
                f"the record {self.path} cannot be written; use mode=replay, or name a file in another folder"
            )
        return self._damaged(str(error))

    def _damaged(self, reason: str) -> str:
        return (
            f"the record {self.path} is damaged ({reason}); put back a copy, or move it away and record again"
        )


def _record(path: Path, mode: Mode) -> Record:
    return Record(path, mode=mode)


def _lay_out(connection: sqlite3.Connection) -> None:
    """Make an empty file a record; several processes may do so at once."""
    if connection.execute("PRAGMA application_id").fetchone()[0]:
        return
    with _writing(connection):
        empty = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0] == 0
        if empty and not connection.execute("PRAGMA application_id").fetchone()[0]:
            connection.execute(TABLE)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {LAYOUT}")


@contextlib.contextmanager
def _writing(connection: sqlite3.Connection) -> Iterator[None]:
    """One transaction that has the file to itself from its start."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _canonical(value: Any, limit: int, what: str) -> str:
    """One text for equal values: sorted keys, no spaces, ASCII."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    if len(text) > limit:
        raise ExternalError(f"the {what} has {len(text):,} characters; a record takes at most {limit:,}")
    return text


def _brief(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}…"


# ---- processes -----------------------------------------------------------------------------------------------------

_RECORDS: weakref.WeakSet[Record] = weakref.WeakSet()
_INHERITED: list[sqlite3.Connection | None] = []  # SQLite forbids a child to use or close them


def _after_fork() -> None:
    for record in list(_RECORDS):
        _INHERITED.append(record._connection)
        record._connection = None
        record._lock = threading.Lock()  # the old one may be held by a thread that is not here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
