"""`model get`, `model list`: pretrained policies known by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trace_gym.cli.app import app
from trace_gym.models import KNOWN, cache_folder, copy_to, get, is_cached
from trace_gym.observer import printable

__all__ = ["get_command", "list_command"]

model_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Obtain pretrained policies that are known by name."
)
app.add_typer(model_app, name="model")


@model_app.command("get")
def get_command(
    name: Annotated[str, typer.Argument(help="A name of `trace-gym model list`.")],
    out: Annotated[Path | None, typer.Option(help="A new folder for a copy of the policy.")] = None,
) -> None:
    """Download a policy, convert it once, and print its folder.

    \b
    Example:  trace-gym model get smollm2-135m
              trace-gym train policy.path=smollm2-135m policy.lora.rank=16
    """
    folder = get(name, note=lambda text: typer.echo(printable(text), err=True))
    if out is not None:
        copy_to(folder, out)
    typer.echo(printable(str(out or folder)))


@model_app.command("list")
def list_command() -> None:
    """List the known names, with sizes and licences.

    \b
    Example:  trace-gym model list
    """
    width = max(map(len, KNOWN))
    for name, model in KNOWN.items():
        sizes = f"{model.download_bytes / 1e6:.0f} MB download, {model.disk_bytes / 1e6:.0f} MB on disk"
        where = str(cache_folder() / name) if is_cached(name) else f"get it: trace-gym model get {name}"
        typer.echo(printable(f"{name:<{width}}  {model.title}, {model.licence}; {sizes}\n    {where}"))
