"""A real browser for tests and for pictures: Debian's Chromium, driven by Playwright.

python -m tests.support.browser PAGE.html PICTURE.png [WIDTH HEIGHT]     a picture of a local page
"""

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """The browser's path; TRACE_GYM_CHROMIUM names another."""
    return os.environ.get("TRACE_GYM_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def open_browser() -> Iterator["Browser"]:
    """A headless Chromium. Skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    path = chromium()
    if path is None:
        pytest.skip("there is no chromium: apt-get install chromium, or name one with TRACE_GYM_CHROMIUM")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses its sandbox to root
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=sandbox)
        try:
            yield browser
        finally:
            browser.close()


def take_picture(source: str | Path, to: Path, *, width: int = 1280, height: int = 800) -> None:
    """A picture of a local HTML file, the whole page."""
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(Path(source).resolve().as_uri())
        keep_picture(page.screenshot(full_page=True), to)


def keep_picture(png: bytes, to: Path) -> None:
    """Write the picture with at most 256 colours, which is a third of the bytes."""
    to.parent.mkdir(parents=True, exist_ok=True)
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256).save(to, optimize=True)


if __name__ == "__main__":
    page, picture, *size = sys.argv[1:]
    width, height = map(int, size) if size else (1280, 800)
    take_picture(page, Path(picture), width=width, height=height)
