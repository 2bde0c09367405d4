"""`bench speed`: how fast the parts are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from trace_gym.cli.app import app

__all__ = ["bench_app", "speed_command"]

bench_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Benchmarks.")
app.add_typer(bench_app, name="bench")


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
