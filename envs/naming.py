"""Names with options: `wikipedia:de#record=answers.sqlite,mode=replay`.

What names an external service in one setting, on a command line or in a file, carries its options after `#`: `key=value`,
separated by commas, percent-encoded where a value holds a comma. What stands after `#` is never sent, so it belongs to no
address.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import cast
from urllib.parse import SplitResult, unquote, urlsplit

from trace_gym.envs.record import Mode, Record, default_path
from trace_gym.errors import ConfigError

__all__ = ["RECORD_OPTIONS", "number", "record_of", "split_name", "split_url"]

RECORD_OPTIONS = ("record", "mode")


def split_name(text: str, known: Collection[str]) -> tuple[str, dict[str, str]]:
    """The name and its options. Raises `ConfigError` for an option that is not `known`, malformed or given twice."""
    name, _, tail = text.partition("#")
    options: dict[str, str] = {}
    for part in filter(None, tail.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise ConfigError(f"{name[:100]}: {part[:80]!r} is no option; write #key=value,key=value")
        if key not in known:
            raise ConfigError(f"{name[:100]}: unknown option {key[:40]!r}; there are {', '.join(known)}")
        if key in options:
            raise ConfigError(f"{name[:100]}: the option {key} is given twice")
        options[key] = unquote(value)
    return name, options


def number(options: dict[str, str], key: str, default: float) -> float:
    """A positive number among `options`. Raises `ConfigError`."""
    text = options.get(key)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = -1
    if not 0 < value < 1e6:
        raise ConfigError(f"the option {key} is a positive number, not {text!r}")
    return value


def record_of(options: dict[str, str], name: str) -> Record:
    """The record that the options name, else the one that is kept for `name`. Raises `ConfigError`."""
    return Record(options.get("record") or default_path(name), mode=cast(Mode, options.get("mode", "live")))


def split_url(url: str) -> SplitResult:
    """The parts of an absolute http or https URL. Raises `ConfigError` where it is another, or holds credentials."""
    try:
        place = urlsplit(url)
        port = place.port
    except ValueError as error:
        raise ConfigError(f"{url[:200]!a} is no URL: {error}") from error
    if place.scheme not in ("http", "https") or not place.hostname or port == 0:
        raise ConfigError(f"{url[:200]!a} is no URL of a service; write http://host[:port]/… or https://…")
    if "@" in place.netloc:
        raise ConfigError(f"the URL of {place.hostname:.100} holds credentials; put them into a header")
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise ConfigError(f"{url[:200]!a} holds characters that a URL may not; percent-encode them")
    return place
