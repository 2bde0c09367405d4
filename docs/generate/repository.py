"""Pages out of the repository: which file is which page, links between them, and text taken from other files.

A page under docs/ may hold, on a line of its own,

    {code} [LiftEnv.begin, LiftEnv.advance](../examples/my_env/my_env.py)     those definitions, as they stand in the file
    {section} [Start](../README.md)                                          the text below that heading

Read on a code host these are links to the files; on the site the text itself stands there. Invariant: a name or a heading
that is gone fails the build, and so does a link whose file does not exist.
"""

from __future__ import annotations

import ast
import posixpath
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["ROOT", "code", "expand", "page_of", "pages", "section", "site_links"]

ROOT = Path(__file__).resolve().parent.parent.parent
MOVED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
RESULTS = "benchmarks/results/"

_DIRECTIVE = re.compile(r"^\{(code|section)\} \[([^\]]+)\]\(([^)]+)\)$", re.MULTILINE)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_FENCED = re.compile(r"(^(?P<fence>```+|~~~+).*?^(?P=fence)[ \t]*$)", re.MULTILINE | re.DOTALL)


# ---- pages ----------------------------------------------------------------------------------------------------------


def page_of(path: str) -> str | None:
    """The page of the site that shows a file of the repository; None for a file that has none."""
    if path in MOVED:
        return MOVED[path]
    if path.startswith(RESULTS):
        return "results/" + path.removeprefix(RESULTS)
    if path.startswith("docs/") and not path.startswith("docs/generate/"):
        return path.removeprefix("docs/")
    return None


def pages() -> Iterator[tuple[str, Path]]:
    """Page and file of everything outside docs/ that the site shows as it is."""
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        yield MOVED[name], ROOT / name
    for file in sorted((ROOT / RESULTS).rglob("*")):
        if file.is_file():
            yield f"results/{file.relative_to(ROOT / RESULTS).as_posix()}", file


# ---- links ----------------------------------------------------------------------------------------------------------


def site_links(text: str, path: str, page: str) -> str:
    """`text` of the file at `path`, its links changed to work on `page`. A link to a file without a page becomes its words."""

    def changed(match: re.Match[str]) -> str:
        mark, words, target = match.groups()
        name, hash_, anchor = target.partition("#")
        if not name or "://" in name or name.startswith("mailto:"):
            return match[0]
        where = posixpath.normpath(posixpath.join(posixpath.dirname(path), name))
        if not (ROOT / where).exists():
            return match[0]  # a generated page, or a mistake that the build reports
        there = page_of(f"{where}/README.md" if (ROOT / where / "README.md").is_file() else where)
        if there is None:
            return words
        return f"{mark}[{words}]({posixpath.relpath(there, posixpath.dirname(page) or '.')}{hash_}{anchor})"

    return outside_code(text, lambda part: _LINK.sub(changed, part))


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """`change` applied to what stands outside fenced blocks."""
    parts = _FENCED.split(text)  # text, block, its fence, text, …
    return "".join(change(part) if i % 3 == 0 else part for i, part in enumerate(parts) if i % 3 != 2)


# ---- text of other files --------------------------------------------------------------------------------------------


def expand(text: str, path: str, page: str) -> str:
    """The page's text with every directive replaced and every link changed. `path`: its file in the repository."""

    def replaced(match: re.Match[str]) -> str:
        kind, names, target = match.groups()
        where = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        source = (ROOT / where).read_text(encoding="utf-8")
        if kind == "section":
            return site_links(section(source, names, where), where, page)
        blocks = "\n\n".join(code(source, name.strip(), where) for name in names.split(","))
        return f'```python title="{where}"\n{blocks}\n```'

    out, end = [], 0
    for match in _DIRECTIVE.finditer(text):
        out += [site_links(text[end : match.start()], path, page), replaced(match)]
        end = match.end()
    return "".join([*out, site_links(text[end:], path, page)])


def section(text: str, title: str, path: str = "") -> str:
    """What stands below the heading `title`, up to the next heading of its rank. Raises `LookupError`."""
    match = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,2}} |\Z)", text, re.MULTILINE | re.DOTALL)
    if match is None:
        raise LookupError(f"{path} has no heading {title!r}")
    return match[2].strip()


def code(source: str, name: str, path: str = "") -> str:
    """The definition of `name` in Python source. Raises `LookupError`.

    A name is a function, class or assignment, `Class.method`, `Class.head` (down to its first method), `module` (the
    docstring), or a call that stands alone, such as `gymnasium.register`.
    """
    tree = ast.parse(source)
    lines = source.splitlines()
    if name == "module":
        return "\n".join(lines[: tree.body[0].end_lineno])
    owner, _, member = name.rpartition(".")
    body = tree.body
    outer = _find(body, owner) if owner else None
    if isinstance(outer, ast.ClassDef):
        if member == "head":
            first = next(node for node in outer.body if isinstance(node, ast.FunctionDef))
            return "\n".join(lines[outer.lineno - 1 : first.lineno - 1]).rstrip()
        body = outer.body
        name = member
    node = _find(body, name)
    if node is None:
        raise LookupError(f"{path} defines no {name}")
    start = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    return textwrap.dedent("\n".join(lines[start - 1 : node.end_lineno]))


def _find(body: list[ast.stmt], name: str) -> ast.stmt | None:
    return next((node for node in body if name in _names(node)), None)


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        names = [ast.unparse(target) for target in node.targets]
        return names + [part.strip() for name in names for part in name.strip("()").split(",")]
    if isinstance(node, ast.AnnAssign):
        return [ast.unparse(node.target)]
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return [ast.unparse(node.value.func)]
    return []
