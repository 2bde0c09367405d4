"""The site builds without a warning, reaches for no other host, and every link leads somewhere."""

import os
import posixpath
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from docs.generate.repository import ROOT, page_of, pages, site_links

pytestmark = pytest.mark.checkout  # the pages, not the package

GENERATED = ("environments", "algorithms", "settings", "commands", "errors")
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").rglob("README.md")),
    *sorted((ROOT / "benchmarks/results").rglob("*.md")),
]


class Loaded(HTMLParser):
    """What a browser fetches for a page, and where its links go."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.fetched.append(str(given["src"]))
        if tag == "link" and given.get("href"):
            self.fetched.append(str(given["href"]))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def build(config: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """As `make docs` does: warnings fail it."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--config-file",
            str(config),
            "--site-dir",
            str(out),
        ],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    pytest.importorskip("mkdocs", reason="the site is built with the extra 'docs'")
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.parametrize("link", ["other.md#two", "missing.md", "other.md#nowhere", "../outside.md"])
def test_a_link_that_leads_nowhere_fails_the_build(link: str, tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    ours = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    kept = {key: ours[key] for key in ("site_name", "use_directory_urls", "validation")}
    (tmp_path / "mkdocs.yml").write_text(
        yaml.safe_dump({**kept, "theme": {"name": "material", "font": False}})
    )
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text(f"# One\n\n[a link]({link})\n")
    (tmp_path / "docs/other.md").write_text("# Other\n\n## Two\n")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert (done.returncode == 0) == (link == "other.md#two"), done.stderr


def test_make_builds_strictly_and_hides_no_warning() -> None:
    """`--quiet` hides warnings from `--strict` too."""
    recipe = re.search(r"^docs:.*\n\t(.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert recipe and "mkdocs build --strict" in recipe[1] and "-q" not in recipe[1]
    assert "make docs" in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_every_page_is_there(site: Path) -> None:
    built = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    written = {path.relative_to(ROOT).as_posix() for path in PAGES if "examples" not in path.parts}
    expected = {str(page_of(path)).replace(".md", ".html").replace("README", "index") for path in written}
    assert expected | {f"reference/{name}.html" for name in GENERATED} <= built


def test_no_page_fetches_anything_from_another_host(site: Path) -> None:
    found = 0
    for path in site.rglob("*.html"):
        page = Loaded()
        page.feed(path.read_text(encoding="utf-8"))
        assert not [url for url in page.fetched if re.match(r"(\w+:)?//", url)], path
        found += len(page.fetched)
    assert found > 20
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", style.read_text(encoding="utf-8")), style


def test_no_directive_and_no_source_mark_up_is_left(site: Path) -> None:
    for path in site.rglob("*.html"):
        page = Loaded()
        page.feed(path.read_text(encoding="utf-8"))
        words = "".join(page.words)
        assert "{code}" not in words and "{section}" not in words, path
        assert not re.search(r"^\?\?\? |^\| ---", words, re.MULTILINE), path


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"`[^`\n]*`", "", text)):
        if "://" in target or target.startswith("mailto:"):
            continue
        generated = page.parent == ROOT / "docs" and re.fullmatch(r"(reference/\w+|reproduce)\.md", target)
        assert generated or (page.parent / target).exists(), f"{page.name} links to {target}"


def test_links_are_changed_for_the_page_they_stand_on() -> None:
    results = "see [the page](../benchmarks/results/trace/README.md#tables) and ![it](pictures/fork.svg)"
    assert site_links(results, "docs/trace.md", "trace.md") == (
        "see [the page](results/trace/README.md#tables) and ![it](pictures/fork.svg)"
    )
    back = "[trace](../../../docs/trace.md)"
    assert (
        site_links(back, "benchmarks/results/trace/x.md", "results/trace/x.md") == "[trace](../../trace.md)"
    )


def test_a_link_to_a_file_without_a_page_is_its_words_and_code_is_left_alone() -> None:
    text = "[`lift`](../examples/my_env/my_env.py)\n\n```\n[x](../examples/my_env)\n```\n"
    assert site_links(text, "docs/a.md", "a.md") == "`lift`\n\n```\n[x](../examples/my_env)\n```\n"


def test_links_elsewhere_and_links_that_lead_nowhere_stay_for_the_build_to_judge() -> None:
    text = "[a](https://example.org/x.md) [b](#here) [c](missing.md)"
    assert site_links(text, "docs/a.md", "a.md") == text


def test_every_file_of_the_results_has_its_page() -> None:
    shown = dict(pages())
    for path in (ROOT / "benchmarks/results").rglob("*"):
        if path.is_file():
            name = posixpath.join("results", path.relative_to(ROOT / "benchmarks/results").as_posix())
            assert shown[name] == path
