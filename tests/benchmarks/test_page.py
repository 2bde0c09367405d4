"""Pages: whatever a text holds, it stays text."""

import base64
import re
import time
from html.parser import HTMLParser
from pathlib import Path

from markdown_it import MarkdownIt

from trace_gym.benchmarks.page import (
    Block,
    Code,
    Heading,
    Picture,
    Table,
    Text,
    to_html,
    to_markdown,
    write_page,
)

HOSTILE = "<script>alert(1)</script> \"'&| `x` ``` </pre></td> [a](javascript:b) ![i](http://x) \x1b[2J\u202e"
BLOCKS: list[Block] = [
    Heading(HOSTILE),
    Text(HOSTILE),
    Table([HOSTILE, "n"], [[HOSTILE, "1,234"], ["b", "+0.100 [-0.050, +0.250]"]]),
    Picture("one", b"<svg onload='x'/>", HOSTILE),
    Code(HOSTILE),
    Code(HOSTILE, HOSTILE),
]


OWN = {
    *("html", "head", "meta", "title", "style", "body", "h2", "p", "code", "pre", "details", "summary"),
    *("div", "table", "thead", "tbody", "tr", "th", "td", "figure", "img", "figcaption"),
}


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def test_html_holds_no_tag_but_its_own_and_fetches_nothing() -> None:
    page = to_html(BLOCKS, title=HOSTILE)
    tags = Tags()
    tags.feed(page)
    names = {tag for tag, _ in tags.seen}
    assert names <= OWN
    for tag, attributes in tags.seen:
        assert not [name for name in attributes if name.startswith("on")]
        assert "href" not in attributes and (
            tag != "img" or str(attributes["src"]).startswith("data:image/svg+xml;base64,")
        )
    assert "default-src 'none'" in page and "\x1b" not in page and "\u202e" not in page
    assert base64.b64encode(b"<svg onload='x'/>").decode() in page and "<svg" not in page


def test_numbers_stand_to_the_right() -> None:
    page = to_html(BLOCKS, title="t")
    assert (
        '<td class="number">1,234</td>' in page and '<td class="number">+0.100 [-0.050, +0.250]</td>' in page
    )
    assert "<td>b</td>" in page


def test_markdown_keeps_texts_in_their_places() -> None:
    page = to_markdown(BLOCKS)
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len(table) == 4
    for line in table:
        assert len(re.findall(r"(?<!\\)\|", line)) == 3, "no cell more than there should be"
    outside = re.sub(r"(?s)^(`{3,})\n.*?\n\1$", "", page, flags=re.MULTILINE)
    outside = re.sub(r"<summary>.*</summary>", "", outside)  # HTML: escaped as such
    assert "<script>" not in re.sub(r"\\[<>]", "", outside)
    assert not re.search(r"(?<!\\)\]\((?!one\.svg)", outside), "no link but to the picture"
    fences = re.findall(r"^(`{3,})$", page, re.MULTILINE)
    assert fences == ["````"] * 4, "longer than any run of back-quotes inside"


ADDRESSES = (
    "http://a.b/c_d, https://a.b|c HTTP://A.B see:ftp://a.b www.a.b (www.a.b/c) WWW.a.b x=http://a.b `http://a.b` \\http://a.b "
    "\\|www.a.b me@a.b a_b@a.b @me @me/us (@me) x`@me` #123 a/b#123 a/b@0a1b2c3 GH-123 <http://a.b> <me@a.b> "
    "[a](http://a.b) &commat;me me&#64;a.b"
)


def test_no_bare_address_name_or_number_becomes_a_link() -> None:
    """Code hosts make links of them escaped or not, but not in code."""
    blocks: list[Block] = [
        Heading(ADDRESSES),
        Text(ADDRESSES),
        Text(ADDRESSES + "`"),
        Table([ADDRESSES, "n"], [[ADDRESSES, "1"]]),
    ]
    page = to_markdown([*blocks, Code("x", ADDRESSES)])
    tokens = MarkdownIt("commonmark").enable("table").parse(page)
    shown = [token.children or [] for token in tokens if token.type == "inline"]
    shown = [parts for parts in shown if len(parts) > 1]  # what is hostile
    assert {part.type for parts in shown for part in parts} == {"text", "code_inline"}
    told = ["".join(part.content for part in parts) for parts in shown]
    assert told == [ADDRESSES, ADDRESSES.replace("`", ""), ADDRESSES + "`", ADDRESSES, ADDRESSES]
    (folded,) = (
        token.content for token in tokens if token.type == "html_block" and "summary" in token.content
    )
    bare = [re.sub("<code>.*?</code>", "…", folded)]
    bare += ["".join("…" if p.type == "code_inline" else p.content for p in parts) for parts in shown]
    for text in bare:
        assert not re.search(r"://|www\.|@\w|#\d|gh-\d", text, re.IGNORECASE), text


def test_long_words_take_no_longer() -> None:
    start = time.perf_counter()
    to_markdown([Text("a" * 1_000_000), Text("a@" * 100_000)])
    assert time.perf_counter() - start < 5


def test_a_page_is_written_with_its_pictures(tmp_path: Path) -> None:
    written = write_page(tmp_path / "new", BLOCKS, title="t")
    assert [path.name for path in written] == ["README.md", "index.html", "one.svg"]
    assert all(path.stat().st_size for path in written)
