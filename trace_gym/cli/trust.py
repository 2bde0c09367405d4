"""What a run's settings would do beyond its folder, which for a run of somebody else's is asked about first.

Invariant: `fork` and `eval` import no module, ask no service and send no environment variable because a file in a run's folder
says so, unless the caller trusts it. Everything else that is read there is data.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from trace_gym.config import TrainConfig
from trace_gym.errors import ConfigError

__all__ = ["TrustOption", "refuse_untrusted"]

TrustOption = Annotated[
    bool,
    typer.Option("--trust", help="The run is yours: import the module and ask the services that it names."),
]


def refuse_untrusted(own: TrainConfig, used: TrainConfig, *, trust: bool) -> None:
    """Raises `ConfigError` where the settings `used` would reach beyond the machine's data because the run's `own` say so."""
    ours = set(_reaches(own))
    found = [what for what in _reaches(used) if what in ours]
    if found and not trust:
        raise ConfigError(
            f"the run's settings {' and '.join(found)}: if the run is yours, or you trust whoever made it, add --trust"
        )


def _reaches(config: TrainConfig) -> Iterator[str]:
    module, colon, _ = config.env.id.partition(":")
    if colon:
        yield f"import the module {module!r}"
    for name, value in config.env.options.items():
        if isinstance(value, str) and ("://" in value or value.startswith("openapi:")):
            yield f"have env.options.{name}={value!r} ask a service"
    if config.engine.kind == "openai":
        key = f" and send it the variable {config.engine.key_env}" if config.engine.key_env else ""
        yield f"ask {config.engine.url!r}{key}"
