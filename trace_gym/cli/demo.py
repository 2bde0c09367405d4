"""`demo`: the whole way through, on this machine, in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trace_gym.cli.app import INTERRUPTED, DebugOption, app
from trace_gym.errors import ConfigError
from trace_gym.observer import printable

__all__ = ["demo_command"]

FIRST = """A small language model learns arithmetic with a calculator from imperfect demonstrations (one cell, warm-up), then by
reinforcement learning: once with grpo, once with trace, side by side at the same number of sampled tokens."""


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder for the runs and the page.")] = Path("demo"),
    workers: Annotated[int, typer.Option(min=1, help="Processes, of one thread each.")] = 2,
    debug: DebugOption = False,
) -> None:
    """Teach a small language model with GRPO and with TRACE on Math-v0, and write a page that compares them.

    \b
    Example:  trace-gym demo --out demo

    It is the suite `demo` of `trace-gym bench list`. Interrupted, the same command goes on.
    """
    from trace_gym.benchmarks.display import SuiteDisplay
    from trace_gym.benchmarks.report import write_report
    from trace_gym.benchmarks.runner import run_suite
    from trace_gym.benchmarks.suite import load_suite

    typer.echo(FIRST)
    with SuiteDisplay() as display:
        done = run_suite(load_suite("demo"), out, workers=workers, watcher=display)
    if done.left:
        raise typer.Exit(INTERRUPTED)
    failed = [record for record in done.records if record["status"] == "failed"]
    if failed:
        first, again = failed[0], f"trace-gym bench run demo --out {out} --retry-failed"
        raise ConfigError(f"{first['key']} failed: {first['reason']}; `{again}` tries once more")
    write_report(out, out / "report")
    runs = {
        record["algorithm"]: out / record["key"] / "run"
        for record in done.records
        if record["kind"] == "train"
    }
    typer.echo(
        printable(
            f"the page:    {out / 'report' / 'index.html'} (as Markdown beside it: README.md)\n"
            f"the trees:   trace-gym view {runs['trace']} {runs['grpo']}\n"
            f"             trace-gym trees {runs['trace']}   (in the terminal)\n"
            f"the policy:  trace-gym eval {runs['trace']}"
        )
    )
