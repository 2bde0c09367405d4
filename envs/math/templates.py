"""The sentences and arithmetic of the built-in problems, as tables.

A clause kind is one step: the operation that its sentence means (`right`) and, for about half of the kinds,
the one a hasty reader would take (`slip`). The slip belongs to the kind, not to the sentence's numbers, so an
agent can learn from reward alone which reading is right. Placeholders: `{a}` whose things are counted, `{b}`
someone else, `{n}` the things, `{m}` the things they become, `{k}` the number, `{part}` the number as a
fraction's name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = [
    "CONTAINERS",
    "EQUATIONS",
    "LETTERS",
    "LETTER_KINDS",
    "MONEY",
    "NAMES",
    "NOUNS",
    "OPENINGS",
    "OPERATIONS",
    "PARTS",
    "WORD_KINDS",
    "EquationKind",
    "Kind",
    "Operation",
]

NAMES = ("Ann", "Ben", "Cara", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivy", "Jon")
NOUNS = ("marbles", "stickers", "shells", "pens", "cards", "beads", "stamps", "nuts", "buttons", "ribbons")
CONTAINERS = ("bags", "boxes", "jars")
MONEY = ("coins", "tokens", "tickets")
LETTERS = ("x", "y", "z", "w", "v")
PARTS = {3: "third", 4: "quarter", 5: "fifth"}


@dataclass(frozen=True, slots=True)
class Operation:
    """A calculator expression over the running value `{x}` and the clause's number `{k}`, and its value.

    `value(x, k)` is None where the result is not whole.
    """

    expression: str
    value: Callable[[int, int], int | None]


def _whole(numerator: int, denominator: int) -> int | None:
    quotient, rest = divmod(numerator, denominator)
    return None if rest else quotient


OPERATIONS = {
    "add": Operation("{x}+{k}", lambda x, k: x + k),
    "subtract": Operation("{x}-{k}", lambda x, k: x - k),
    "multiply": Operation("{x}*{k}", lambda x, k: x * k),
    "divide": Operation("{x}/{k}", lambda x, k: _whole(x, k)),
    "percent": Operation("{x}*{k}/100", lambda x, k: _whole(x * k, 100)),
    "less percent": Operation("{x}-{x}*{k}/100", lambda x, k: _whole(x * (100 - k), 100)),
    "more percent": Operation("{x}+{x}*{k}/100", lambda x, k: _whole(x * (100 + k), 100)),
    "less part": Operation("{x}-{x}/{k}", lambda x, k: _whole(x * (k - 1), k)),
    "more part": Operation("{x}+{x}/{k}", lambda x, k: _whole(x * (k + 1), k)),
    "both": Operation("{x}+{x}+{k}", lambda x, k: x + x + k),
}

_MANY = tuple(range(2, 100))
_FEW = tuple(range(2, 10))
_PERCENT = (10, 20, 25, 30, 40, 50, 60, 75, 80, 90)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of clause. `names_other` makes `{b}` the one whose things are counted from here on."""

    name: str
    right: str  # of OPERATIONS
    wordings: tuple[str, ...]
    numbers: tuple[int, ...] = _MANY  # what `{k}` may be
    slip: str | None = None  # of OPERATIONS
    names_other: bool = False
    becomes: tuple[str, ...] = ()  # what `{m}` may be

    @property
    def states_number(self) -> bool:
        """Whether the number can be read in the sentence ("twice" and "half" cannot vary)."""
        return len(self.numbers) > 1


OPENINGS = ("{a} has {x} {n}.", "{a} starts with {x} {n}.", "At first {a} has {x} {n}.")

