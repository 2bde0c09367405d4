"""The application: what all commands share, and how errors look."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from trace_gym._version import __version__
from trace_gym.errors import TraceGymError
from trace_gym.observer import printable

__all__ = ["DebugOption", "SetOption", "app", "main"]

TRAINING_PACKAGES = {
    "accelerate",
    "huggingface_hub",
    "peft",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
}
VIEWER_PACKAGES = {"starlette", "uvicorn"}
DISK_REFUSES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class _Group(TyperGroup):
    """Runs a command and turns what a user can cause into a line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("interrupted; what was written so far is whole", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except (TraceGymError, ModuleNotFoundError, OSError) as error:
            text = _for_people(error)
            if text is None or ctx.meta.get("debug"):
                raise
            for line in text.splitlines():
                mark = "" if line.startswith(" ") else "error: "  # an indented line belongs to the one before
                typer.echo(f"{mark}{printable(line)}", err=True)
            raise typer.Exit(1) from error


def _for_people(error: Exception) -> str | None:
    """What to print instead of a traceback; None where only the traceback helps."""
    if isinstance(error, TraceGymError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        for extra, packages in (("train", TRAINING_PACKAGES), ("view", VIEWER_PACKAGES)):
            if error.name in packages:
                return f"this command needs {error.name}, which is not installed: pip install 'trace-gym[{extra}]'"
    if isinstance(error, OSError) and error.errno in DISK_REFUSES:
        return f"cannot use {error.filename or 'the disk'}: {error.strerror}"
    return None


def _debug(ctx: typer.Context, value: bool) -> bool:
    if value:
        ctx.meta["debug"] = True
    return value


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


DebugOption = Annotated[
    bool, typer.Option("--debug", callback=_debug, is_eager=True, help="Show the traceback of an error.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="An argument of the environment; may be given again."),
]

app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help keeps the examples' lines
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback()
def options(
    debug: DebugOption = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Teach language-model agents in environments whose every state can be forked.

    \b
    A start:  trace-gym warmup --out policy
              trace-gym train policy.path=policy budget.policy_tokens=100_000
              trace-gym eval runs/train
    """


def main() -> None:
    """The entry point of `trace-gym`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character shows '?'
    _find_modules_here()
    app()


def _find_modules_here() -> None:
    """Let `module:Class` and `module:id` name a module of the present folder. Last, so that it can hide no package."""
    here = os.getcwd()
    if not sys.flags.safe_path and not {"", here} & set(sys.path):
        sys.path.append(here)
