r"""What the text of an answer says, before any algebra.

`normalised` takes presentation away: the last `\boxed{}`, `$…$` and currency signs, `\text{}`, spacing commands,
Markdown stars, a final full stop. `read_values` then reads plain numbers, exactly, and `same_values` compares them:

- a number is an integer or decimal (`1,234`, `1.5e3`, `3 \times 10^8`), a fraction (`3/4`, `\frac34`), a mixed
  number (`1 1/2`), perhaps with a sign, a percent sign and a unit of up to four words, which is ignored (`18 dollars`);
- several numbers (`2, 3`, `x = 2 or x = 3`, `\{2, 3\}`, `\pm 2`) are compared in any order;
- `x = 3` is 3, and never `y = 3`; in an answer any equation counts by its last side (`3*4 = 12` is 12);
- percent: `50%` equals a bare `50` and a bare `0.5`, but between two percentages only their numbers count;
- a decimal of at least 6 places stands for a fraction that does not end, if it differs by less than its last place
  and less than a hundred-thousandth.

`to_latex` and `refusal` prepare what is left for math-verify: only short text of a small alphabet, known commands and
short names gets there. All of this is linear or bounded by `MAX_CHARS`, and nothing is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

__all__ = [
    "MAX_CHARS",
    "Item",
    "normalised",
    "read_values",
    "read_words",
    "refusal",
    "same_values",
    "to_latex",
]

MAX_CHARS = 1000  # of an answer, before anything is taken away
MAX_LATEX_CHARS = 300
MAX_VALUES = 20
ROUNDED_PLACES = 6

# ---- normal form ------------------------------------------------------------------------------------------

_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox)\s*\{([^{}]*)\}")
_SPACE = re.compile(r"(?<!\\)\\ |~|\s+")
_PRESENTATION = re.compile(
    r"(\\\\)"  # a line break in a matrix stays
    r"|\\(?:left|right|displaystyle|[bB]igg?[lr]?)(?![A-Za-z])|\\[!,;:()\[\]]|\\?[$£€]|\^\s*\{?\\circ\}?|°"
)
_SPELLINGS = {
    "\\dfrac": "\\frac",
    "\\tfrac": "\\frac",
    "\\cfrac": "\\frac",
    "\\%": "%",
    "{,}": ",",
    "−": "-",
    "–": "-",
}


def normalised(text: str) -> str:
    """`text` without presentation; spaces are single. `text` holds at most `MAX_CHARS` characters."""
    text = _TEXT.sub(r" \1 ", _unboxed(text))
    text = _PRESENTATION.sub(lambda match: match[1] or "", text)
    for spelling, plain in _SPELLINGS.items():
        text = text.replace(spelling, plain)
    return _SPACE.sub(" ", text).strip(" *`\"'").rstrip(" .,;*\\")


def _unboxed(text: str) -> str:
    """The inside of the last `\\boxed{…}`, or `text` where there is none."""
    _, box, rest = text.rpartition("\\boxed{")
    depth = 1
    for i, char in enumerate(rest if box else ""):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return rest[:i]
    return rest if box else text


# ---- plain numbers ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Item:
    """One number of an answer. `value` is as written: 50 for `50%`."""

    value: Fraction
    variable: str | None = None
    percent: bool = False
    places: int = 0  # decimal places written
    calculation: bool = False  # `18/6`: a fraction that is a whole number


_DECIMAL = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
_NUMBER = re.compile(
    rf"""
      (?:(?P<whole>[0-9]+)\s*)? \\frac\s* (?:\{{\s*(?P<top>-?{_DECIMAL})\s*\}}\s*\{{\s*(?P<bottom>{_DECIMAL})\s*\}}
                                            |(?P<top1>[0-9])\s*(?P<bottom1>[0-9]))
    | (?:(?P<whole2>[0-9]+)\s+)? (?P<top2>{_DECIMAL})\s*/\s*(?P<bottom2>{_DECIMAL})
    | (?P<decimal>{_DECIMAL})
      (?:[eE](?P<e>[+-]?[0-9]{{1,3}})|\s*(?:\\times|\\cdot|[*x×·])\s*10\s*(?:\^|\*\*)\s*\{{?(?P<ten>[+-]?[0-9]{{1,3}})\}}?)?
    """,
    re.VERBOSE,
)
_PERCENT = re.compile(r"\s*(?:%|percent\b|pct\b)")
_UNIT_WORD = r"(?:[A-Za-z]{2,}|[mghslL])\.?(?:\^\{?[23]\}?|[²³])?"
_UNIT = re.compile(
    rf"\s+{_UNIT_WORD}(?:(?:\s+|/){_UNIT_WORD}){{0,3}}|(?:cm|mm|km|kg|mg|ml|ft|mph|min|hrs?)(?:\^?[23])?"
)
_OTHER_WORDS = (
    "hundred thousand million billion trillion dozen half halves third thirds quarter quarters fourth fourths fifth "
    "fifths sixth sixths seventh sevenths eighth eighths ninth ninths tenth tenths hundredth hundredths thousandth "
    "thousandths pi sqrt exp log ln sin cos tan inf or and to not plus minus times over squared cubed mod point"
)
_NOT_UNITS = frozenset(_OTHER_WORDS.split())
_BETWEEN = re.compile(r"\s*(?:;|\bor\b|\band\b|,(?![0-9]{3}(?![0-9])))\s*")
_VARIABLE = re.compile(r"[A-Za-z](?:_?\{?[A-Za-z0-9]+\}?)?")
_INEQUALITY = re.compile(r"[<>≤≥≠≈]|!=|\\(?:l|g|n)e(?:q|qslant)?(?![A-Za-z])|\\(?:l|g)t(?![A-Za-z])|\\approx")
_PLUS_MINUS = re.compile(r"(?:\\pm|±|\+/-)\s*")


def read_values(text: str, *, any_equation: bool = False) -> tuple[Item, ...] | None:
    """The numbers that normalised `text` consists of, or None if it holds anything else.

    `any_equation`: count an equation with anything on the left by its last side, not only `x = …`.
    """
    if _INEQUALITY.search(text):
        return None
    text = _without_braces(text)
    items = _read_piece(text, any_equation=False)
    if items is not None:
        return items
    pieces = [piece for piece in _BETWEEN.split(text) if piece]
    if len(pieces) > MAX_VALUES:
        return None
    several: list[Item] = []
    for piece in pieces:
        items = _read_piece(piece, any_equation)
        if items is None:
            return None
        several += items
    return tuple(several) or None


def _without_braces(text: str) -> str:
    for left, right in (("\\{", "\\}"), ("{", "}")):
        if text.startswith(left) and text.endswith(right) and len(text) > len(left + right):
            return text[len(left) : -len(right)].strip()
    return text


def _read_piece(text: str, any_equation: bool) -> tuple[Item, ...] | None:
    left, equals, text = text.rpartition("=")
    variable = left.strip() if _VARIABLE.fullmatch(left.strip()) else None
    if equals and not (variable or any_equation):
        return None
    text = text.strip()
    both = _PLUS_MINUS.match(text)
    item = _read_number(text[both.end() :] if both else text)
    if item is None:
        return None
    item = replace(item, variable=variable)
    return (item, replace(item, value=-item.value)) if both else (item,)


def _read_number(text: str) -> Item | None:
    sign = -1 if text.startswith("-") else 1
    text = text[1:].lstrip() if text[:1] in ("-", "+") else text
    if text.startswith("(") and text.endswith(")") and "," not in text:  # (1,234) is a pair
        item = _read_number(text[1:-1].strip()) if text.count("(") == 1 else None
        return item and replace(item, value=sign * item.value)
    match = _NUMBER.match(text)
    if match is None:
        return None
    rest = text[match.end() :]
    percent = _PERCENT.match(rest)
    rest = rest[percent.end() :] if percent else rest
    if rest and not _is_unit(rest):
        return None
    item = _item(match)
    return item and replace(item, value=sign * item.value, percent=percent is not None)


def _is_unit(text: str) -> bool:
    return _UNIT.fullmatch(text) is not None and _NOT_UNITS.isdisjoint(re.findall("[a-z]+", text.lower()))


def _item(match: re.Match[str]) -> Item | None:
    digits = match["decimal"]
    if digits is not None:
        places = len(digits.partition(".")[2])
        return Item(_fraction(digits) * Fraction(10) ** int(match["e"] or match["ten"] or 0), places=places)
    top = _fraction(match["top"] or match["top1"] or match["top2"])
    bottom = _fraction(match["bottom"] or match["bottom1"] or match["bottom2"])
    whole = match["whole"] or match["whole2"]
    if bottom == 0 or (whole and top < 0):
        return None
    value = top / bottom + int(whole or 0)
    return Item(value, calculation=value.denominator == 1)


def _fraction(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))


def same_values(gold: Sequence[Item], answer: Sequence[Item]) -> bool:
    """Are these the same numbers, in any order? Numbers of different variables that `answer` does not name are
    taken in the order of `gold`."""
    if len(gold) != len(answer):
        return False
    if len({item.variable for item in gold}) > 1 and not any(item.variable for item in answer):
        answer = [replace(a, variable=g.variable) for a, g in zip(answer, gold, strict=True)]
    left = list(answer)
    for item in gold:
        match = next((other for other in left if _same(item, other)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _same(gold: Item, answer: Item) -> bool:
    if gold.variable and answer.variable and gold.variable != answer.variable:
        return False
    if gold.percent == answer.percent:
        return _close(gold.value, answer)
    if gold.percent:
        return _close(gold.value, answer) or _close(gold.value / 100, answer)
    return _close(gold.value, answer) or _close(gold.value * 100, answer)


def _close(value: Fraction, answer: Item) -> bool:
    if answer.value == value:
        return True
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    off = abs(answer.value - value)
    endless = rest != 1
    return (
        endless
        and answer.places >= ROUNDED_PLACES
        and off * 10**answer.places < 1
        and off * 10**5 < abs(value)
    )


# ---- words --------------------------------------------------------------------------------------------------


def read_words(text: str) -> str | None:
    """Normalised `text` in lower case if it is a word or phrase (three letters or more), not mathematics."""
    if re.fullmatch(r"[A-Za-z][A-Za-z' -]*", text) and len(text) >= 3 and text not in _FUNCTION_NAMES:
        return text.casefold()
    return None


# ---- what may reach math-verify -------------------------------------------------------------------------------

_FUNCTION_NAMES = {"sqrt", "sin", "cos", "tan", "log", "ln", "exp", "pi", "infty", "theta", "alpha", "beta"}
_BARE_NAME = re.compile(rf"(?<![\\A-Za-z])({'|'.join(sorted(_FUNCTION_NAMES))}|infinity|inf)(?![A-Za-z])")
_SYMBOLS = {
    "**": "^", "<=": r"\le ", ">=": r"\ge ", "!=": r"\ne ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∞": r"\infty ",
    "π": r"\pi ", "θ": r"\theta ", "√": r"\sqrt", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ",
    "×": r"\cdot ", "·": r"\cdot ", "*": r"\cdot ", "÷": "/", "²": "^2", "³": "^3",
}  # fmt: skip
_KNOWN = (
    "frac sqrt cdot times div pm mp pi infty cup cap in notin setminus emptyset varnothing mathbb le leq ge geq ne "
    "neq lt gt ln log exp sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh alpha beta gamma delta epsilon "
    "theta lambda mu rho sigma phi varphi omega binom begin end overline lfloor rfloor lceil rceil"
)
_COMMANDS = frozenset(_KNOWN.split())
_ENVIRONMENTS = frozenset({"matrix", "pmatrix", "bmatrix", "vmatrix"})
_ALPHABET = re.compile(r"[0-9A-Za-z+\-/^_=<>()\[\]{}|,.;:!%&\\ ]*")
_NAME = re.compile(r"(\\?)([A-Za-z]+)")
_TOWER = re.compile(r"\^-?\d+\^|\^-?\d{4}|!{2}|\d{4}!")
MAX_NESTING = 12
MAX_DIGITS = 30
MAX_NAME = 3


def to_latex(text: str) -> str:
    """Normalised `text` with plain-text mathematics (`sqrt(8)`, `x**2`, `pi`, `≤`) written as LaTeX."""
    for symbol, command in _SYMBOLS.items():
        text = text.replace(symbol, command)
    text = _BARE_NAME.sub(lambda match: "\\infty " if match[1].startswith("inf") else f"\\{match[1]} ", text)
    return _braced(re.sub(r"\\sqrt\s+", r"\\sqrt", text))


def _braced(text: str) -> str:
    """`sqrt(…)` and `^(…)` with braces for their parentheses."""
    out: list[str] = []
    closers: list[str] = []
    for i, char in enumerate(text):
        if char == "(":
            braces = text.endswith(("\\sqrt", "^"), 0, i)
            closers.append("}" if braces else ")")
            char = "{" if braces else "("
        elif char == ")" and closers:
            char = closers.pop()
        out.append(char)
    return "".join(out)


def refusal(latex: str) -> str | None:
    """Why `latex` is not handed to math-verify, or None. Code, towers of powers and deep nesting end here."""
    if len(latex) > MAX_LATEX_CHARS:
        return f"longer than {MAX_LATEX_CHARS} characters"
    if not _ALPHABET.fullmatch(latex) or "__" in latex:
        return "characters that mathematics does not need"
    if _nesting(latex) > MAX_NESTING:
        return f"nested more than {MAX_NESTING} levels deep"
    if re.search(rf"\d{{{MAX_DIGITS + 1}}}", latex):
        return f"a number of more than {MAX_DIGITS} digits"
    if _TOWER.search(re.sub(r"[ {}()]", "", latex)):
        return "a tower of powers or factorials"
    for slash, name in _NAME.findall(latex.replace("\\\\", " ")):
        if name not in _COMMANDS if slash else len(name) > MAX_NAME and name not in _ENVIRONMENTS:
            return f"the unknown {'command' if slash else 'name'} {name[:32]!r}"
    return None


def _nesting(text: str) -> int:
    deepest = depth = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
    return deepest