WORD_KINDS = (
    Kind(
        "buy",
        "add",
        ("{a} buys {k} more {n}.", "{a} buys another {k} {n}.", "Then {a} is given {k} more {n}."),
    ),
    Kind(
        "find",
        "add",
        ("{a} finds {k} {n} at home.", "{a} finds {k} more of them.", "Later {a} finds another {k} {n}."),
    ),
    Kind(
        "give",
        "subtract",
        ("{a} gives {k} {n} to {b}.", "{a} gives {b} {k} of them.", "Then {b} takes {k} of the {n}."),
    ),
    Kind(
        "lose",
        "subtract",
        ("{a} loses {k} {n}.", "{a} loses {k} of them.", "Then {k} of the {n} are lost."),
    ),
    Kind(
        "double",
        "multiply",
        ("The number of {n} doubles.", "{a} doubles the number of {n}.", "Then {a} gets twice as many {n}."),
        numbers=(2,),
    ),
    Kind(
        "times",
        "multiply",
        ("{b} has {k} times as many.", "{b} has {k} times as many {n}.", "{b} owns {k} times that number."),
        numbers=_FEW,
        names_other=True,
    ),
    Kind(
        "more",
        "add",
        ("{b} has {k} more than {a}.", "{b} has {k} more {n} than {a}.", "{b} owns {k} more than that."),
        names_other=True,
    ),
    Kind(
        "fewer",
        "subtract",
        ("{b} has {k} fewer than {a}.", "{b} has {k} fewer {n} than {a}.", "{b} owns {k} fewer than that."),
        names_other=True,
    ),
    Kind(
        "piles",
        "divide",
        (
            "{a} makes {k} equal piles and keeps one.",
            "{a} splits them into {k} equal piles and keeps one pile.",
            "Then {a} keeps one of {k} equal piles.",
        ),
        numbers=_FEW,
    ),
    Kind(
        "half",
        "divide",
        ("{a} keeps only half of them.", "{a} sells half of the {n}.", "Then half of them are lost."),
        numbers=(2,),
    ),
    Kind(
        "trade",
        "multiply",
        (
            "{a} trades each of them for {k} {m}.",
            "{a} swaps every one for {k} {m}.",
            "For each of them {a} gets {k} {m}.",
        ),
        numbers=_FEW,
        becomes=MONEY,
    ),
    Kind(
        "is more",
        "subtract",
        (
            "That is {k} more than {b} has.",
            "That is {k} more {n} than {b} has.",
            "{a} now has {k} more than {b}.",
        ),
        slip="add",
        names_other=True,
    ),
    Kind(
        "is fewer",
        "add",
        (
            "That is {k} fewer than {b} has.",
            "That is {k} fewer {n} than {b} has.",
            "{a} now has {k} fewer than {b}.",
        ),
        slip="subtract",
        names_other=True,
    ),
    Kind(
        "is times",
        "divide",
        (
            "That is {k} times as many as {b} has.",
            "That is {k} times what {b} has.",
            "{a} now has {k} times as many as {b}.",
        ),
        numbers=_FEW,
        slip="multiply",
        names_other=True,
    ),
    Kind(
        "pack",
        "divide",
        (
            "{a} packs them into {m} of {k}.",
            "{a} fills {m} with {k} {n} each.",
            "They go into {m} of {k} each.",
        ),
        numbers=_FEW,
        slip="multiply",
        becomes=CONTAINERS,
    ),
    Kind(
        "percent sold",
        "less percent",
        (
            "{a} sells {k} percent of them.",
            "{a} sells {k} percent of the {n}.",
            "Then {k} percent of them are sold.",
        ),
        numbers=_PERCENT,
        slip="percent",
    ),
    Kind(
        "percent more",
        "more percent",
        (
            "The number of {n} grows by {k} percent.",
            "{a} gets {k} percent more {n}.",
            "Then there are {k} percent more {n}.",
        ),
        numbers=_PERCENT,
        slip="add",
    ),
    Kind(
        "half again",
        "more part",
        (
            "{a} buys half as many again.",
            "{a} gets half as many {n} again.",
            "Then {a} finds half as many again.",
        ),
        numbers=(2,),
        slip="divide",
    ),
    Kind(
        "part lost",
        "less part",
        (
            "{a} loses a {part} of them.",
            "{a} gives a {part} of the {n} away.",
            "Then a {part} of them break.",
        ),
        numbers=tuple(PARTS),
        slip="divide",
    ),
    Kind(
        "join",
        "both",
        (
            "{b} has {k} more and gives {a} all of them.",
            "{b}, who has {k} more, gives all of them to {a}.",
            "Then {a} gets everything from {b}, who has {k} more.",
        ),
        slip="add",
    ),
    Kind(
        "one each",
        "subtract",
        (
            "{a} gives one each to {k} children.",
            "{a} gives {k} children one each.",
            "Then {k} children take one each.",
        ),
        numbers=tuple(range(2, 25)),
        slip="divide",
    ),
)

# `{u}` is the letter known so far, `{v}` the next one.
LETTER_KINDS = (
    Kind("plus", "add", ("{v} is {k} more than {u}.", "Add {k} to {u} to get {v}.")),
    Kind("minus", "subtract", ("{v} is {k} less than {u}.", "Take {k} from {u} to get {v}.")),
    Kind("by", "multiply", ("{v} is {k} times {u}.", "Multiply {u} by {k} to get {v}."), numbers=_FEW),
    Kind("is plus", "subtract", ("{u} is {k} more than {v}.", "That is {k} more than {v}."), slip="add"),
    Kind("is minus", "add", ("{u} is {k} less than {v}.", "That is {k} less than {v}."), slip="subtract"),
    Kind(
        "is by",
        "divide",
        ("{u} is {k} times {v}.", "That is {k} times {v}."),
        numbers=_FEW,
        slip="multiply",
    ),
)


@dataclass(frozen=True, slots=True)
class EquationKind:
    """A kind of equation in x. `{a}`, `{b}`, `{c}` are its numbers; the sentence may also show the equation
    as `{eq}`."""

    name: str
    right: str
    third: Callable[[int, int, int], int | None]  # c(x, a, b); None where it is not whole
    slip: str | None = None
    wordings: tuple[str, ...] = ("Solve {eq} for x.", "Find x if {eq}.", "We know that {eq}.")


EQUATIONS = (
    EquationKind("plus", "{a}x+{b}={c}", lambda x, a, b: a * x + b),
    EquationKind("minus", "{a}x-{b}={c}", lambda x, a, b: a * x - b),
    EquationKind("bracket", "{a}(x+{b})={c}", lambda x, a, b: a * (x + b)),
    EquationKind("fraction", "x/{a}+{b}={c}", lambda x, a, b: _whole(x + a * b, a)),
    EquationKind("two sides", "{a}x+{b}=x+{c}", lambda x, a, b: a * x + b - x),
    EquationKind(
        "times sum",
        "{a}(x+{b})={c}",
        lambda x, a, b: a * (x + b),
        slip="{a}x+{b}={c}",
        wordings=(
            "{a} times the sum of x and {b} is {c}.",
            "The sum of x and {b}, times {a}, is {c}.",
            "Here {a} times the sum of x and {b} is {c}.",
        ),
    ),
    EquationKind(
        "less than",
        "{a}x-{b}={c}",
        lambda x, a, b: a * x - b,
        slip="{b}-{a}x={c}",
        wordings=(
            "{b} less than {a} times x is {c}.",
            "The number {b} less than {a} times x is {c}.",
            "Here {b} less than {a} times x is {c}.",
        ),
    ),
)
