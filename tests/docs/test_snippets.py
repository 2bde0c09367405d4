"""Text taken from other files: by name and by heading, and loudly missing when it is gone."""

import re
from pathlib import Path

import pytest

from docs.generate.repository import ROOT, code, expand, section

pytestmark = pytest.mark.checkout

PAGES = sorted((ROOT / "docs").glob("*.md"))
SOURCE = '''"""Top."""
import x

LOW, HIGH = 0, 9


class A:
    """An A."""

    n: int = 3

    def f(self) -> int:
        return 1

    @property
    def g(self) -> int:
        return 2


x.register("id", entry=1)
'''


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("module", '"""Top."""'),
        ("HIGH", "LOW, HIGH = 0, 9"),
        ("A.head", 'class A:\n    """An A."""\n\n    n: int = 3'),
        ("A.f", "def f(self) -> int:\n    return 1"),
        ("A.g", "@property\ndef g(self) -> int:\n    return 2"),
        ("x.register", 'x.register("id", entry=1)'),
    ],
)
def test_a_definition_is_found_by_its_name(name: str, text: str) -> None:
    assert code(SOURCE, name) == text


@pytest.mark.parametrize("name", ["B", "A.h", "f", "x.other"])
def test_a_name_that_is_gone_is_an_error(name: str) -> None:
    with pytest.raises(LookupError, match=r"a\.py defines no"):
        code(SOURCE, name, "a.py")


def test_a_section_ends_at_the_next_heading_of_its_rank() -> None:
    text = "# T\n\n## One\n\na\n\n### Inner\n\nb\n\n## Two\n\nc\n"
    assert section(text, "One") == "a\n\n### Inner\n\nb"
    with pytest.raises(LookupError, match="no heading 'Three'"):
        section(text, "Three", "a.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_directive_of_the_pages_is_filled_in(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    directives = re.findall(r"^\{(?:code|section)\}.*$", text, re.MULTILINE)
    told = expand(text, f"docs/{page.name}", page.name)
    assert not [line for line in directives if line in told]
    if page.name.startswith("write-an-"):
        assert len(directives) >= 3


def test_the_lift_is_shown_whole() -> None:
    """No definition of the example is left out of its page, so that the page explains all of it."""
    page = (ROOT / "docs/write-an-environment.md").read_text(encoding="utf-8")
    source = (ROOT / "examples/my_env/my_env.py").read_text(encoding="utf-8")
    named = {
        name.strip()
        for names in re.findall(r"^\{code\} \[(.*?)\]", page, re.MULTILINE)
        for name in names.split(",")
    }
    defined = set(re.findall(r"^(?:class |def )(\w+)", source, re.MULTILINE))
    methods = {f"LiftEnv.{name}" for name in re.findall(r"^    def (\w+)", source, re.MULTILINE)}
    assert (defined - {"LiftEnv"}) | methods <= named
