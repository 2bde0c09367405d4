"""`bench run`, `report`, `list`: suites of training runs, and the page about them. `bench speed`: how fast the parts are."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from trace_gym.cli.app import INTERRUPTED, DebugOption, app
from trace_gym.observer import printable

__all__ = ["bench_app", "list_command", "report_command", "run_command", "speed_command"]

bench_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Compare algorithms at equal budget: suites, and their report. Time the parts.",
)
app.add_typer(bench_app, name="bench")


@bench_app.command("run")
def run_command(
    suite: Annotated[
        str, typer.Argument(metavar="SUITE", help="A name of `trace-gym bench list`, or a .yaml file.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Default: runs/bench/ and the suite's name.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes, of one thread each; default: the cores there are.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check everything but weights, print the cells and their cost, and stop."
        ),
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="With --dry-run: every cell and its settings.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run cells again that failed before.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Run a suite, or go on with it: cells that have ended are not run again.

    \b
    Examples:  trace-gym bench run smoke
               trace-gym bench run cpu --out runs/cpu --workers 2
               trace-gym bench run paper --dry-run

    Ctrl-C lets the cells that run come to an end, a second one stops them; the same command goes on.
    """
    from trace_gym.benchmarks.suite import load_suite

    loaded = load_suite(suite)
    if loaded.command:
        typer.echo(f"{loaded.name} is a command of its own: {loaded.command}")
        return
    count = workers or len(
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    if dry_run:
        from trace_gym.benchmarks.preview import preview

        typer.echo(printable("\n".join(preview(loaded, workers=count, full=full))))
        return
    from trace_gym.benchmarks.display import SuiteDisplay
    from trace_gym.benchmarks.preview import check_present
    from trace_gym.benchmarks.runner import run_suite

    check_present(loaded)
    folder = out or Path("runs/bench") / loaded.name
    with SuiteDisplay() as display:
        done = run_suite(loaded, folder, workers=count, watcher=display, retry_failed=retry_failed)
    typer.echo(printable(_ending(done.records, folder)))
    if done.left:
        typer.echo(f"{done.left} cells are left: the same command goes on", err=True)
        raise typer.Exit(INTERRUPTED)


@bench_app.command("report")
def report_command(
    results: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A suite's output folder, or a results.parquet.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the page goes; default: FOLDER/report.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Write a suite's page: README.md with its pictures, one self-contained index.html, and the table.

    \b
    Example:  trace-gym bench report runs/bench/smoke
    """
    from trace_gym.benchmarks.report import write_report

    folder = out or (results if results.is_dir() else results.parent) / "report"
    for path in write_report(results, folder):
        typer.echo(printable(str(path)))


@bench_app.command("list")
def list_command() -> None:
    """List the suites that come with the package.

    \b
    Example:  trace-gym bench list
    """
    from trace_gym.benchmarks.suite import load_suite, shipped

    width = max(map(len, shipped()))
    for name in shipped():
        suite = load_suite(name)
        how = suite.command or f"trace-gym bench run {name}"
        typer.echo(printable(f"{name:<{width}}  {suite.title}\n{'':<{width}}  {how}"))


@bench_app.command("speed")
def speed_command(
    only: Annotated[str, typer.Option(metavar="PART,PART", help="Some parts; default: all.")] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="Within a minute; the numbers mean nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of pages.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write a page and JSON per part.")
    ] = None,
) -> None:
    """Time the update, the engine, forks, the loop and large trees, each beside what it is compared with.

    \b
    Example:  trace-gym bench speed
              trace-gym bench speed --only loop,scale --out benchmarks/results/speed
              trace-gym bench speed --json
    """
    from trace_gym.benchmarks.speed import measure_parts, write_page

    chosen = [name.strip() for name in only.split(",") if name.strip()]
    every = {}
    for name, found, page in measure_parts(chosen, quick=quick):
        every[name] = found
        if out is not None:
            write_page(out, name, found, page)
        if not as_json:
            typer.echo(page)
    if as_json:
        typer.echo(json.dumps(every, indent=1))


def _ending(records: Sequence[Mapping[str, Any]], folder: Path) -> str:
    failed = [record for record in records if record["status"] == "failed"]
    lines = [
        f"{len(records) - len(failed)} cells are done, {len(failed)} failed; {folder / 'results.parquet'}"
    ]
    lines += [f"failed: {record['key']}: {record['reason']}" for record in failed]
    return "\n".join([*lines, f"next: trace-gym bench report {folder}"])
