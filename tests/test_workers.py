"""The thread pool with deadlines."""

import threading
import time

from trace_gym.workers import Done, Workers


def drain(workers: Workers[int], count: int, timeout_s: float = 5.0) -> list[Done[int]]:
    done: list[Done[int]] = []
    end = time.monotonic() + timeout_s
    while len(done) < count and time.monotonic() < end:
        done += workers.take(0.05)
    return done


def test_results_and_exceptions_come_back_once() -> None:
    workers: Workers[int] = Workers(2)
    workers.put(1, lambda: 7)
    workers.put(2, lambda: 1 // 0)
    done = {d.key: d for d in drain(workers, 2)}
    assert done[1].result == 7 and done[1].error is None
    assert done[2].result is None and isinstance(done[2].error, ZeroDivisionError)
    assert len(workers) == 0 and workers.take(0.0) == []
    workers.close()


def test_many_jobs_on_few_threads_all_finish() -> None:
    workers: Workers[int] = Workers(2)
    for i in range(500):
        workers.put(i, lambda i=i: i * i)  # type: ignore[misc]
    assert {d.key: d.result for d in drain(workers, 500)} == {i: i * i for i in range(500)}
    workers.close()


def test_a_job_that_overruns_is_abandoned_and_its_thread_replaced() -> None:
    release = threading.Event()
    workers: Workers[int] = Workers(1)

    def stuck() -> int:
        release.wait(10)
        return 1

    workers.put(1, stuck)
    while not (late := workers.overdue(0.05)):
        time.sleep(0.01)
    assert late == [1]
    workers.put(1, lambda: 2)  # the key is free again, and a fresh thread serves it
    assert [d.result for d in drain(workers, 1)] == [2]
    release.set()
    time.sleep(0.05)
    assert workers.take(0.0) == []  # the abandoned result is never seen
    workers.close()


def test_waiting_in_the_queue_does_not_count_towards_the_deadline() -> None:
    workers: Workers[int] = Workers(1)

    def slow() -> int:
        time.sleep(0.15)
        return 0

    for key in (1, 2, 3):
        workers.put(key, slow)
    time.sleep(0.1)
    assert workers.overdue(0.3) == []
    assert len(drain(workers, 3)) == 3
    workers.close()
