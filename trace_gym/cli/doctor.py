"""`doctor`: what is installed, what works, and what is missing for what.

Every probe runs in a thread of its own until a deadline, and what may crash or hang (importing torch) in a process of its
own; so one broken package costs its own line and the command always ends. Invariant: `!!` means that something needed does
not work and gives exit status 1; `--` is something optional that is not there.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import typer
from gymnasium.envs.registration import load_env_creator
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import trace_gym
from trace_gym.cli.app import app
from trace_gym.cli.screen import on_one_line
from trace_gym.errors import PluginError
from trace_gym.plugins import algorithm_class, algorithm_names, environment_specs

__all__ = ["Finding", "doctor_command", "examine"]

Mark = Literal["ok", "--", "!!"]
Probe = Callable[[], Iterable["Finding"]]

DISTRIBUTION = "trace-gym"
ROOT = Path(trace_gym.__file__).resolve().parent.parent
EXTRAS = {  # what each is for
    "train": "warmup, train, eval, demo",
    "models": "model get",
    "data": "task sources named hf:NAME",
    "search": "retrievers beyond bm25",
    "http": "tools of a service that an OpenAPI document describes",
}
NAME_CELLS = 12
LINE_CELLS = 400  # an error may be long; it is one line all the same
ASK_TORCH = """
import json, torch
devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps({
    "version": torch.__version__,
    "threads": torch.get_num_threads(),
    "cuda": [f"{d.name}, {d.total_memory / 2**30:.0f} GiB" for d in devices],
    "mps": torch.backends.mps.is_available(),
}))
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    mark: Mark
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.mark}  {on_one_line(self.name, LINE_CELLS):<{NAME_CELLS}}  {on_one_line(self.text, LINE_CELLS)}"


@app.command("doctor")
def doctor_command(
    deadline: Annotated[
        float, typer.Option(min=1.0, max=3600.0, metavar="SECONDS", help="For every probe.")
    ] = 60.0,
) -> None:
    """Tell what is installed, what works, and what is missing for what. Status 1 if something needed is broken.

    \b
    Example:  trace-gym doctor
    """
    broken = 0
    for finding in examine(_probes(deadline), deadline):
        typer.echo(typer.style(str(finding), fg="red" if finding.mark == "!!" else None))
        broken += finding.mark == "!!"
    if broken:
        typer.echo(f"{broken} {'thing' if broken == 1 else 'things'} to repair: the lines with !!", err=True)
        raise typer.Exit(1)


def examine(probes: dict[str, Probe], deadline_s: float) -> Iterator[Finding]:
    """Run all probes at once; their findings in order, each probe's within `deadline_s` of the start."""
    start = time.monotonic()
    jobs = [(name, _Job(name, probe)) for name, probe in probes.items()]
    for name, job in jobs:
        job.thread.join(max(0.0, start + deadline_s - time.monotonic()))
        if job.thread.is_alive():
            yield Finding("!!", name, f"gave no answer within {deadline_s:g} s")
        else:
            yield from job.findings


@dataclass(slots=True)
class _Job:
    """A probe on its way. A daemon thread: one that hangs does not keep the command from ending."""

    name: str
    probe: Probe
    findings: list[Finding] = field(default_factory=list)
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.findings.extend(self.probe())
        except BaseException as error:  # SystemExit too: a probe runs strangers' modules
            self.findings.append(Finding("!!", self.name, f"{type(error).__name__}: {error}"))


def _probes(deadline_s: float) -> dict[str, Probe]:
    return {
        "python": _python,
        DISTRIBUTION: _installation,
        "machine": _machine,
        "packages": _packages,
        "extras": _extras,
        "torch": lambda: _torch(deadline_s * 0.9),  # so that it is killed before it is given up
        "vllm": _vllm,
        "algorithms": _algorithms,
        "environments": _environments,
        "math judge": _math_judge,
        "temp folder": _temp_folder,
    }


# ---- what is installed ----------------------------------------------------------------------------------------------


def _python() -> Iterator[Finding]:
    try:
        wanted = importlib.metadata.metadata(DISTRIBUTION)["Requires-Python"] or ""
    except importlib.metadata.PackageNotFoundError:
        wanted = ""
    version = platform.python_version()
    fits = SpecifierSet(wanted).contains(version, prereleases=True)
    yield Finding(
        "ok" if fits else "!!",
        "python",
        f"{version}, {sys.executable}" + ("" if fits else f"; trace_gym needs {wanted}"),
    )


def _installation() -> Iterator[Finding]:
    text = f"{trace_gym.__version__}, imported from {Path(trace_gym.__file__).parent}"
    try:
        version = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        yield Finding("!!", DISTRIBUTION, f"{text}, but not installed, so no algorithm is found: {_pip()}")
        return
    stale = f"; installed as {version}: {_pip()}" if version != trace_gym.__version__ else ""
    yield Finding("ok", DISTRIBUTION, text + stale)


def _packages() -> Iterator[Finding]:
    present, lacking = _satisfied(_requirements(""))
    if lacking:
        yield Finding("!!", "packages", f"{', '.join(lacking)}: {_pip()}")
    else:
        yield Finding("ok", "packages", ", ".join(present))


