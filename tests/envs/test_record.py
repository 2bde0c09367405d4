import copy
import multiprocessing
import os
import pickle
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trace_gym.envs import record as module
from trace_gym.envs.record import Record, default_path
from trace_gym.errors import ConfigError, ExternalError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sub" / "answers.sqlite"


class Service:
    """Counts what goes out."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> Any:
        self.asked += 1
        return {"n": self.asked}


def never() -> Any:
    raise AssertionError("went out")


def test_the_first_answer_is_the_answer(path: Path) -> None:
    service, record = Service(), Record(path)
    assert record.answer({"q": 1}, service) == {"n": 1}
    assert record.answer({"q": 1}, service) == {"n": 1}
    assert record.answer({"q": 2}, service) == {"n": 2}
    assert (service.asked, len(record)) == (2, 2)
    assert Record(path).answer({"q": 2}, never) == {"n": 2}


def test_replay_never_goes_out(path: Path) -> None:
    Record(path).answer({"q": 1}, Service())
    replay = Record(path, mode="replay")
    assert replay.answer({"q": 1}, never) == {"n": 1}
    with pytest.raises(ExternalError) as caught:
        replay.answer({"q": "new"}, never)
    assert "\n" not in str(caught.value)
    assert 'no answer to {"q":"new"}' in str(caught.value)
    assert "run once with mode=live" in str(caught.value)


@pytest.mark.parametrize("answer", [None, [], "", 0, False, 1.5, "\u2028\ud800", {"a": [1, None]}])
def test_any_json_value_is_an_answer(path: Path, answer: Any) -> None:
    record = Record(path)
    assert record.answer({}, lambda: answer) == answer
    assert record.answer({}, never) == answer


def test_only_equal_requests_share_an_answer(path: Path) -> None:
    record, service = Record(path), Service()
    requests: list[Any] = [1, 1.0, True, "1", None, [1], {"1": 1}, "\u00e9", "e\u0301", "\ud800", ""]
    for n, value in enumerate(requests, 1):
        assert record.answer({"q": value}, service) == {"n": n}


def test_the_order_of_keys_does_not_matter(path: Path) -> None:
    record = Record(path)
    record.answer({"a": 1, "b": {"c": 2, "d": 3}}, lambda: "x")
    assert record.answer({"b": {"d": 3, "c": 2}, "a": 1}, never) == "x"


def test_what_ask_raises_is_not_recorded(path: Path) -> None:
    record = Record(path)

    def fails() -> Any:
        raise ExternalError("down")

    with pytest.raises(ExternalError, match="down"):
        record.answer({"q": 1}, fails)
    assert record.answer({"q": 1}, lambda: "up") == "up"


def test_asking_anew_shows_the_fresh_answer_and_replays_the_first(path: Path) -> None:
    service, record = Service(), Record(path)
    assert [record.answer({"q": 1}, service, known=False)["n"] for _ in range(3)] == [1, 2, 3]
    assert record.answer({"q": 1}, never) == {"n": 1}
    assert Record(path, mode="replay").answer({"q": 1}, never, known=False) == {"n": 1}


def test_an_answer_is_on_disk_before_it_is_seen(path: Path) -> None:
    """A process that dies at once after the answer has left it there."""
    code = (
        "import os, sys; from trace_gym.envs.record import Record\n"
        "Record(sys.argv[1]).answer({'q': 1}, lambda: 'x'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == 9
    assert Record(path, mode="replay").answer({"q": 1}, never) == "x"
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name]


# ---- at once -------------------------------------------------------------------------------------------------------


def test_threads_agree(path: Path) -> None:
    record, service = Record(path), Service()
    seen: list[tuple[int, int]] = []
    gate = threading.Barrier(8)

    def work() -> None:
        gate.wait()
        seen.extend((n, record.answer({"q": n}, service)["n"]) for n in range(20))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(seen)) == 20
    assert len(record) == 20


def _work(path: Path, name: int, out: Any) -> None:
    record = Record(path)
    out.put([record.answer({"q": n}, lambda: name) for n in range(15)])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_processes_agree(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    workers = [context.Process(target=_work, args=(path, name, out)) for name in range(3)]
    for worker in workers:
        worker.start()
    seen = [out.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert seen[0] == seen[1] == seen[2]
    assert seen[0] == [Record(path).answer({"q": n}, never) for n in range(15)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_opens_its_own_connection(path: Path) -> None:
    record = Record(path)
    record.answer({"q": 1}, lambda: "x")
    parents = record._connection
    record._lock.acquire()  # as another thread would hold it at that moment
    child = os.fork()
    if child == 0:
        fine = record.answer({"q": 1}, never) == "x" and record._connection is not parents
        record.answer({"q": 2}, lambda: "child")
        os._exit(0 if fine else 1)
    record._lock.release()
    assert os.waitpid(child, 0)[1] == 0
    assert record.answer({"q": 2}, never) == "child"


def test_copies_and_pickles_hold_no_connection(path: Path) -> None:
    record = Record(path)
    record.answer({"q": 1}, lambda: "x")
    for twin in (copy.copy(record), copy.deepcopy(record), pickle.loads(pickle.dumps(record))):
        assert (twin.path, twin.mode, twin._connection) == (record.path, record.mode, None)
        assert twin.answer({"q": 1}, never) == "x"
        twin.close()
    record.close()
    record.close()
    assert record.answer({"q": 1}, never) == "x"


def test_a_record_that_others_hold_for_too_long(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Record(path).answer({"q": 1}, lambda: "x")
    monkeypatch.setattr(module, "BUSY_TIMEOUT_S", 0.1)
    other = sqlite3.connect(path)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ExternalError, match="in use by others"):
        Record(path).answer({"q": 2}, lambda: "y")
    other.close()


# ---- files that are none -------------------------------------------------------------------------------------------


def _text(path: Path) -> None:
    path.write_text("not a database, whatever its name says" * 100)


def _cut(path: Path) -> None:
    Record(path).answer({"q": 1}, lambda: "x" * 20_000)
    path.write_bytes(path.read_bytes()[:9000])


def _flipped(path: Path) -> None:
    Record(path).answer({"q": 1}, lambda: "abcdefgh")
    data = path.read_bytes()
    assert data.count(b'"abcdefgh"') == 1
    path.write_bytes(data.replace(b'"abcdefgh"', b'"abcdefgX"'))


@pytest.mark.parametrize("spoil", [_text, _cut, _flipped])
@pytest.mark.parametrize("mode", ["live", "replay"])
def test_a_damaged_file(path: Path, spoil: Callable[[Path], None], mode: Any) -> None:
    path.parent.mkdir()
    spoil(path)
    with pytest.raises(ExternalError, match=r"is damaged .*put back a copy") as caught:
        Record(path, mode=mode).answer({"q": 1}, never)
    assert "\n" not in str(caught.value)


def test_a_file_of_someone_else(path: Path) -> None:
    path.parent.mkdir()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE t (x)")
    other.commit()
    other.close()
    before = path.read_bytes()
    for mode in ("live", "replay"):
        with pytest.raises(ExternalError, match="is not a record of trace_gym"):
            Record(path, mode=mode).answer({"q": 1}, never)
    assert path.read_bytes() == before


def test_a_record_of_another_layout(path: Path) -> None:
    Record(path).answer({"q": 1}, lambda: "x")
    other = sqlite3.connect(path)
    other.execute("PRAGMA user_version = 9")
    other.close()
    with pytest.raises(ExternalError, match="has layout 9, this release reads 1"):
        Record(path, mode="replay").answer({"q": 1}, never)


def test_places_that_cannot_be_used(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ExternalError, match=r"there is no record .*mode=live"):
        Record(path, mode="replay").answer({}, never)
    assert not path.parent.exists()
    path.mkdir(parents=True)
    with pytest.raises(ExternalError, match="cannot be written"):
        Record(path).answer({}, lambda: 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(ExternalError, match="cannot write the record"):
        Record(tmp_path / "file" / "x.sqlite").answer({}, lambda: 1)
    with pytest.raises(ConfigError, match="'live' or 'replay', not 'rewrite'"):
        Record(path, mode="rewrite")  # type: ignore[arg-type]


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may write anywhere")
def test_a_read_only_folder_can_be_replayed(path: Path) -> None:
    Record(path).answer({"q": 1}, lambda: "x")
    path.parent.chmod(0o500)
    try:
        assert Record(path, mode="replay").answer({"q": 1}, never) == "x"
    finally:
        path.parent.chmod(0o700)


def test_limits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record(path)
    with pytest.raises(ExternalError, match=r"the request has .* characters"):
        record.answer({"q": "x" * 300_000}, never)
    with pytest.raises(ExternalError, match=r"the answer has .* characters"):
        record.answer({"q": 1}, lambda: "x" * (5 << 20))
    assert record.answer({"q": 1}, lambda: "x") == "x"
    monkeypatch.setattr(module, "MAX_RECORD_BYTES", 40_960)
    small = Record(path.with_name("small.sqlite"))
    with pytest.raises(ExternalError, match="is full"):
        for n in range(10):
            small.answer({"q": n}, lambda: "x" * 10_000)
    assert small.answer({"q": 0}, never) == "x" * 10_000


def test_where_records_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRACE_GYM_CACHE", str(tmp_path))
    assert default_path("a") == tmp_path / "records" / "a.sqlite"
    monkeypatch.delenv("TRACE_GYM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path("a") == tmp_path / "trace_gym" / "records" / "a.sqlite"
