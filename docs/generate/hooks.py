"""What mkdocs runs: generated pages, pages from elsewhere in the repository, and the links between them.

Nothing generated is committed, so nothing can be out of date; none of it imports torch.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.append(str(Path(__file__).resolve().parent.parent.parent))  # `mkdocs` alone does not look in here

from docs.generate import algorithms, benchmarks, commands, environments, errors, settings
from docs.generate.repository import expand, page_of, pages

GENERATED = {
    "reproduce.md": benchmarks.page,
    "reference/environments.md": environments.page,
    "reference/algorithms.md": algorithms.page,
    "reference/settings.md": settings.page,
    "reference/commands.md": commands.page,
    "reference/errors.md": errors.page,
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what does not lie in docs/."""
    for uri, page in GENERATED.items():
        files.append(File.generated(config, uri, content=page()))
    for uri, path in pages():
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in what a page takes from other files, and make its links work here."""
    return expand(markdown, _source(page.file.src_uri), page.file.src_uri)


def on_post_build(config: MkDocsConfig) -> None:
    """Keep the build quick."""
    assert "torch" not in sys.modules, "a generated page imports torch"


def _source(uri: str) -> str:
    """The file in the repository that a page is made from."""
    elsewhere = {there: path for path in ("CONTRIBUTING.md", "CHANGELOG.md") if (there := page_of(path))}
    if uri.startswith("results/"):
        return "benchmarks/" + uri
    return elsewhere.get(uri, f"docs/{uri}")
