"""Right answers are right, however written; hostile ones cost one verdict, run nothing and leave nothing behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_gym.envs.math import judge as judge_module
from trace_gym.envs.math.judge import Judge, Verdict, default_judge
from trace_gym.errors import JudgeError, TraceGymError

ENDLESS = "9^{9^{9^{9}}}"
BUSY_MACHINE = max(
    1.0, 2 * os.getloadavg()[0] / (os.cpu_count() or 1)
)  # how much longer things may take by the clock
RIGHT = (r"2\sqrt{2}", r"\sqrt{8}")  # needs algebra


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge() as shared:
        shared.start()
        yield shared


def running(pid: int) -> bool:
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
    ).stdout.strip()
    return bool(state) and not state.startswith("Z")


def gone_within(pids: list[int], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while any(map(running, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(running, pids))


def pids_of(judge: Judge) -> list[int]:
    return [worker.process.pid for worker in judge._pool._all]


# ---- what is right ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "answer", "correct"),
    [
        ("18", "18", True),
        ("18", "$18.00", True),
        ("18", " 18. ", True),
        ("18", "**18**", True),
        ("18", r"\boxed{18}", True),
        ("18", r"first \boxed{17}, then $\boxed{18}$.", True),
        ("18", "x=18", True),
        ("18", "(18)", True),
        ("18", "6*3 = 18", True),
        ("18", "18 dollars", True),
        ("18", r"18 \text{ m}", True),
        ("18", "18 cm^2", True),
        ("18", "18 km/h", True),
        ("18", "18 thousand", False),
        ("18", "18 pi", False),
        ("18", "18x", False),
        ("18", "18 or 19", False),
        ("18", "17", False),
        ("18", "-18", False),
        ("18", "eighteen", False),
        ("18", "> 18", False),
        ("18", "x >= 18", False),
        ("1234", "1,234", True),
        ("1,234.5", "1234.50", True),
        ("1000000", "1{,}000{,}000", True),
        ("1234", "1,2,3,4", False),
        ("0.5", "1/2", True),
        (r"\frac{1}{2}", "0.5", True),
        (r"\frac12", r"\dfrac{2}{4}", True),
        ("-1/2", r"-\frac{1}{2}", True),
        ("-1/2", "\u2212.5", True),
        ("1.5", "1 1/2", True),
        ("-1.5", r"-1\frac{1}{2}", True),
        ("1/2", "1/0", False),
        ("300000000", r"3 \times 10^8", True),
        ("0.015", "1.5e-2", True),
        ("1/3", "0.333333", True),
        ("2/3", "0.66666666", True),
        ("2/3", "0.666", False),
        ("2/3", "0.666665", False),
        ("0.333333", "1/3", False),
        ("1/300000000", "0.000000", False),
        ("1/3", "33.333333%", True),
        ("3.14", "3.141593", False),
        ("50", "50%", True),
        ("50%", "50", True),
        ("0.5", "50 percent", True),
        ("50%", r"50\%", True),
        ("50%", "0.5%", False),
        ("50", "0.5%", False),
        ("x = 3", "3", True),
        ("x = 3", "x=3", True),
        ("x = 3", "y = 3", False),
        ("x = 3", "2x + 3 = 9", False),
        ("x = 2 or x = 3", "3, 2", True),
        ("2, 3", r"\{3, 2\}", True),
        ("2, 3", "x = 2 and x = 3", True),
        ("2, 3", "2", False),
        ("2, 3", "2, 2", False),
        ("2, 3", "2, 3, 3", False),
        (r"\pm 2", "-2, 2", True),
        ("x = 2, y = 3", "y = 3, x = 2", True),
        ("x = 2, y = 3", "2, 3", True),
        ("x = 2, y = 3", "3, 2", False),
        ("yes", "Yes.", True),
        (r"\text{Monday}", "monday", True),
        ("yes", "sey", False),
        ("no solution", "no solutions", False),
    ],
)
def test_plain_answers_need_no_process(
    gold: str, answer: str, correct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    verdict = Judge().verify(gold, answer)
    assert verdict.correct is correct
    assert verdict.method in ("exact", "numbers", "words")


@pytest.mark.parametrize(
    ("gold", "answer", "correct"),
    [
        (*RIGHT, True),
        (r"2\sqrt{2}", "2*sqrt(2)", True),
        (r"2\sqrt{2}", "2√2", True),
        (r"2\sqrt{2}", "2.828427", True),
        (r"2\sqrt{2}", r"\sqrt{7}", False),
        (r"2\pi", "2*pi", True),
        (r"\frac{\pi}{2}", "π/2", True),
        (r"\sqrt{4}", "2", True),
        ("x^2 - 1", "(x+1)*(x-1)", True),
        ("x^2 - 1", "x**2 - 1", True),
        ("x^2 - 1", "(x+1)^(2)", False),
        ("5x", "5", False),
        ("x", "y", False),
        ("(1, 2)", "(1.0, 2)", True),
        ("(1, 2)", "(2, 1)", False),
        ("[0, 1)", "[0,1.0)", True),
        ("[0, 1)", "[0, 1]", False),
        (r"(-\infty, 2]", r"(-\infty, 2.0]", True),
        (r"x \le 2", "x <= 2", True),
        (r"\{1, \sqrt{2}\}", r"\{\sqrt{2}, 1\}", True),
        (r"\begin{pmatrix}a\\b\end{pmatrix}", r"\begin{pmatrix} a \\ b \end{pmatrix}", True),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}", False),
        ("y = 2x + 1", "2x - y + 1 = 0", True),
        ("y = 2x + 1", "1", False),
        ("e^2", "e*e", True),
    ],
)
def test_algebra(gold: str, answer: str, correct: bool, judge: Judge) -> None:
    assert judge.verify(gold, answer) == Verdict(correct, "math-verify")


def test_only_a_value_answers_a_question_for_a_value(judge: Judge) -> None:
    """Otherwise a policy learns to hand in the problem itself."""
    pairs = [
        ("12", "3*4"),
        ("12", "3*4 + 0"),
        ("3", "18/6"),
        ("3", r"\frac{18}{6}"),
        ("8", "2^3"),
        ("3", r"\sqrt{9}"),
    ]
    with Judge(values_only=False, workers=1) as lenient:
        for gold, answer in pairs:
            verdict = judge.verify(gold, answer)
            assert not verdict.correct and verdict.method == "numbers" and verdict.reason
            assert lenient.verify(gold, answer).correct


decimals = st.integers(-(10**6), 10**6).map(lambda n: Fraction(n, 1000))


@given(decimals, decimals)
def test_numbers_are_compared_exactly(a: Fraction, b: Fraction) -> None:
    assert Judge().verify(str(a), str(float(b))).correct is (a == b)


@given(st.integers(-(10**9), 10**9))
def test_thousands_commas_mean_nothing(n: int) -> None:
    assert Judge().verify(str(n), f"{n:,}").correct
    assert Judge().verify(f"{n:,}", f"${n:,}.00").correct
    assert not Judge().verify(str(n), f"{n + 1:,}").correct


@given(
    st.text(st.sampled_from(r"0123456789.,+-*/^(){}[]\$%=<>! xyorand frac sqrt pm boxed text±½" + "\ud800\0"))
)
def test_every_text_is_judged_without_a_worker_where_gold_is_a_number(text: str) -> None:
    pool = Judge()._pool
    verdict = Judge().verify("7", text)
    assert verdict.method in ("exact", "numbers", "refused")
    assert not pool._all


# ---- hostile answers -------------------------------------------------------------------------------------------


def hostile(marker: Path) -> list[str]:
    run = f"touch {marker}"
    return [
        "9**9**9**9",
        ENDLESS,
        f"__import__('os').system('{run}')",
        f'__import__("os").system("{run}")',
        rf"\text{{__import__('os').system('{run}')}}",
        rf"x_{{__import__('os').system('{run}')}}",
        rf"\mathrm{{eval}}(open('{marker}','w'))",
        f"1 if open('{marker}', 'w') else 2",
        "().__class__.__bases__[0].__subclasses__()",
        "1" * 10**5,
        "(" * 4000 + ")" * 4000,
        "[" * 4000,
        r"\frac{" * 200,
        "((((9!)!)!)!)",
        "9999999!",
        "\x00\x07\x1b[2J\x7f",
        "\ud800\udfff",
        "x" * 2**20,
        "7" + " " * 2**20,
        r"\boxed{" * 140,
        "1e999",
        r"10^{999999999}",
        r"\sum_{n=1}^{10^{9}} n",
        r"\operatorname{eye}(10^{5})",
        "(a+b+c+d)^{60}",
        "$$$$",
        "\\",
    ]


def timed(judge: Judge, gold: str, answer: str) -> tuple[Verdict, float]:
    """The verdict, and the seconds that it took."""
    start = time.perf_counter()
    return not_wrongly(judge, gold, answer), (time.perf_counter() - start) / BUSY_MACHINE


def not_wrongly(judge: Judge, gold: str, answer: str) -> Verdict:
    """The verdict on something endless; on a machine that gives the judge no time, that it refuses to give one."""
    try:
        return judge.verify(gold, answer)
    except JudgeError as error:
        assert "overloaded" in str(error)
        return Verdict(False, "stalled", str(error))


@pytest.mark.parametrize("gold", ["7", r"2\sqrt{2}", "x + 1"])
def test_hostile_answers_are_wrong_and_cost_nothing_else(gold: str, judge: Judge, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    for answer in hostile(marker):
        verdict, seconds = timed(judge, gold, answer)
        assert seconds < 5, answer[:60]  # a second and a new worker; unstopped, some take minutes
        assert not verdict.correct, answer[:60]
        verdict.reason.encode()
        assert judge.verify(*RIGHT) == Verdict(True, "math-verify"), f"after {answer[:60]!r}"
    assert not marker.exists()


def test_hostile_gold_answers_are_refused(judge: Judge, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    for gold in hostile(marker):
        assert not not_wrongly(judge, gold, "x + 2").correct
    assert not marker.exists()


def test_hostile_text_past_the_filter_is_stopped_by_the_worker(judge: Judge, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    code = [answer for answer in hostile(marker) if "os." in answer or "open" in answer or "class" in answer]
    for answer in [*code, "9999999!", r"\sqrt{" * 300]:
        with judge._pool.worker() as worker:
            assert not worker.judge("x + 1", answer).correct, answer[:60]
        assert judge.verify(*RIGHT).correct
    assert not marker.exists()


def test_a_killed_worker_costs_the_next_answer_nothing(judge: Judge) -> None:
    with judge._pool.worker(), judge._pool.worker():
        pass  # both are warm
    with judge._pool.worker() as worker:
        verdict = worker.judge("1", ENDLESS)
    assert not verdict.correct and verdict.method in (
        "timeout",
        "stalled",
    )  # the latter on a very busy machine
    assert not running(worker.process.pid)
    verdict, seconds = timed(judge, *RIGHT)
    assert verdict.correct and seconds < 0.5
    assert len(pids_of(judge)) == 2


def test_a_worker_that_dies_costs_its_verdict_only(judge: Judge) -> None:
    with judge._pool.worker() as worker:
        os.kill(worker.process.pid, signal.SIGKILL)
        assert worker.judge(*RIGHT).method == "crash"
    assert judge.verify(*RIGHT).correct


INSIDE = r"""
import os, socket, subprocess, sys
from trace_gym.envs.math import judge_worker
equal = judge_worker.load()
import sympy
for text in ("__import__('os').system('touch executed')", "x + 1", "9**9**9**9", "Integer(3).p"):
    try:
        sympy.parse_expr(text)
    except ValueError as error:
        assert "not evaluated" in str(error)
    else:
        sys.exit(f"evaluated {text}")
