"""The environments' page: every registered id as it is, its options, tasks and tools, and an episode that was really played.

Only what any user can call is called: gymnasium's registry, `reset`, `step`, `tasks`, `tools`, `expert_action`.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from gymnasium.envs.registration import EnvSpec, load_env_creator

import trace_gym.envs  # noqa: F401  (registers the ids)
from docs.generate.text import block, cell, code, prose, table, takes
from trace_gym.env import ForkableEnv, Tool
from trace_gym.errors import TaskError
from trace_gym.plugins import environment_specs, make_env

__all__ = ["option_texts", "options", "page", "specs"]

SPLITS = ("train", "dev", "test", "all")
LOOKED_AT = 48  # tasks of a split whose tools are listed
KNOWN_INFO = {"task_id", "role", "system", "tools", "success"}

HEAD = """# Environments

The built-in ids, as registered. All work offline and without arguments; options are arguments of `gymnasium.make`, `--option
KEY=VALUE` on the command line, and `env.options.KEY=VALUE` in a [run's settings](settings.md). `trace-gym envs` lists the ids,
`trace-gym play ID` puts you in the agent's place, `trace-gym check ID` tries every rule of forking.

What holds for all: an action is any string; one that cannot be read costs a turn and is answered by an error. The
reward is 0 until the end and then 0 or 1 unless said otherwise. `info` tells the `task_id`, the `role` of the
observation (user or tool), and at the end `success`; at `reset` also the instructions (`system`) and the `tools`.

A tool's *effect* says what forks have to know: `pure` changes nothing, `stateful` changes what the snapshot holds,
`recorded` asks a service and keeps the answer ([external services](../external.md)), `irreversible` cannot be
undone, so no later state can be forked."""


def page() -> str:
    """The page."""
    return "\n\n".join([HEAD, *map(_environment, specs())])


def specs() -> list[EnvSpec]:
    """The ids of trace_gym itself."""
    return [spec for spec in environment_specs() if spec.namespace == "trace_gym"]


def options(spec: EnvSpec) -> list[inspect.Parameter]:
    """What may be passed to `gymnasium.make`."""
    return [p for p in inspect.signature(_class(spec)).parameters.values() if p.kind is not p.VAR_KEYWORD]


def option_texts(spec: EnvSpec) -> dict[str, str]:
    """What the class's docstring says of each option: `name`: words, up to the next one."""
    names = {option.name for option in options(spec)}
    found: dict[str, str] = {}
    for paragraph in _doc(spec).split("\n\n"):
        pieces = re.split(r"(?<!\S)((?:`\w+`(?:, | and )?)+): ", " ".join(paragraph.split()))
        for heads, text in zip(pieces[1::2], pieces[2::2], strict=True):
            text = text.partition(" Raises `")[0].strip()
            found |= {name: text for name in re.findall(r"`(\w+)`", heads) if name in names}
    for name in names - found.keys():  # explained beside the option that it belongs to
        found[name] = next((text for text in found.values() if f"`{name}`" in text), "")
    return found


def _class(spec: EnvSpec) -> type[ForkableEnv[Any]]:
    assert isinstance(spec.entry_point, str)
    made: Any = load_env_creator(spec.entry_point)
    return made  # type: ignore[no-any-return]


def _doc(spec: EnvSpec) -> str:
    return inspect.getdoc(_class(spec)) or ""


def _environment(spec: EnvSpec) -> str:
    env = make_env(spec.id)
    first, *others = _doc(spec).split("\n\n")
    about, *_ = re.split(r"(?<=[.])\s+Raises `", first)
    told = [part for part in others if not re.match(r"`\w+`(, `\w+`)*: |Raises ", part)]
    texts = option_texts(spec)
    rows = [
        [
            code(option.name),
            takes(str(option.annotation), _class(spec).__module__),
            code(repr(option.default)),
            cell(texts.get(option.name, "")),
        ]
        for option in options(spec)
    ]
    return "\n\n".join(
        [
            f"## {spec.id}",
            prose("\n\n".join([about, *told])),
            "### Options",
            table(["option", "takes", "default", "meaning"], rows),
            "### Tasks",
            *_tasks(env),
            "### Tools",
            *_tools(env),
            "### An episode",
            *_episode(env),
        ]
    ).replace("\n### ", f"\n### {spec.name}: ")


def _tasks(env: ForkableEnv[Any]) -> Iterator[str]:
    rows = []
    for split in SPLITS:
        try:
            ids = env.tasks(split)
        except TaskError:
            continue
        rows.append([code(split), f"{len(ids):,}", code(ids[0]), code(ids[-1])])
    yield "With the default options:"
    yield table(["split", "tasks", "first", "last"], rows)


def _tools(env: ForkableEnv[Any]) -> Iterator[str]:
    """Every tool of the tasks looked at, with its schema."""
    found: dict[str, Tool] = {}
    for task in env.tasks("test")[:: max(1, len(env.tasks("test")) // LOOKED_AT)]:
        env.reset(seed=0, options={"task": task})
        found |= {tool.name: tool for tool in env.tools(env.state)}
    if not found:
        yield "None: an action is the text itself."
        return
    yield f"{len(found)} in all; a task may offer some of them. As the agent is shown them, less the effect:"
    for tool in found.values():
        schema = json.dumps(tool.parameters, indent=2, ensure_ascii=False)
        body = "\n\n".join([cell(tool.description), block(schema, "json")])
        yield f'??? abstract "{tool.name}: {tool.effect}"\n' + _indented(body)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())


def _episode(env: ForkableEnv[Any]) -> Iterator[str]:
    """The first test task, played by the scripted expert."""
    task = env.tasks("test")[0]
    observation, info = env.reset(seed=0, options={"task": task})
    limit = env.snapshot().turn_limit
    yield f"The scripted solution of {code(task)}, `reset(seed=0)`; the turn limit is {limit}."
    lines = [("system", str(info["system"])), (str(info["role"]), observation)]
    ended, extra = False, set(info) - KNOWN_INFO
    while not ended:
        action = env.expert_action()
        observation, reward, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
        extra |= set(info) - KNOWN_INFO
        lines += [("agent", action), (str(info["role"]), observation)]
    yield block("\n\n".join(f"[{who}]\n{text}" for who, text in lines if text))
    yield f"Reward {reward:g}, `success` {info['success']}." + _also(sorted(extra))


def _also(keys: Sequence[str]) -> str:
    return f" `info` also told {', '.join(map(code, keys))}." if keys else ""
