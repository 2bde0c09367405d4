"""`envs`, `algorithms`, `check`: what there is, and whether it keeps the rules."""

from __future__ import annotations

import importlib
import inspect
from typing import Annotated

import typer
from gymnasium.envs.registration import EnvSpec, load_env_creator

from trace_gym.cli.app import SetOption, app
from trace_gym.config import load_config
from trace_gym.errors import ConfigError, PluginError
from trace_gym.observer import printable
from trace_gym.plugins import (
    algorithm_class,
    algorithm_names,
    describe_fields,
    environment_specs,
    make_env_as_registered,
)
from trace_gym.settings import setting

__all__ = ["algorithms_command", "check_command", "envs_command"]


@app.command("envs")
def envs_command(
    modules: Annotated[
        list[str] | None, typer.Argument(help="Modules to import first; theirs are listed too.")
    ] = None,
) -> None:
    """List the environments' ids.

    \b
    Example:  trace-gym envs
    """
    for module in modules or []:
        try:
            importlib.import_module(module)
        except Exception as error:
            raise ConfigError(
                f"the module {module!r} cannot be imported: {type(error).__name__}: {error}"
            ) from error
    specs = environment_specs()
    width = max((len(spec.id) for spec in specs), default=0)
    for spec in specs:
        typer.echo(printable(f"{spec.id:<{width}}  {_env_summary(spec)}".rstrip()))


@app.command("algorithms")
def algorithms_command() -> None:
    """List the algorithms with their distributions and fields.

    \b
    Example:  trace-gym algorithms
    """
    broken: list[str] = []
    for name, distribution in algorithm_names().items():
        try:
            cls = algorithm_class(name)
        except PluginError as error:  # the others are listed all the same
            broken.append(str(error))
            continue
        typer.echo(printable(f"{name} ({distribution})  {_first_sentence(cls)}\n    {describe_fields(cls)}"))
    if broken:
        raise PluginError("\n".join(broken))


@app.command("check")
def check_command(
    env_id: Annotated[str, typer.Argument(metavar="ENV_ID", help="module:id imports the module first.")],
    option: SetOption = None,
) -> None:
    """Test an environment against the rules of forking.

    \b
    Example:  trace-gym check trace_gym/Math-v0 --option difficulty=2
    """
    from trace_gym.check import check_env

    config = load_config(None, [setting("env.id", env_id), *(f"env.options.{word}" for word in option or [])])
    env = make_env_as_registered(config.env.id, config.env.options)
    typer.echo(printable(str(check_env(env))))


def _env_summary(spec: EnvSpec) -> str:
    entry = spec.entry_point
    try:
        return _first_sentence(load_env_creator(entry) if isinstance(entry, str) else entry)
    except Exception as error:  # a listing goes on past a broken entry
        return f"cannot be loaded: {type(error).__name__}: {error}"


def _first_sentence(thing: object) -> str:
    """Of its own docstring: a base class's would be about something else, and a dataclass's tells fields."""
    own = (vars(thing).get("__doc__") if isinstance(thing, type) else getattr(thing, "__doc__", None)) or ""
    if own.startswith(f"{getattr(thing, '__name__', '')}("):
        return ""
    paragraph = inspect.cleandoc(own).partition("\n\n")[0]
    return " ".join(paragraph.split()).partition(". ")[0].removesuffix(".")
