"""The process in which math-verify runs. Started by `judge` as a script; imports nothing of trace_gym.

Frames on stdin and stdout: four bytes of big-endian length, then JSON. The worker first sends `{"ready": true}` (or
`{"failed": reason}` and exits), then answers each `[gold, answer]`, LaTeX both, with `{"equal": bool}`. It ends with
its stdin, so it never outlives the process that started it.

What it may do is limited from inside: processor time per judgement (the kernel ends the process when it is used up,
whatever runs and whether or not the parent lives), memory, core dumps, no text to `eval` (sympy's only route from
text to code is replaced by a reader of numbers and names), and an audit hook that refuses processes, sockets, and
every change to files.
"""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import sys
from collections.abc import Callable
from typing import IO, Any

MEMORY_BYTES = 2**30
MAX_FRAME_BYTES = 2**16
STARTUP_CPU_S = 60.0

Compare = Callable[[str, str], bool]


def read_frame(stream: IO[bytes]) -> Any:
    """The next frame's value, or None at the end of the stream. Raises `ValueError` for anything else."""
    header = _read_exactly(stream, 4)
    if header is None:
        return None
    (size,) = struct.unpack(">I", header)
    if size > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {size} bytes")
    body = _read_exactly(stream, size)
    return None if body is None else json.loads(body)


def write_frame(stream: IO[bytes], value: Any) -> None:
    body = json.dumps(value).encode()
    stream.write(struct.pack(">I", len(body)) + body)
    stream.flush()


def _read_exactly(stream: IO[bytes], size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            return None
        data += more
    return data


# ---- limits ------------------------------------------------------------------------------------------------

_ATOM = re.compile(r"\s*(Integer|Float|Symbol)\s*\(\s*'?([A-Za-z0-9_.+-]+)'?\s*\)\s*")
_HARMLESS = frozenset({"os.listdir", "os.scandir", "os.walk", "os.getxattr"})
_REFUSED = (
    "os.",
    "subprocess.",
    "socket.",
    "shutil.",
    "ctypes.",
    "pty.",
    "pickle.",
    "tempfile.",
    "winreg.",
    "_winapi.",
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _limit_resources() -> None:
    try:
        import resource
    except ImportError:  # Windows has none
        return
    for kind, wanted in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (limit, limit))


def _refuse_code() -> None:
    """Sympy turns text into expressions through one function, which evaluates it as Python. Ours makes atoms only."""
    import sympy
    from sympy.parsing import sympy_parser

    make = {"Integer": lambda text: sympy.Integer(int(text)), "Float": sympy.Float, "Symbol": sympy.Symbol}

    def one_atom(code: str, *_: object) -> Any:
        match = _ATOM.fullmatch(code)
        if match is None:
            raise ValueError("text is not evaluated here")
        return make[match[1]](match[2])

    sympy_parser.eval_expr = one_atom


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event == "open":
        mode, flags = args[1], args[2]
        writes = (isinstance(mode, str) and not set(mode).isdisjoint("wax+")) or flags & _WRITING
        if not writes:
            return
    elif event in _HARMLESS or not event.startswith(_REFUSED):
        return
    raise PermissionError(f"the judge's worker may not do this: {event}")


def _allow_cpu(seconds: float) -> None:
    """Let the kernel end this process after that much more processor time; 0 calls it off."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


# ---- judging -----------------------------------------------------------------------------------------------


_WARM_UP = (
    (r"x^2 + 2x + 1", "(x + 1)^2"),
    (r"\sin^2 x + \cos^2 x", "1"),
    (r"\{1, 2\}", "2, 1"),
    (r"x \le \sqrt{8}", r"x \le 2\sqrt{2}"),
    ("y = 2x + 1", "2x - y + 1 = 0"),
    ("x < 1", r"(-\infty, 1)"),
)


def load() -> Compare:
    """math-verify's comparison of two LaTeX texts, with its own time limits off (they are signals)."""
    import logging

    logging.disable(logging.CRITICAL)
    from math_verify import LatexExtractionConfig, parse, verify

    config = [LatexExtractionConfig(boxed_match_priority=-1)]

    def read(latex: str) -> Any:
        return parse(f"${latex}$", config, fallback_mode="no_fallback", parsing_timeout=None)

    def equal(gold: str, answer: str) -> bool:
        wanted, given = read(gold), read(answer)
        return bool(wanted and given and verify(wanted, given, timeout_seconds=None))

    for gold, answer in _WARM_UP:  # loads what the first real answer should not wait for
        assert equal(gold, answer), f"math-verify does not find {gold} equal to {answer}"
    _refuse_code()  # only now: sympy reads texts of its own while it loads
    return equal


def serve(source: IO[bytes], sink: IO[bytes], limit_s: float) -> None:
    _allow_cpu(STARTUP_CPU_S)
    _limit_resources()
    try:
        equal = load()
    except Exception as error:
        write_frame(sink, {"failed": f"{type(error).__name__}: {error}"})
        return
    sys.addaudithook(_audit)
    _allow_cpu(0)
    write_frame(sink, {"ready": True})
    while (request := read_frame(source)) is not None:
        gold, answer = request
        _allow_cpu(limit_s)
        result = equal(gold, answer)
        _allow_cpu(0)
        write_frame(sink, {"equal": result})


def main() -> None:
    sys.dont_write_bytecode = True
    if hasattr(signal, "SIGPROF"):  # a parent may have left it ignored
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(
        os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
    )  # whatever prints must not break the frames
    serve(source, sink, float(sys.argv[1]))


if __name__ == "__main__":
    main()
