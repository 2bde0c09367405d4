"""The errors' page: every message in the code, beside what was written about its kind in errors.md.

Messages are read from the source: wherever a `TraceGymError` is made, with … for what is filled in. Invariant: a message that
the code can give stands on the page under its class, in the first group of errors.md whose files it comes from.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from docs.generate.repository import ROOT
from docs.generate.text import code
from trace_gym import errors

__all__ = ["Group", "Message", "groups", "messages", "page"]

NOTES = Path(__file__).parent / "errors.md"
FOLDERS = ("trace_gym", "envs", "algorithms")
FILLED = "…"
# Exceptions inside the code whose text becomes part of a user's message.
REASONS = {
    "Broken": "EnvironmentContractError",
    "UnusableError": "TaskError",
    "WireError": "ExternalError",
    "_Transient": "ExternalError",
    "_Unsupported": "ConfigError",
}
TEXT = ast.Constant | ast.JoinedStr | ast.IfExp
Names = dict[str, ast.expr | ast.FunctionDef]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the code, … for what is filled in; `reason` where it stands inside another one."""

    error: str
    text: str
    file: str  # in the repository
    reason: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """What errors.md says of messages of one class, from some files (none: all that remain)."""

    error: str
    title: str
    advice: str
    files: tuple[str, ...] = ()
    found: list[Message] = field(default_factory=list)

    def takes(self, message: Message) -> bool:
        return message.error == self.error and (
            not self.files or any(message.file.startswith(file) for file in self.files)
        )


def page() -> str:
    """The page."""
    sorted_into = groups()
    for message in messages():
        home = [group for group in sorted_into if group.files and group.takes(message)]
        home += [group for group in sorted_into if group.takes(message)]
        if not home:
            raise LookupError(f"{NOTES.name} says nothing about {message.error} ({message.file})")
        home[0].found.append(message)
    head = NOTES.read_text(encoding="utf-8").partition("\n## ")[0]
    return "\n\n".join([head, *map(_shown, sorted_into)])


def _shown(group: Group) -> str:
    title = f"## {group.title}" if group.title == group.error else f"### {group.title}"
    told = [m for m in group.found if any(map(str.isalpha, m.text))]  # else it is filled in from end to end
    lines = dict.fromkeys(
        f"- {code(m.text)}{' (as a reason)' if m.reason else ''}" for m in told
    )  # each once
    return "\n\n".join(part for part in (title, group.advice, "\n".join(lines)) if part)


# ---- what was written by hand ---------------------------------------------------------------------------------------


def groups() -> list[Group]:
    """The groups of errors.md: `## Class`, and below it `### Title` with a line `files: …`."""
    found = []
    for part in re.split(r"^## ", NOTES.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        error, *inner = re.split(r"^### ", part, flags=re.MULTILINE)
        name, _, advice = error.partition("\n")
        found.append(Group(name.strip(), name.strip(), advice.strip()))
        for text in inner:
            title, _, body = text.partition("\n")
            files = re.search(r"^files: (.*)$", body, re.MULTILINE)
            if files is None:
                raise LookupError(f"{NOTES.name}: the group {title!r} has no line `files: …`")
            advice = body.replace(files[0], "").strip()
            found.append(Group(name.strip(), title.strip(), advice, tuple(files[1].split())))
    return found


# ---- what the code says ---------------------------------------------------------------------------------------------


def messages() -> Iterator[Message]:
    """Every message, by file and line."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield from _messages(path)


def _messages(path: Path) -> Iterator[Message]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = _definitions(tree)
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.args]
    for call in sorted(calls, key=lambda call: call.lineno):
        name = ast.unparse(call.func)
        error = REASONS.get(name, name)
        if error in errors.__all__:
            for words in _texts(call.args[0], names):
                text = re.sub(f"{FILLED}+", FILLED, words)
                yield Message(error, text, path.relative_to(ROOT).as_posix(), name in REASONS)


def _definitions(tree: ast.Module) -> Names:
    """Functions, methods and module-level constants by name."""
    names: Names = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names[node.targets[0].id] = node.value
    return names


def _texts(node: ast.expr, names: Names) -> list[str]:
    """What an expression may say. An unknown part is ‘…’."""
    match node:
        case ast.Constant(str(text)):
            return [text]
        case ast.JoinedStr(parts):
            return _product([_texts(part, names) for part in parts])
        case ast.FormattedValue(ast.Name(name)) if isinstance(names.get(name), TEXT):
            return _texts(names[name], names)  # type: ignore[arg-type]  # it is an expression
        case ast.BinOp(left, ast.Add(), right):
            return _product([_texts(left, names), _texts(right, names)])
        case ast.IfExp(_, one, other):
            return _texts(one, names) + _texts(other, names)
        case ast.Subscript(ast.Name(name)) if isinstance(table := names.get(name), ast.Dict):
            return [text for value in table.values for text in _texts(value, names)]
        case ast.Call(ast.Attribute(ast.Constant("\n"), "join"), [ast.GeneratorExp(element)]):
            return _texts(element, names)
        case ast.Call(ast.Name(name) | ast.Attribute(ast.Name("self"), name)):
            return _returned(names.get(name), names)
    return [FILLED]


def _returned(function: object, names: Names) -> list[str]:
    """What a function of the module may return."""
    if not isinstance(function, ast.FunctionDef):
        return [FILLED]
    returns = [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value]
    local: dict[str, ast.expr] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name):
            before = local.get(target.id)  # a name that is given several values may say any of them
            local[target.id] = ast.IfExp(ast.Constant(True), before, node.value) if before else node.value
    inside: Names = {**names, **local}
    return [text for value in returns for text in _texts(value, inside)] or [FILLED]


def _product(parts: list[list[str]]) -> list[str]:
    texts = [""]
    for choices in parts:
        texts = [text + choice for text in texts for choice in choices]
    return texts
