r"""Is an answer right? Plain reading first; algebra in processes that can be killed.

`Judge.verify(gold, answer)` tries, in this order:

1. the same text once presentation is taken away (`answer_text.normalised`);
2. words against words, whatever the case;
3. plain numbers against plain numbers, exactly (`answer_text` says what counts and how percent signs do);
4. math-verify on what is left, in a worker process with 1 GiB of memory that is killed after 1 s of processor time
   (which a busy machine does not use up for a right answer) or 30 s by the clock.

The first three take microseconds and start no process. Invariants: an answer can cost its own verdict and nothing
else; it is never evaluated as code, a killed worker's replacement starts while another, already warm, serves the next
answer, and no worker outlives this process. What befalls a worker is not the answer's fault: where one died, or stood
still, a second one is asked.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

from trace_gym.envs.math.answer_text import (
    MAX_CHARS,
    normalised,
    read_values,
    read_words,
    refusal,
    same_values,
    to_latex,
)
from trace_gym.envs.math.judge_worker import read_frame, write_frame
from trace_gym.errors import JudgeError

__all__ = ["Judge", "Verdict", "default_judge"]

Method = Literal["exact", "words", "numbers", "math-verify", "refused", "timeout", "stalled", "crash"]

STARTUP_S = 60.0
CLOCK_FACTOR = (
    30 if hasattr(signal, "setitimer") else 1
)  # without a count of processor time the clock decides
RECYCLE_AFTER = 2000  # judgements, so that a slow leak in a library stays small
_WORKER = Path(__file__).with_name("judge_worker.py")


@dataclass(frozen=True, slots=True)
class Verdict:
    """`method` says what decided; `reason` is one line, empty where the method says enough."""

    correct: bool
    method: Method
    reason: str = ""


class Judge:
    """Judges answers. Safe to share between threads; a forked child starts its own workers.

    `values_only`: where the gold answer is plain numbers, the answer must be too. `3*4` for 12 and `18/6` for 3 are
    then calculations still to be done, and wrong; otherwise a policy learns to hand in the problem as its answer.
    `limit_s`: processor time for one comparison. `workers`: processes kept ready once the first is needed (about
    80 MB each), at least 2 for a warm spare.
    """

    def __init__(self, *, values_only: bool = True, limit_s: float = 1.0, workers: int = 2) -> None:
        if workers < 1 or limit_s <= 0:
            raise JudgeError(f"a judge needs workers >= 1 and limit_s > 0, not {workers} and {limit_s}")
        self.values_only = values_only
        self._pool = _Pool(workers, limit_s)
        weakref.finalize(self, self._pool.close)  # also at exit

    def verify(self, gold: str, answer: str) -> Verdict:
        """Is `answer` right? Raises `JudgeError` when a worker is needed and none can be started or gets to run."""
        for text, whose in ((gold, "gold answer"), (answer, "answer")):
            if len(text) > MAX_CHARS:
                return Verdict(False, "refused", f"the {whose} is longer than {MAX_CHARS} characters")
        gold, answer = normalised(gold), normalised(answer)
        return self._verify_plain(gold, answer) or self._verify_algebra(to_latex(gold), to_latex(answer))

    def start(self) -> None:
        """Start the workers and wait until one is ready, so that the first answer does not. Optional."""
        with self._pool.worker():
            pass

    def close(self) -> None:
        """End the workers. They start again if the judge is used again."""
        self._pool.close()

    def __enter__(self) -> Judge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _verify_plain(self, gold: str, answer: str) -> Verdict | None:
        if not gold or not answer:
            return Verdict(False, "refused", f"the {'answer' if gold else 'gold answer'} is empty")
        if gold == answer:
            return Verdict(True, "exact")
        words = read_words(gold)
        if words is not None:
            return Verdict(words == read_words(answer), "words")
        wanted = read_values(gold)
        if wanted is None:
            return None
        given = read_values(answer, any_equation=True)
        if given is None:
            return Verdict(False, "numbers", "the answer is not a plain number") if self.values_only else None
        if self.values_only and any(item.calculation for item in given):
            return Verdict(False, "numbers", "the answer is a calculation; give its value")
        return Verdict(same_values(wanted, given), "numbers")

    def _verify_algebra(self, gold: str, answer: str) -> Verdict:
        for text, whose in ((gold, "gold answer"), (answer, "answer")):
            if (reason := refusal(text)) is not None:
                return Verdict(False, "refused", f"the {whose} is not read as mathematics: {reason}")
        for _ in range(2):
            with self._pool.worker() as worker:
                verdict = worker.judge(gold, answer)
            if verdict.method not in ("crash", "stalled"):
                break
        if verdict.method == "stalled":
            raise JudgeError(f"the answer judge {verdict.reason}: is this machine overloaded?")
        return verdict  # two workers died of it: the answer takes more memory than there is for it


# ---- workers ---------------------------------------------------------------------------------------------------


class _Worker:
    """One process, used by one thread at a time. `alive` turns false for good when it is killed or breaks."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.alive = True
        self.ready = False
        self.judged = 0
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER), str(limit_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,  # no lock that a fork could leave held
            start_new_session=True,  # the terminal's Ctrl-C is for this process
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )

    def await_ready(self) -> None:
        """Wait for the end of its start. Raises `JudgeError`."""
        if self.ready:
            return
        hello, late = self._exchange(None, STARTUP_S)
        if not (isinstance(hello, dict) and hello.get("ready")):
            self.kill()
            why = hello.get("failed") if isinstance(hello, dict) else f"it ended with {self.process.wait()}"
            why = f"it was not ready within {STARTUP_S:g} s" if late else why
            raise JudgeError(
                f"the answer judge could not start ({why}); is math-verify installed, is memory free?"
            )
        self.ready = True

    def judge(self, gold: str, answer: str) -> Verdict:
        """Math-verify's opinion on two LaTeX texts."""
        reply, late = self._exchange([gold, answer], self.limit_s * CLOCK_FACTOR)
        self.judged += 1
        if isinstance(reply, dict) and isinstance(reply.get("equal"), bool) and not late:
            return Verdict(reply["equal"], "math-verify")
        used_up = self._used_up()
        self.kill()
        if used_up or (late and CLOCK_FACTOR == 1):
            return Verdict(False, "timeout", f"not judged within {self.limit_s:g} s")
        if late:
            clock_s = self.limit_s * CLOCK_FACTOR
            return Verdict(
                False, "stalled", f"got less than {self.limit_s:g} s to think within {clock_s:g} s"
            )
        return Verdict(False, "crash", "the worker that judged this answer died")

    def _used_up(self) -> bool:
        """Did the kernel end it for its processor time?"""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return hasattr(signal, "SIGPROF") and self.process.wait(1) == -signal.SIGPROF
        return False

    def _exchange(self, request: object, limit_s: float) -> tuple[object, bool]:
        """The reply (None if it died), and whether time ran out. Nothing may be left unread, or it is killed."""
        late = threading.Event()

        def stop() -> None:
            late.set()
            self.kill()

        timer = threading.Timer(limit_s, stop)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError as error:
            raise JudgeError(f"the answer judge could not start a thread: {error}") from error
        reply = None
        try:
            assert self.process.stdin is not None and self.process.stdout is not None
            if request is not None:
                write_frame(self.process.stdin, request)
            reply = read_frame(self.process.stdout)
        except (OSError, ValueError):
            self.kill()
        except BaseException:  # Ctrl-C between question and answer
            self.kill()
            raise
        finally:
            timer.cancel()
            timer.join()
        return reply, late.is_set()

    def kill(self) -> None:
        self.alive = False
        self.process.kill()

    def close(self) -> None:
        """Kill it and take it off the system's list of processes."""
        self.kill()
        self.process.wait()
        self.drop()

    def drop(self) -> None:
        """Let go of the pipes."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class _Pool:
    """At most `size` workers, of which idle ones wait in order: warm ones first, new ones last."""

    def __init__(self, size: int, limit_s: float) -> None:
        self.size = size
        self.limit_s = limit_s
        self._begin()
        _POOLS.add(self)

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._all: set[_Worker] = set()
        self._idle: deque[_Worker] = deque()

    @contextlib.contextmanager
    def worker(self) -> Iterator[_Worker]:
        """A ready worker, this thread's own for the while. Raises `JudgeError`."""
        worker = self._take()
        try:
            worker.await_ready()
            yield worker
        finally:
            self._give_back(worker)

    def _take(self) -> _Worker:
        with self._changed:
            while True:
                self._fill_or_wait_for_others()  # again whenever it wakes: what it waited for may have ended
                if self._idle:
                    return self._idle.popleft()
                self._changed.wait()

    def _fill_or_wait_for_others(self) -> None:
        try:
            self._fill()
        except OSError as error:
            if not self._all:
                raise JudgeError(f"the answer judge could not start a process: {error}") from error

    def _give_back(self, worker: _Worker) -> None:
        usable = worker.alive and worker.judged < RECYCLE_AFTER
        if not usable:
            worker.close()
        with self._changed:
            if worker not in self._all:  # closed meanwhile
                return
            if usable:
                self._idle.appendleft(worker)
            else:
                self._all.remove(worker)
                if worker.ready:  # one that never was would fail again: who needs it next tries
                    with contextlib.suppress(OSError):
                        self._fill()
            self._changed.notify_all()  # one that cannot start a worker leaves, and would wake no other

    def _fill(self) -> None:
        while len(self._all) < self.size:
            worker = _Worker(self.limit_s)
            self._all.add(worker)
            self._idle.append(worker)

    def close(self) -> None:
        with self._changed:
            workers, self._all = self._all, set()
            idle, self._idle = self._idle, deque()
            for worker in workers:
                worker.kill()
            for worker in workers:
                worker.process.wait()  # the thread that still holds one lets go of its pipes itself
            for worker in idle:
                worker.drop()
            self._changed.notify_all()

    def forget(self) -> None:
        """In a forked child: the workers are the parent's."""
        for worker in self._all:
            worker.drop()
            worker.process.returncode = 0  # not ours to wait for
        self._begin()


_POOLS: weakref.WeakSet[_Pool] = weakref.WeakSet()


def _forget_workers() -> None:
    for pool in list(_POOLS):
        pool.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)

_DEFAULT = Judge()


def default_judge() -> Judge:
    """The judge that this process shares. Its workers start when an answer first needs them and end at exit."""
    return _DEFAULT
