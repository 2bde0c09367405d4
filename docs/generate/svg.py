"""Pictures as SVG text: a few shapes on a sheet of paper.

Invariant: a picture reads in greys and on a dark page. It brings its own light background, and whatever a colour says is said
by a shape or a word too: success is a filled mark with 1, failure a hollow one with 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["ACCENT", "INK", "MUTED", "PALE", "PAPER", "Picture"]

PAPER, INK, MUTED, PALE, ACCENT = "#fbfaf7", "#1f2328", "#656d76", "#dbe7f3", "#1f5f99"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


class Picture:
    """A sheet that shapes are put on; `str` is the file. `title` and `words` are for who cannot see it."""

    def __init__(self, width: float, height: float, title: str, words: str) -> None:
        self.size = width, height
        self.title, self.words = title, words
        self.parts: list[str] = []

    def __str__(self) -> str:
        width, height = self.size
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
                f'height="{height:g}" role="img" font-family="{FONT}" font-size="13">',
                f"<title>{escape(self.title)}</title>",
                f"<desc>{escape(self.words)}</desc>",
                '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
                f'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{INK}"/></marker></defs>',
                f'<rect width="{width:g}" height="{height:g}" rx="8" fill="{PAPER}"/>',
                *self.parts,
                "</svg>\n",
            ]
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        at: str = "start",
        fill: str = INK,
        size: float = 13,
        mono: bool = False,
        bold: bool = False,
    ) -> None:
        font = f' font-family="{MONO}"' if mono else ""
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{at}" fill="{fill}" font-size="{size:g}"{font}{weight} '
            f'xml:space="preserve">{escape(words)}</text>'
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str = "none",
        dashed: bool = False,
        stroke: str = INK,
    ) -> None:
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" fill="{fill}" stroke="{stroke}"{dash}/>'
        )

    def label(
        self, x: float, y: float, width: float, words: str, *, fill: str = "#ffffff", dashed: bool = False
    ) -> None:
        """A box 30 high, centred on `y`, with words in its middle."""
        self.box(x, y - 15, width, 30, fill=fill, dashed=dashed)
        self.text(x + width / 2, y + 4.5, words, at="middle")

    def line(self, points: Sequence[tuple[float, float]], *, tip: bool = False, dashed: bool = False) -> None:
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        end = ' marker-end="url(#tip)"' if tip else ""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{INK}" stroke-width="1.2"{end}{dash}/>'
        )

    def outcome(self, x: float, y: float, reward: float) -> None:
        """How a rollout ended: filled with 1, hollow with 0, or a dash where it was not scored."""
        good = reward == 1
        fill, ink = (INK, "#ffffff") if good else ("#ffffff", INK)
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="10" fill="{fill}" stroke="{INK}"/>')
        self.text(x, y + 4.5, f"{reward:g}" if reward == reward else "–", at="middle", fill=ink, bold=True)
