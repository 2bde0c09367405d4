"""Reading an expression and computing it in one pass: tokenizer, recursive-descent parser, functions.

Numbers are bounded exact rationals (see `exact`); characters and nesting are bounded here. `Reader.exact`
turns false with the first number that is not exact: an irrational root, or pi. Whatever is wrong raises
`CalculatorError` with one line for the agent.

Grammar, loosest first: `+ -`, then `* /` and products without a sign (`2x`, `2(3+4)`; so `1/2x` is half of
x), unary `-` (`-2^2` is -4), `^` or `**` (right to left), postfix `!` and `%` (hundredths, never a
remainder: that is `mod`). Unicode signs (× ÷ − ² √ π) are read. `1,000` is a thousand, except directly
inside a function's parentheses, where commas separate arguments: `max(1,200)` is 200.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import TypeAlias

from trace_gym.envs.math.exact import (
    PI,
    CalculatorError,
    Polynomial,
    Rational,
    Value,
    bounded,
    divide,
    factorial,
    format_number,
    inverse,
    power,
    root,
    settled,
    shortened,
)

__all__ = ["FUNCTIONS", "Reader"]

MAX_CHARS = 400
MAX_DEPTH = 40
MAX_EXPONENT = 300  # of a number written 1e300

Token: TypeAlias = int | Fraction | str  # a number, or an operator or name; "" is the end

_PLAIN_NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+(?![0-9A-Za-z_.]))?"
_TOKEN = re.compile(rf"\s*(?:({_PLAIN_NUMBER})|([A-Za-z_][A-Za-z_0-9]*)|(\*\*|[-+*/^(),!%=])|$)")
_GROUPED = re.compile(r"\s*([0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?)")
_SIGNS = str.maketrans(
    {"×": "*", "·": "*", "⋅": "*", "÷": "/", "∕": "/", "−": "-", "–": "-", "²": "^2", "³": "^3"}
    | {"√": " sqrt", "π": " pi", "[": "(", "]": ")"}
)


# ---- tokens ------------------------------------------------------------------------------------------------


def _tokens(text: str) -> list[Token]:
    if len(text) > MAX_CHARS:
        raise CalculatorError(f"the input has {len(text)} characters; at most {MAX_CHARS} are read")
    text = text.translate(_SIGNS)
    tokens: list[Token] = []
    in_call: list[bool] = []  # of each open parenthesis: does a function's name stand before it?
    at = 0
    while at < len(text):
        match = (None if in_call and in_call[-1] else _GROUPED.match(text, at)) or _TOKEN.match(text, at)
        if match is None:
            raise CalculatorError(
                f"cannot read {text[at:].lstrip()[:1]!a}; write numbers, names and + - * / ^ ( )"
            )
        at = match.end()
        number = match[1]
        if number:
            tokens.append(_number(number))
            continue
        token = match[2] or match[3] or ""
        if token == "(":
            in_call.append(bool(tokens) and tokens[-1] in FUNCTIONS)
        elif token == ")" and in_call:
            in_call.pop()
        tokens.append("^" if token == "**" else token)
    tokens.append("")
    return tokens


def _number(text: str) -> Rational:
    if text.isdigit():
        return int(text)
    digits, _, exponent = text.replace(",", "").lower().partition("e")
    if len(exponent) > 5 or abs(int(exponent or 0)) > MAX_EXPONENT:
        raise CalculatorError(f"exponents of 10 go up to {MAX_EXPONENT}")
    return Fraction(digits) * Fraction(10) ** int(exponent or 0)


# ---- expressions -------------------------------------------------------------------------------------------


class Reader:
    """Reads and computes in one pass. `exact` turns false with the first number that is not."""

    def __init__(self, text: str, *, unknown: str | None) -> None:
        self.tokens = _tokens(text)
        self.at = 0
        self.depth = 0
        self.unknown = unknown
        self.exact = True

    def sum(self) -> Value:
        value = self.product()
        while (sign := self.tokens[self.at]) in ("+", "-"):
            self.at += 1
            term = self.product()
            value = self.kept(value + term if sign == "+" else value - term)
        return value

    def product(self) -> Value:
        value = self.factor()
        while True:
            token = self.tokens[self.at]
            if token in ("*", "/"):
                self.at += 1
                factor = self.factor()
                value = self.kept(value * factor if token == "*" else divide(value, factor))
            elif token == "(" or (isinstance(token, str) and token[:1].isalpha()):
                value = self.kept(value * self.power())
            else:
                return value

    def factor(self) -> Value:
        negative = False
        while (sign := self.tokens[self.at]) in ("+", "-"):
            negative ^= sign == "-"
            self.at += 1
        value = self.power()
        return -value if negative else value

    def power(self) -> Value:
        base = self.postfix()
        if self.tokens[self.at] != "^":
            return base
        self.at += 1
        self.enter()
        exponent = self.factor()
        self.depth -= 1
        if isinstance(exponent, Polynomial):
            raise CalculatorError("the unknown may not stand in an exponent")
        value, exact = power(base, self.firm(exponent))
        self.exact &= exact
        return self.kept(value)

    def postfix(self) -> Value:
        value = self.atom()
        while (sign := self.tokens[self.at]) in ("!", "%"):
            self.at += 1
            if sign == "!":
                if self.tokens[self.at] == "!":
                    raise CalculatorError(
                        "'!!' could mean two things; write (n!)! for the factorial of a factorial"
                    )
                value = factorial(self.number(value))
            elif self.begins_operand():
                raise CalculatorError("% means hundredths; for a remainder write mod(a, b)")
            else:
                value = divide(value, 100)
        return value

    def atom(self) -> Value:
        token = self.tokens[self.at]
        self.at += 1
        if not isinstance(token, str):
            return bounded(token)
        if token == "(":
            value = self.nested()
            self.expect(")", "a parenthesis is not closed")
            return value
        if token[:1].isalpha() or token[:1] == "_":
            return self.named(token)
        self.at -= 1
        raise self.unexpected()

    def named(self, name: str) -> Value:
        if name == self.unknown:
            return Polynomial((0, 1))
        if name == "pi":
            self.exact = False
            return PI
        if name not in FUNCTIONS:
            raise CalculatorError(_unknown_name(name, self.unknown))
        fewest, most, function = FUNCTIONS[name]
        if self.tokens[self.at] != "(":
            raise CalculatorError(f"{name} needs parentheses: {name}(…)")
        self.at += 1
        arguments = [self.nested()]
        while self.tokens[self.at] == ",":
            self.at += 1
            arguments.append(self.nested())
        self.expect(")", f"the parenthesis of {name} is not closed")
        if not fewest <= len(arguments) <= most:
            count = (
                str(fewest) if fewest == most else f"{fewest} or more" if most > 2 else f"{fewest} or {most}"
            )
            raise CalculatorError(
                f"{name} takes {count} argument{'s' * (count != '1')}, not {len(arguments)}"
            )
        return self.kept(function(self, *map(self.number, arguments)))

    # ---- helpers -------------------------------------------------------------------------------------------

    def nested(self) -> Value:
        self.enter()
        value = self.sum()
        self.depth -= 1
        return value

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise CalculatorError(f"the input is nested more than {MAX_DEPTH} levels deep")

    def begins_operand(self) -> bool:
        token = self.tokens[self.at]
        return not isinstance(token, str) or token == "(" or token[:1].isalpha()

    def expect(self, token: str, otherwise: str) -> None:
        if self.tokens[self.at] != token:
            raise CalculatorError(
                otherwise if self.tokens[self.at] in ("", "=", ")") else str(self.unexpected())
            )
        self.at += 1

    def expect_end(self) -> None:
        if self.tokens[self.at] != "":
            raise self.unexpected()

    def unexpected(self) -> CalculatorError:
        token = self.tokens[self.at]
        if token == "":
            return CalculatorError("the input ends where a number was expected")
        if token == "=":
            return CalculatorError(
                "unexpected '='; an equation goes to solve(equation, variable), with one '='"
            )
        if token == ",":
            return CalculatorError("unexpected ','; a thousand is written 1,000 or 1000")
        shown = token if isinstance(token, str) else format_number(token)
        return CalculatorError(f"unexpected {shown!r}")

    def kept(self, value: Value) -> Value:
        if not self.exact and not isinstance(value, Polynomial):
            value = shortened(value)
        return bounded(value)

    def number(self, value: Value) -> Rational:
        if isinstance(value, Polynomial):
            raise CalculatorError(f"functions take numbers only, not expressions with {self.unknown}")
        return self.firm(value)

    def firm(self, value: Rational) -> Rational:
        """`value` without the noise of numbers that are not exact, where it decides something."""
        return value if self.exact else settled(value)

    def root(self, value: Rational, degree: int) -> Rational:
        result, exact = root(value, degree)
        self.exact &= exact
        return result

    def zeros(self, value: Value) -> list[Rational] | None:
        """Where a polynomial of degree at most 2 is 0, ascending; None for everywhere."""
        if not isinstance(value, Polynomial):
            return [] if self.firm(value) else None
        c, b, a, *higher = [*value.coefficients, 0]
        if any(map(self.firm, higher)):
            raise CalculatorError(
                "the equation is of a degree above 2; only linear and quadratic ones are solved"
            )
        if not self.firm(a):
            return [-c * inverse(b)] if self.firm(b) else self.zeros(c)
        discriminant = self.firm(b * b - 4 * a * c)
        if discriminant < 0:
            return []
        width = self.root(discriminant, 2)
        return sorted({(-b - width) * inverse(2 * a), (-b + width) * inverse(2 * a)})


def _unknown_name(name: str, unknown: str | None) -> str:
    if unknown is None and len(name) == 1:
        return f"unknown name {name!r}; an equation goes to solve(equation, variable)"
    only = f"{unknown}, " if unknown else ""
    return f"unknown name {name[:32]!r}; known are {only}pi, {', '.join(FUNCTIONS)}"


# ---- functions ---------------------------------------------------------------------------------------------


def _whole(value: Rational) -> int:
    if value.denominator != 1:
        raise CalculatorError(f"expected a whole number, not {format_number(value)}")
    return value.numerator


def _rounded(value: Rational, places: Rational = 0) -> Rational:
    """Half away from zero, as at school."""
    if not -50 <= places <= 50:
        raise CalculatorError("round takes -50 to 50 decimal places")
    scale = Fraction(10) ** _whole(places)
    size = math.floor(abs(Fraction(value)) * scale + Fraction(1, 2)) / scale
    return -size if value < 0 else size


def _remainder(value: Rational, divisor: Rational) -> Rational:
    return value - divisor * math.floor(value * inverse(divisor))


Function = Callable[..., Value]

FUNCTIONS: dict[str, tuple[int, int, Function]] = {  # name: fewest and most arguments, what it computes
    "sqrt": (1, 1, lambda reader, x: reader.root(x, 2)),
    "cbrt": (1, 1, lambda reader, x: reader.root(x, 3)),
    "root": (2, 2, lambda reader, x, degree: reader.root(x, _whole(degree))),
    "abs": (1, 1, lambda _, x: abs(x)),
    "min": (1, 99, lambda _, *xs: min(xs)),
    "max": (1, 99, lambda _, *xs: max(xs)),
    "floor": (1, 1, lambda _, x: math.floor(x)),
    "ceil": (1, 1, lambda _, x: math.ceil(x)),
    "round": (1, 2, lambda _, *xs: _rounded(*xs)),
    "gcd": (1, 99, lambda _, *xs: math.gcd(*map(_whole, xs))),
    "lcm": (1, 99, lambda _, *xs: _least_multiple(*map(_whole, xs))),
    "factorial": (1, 1, lambda _, x: factorial(x)),
    "mod": (2, 2, lambda _, x, divisor: _remainder(x, divisor)),
}


def _least_multiple(*numbers: int) -> int:
    result = 1
    for number in numbers:
        result = math.lcm(result, number)
        bounded(result)
    return result
