"""A suite before it runs: what it comes to, what it is expected to cost, and what is not on this machine yet.

Everything is checked that can be without weights or network: the file, every algorithm and its fields, every environment and
its options, data sets and policies by name. What has to be downloaded is a line with the command that does it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trace_gym.benchmarks.display import clock
from trace_gym.benchmarks.expansion import Cell, expand
from trace_gym.benchmarks.suite import Suite
from trace_gym.config import TrainConfig, dump_config
from trace_gym.errors import ConfigError
from trace_gym.plugins import make_env

__all__ = ["Absent", "absent", "check_present", "preview"]

UNMADE = "policy"  # the default of policy.path: a folder that `warmup` makes
TABULAR = "tabular"
OF_A_FILE = ("source", "corpus", "question_field", "answer_field", "on_bad_line")


@dataclass(frozen=True, slots=True)
class Absent:
    """Something to be obtained first, and how."""

    what: str
    how: str

    def __str__(self) -> str:
        return f"to be downloaded: {self.what} ({self.how})"


def preview(suite: Suite, *, workers: int, full: bool = False) -> list[str]:
    """Lines for a person. Raises `ConfigError` for what no download would mend."""
    cells = expand(suite)
    lines = [f"{suite.name}: {suite.title}", *([suite.about.strip()] if suite.about else []), ""]
    missing = absent(suite, cells)
    check_environments(suite, cells)
    lines += _worlds(suite, cells)
    seconds = sum(cell.seconds for cell in cells)
    kinds = {kind: sum(cell.kind == kind for cell in cells) for kind in ("warmup", "tune", "train")}
    counts = ", ".join(f"{count} {name}" for name, count in kinds.items() if count)
    lines += [
        "",
        f"{len(cells)} cells ({counts}); expected {clock(seconds)} by one worker, {clock(seconds / workers)} by {workers}",
    ]
    lines += [str(one) for one in missing] or ["everything is on this machine"]
    if full:
        lines += [line for cell in cells for line in _cell(cell)]
    return lines


def check_present(suite: Suite) -> None:
    """Raises `ConfigError`, a line for everything that has to be obtained before the suite can run."""
    cells = expand(suite)
    missing = absent(suite, cells)
    if missing:
        raise ConfigError("\n".join(f"{suite.name} needs {one.what}: {one.how}" for one in missing))
    check_environments(suite, cells)


def absent(suite: Suite, cells: Sequence[Cell]) -> list[Absent]:
    """What is not on this machine, each once. Raises `ConfigError` for a local file or folder that is not there."""
    found: dict[str, Absent] = {}
    for env_options, policy in _asked(cells):
        for one in [*_data(env_options), *_weights(policy)]:
            found.setdefault(one.what, one)
    return list(found.values())


def check_environments(suite: Suite, cells: Sequence[Cell]) -> None:
    """Make every environment once, without the files that are not there yet."""
    seen: set[str] = set()
    for cell in cells:
        env: Any = cell.config["env"]
        variants = [options for options, _ in _asked([cell])]
        for options in variants:
            if list(_data(options)):
                options = {name: value for name, value in options.items() if name not in OF_A_FILE}
            place = repr((env["id"], options))
            if place not in seen:
                seen.add(place)
                try:
                    make_env(env["id"], options)
                except ConfigError as error:
                    raise ConfigError(f"suite {suite.name}, {cell.environment}: {error}") from error


def _asked(cells: Sequence[Cell]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Environment options and policy of everything that runs."""
    for cell in cells:
        config: Any = cell.config
        policy = "" if cell.start else config["policy"]["path"] if "policy" in config else ""
        yield config["env"]["options"], policy
        for how in cell.evaluations.values():
            more: Any = how["options"]
            yield {**config["env"]["options"], **more}, ""


def _data(options: Mapping[str, Any]) -> Iterator[Absent]:
    from trace_gym import data

    for name in ("source", "corpus"):
        value = str(options.get(name, ""))
        kind, mark, rest = value.partition(":")
        if mark and kind == "hf" and not _data_set_cached(rest.split(":")[0]):
            yield Absent(
                f"data set {rest.split(':')[0]}", f"hf download --repo-type dataset {rest.split(':')[0]}"
            )
        elif mark and kind in data.KNOWN and not data.is_cached(kind):
            yield Absent(f"data set {kind}", f"trace-gym data get {kind}")
        elif Path(value).suffix in (".json", ".jsonl", ".parquet") and not Path(value).exists():
            yield Absent(f"file {value}", "the suite's file says where it comes from")


def _weights(policy: str) -> Iterator[Absent]:
    from trace_gym import models

    if policy in ("", TABULAR) or Path(policy).expanduser().is_dir():
        return
    if policy in models.KNOWN:
        if not models.is_cached(policy):
            yield Absent(f"weights {policy}", f"trace-gym model get {policy}")
    elif policy == UNMADE or policy.count("/") != 1:
        raise ConfigError(
            f"there is no policy folder {policy}: give the suite a warmup, or make the folder first"
        )
    elif not _weights_cached(policy):
        yield Absent(f"weights {policy}", f"hf download {policy}")


def _weights_cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def _data_set_cached(name: str) -> bool:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return any(r.repo_type == "dataset" and r.repo_id == name for r in scan_cache_dir().repos)
    except CacheNotFound:
        return False


def _worlds(suite: Suite, cells: Sequence[Cell]) -> Iterator[str]:
    for name, world in suite.environments.items():
        mine = [cell for cell in cells if cell.environment == name]
        train = [cell for cell in mine if cell.kind == "train"]
        algorithms = ", ".join(suite.algorithms_of(world))
        seeds = ", ".join(map(str, suite.seeds_of(world)))
        env: Any = train[0].config["env"]
        yield f"{name}: {env['id']} {env['options'] or ''}".rstrip()
        yield f"  {len(train)} cells of {train[0].budget:,.0f} {suite.unit.replace('_', ' ')}: {algorithms}; seeds {seeds}"
        yield f"  policy: {_policy(train[0], mine)}; expected {clock(sum(cell.seconds for cell in mine))} by one worker"
        if world.rates and len(world.rates.grid) > 1:
            grid = ", ".join(f"{rate:g}" for rate in world.rates.grid)
            yield f"  learning rate of {grid}, tuned on {world.rates.split}, seeds {', '.join(map(str, world.rates.seeds))}"


def _policy(cell: Cell, mine: Sequence[Cell]) -> str:
    warm = [other for other in mine if other.kind == "warmup"]
    if not warm:
        config: Any = cell.config
        return str(config["policy"]["path"])
    given = ", ".join(f"{k} {v}" for k, v in warm[0].warmup.items() if v)
    return f"{len(warm)} made by warm-up ({given or 'defaults'})"


def _cell(cell: Cell) -> Iterator[str]:
    yield ""
    yield f"{cell.label}  {'(its learning rate is tuned first)' if cell.waits else cell.key}"
    if cell.kind == "warmup":
        yield f"  {cell.config} {cell.warmup}"
        return
    text = dump_config(TrainConfig.model_validate(cell.config))
    yield from (f"  {line.partition('  #')[0]}" for line in text.splitlines())
