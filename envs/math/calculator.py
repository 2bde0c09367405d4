"""The agent's two tools: `calculate` an expression exactly, `solve` an equation in one unknown.

Exact rationals throughout; no text reaches Python's or sympy's evaluation, and every input is bounded. A
root that is not rational (and pi) is carried with 50 significant digits, and a result that one of them went
into is shown as a decimal of 12. What is read is described in `expression`, what is computed in `exact`.
"""

from __future__ import annotations

import re

from trace_gym.envs.math.exact import CalculatorError, Polynomial, bounded, format_number
from trace_gym.envs.math.expression import FUNCTIONS, Reader

__all__ = ["CalculatorError", "calculate", "solve"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z_0-9]{0,31}")


def calculate(expression: str) -> str:
    """The value of `expression`: an integer, a decimal that ends within 20 places, or a fraction `22/7`.

    Once an irrational root or pi was needed: a decimal of 12 significant digits. `calculate` reads its own
    results back. Raises `CalculatorError`.
    """
    reader = Reader(expression, unknown=None)
    value = reader.sum()
    reader.expect_end()
    assert not isinstance(value, Polynomial), "there is no unknown"
    return format_number(value, exact=reader.exact)


def solve(equation: str, variable: str) -> str:
    """The real solutions of a linear or quadratic equation, in ascending order: `x = 5`, `x = 2 or x = 3`,
    `no solution` or `every x`. Numbers are written as `calculate` writes them.

    Raises `CalculatorError`, also when the unknown is left in a power above 2 or in a denominator.
    """
    variable = variable.strip()
    if not _NAME.fullmatch(variable) or variable in FUNCTIONS or variable == "pi":
        raise CalculatorError(
            "the variable must be a name such as x, and not one that has a meaning of its own"
        )
    reader = Reader(equation, unknown=variable)
    left = reader.sum()
    reader.expect("=", "an equation has one '=' with an expression on each side")
    difference = bounded(left - reader.sum())
    reader.expect_end()
    zeros = reader.zeros(difference)
    if zeros is None:
        return f"every {variable}"
    return " or ".join(f"{variable} = {format_number(x, exact=reader.exact)}" for x in zeros) or "no solution"