sys.addaudithook(judge_worker._audit)
for attempt in (
    lambda: os.system("touch executed"),
    lambda: subprocess.run(["touch", "executed"]),
    lambda: os.posix_spawn("/bin/touch", ["touch", "executed"], {}),
    lambda: os.fork(),
    lambda: open("executed", "w"),
    lambda: os.open("executed", os.O_CREAT | os.O_WRONLY),
    lambda: os.mkdir("executed"),
    lambda: os.remove("kept"),
    lambda: os.kill(os.getppid(), 9),
    lambda: socket.create_connection(("127.0.0.1", 9)),
    lambda: __import__("ctypes").CDLL(None),
):
    try:
        attempt()
    except PermissionError:
        continue
    sys.exit("allowed")
assert open("kept").read() == "kept"
assert equal("2\\sqrt{2}", "\\sqrt{8}") and not equal("2", "3")
"""


def test_the_worker_cannot_be_talked_into_anything(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    done = subprocess.run([sys.executable, "-c", INSIDE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="needs /proc")
def test_the_worker_has_a_gibibyte(judge: Judge) -> None:
    for pid in pids_of(judge):
        limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
        limit = next(line for line in limits if line.startswith("Max address space"))
        assert limit.split()[3] == str(2**30)


# ---- life of the workers ---------------------------------------------------------------------------------------


def test_threads_share_a_judge(judge: Judge) -> None:
    asked = [(*RIGHT, True), ("x + 1", "x - 1", False), ("7", "7.0", True), ("x", ENDLESS, False)] * 10
    with ThreadPoolExecutor(8) as threads:
        verdicts = list(threads.map(lambda pair: judge.verify(pair[0], pair[1]), asked))
    assert [verdict.correct for verdict in verdicts] == [correct for _, _, correct in asked]


# These need processes, not algebra: the real worker with a comparison that loads nothing.
QUICK_WORKER = f"""
import sys
sys.path.append({str(judge_module._WORKER.parent)!r})
import judge_worker
judge_worker.load = lambda: lambda gold, answer: bool(9**9**9**9) if answer == "endless" else gold == answer
judge_worker.main()
"""


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "quick_worker.py"
    script.write_text(QUICK_WORKER)
    monkeypatch.setattr(judge_module, "_WORKER", script)
    return script


def judged(judge: Judge) -> bool:
    return judge.verify("x + 1", "x + 2") == Verdict(False, "math-verify")


def test_closing_leaves_no_process_even_while_a_thread_judges_and_can_be_undone(quick: Path) -> None:
    judge = Judge(limit_s=5)
    judge.start()
    pids = pids_of(judge)
    assert len(pids) == 2 and all(map(running, pids))
    verdicts: list[Verdict] = []

    def ask() -> None:
        with judge._pool.worker() as worker:
            verdicts.append(worker.judge("1", "endless"))

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.3)
    judge.close()
    thread.join(5)
    assert [verdict.method for verdict in verdicts] == ["crash"]
    assert not any(map(running, pids)) and not pids_of(judge)
    with judge:
        assert judged(judge)
    assert not pids_of(judge)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a count of processor time")
def test_a_busy_machine_makes_no_answer_wrong(quick: Path) -> None:
    with Judge(workers=1, limit_s=0.5) as judge:
        judge.start()
        [pid] = pids_of(judge)
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(1.0, os.kill, (pid, signal.SIGCONT)).start()
        assert judged(judge)


def test_the_clock_ends_what_uses_no_processor(quick: Path) -> None:
    with Judge(workers=1, limit_s=0.05) as judge:
        judge.start()
        [pid] = pids_of(judge)
        os.kill(pid, signal.SIGSTOP)
        assert judged(judge)  # by another one
        assert not running(pid)


@pytest.mark.parametrize(("number", "method"), [(signal.SIGKILL, "crash"), (signal.SIGSTOP, "stalled")])
def test_what_befalls_a_worker_is_not_the_answers_fault(
    quick: Path, monkeypatch: pytest.MonkeyPatch, number: int, method: str
) -> None:
    """Killed or stopped from outside once, a right answer is still right; a second time, it is at least not wrong."""
    hits: list[str] = []
    judge_once = judge_module._Worker.judge

    def hit(worker: Any, gold: str, answer: str) -> Verdict:
        if len(hits) < most:
            os.kill(worker.process.pid, number)
        hits.append(judge_once(worker, gold, answer).method)
        return Verdict(hits[-1] == "math-verify", hits[-1], "stood still")  # type: ignore[arg-type]

    monkeypatch.setattr(judge_module._Worker, "judge", hit)
    with Judge(workers=1, limit_s=0.04) as judge:
        most = 1
        assert judge.verify("x + 1", "1 + x").method == "math-verify"
        assert hits == [method, "math-verify"]
        hits.clear()
        most = 2
        if method == "stalled":
            with pytest.raises(JudgeError, match="stood still"):
                judge.verify("x + 1", "1 + x")
        else:
            assert judge.verify("x + 1", "1 + x") == Verdict(False, "crash", "stood still")
        assert hits == [method] * 2


def test_a_judge_that_is_dropped_ends_its_workers(quick: Path) -> None:
    judge = Judge()
    judge.start()
    pids = pids_of(judge)
    assert all(map(running, pids))
    del judge
    assert gone_within(pids, 5)


def test_a_worn_worker_is_replaced(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_module, "RECYCLE_AFTER", 2)
    with Judge(workers=1) as judge:
        seen = []
        for _ in range(6):
            seen += pids_of(judge) or [0]
            assert judged(judge)
        assert len(set(seen[1:])) == 3 and not running(seen[1])


HEAD = """
import os, sys
from pathlib import Path
from typing import Any
from trace_gym.envs.math import judge as judge_module
from trace_gym.envs.math.judge import Judge, Verdict, default_judge
judge_module._WORKER = Path(sys.argv[1])
judge = {judge}
judge.start()
def judged():
    return judge.verify("x + 1", "x + 2") == Verdict(False, "math-verify")
