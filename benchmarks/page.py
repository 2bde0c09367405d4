"""A page as a list of blocks, written once as Markdown with its pictures beside it and once as one HTML file with them inside.

Invariant: every text is hostile. In HTML all of it is escaped and nothing is fetched or run (the page forbids itself both); in
Markdown it can neither leave its table cell or its code block nor become a tag or a link. A bare address, `@name` or `#123` is
made a link by code hosts however it is escaped, and is left alone in code: so there it stands as code.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trace_gym.observer import printable

__all__ = ["Block", "Code", "Heading", "Picture", "Table", "Text", "to_html", "to_markdown", "write_page"]

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }
html { background: #fff }
h1, h2, h3 { line-height: 1.2; margin-top: 2em }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid #ccc; text-align: left; vertical-align: top }
th { border-bottom: 2px solid #555 }
td.number { text-align: right; white-space: nowrap }
img { max-width: 100%; height: auto }
figure { margin: 1.5rem 0 }
figcaption { color: #444; font-size: 0.9rem }
pre { background: #f4f4f4; padding: 0.8rem; overflow-x: auto; font-size: 0.8rem }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_BETWEEN = re.compile(r"([\s`|\\<>()\[\]]+)")  # words
_LINK = re.compile(r"://|www\.|@\w|#\d|\bGH-\d", re.IGNORECASE)
_MARK = re.compile(r"[\\`*_\[\]<>#]|&(?=#?\w+;)")
_NUMBER = re.compile(r"^[+-]?[\d,.]+%?( \[.*\]| to [\d,.]+)?$|^–$")


@dataclass(frozen=True, slots=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Table:
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Picture:
    """`name` is that of the file beside the Markdown page; `alt` says what is to be seen."""

    name: str
    svg: bytes
    alt: str


@dataclass(frozen=True, slots=True)
class Code:
    text: str
    summary: str = ""  # folded behind this line, where that can be


Block = Heading | Text | Table | Picture | Code


def write_page(folder: Path, blocks: Sequence[Block], *, title: str) -> list[Path]:
    """`README.md`, its pictures, and `index.html` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "README.md", folder / "index.html"]
    written[0].write_text(to_markdown(blocks), encoding="utf-8")
    written[1].write_text(to_html(blocks, title=title), encoding="utf-8")
    for block in blocks:
        if isinstance(block, Picture):
            written.append(folder / f"{block.name}.svg")
            written[-1].write_bytes(block.svg)
    return written


# ---- HTML -----------------------------------------------------------------------------------------------------------


def to_html(blocks: Sequence[Block], *, title: str) -> str:
    """One file without scripts, pictures as data."""
    body = "\n".join(_html(block) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escaped(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_escaped(text)}</h{level}>"
        case Text(text):
            return f"<p>{_marked(text)}</p>"
        case Table(headers, rows):
            head = "".join(f"<th>{_escaped(name)}</th>" for name in headers)
            lines = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
            return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table></div>'
        case Picture(_, svg, alt):
            data = base64.b64encode(svg).decode()
            image = f'<img alt="{_escaped(alt)}" src="data:image/svg+xml;base64,{data}">'
            return f"<figure>{image}<figcaption>{_escaped(alt)}</figcaption></figure>"
        case Code(text, summary):
            code = f"<pre>{_escaped(text)}</pre>"
            return f"<details><summary>{_escaped(summary)}</summary>{code}</details>" if summary else code


def _cell(text: str) -> str:
    return (
        f'<td class="number">{_escaped(text)}</td>' if _NUMBER.match(text) else f"<td>{_escaped(text)}</td>"
    )


def _escaped(text: str) -> str:
    return html.escape(printable(text), quote=True)


def _marked(text: str) -> str:
    """Escaped text, with `code` shown as such."""
    parts = printable(text).split("`")
    if len(parts) % 2 == 0:  # an open mark is no mark
        return _escaped(text)
    return "".join(f"<code>{html.escape(p)}</code>" if i % 2 else html.escape(p) for i, p in enumerate(parts))


# ---- Markdown -------------------------------------------------------------------------------------------------------


def to_markdown(blocks: Sequence[Block]) -> str:
    """The page as Markdown; pictures are `NAME.svg` beside it."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Text(text):
            return _plain(text, code=True)
        case Table(headers, rows):
            lines = [headers, ["---"] * len(headers), *rows]
            return "\n".join("| " + " | ".join(map(_table_cell, line)) + " |" for line in lines)
        case Picture(name, _, alt):
            return f"![{_plain(alt)}]({name}.svg)"
        case Code(text, summary):
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
            code = f"{fence}\n{printable(text).rstrip()}\n{fence}"
            return (
                f"<details><summary>{_summary(summary)}</summary>\n\n{code}\n\n</details>"
                if summary
                else code
            )


def _table_cell(text: str) -> str:
    return text if text == "---" else _plain(text).replace("|", "\\|")


def _summary(text: str) -> str:
    """HTML, which a page of Markdown may hold."""
    words = _BETWEEN.split(printable(text))
    return "".join(f"<code>{html.escape(w)}</code>" if _LINK.search(w) else html.escape(w) for w in words)


def _plain(text: str, *, code: bool = False) -> str:
    """On one line, with what Markdown would read as a mark made plain; `code` leaves pairs of back-quotes."""
    line = " ".join(printable(text).split())
    parts = line.split("`")
    if not code or len(parts) % 2 == 0:
        return _unmarked(line)
    return "`".join(part if i % 2 else _unmarked(part) for i, part in enumerate(parts))


def _unmarked(line: str) -> str:
    return "".join(
        f"`{word}`" if _LINK.search(word) else _MARK.sub(r"\\\g<0>", word) for word in _BETWEEN.split(line)
    )