def _extras() -> Iterator[Finding]:
    try:
        known = importlib.metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        known = []
    for extra, purpose in EXTRAS.items():
        name, needs = f"[{extra}]", f"(for {purpose}): {_pip(extra)}"
        if extra not in known:
            yield Finding(
                "--", name, f"the installed trace-gym is older than this source; install again {needs}"
            )
            continue
        present, lacking = _satisfied(_requirements(extra))
        if lacking:
            yield Finding("--", name, f"missing {', '.join(lacking)} {needs}")
        else:
            yield Finding("ok", name, ", ".join(present))


def _vllm() -> Iterator[Finding]:
    try:
        yield Finding("ok", "vllm", importlib.metadata.version("vllm"))
    except importlib.metadata.PackageNotFoundError:
        yield Finding("--", "vllm", "not installed; engine.kind=vllm alone needs it")


def _requirements(extra: str) -> list[Requirement]:
    """What `extra` asks for; "" is what is always needed."""
    every = [Requirement(line) for line in importlib.metadata.requires(DISTRIBUTION) or []]
    always = [r for r in every if r.marker is None or r.marker.evaluate({"extra": ""})]
    if not extra:
        return always
    return [r for r in every if r not in always and r.marker and r.marker.evaluate({"extra": extra})]


def _satisfied(requirements: Iterable[Requirement]) -> tuple[list[str], list[str]]:
    """`name version` of those that are there, and what lacks: a name, or a version that does not fit."""
    present, lacking = [], []
    for requirement in requirements:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            lacking.append(requirement.name)
            continue
        if requirement.specifier.contains(version, prereleases=True):
            present.append(f"{requirement.name} {version}")
        else:
            lacking.append(f"{requirement.name}{requirement.specifier} (there is {version})")
    return present, lacking


def _pip(extra: str = "") -> str:
    """The command that installs trace_gym with an extra, from the checkout where it is one."""
    suffix = f"[{extra}]" if extra else ""
    checkout = (ROOT / "pyproject.toml").is_file()
    return f"pip install -e '{ROOT}{suffix}'" if checkout else f"pip install '{DISTRIBUTION}{suffix}'"


# ---- what works -----------------------------------------------------------------------------------------------------


def _machine() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("ok", "machine", f"{platform.platform()}, {cores} cores{_memory()}")


def _memory() -> str:
    """Total and free, where the system tells; a container's limit if that is less."""
    try:
        page, pages, free = (os.sysconf(f"SC_{name}") for name in ("PAGE_SIZE", "PHYS_PAGES", "AVPHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return ""
    total = page * pages
    with contextlib.suppress(OSError, ValueError):  # no control group, or "max"
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return f", {total / 2**30:.1f} GiB of memory, {min(total, page * free) / 2**30:.1f} unused"


def _torch(deadline_s: float) -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        yield Finding("--", "torch", f"not installed (for {EXTRAS['train']}): {_pip('train')}")
        return
    start = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", ASK_TORCH],
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=deadline_s,
        )
    except subprocess.TimeoutExpired:
        yield Finding("!!", "torch", f"could not be imported within {deadline_s:g} s")
        return
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"the process ended with status {done.returncode}"])[-1]
        yield Finding("!!", "torch", f"cannot be imported: {last}")
        return
    told = json.loads(done.stdout.splitlines()[-1])
    devices = [*told["cuda"], *(["mps"] if told["mps"] else []), f"cpu ({told['threads']} of its threads)"]
    seconds = time.monotonic() - start
    yield Finding("ok", "torch", f"{told['version']} on {'; '.join(devices)}; imported in {seconds:.1f} s")
    if not told["cuda"] and shutil.which("nvidia-smi"):
        yield Finding(
            "--", "cuda", "there is nvidia-smi, but torch sees no GPU: a driver, or a CPU build of torch"
        )


def _algorithms() -> Iterator[Finding]:
    names = algorithm_names()
    usable = []
    for name, distribution in names.items():
        try:
            algorithm_class(name)
            usable.append(name if distribution == DISTRIBUTION else f"{name} ({distribution})")
        except PluginError as error:
            yield Finding("!!", "algorithms", str(error))
    if usable:
        yield Finding("ok", "algorithms", ", ".join(usable))
    elif not names:
        yield Finding("!!", "algorithms", f"none is registered: {_pip()}")


def _environments() -> Iterator[Finding]:
    usable = []
    for spec in environment_specs():
        try:
            if isinstance(spec.entry_point, str):
                load_env_creator(spec.entry_point)
            usable.append(spec.id)
        except Exception as error:  # a stranger's module
            yield Finding(
                "!!", "environments", f"{spec.id} cannot be loaded: {type(error).__name__}: {error}"
            )
    yield Finding("ok" if usable else "!!", "environments", ", ".join(usable) or "none is registered")


def _math_judge() -> Iterator[Finding]:
    """An answer that only algebra can judge, so that a worker process has to."""
    from trace_gym.envs.math.judge import Judge

    start = time.monotonic()
    with Judge(workers=1) as judge:
        verdict = judge.verify("x + 1", "1 + x")
    seconds = time.monotonic() - start
    if verdict.correct and verdict.method == "math-verify":
        yield Finding("ok", "math judge", f"worker process started and answered in {seconds:.1f} s")
    else:
        yield Finding("!!", "math judge", f"x+1 = 1+x was not confirmed: {verdict.method} {verdict.reason}")


def _temp_folder() -> Iterator[Finding]:
    folder = tempfile.gettempdir()
    with tempfile.TemporaryFile() as file:
        file.write(bytes(4096))
        file.flush()
    free = shutil.disk_usage(folder).free / 2**30
    yield Finding("ok", "temp folder", f"{folder} can be written, {free:.1f} GiB free")