def show():
    print(*[worker.process.pid for worker in judge._pool._all], flush=True)
show()
"""


def run_script(worker: Path, script: str, judge: str = "default_judge()") -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", HEAD.format(judge=judge) + script, str(worker)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_workers_end_with_the_process(quick: Path) -> None:
    out, err = (process := run_script(quick, "assert judged()")).communicate()
    assert (process.returncode, err) == (0, "")
    pids = [int(pid) for pid in out.split()]
    assert len(pids) == 2 and gone_within(pids, 1)


BUSY = """
with judge._pool.worker() as one, judge._pool.worker() as other:
    print(one.process.pid, other.process.pid, flush=True)
    one.judge("1", "endless")
"""


def test_workers_end_when_the_process_is_killed(quick: Path) -> None:
    process = run_script(quick, BUSY, "Judge(limit_s=1.0)")
    assert process.stdout is not None
    process.stdout.readline()
    busy, idle = map(int, process.stdout.readline().split())
    time.sleep(0.3)
    assert running(busy) and running(idle)
    process.kill()
    process.communicate()
    assert gone_within([idle], BUSY_MACHINE)
    assert gone_within([busy], 2 * BUSY_MACHINE)  # deaf until its processor time is used up


FORKED = """
child = os.fork()
if child == 0:
    assert not judge._pool._all
    assert judged()
    show()
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
before = set(judge._pool._all)
assert judged()
assert before == set(judge._pool._all)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_workers_of_its_own(quick: Path) -> None:
    out, err = (process := run_script(quick, FORKED)).communicate()
    assert (process.returncode, err) == (0, "")
    pids = [int(pid) for pid in out.split()]
    assert len(set(pids)) == 4
    assert gone_within(pids, 1)


