"""Bounded exact arithmetic: what the calculator computes with.

A number is a Python integer or a `Fraction`; every result passes `bounded`, and what could grow fast (powers,
factorials) is measured before it is computed. Roots that are not rational are fractions with 50 significant
digits, and whoever asks for one is told. `Polynomial` is an expression in one unknown, of degree 4 at most.
"""

from __future__ import annotations

import math
from decimal import Context, Decimal
from fractions import Fraction
from typing import NoReturn, TypeAlias

__all__ = [
    "PI",
    "CalculatorError",
    "Polynomial",
    "Rational",
    "Value",
    "bounded",
    "divide",
    "factorial",
    "format_number",
    "inverse",
    "power",
    "root",
    "settled",
    "shortened",
]

MAX_BITS = 1024  # of a numerator or a denominator: 308 digits
MAX_FACTORIAL = 170  # the last that fits
MAX_ROOT = 12
MAX_DEGREE = 4
MAX_PLACES = 20  # a terminating decimal with more is shown as a fraction
SHOWN_DIGITS = 12  # significant digits of a result that is not exact

_CARRIED = Context(prec=50)
_SHOWN = Context(prec=SHOWN_DIGITS)
_SETTLED = 10**30

PI = Fraction("3.1415926535897932384626433832795028841971693993751")


class CalculatorError(ValueError):
    """The input cannot be computed. The message is one line for the agent."""


Rational: TypeAlias = int | Fraction


class Polynomial:
    """`sum(coefficients[i] * unknown**i)`, lowest first, of degree 1 to `MAX_DEGREE`."""

    __slots__ = ("coefficients",)

    def __init__(self, coefficients: tuple[Rational, ...]) -> None:
        self.coefficients = coefficients

    def __neg__(self) -> Value:
        return _value([-c for c in self.coefficients])

    def __add__(self, other: Value) -> Value:
        short, long = sorted((self.coefficients, _coefficients(other)), key=len)
        return _value([a + b for a, b in zip(short, long, strict=False)] + list(long[len(short) :]))

    __radd__ = __add__

    def __sub__(self, other: Value) -> Value:
        return self + -other

    def __rsub__(self, other: Value) -> Value:
        return -self + other

    def __mul__(self, other: Value) -> Value:
        factors = _coefficients(other)
        if len(self.coefficients) + len(factors) - 2 > MAX_DEGREE:
            raise CalculatorError(f"the unknown stands in a power above {MAX_DEGREE}")
        product: list[Rational] = [0] * (len(self.coefficients) + len(factors) - 1)
        for i, a in enumerate(self.coefficients):
            for j, b in enumerate(factors):
                product[i + j] += a * b
        return _value(product)

    __rmul__ = __mul__


Value: TypeAlias = int | Fraction | Polynomial


def _coefficients(value: Value) -> tuple[Rational, ...]:
    return value.coefficients if isinstance(value, Polynomial) else (value,)


def _value(coefficients: list[Rational]) -> Value:
    while len(coefficients) > 1 and coefficients[-1] == 0:
        coefficients.pop()
    return Polynomial(tuple(coefficients)) if len(coefficients) > 1 else coefficients[0]


def _too_large() -> NoReturn:
    raise CalculatorError(f"a number is too large or too fine: at most {MAX_BITS * 3 // 10} digits are kept")


def bounded(value: Value) -> Value:
    """`value`, if its numbers have at most `MAX_BITS` bits."""
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            _too_large()
    elif isinstance(value, Fraction):
        if value.numerator.bit_length() > MAX_BITS or value.denominator.bit_length() > MAX_BITS:
            _too_large()
    else:
        for coefficient in value.coefficients:
            bounded(coefficient)
    return value


def divide(left: Value, right: Value) -> Value:
    if isinstance(right, Polynomial):
        raise CalculatorError(
            "cannot divide by an expression with the unknown; multiply both sides by it first"
        )
    return left * inverse(right)


def inverse(value: Rational) -> Fraction:
    if value == 0:
        raise CalculatorError("division by zero")
    return Fraction(value.denominator, value.numerator)


def power(base: Value, exponent: Rational) -> tuple[Value, bool]:
    """`base ** exponent`, and whether it is exact. 0^0 is 1. Its size is checked before it is computed."""
    if exponent.denominator > MAX_ROOT:
        raise CalculatorError("an exponent must be a whole number or a simple fraction such as 1/2")
    exact = True
    if exponent.denominator > 1:
        base, exact = root(base, exponent.denominator)
    if isinstance(base, Polynomial):
        return _polynomial_power(base, exponent.numerator), exact
    return _whole_power(base, exponent.numerator), exact


