"""`data get`, `data list`: data sets known by name."""

from __future__ import annotations

from typing import Annotated

import typer

from trace_gym.cli.app import app
from trace_gym.data import KNOWN, cache_folder, get, is_cached
from trace_gym.observer import printable

__all__ = ["get_command", "list_command"]

data_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Obtain data sets that are known by name."
)
app.add_typer(data_app, name="data")


@data_app.command("get")
def get_command(
    name: Annotated[str, typer.Argument(help="A name of `trace-gym data list`.")],
) -> None:
    """Download a data set, check it, and print its folder.

    \b
    Example:  trace-gym data get bfcl
              trace-gym check trace_gym/ToolAPI-v0 --option source=bfcl:base
    """
    typer.echo(printable(str(get(name, note=lambda text: typer.echo(printable(text), err=True)))))


@data_app.command("list")
def list_command() -> None:
    """List the known names, with sizes and licences.

    \b
    Example:  trace-gym data list
    """
    width = max(map(len, KNOWN))
    for name, known in KNOWN.items():
        where = str(cache_folder() / name) if is_cached(name) else f"get it: trace-gym data get {name}"
        size = f"{known.download_bytes / 1e6:.1f} MB download"
        typer.echo(printable(f"{name:<{width}}  {known.title}, {known.licence}; {size}\n    {where}"))