def test_there_is_one_default_judge() -> None:
    assert default_judge() is default_judge()
    assert default_judge().verify("7", "7.0").correct


FAILS = (
    "import struct, sys; b = b'{\"failed\": \"why\"}'; sys.stdout.buffer.write(struct.pack('>I', len(b)) + b)"
)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("raise SystemExit(3)", "it ended with 3"),
        (FAILS, "could not start (why)"),
        ("print('not a frame', flush=True); import time; time.sleep(9)", "it ended with -9"),
    ],
)
def test_a_worker_that_cannot_start_is_a_clear_error(
    script: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worker.py").write_text(script)
    monkeypatch.setattr(judge_module, "_WORKER", tmp_path / "worker.py")
    with Judge() as judge:
        for _ in range(3):
            with pytest.raises(JudgeError) as caught:
                judge.verify(*RIGHT)
            assert why in str(caught.value) and "\n" not in str(caught.value)
        assert judge.verify("7", "7").correct


def errors_of_threads(judge: Judge, count: int) -> list[BaseException | None]:
    """What each of `count` threads got for the same question."""
    with ThreadPoolExecutor(count) as threads:
        asked = [threads.submit(judge.verify, "x^2+1", "1+x^2") for _ in range(count)]
        try:
            return [one.exception(timeout=20) for one in asked]
        finally:
            judge.close()


def test_no_thread_waits_for_a_worker_that_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worker.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(judge_module, "_WORKER", tmp_path / "worker.py")
    start = time.monotonic()
    errors = errors_of_threads(Judge(), 4)
    assert [type(error) for error in errors] == [JudgeError] * 4
    assert time.monotonic() - start < 10 * BUSY_MACHINE


def test_no_thread_waits_where_processes_have_run_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worker.py").write_text("import time; time.sleep(1)")
    monkeypatch.setattr(judge_module, "_WORKER", tmp_path / "worker.py")
    made: list[object] = []

    class Last(judge_module._Worker):
        def __init__(self, limit_s: float) -> None:
            if made:
                raise OSError("no more processes")
            made.append(self)
            super().__init__(limit_s)

    monkeypatch.setattr(judge_module, "_Worker", Last)
    errors = errors_of_threads(Judge(), 4)
    assert [type(error) for error in errors] == [JudgeError] * 4
    assert sum("no more processes" in str(error) for error in errors) == 3


def test_closing_leaves_no_thread_waiting(quick: Path) -> None:
    judge = Judge(workers=1)
    with judge._pool.worker():
        thread = threading.Thread(target=judged, args=(judge,), daemon=True)
        thread.start()
        time.sleep(0.3)
        judge.close()
    thread.join(20)
    assert not thread.is_alive()
    judge.close()


def test_no_process_to_be_had_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with Judge() as judge, pytest.raises(TraceGymError, match="could not start a process"):
        judge.verify(*RIGHT)


@pytest.mark.parametrize("options", [{"workers": 0}, {"limit_s": 0.0}])
def test_impossible_settings_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(JudgeError):
        Judge(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("gold", "answer"), [("", "7"), ("7", ""), ("7", "$"), (r"\boxed{}", "7"), ("", "")])
def test_empty_is_never_right(gold: str, answer: str) -> None:
    assert Judge().verify(gold, answer).method == "refused"
    assert not Judge().verify(gold, answer).correct