def _polynomial_power(base: Polynomial, exponent: int) -> Value:
    if not 0 <= exponent <= MAX_DEGREE:
        raise CalculatorError(f"the unknown may be raised to the powers 0 to {MAX_DEGREE} only")
    result: Value = 1
    for _ in range(exponent):
        result = base * result
    return result


def _whole_power(base: Rational, exponent: int) -> Rational:
    bits = max(base.numerator.bit_length(), base.denominator.bit_length()) - 1
    if bits * abs(exponent) > MAX_BITS:
        _too_large()
    if exponent >= 0:
        return base**exponent
    return inverse(base) ** -exponent


def root(value: Value, degree: int) -> tuple[Rational, bool]:
    """The real root, and whether it is exact; if not, it has 50 significant digits."""
    if isinstance(value, Polynomial):
        raise CalculatorError("cannot take the root of an expression with the unknown")
    if not 1 <= degree <= MAX_ROOT:
        raise CalculatorError(f"roots are taken of degree 1 to {MAX_ROOT}")
    if value < 0:
        if degree % 2 == 0:
            raise CalculatorError("even root of a negative number")
        positive, exact = root(-value, degree)
        return -positive, exact
    top, bottom = _whole_root(value.numerator, degree), _whole_root(value.denominator, degree)
    if top**degree == value.numerator and bottom**degree == value.denominator:
        return Fraction(top, bottom), True
    number = _decimal(value, _CARRIED)
    if degree == 2:
        return Fraction(_CARRIED.sqrt(number)), False
    return Fraction(_CARRIED.power(number, _CARRIED.divide(Decimal(1), Decimal(degree)))), False


def _whole_root(n: int, degree: int) -> int:
    """floor(n ** (1 / degree)) by Newton's method from above."""
    if degree == 2 or n == 0:
        return math.isqrt(n)
    guess = 1 << -(-n.bit_length() // degree)
    while (better := ((degree - 1) * guess + n // guess ** (degree - 1)) // degree) < guess:
        guess = better
    return guess


def factorial(value: Rational) -> int:
    if value.denominator != 1 or not 0 <= value <= MAX_FACTORIAL:
        raise CalculatorError(f"factorials are taken of whole numbers from 0 to {MAX_FACTORIAL}")
    return math.factorial(value.numerator)


def settled(value: Rational) -> Rational:
    """`value` to 30 places: what a computation with 50 digits can vouch for, so that sqrt(2)^2 is 2."""
    return Fraction(round(value * _SETTLED), _SETTLED)


def shortened(value: Rational) -> Rational:
    """`value` with 50 significant digits, for a number that is not exact and has grown long."""
    return Fraction(_decimal(value, _CARRIED)) if value.denominator.bit_length() > MAX_BITS // 2 else value


def _decimal(value: Rational, context: Context) -> Decimal:
    return context.divide(Decimal(value.numerator), Decimal(value.denominator))


def format_number(value: Rational, *, exact: bool = True) -> str:
    """An integer (`-3`), a decimal that ends within 20 places (`0.125`), else a fraction (`22/7`).

    Not exact: a decimal of 12 significant digits. The calculator reads each of them back.
    """
    if not exact:
        return _without_zeros(format(_decimal(value, _SHOWN), "f")) if settled(value) else "0"
    top, bottom = value.numerator, value.denominator
    places = _places(bottom)
    if bottom == 1 or places is None:
        return str(top) if bottom == 1 else f"{top}/{bottom}"
    digits = str(abs(top) * 10**places // bottom).rjust(places + 1, "0")
    return f"{'-' if top < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def _places(denominator: int) -> int | None:
    """How many decimal places 1 / denominator has, or None if more than `MAX_PLACES` or endless."""
    twos = (denominator & -denominator).bit_length() - 1
    rest, fives = denominator >> twos, 0
    while rest % 5 == 0 and fives < MAX_PLACES:
        rest, fives = rest // 5, fives + 1
    places = max(twos, fives)
    return places if rest == 1 and places <= MAX_PLACES else None


def _without_zeros(digits: str) -> str:
    return digits.rstrip("0").rstrip(".") if "." in digits else digits
