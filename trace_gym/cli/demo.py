"""`demo`: the whole way through, on this machine, in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trace_gym.cli.app import app

__all__ = ["demo_command"]


@app.command("demo")
def demo_command(
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]", help="Training settings other than the demo's."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for policies, runs, table and picture.")] = Path("demo"),
    seeds: Annotated[int, typer.Option(min=1, help="How many times, with another seed each time.")] = 1,
) -> None:
    """Warm a small language model up, teach it with GRPO on Math-v0, and compare with supervised learning alone.

    \b
    Example:  trace-gym demo --out demo
    """
    from trace_gym.demo import demo, summary
    from trace_gym.display import LiveDisplay
    from trace_gym.runs import environment_facts

    with LiveDisplay() as display:
        results = demo(out, display, seeds=seeds, overrides=settings or [])
    typer.echo(summary(results, environment_facts()))
    typer.echo(f"picture: {out / 'curve.png'}")
