"""`view`: recorded rollout trees in the browser."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from trace_gym.cli.app import app
from trace_gym.observer import printable

__all__ = ["view_command"]


@app.command("view")
def view_command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders; the first is shown first.")
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8765,
) -> None:
    """Show runs' rollout trees at http://127.0.0.1:PORT/ until Ctrl-C. New steps appear while a run goes on.

    \b
    Examples:  trace-gym view runs/train
               trace-gym view runs/trace runs/grpo     (side by side on the same prompt)
               ssh -L 8765:localhost:8765 HOST         (a viewer that runs on another machine)
    """
    from trace_gym.view.app import listen, make_app, make_server

    made = make_app(runs)
    with listen(port) as where:
        names = ", ".join(str(run) for run in runs)
        typer.echo(printable(f"{names} at http://127.0.0.1:{where.getsockname()[1]}/ ; Ctrl-C ends it"))
        with contextlib.suppress(KeyboardInterrupt):  # the server raises it again once it has ended
            make_server(made).run(sockets=[where])
        typer.echo("stopped")
