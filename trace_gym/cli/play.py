"""`play`: a person in the agent's place."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import typer

from trace_gym.cli.app import INTERRUPTED, DebugOption, SetOption, app
from trace_gym.cli.screen import block
from trace_gym.config import load_config
from trace_gym.errors import ConfigError, PluginError, TraceGymError
from trace_gym.observer import printable
from trace_gym.play import Game, Said
from trace_gym.plugins import environment_specs, make_env
from trace_gym.settings import setting

__all__ = ["play_command", "play_until_quit", "read_entry", "reader", "show"]

LABEL_CELLS = 6
Reader = Callable[[str], str | None]  # a prompt -> a line without its end; None when there are no more

FIRST, MORE = "> ", ". "
OPEN_BLOCK, CLOSE_BLOCK = "<<<", ">>>"


def _env_ids(incomplete: str) -> list[str]:
    """The ids of `trace-gym envs` that begin so, for the shell."""
    return [spec.id for spec in environment_specs() if spec.id.startswith(incomplete)]


@app.command("play")
def play_command(
    env_id: Annotated[
        str,
        typer.Argument(metavar="ENV", help="module:id imports the module first.", autocompletion=_env_ids),
    ],
    task: Annotated[str | None, typer.Option(metavar="ID", help="Default: one that is drawn.")] = None,
    option: SetOption = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Same seed, same task and noise; default: another each time.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Play an environment yourself: what you type is the agent's action. `:help` lists the commands.

    \b
    Examples:  trace-gym play trace_gym/Math-v0 --option difficulty=2
               printf '!calculator expression=3*4\\n=12\\n' | trace-gym play trace_gym/Math-v0 --seed 1
    """
    config = load_config(None, [setting("env.id", env_id), *(f"env.options.{word}" for word in option or [])])
    game = Game(make_env(config.env.id, config.env.options), seed=seed)
    try:
        for said in game.new(task):
            show(said)
        show(Said("note", "type an action, or :help"))
        play_until_quit(game, reader(), show, debug=debug)
    except KeyboardInterrupt:
        typer.echo()
        raise typer.Exit(INTERRUPTED) from None


# ---- the loop --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """What was typed, lines joined. A verbatim one is an action whatever it starts with."""

    text: str
    verbatim: bool = False

    @property
    def quits(self) -> bool:
        """Whether it is `:quit` or begins so."""
        word = self.text.strip()
        return not self.verbatim and len(word) > 1 and ":quit".startswith(word)


def play_until_quit(game: Game, read: Reader, show: Callable[[Said], None], *, debug: bool = False) -> None:
    """Play until `:quit` or the end of what `read` gives. A mistake is shown and the game goes on; with `debug` an
    environment's is raised."""
    while (entry := read_entry(read)) is not None and not entry.quits:
        try:
            for said in game.enter(entry.text, verbatim=entry.verbatim):
                show(said)
        except TraceGymError as error:
            if debug and isinstance(error, PluginError):
                raise
            show(Said("error", str(error)))


def read_entry(read: Reader) -> Entry | None:
    """The next entry: a line, lines joined by a backslash at their end, or a block between `<<<` and `>>>`; None at the end.

    Raises `ConfigError` for a block that the end cuts short.
    """
    line = read(FIRST)
    if line is None:
        return None
    if line.strip() == OPEN_BLOCK:
        return Entry(_block(read), verbatim=True)
    while line.endswith("\\"):
        line = line[:-1] + "\n" + (read(MORE) or "")
    return Entry(line)


def _block(read: Reader) -> str:
    lines: list[str] = []
    while (line := read(MORE)) is None or line.strip() != CLOSE_BLOCK:
        if line is None:
            raise ConfigError("the <<< block was never closed by a line >>>; nothing in it was played")
        lines.append(line)
    return "\n".join(lines)


# ---- the screen ------------------------------------------------------------------------------------------------------


def show(said: Said) -> None:
    typer.echo(block(said.label, said.text, width=LABEL_CELLS))


def reader() -> Reader:
    """Reads a terminal with line editing, and anything else with its lines shown, so that the output tells the whole game."""
    if sys.stdin is None:  # closed by whoever started this
        return lambda prompt: None
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    return _ask if sys.stdin.isatty() else _read_and_show


def _ask(prompt: str) -> str | None:
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # gives `input` editing and a history
    try:
        return input(prompt)
    except EOFError:
        typer.echo()
        return None


def _read_and_show(prompt: str) -> str | None:
    line = sys.stdin.readline()
    if not line:
        return None
    line = line.removesuffix("\n").removesuffix("\r")
    typer.echo(prompt + printable(line))
    return line
