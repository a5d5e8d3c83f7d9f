"""Whole-number arithmetic as bash does it."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping

LARGEST_NUMBER = 2**63
CALCULATES: Mapping[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1),
    "%": lambda a, b: abs(a) % abs(b) * (-1 if a < 0 else 1),
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "&&": lambda a, b: bool(a) and bool(b),
    "||": lambda a, b: bool(a) or bool(b),
}
SIGNS: Mapping[str, Callable[[int], int]] = {"-": operator.neg, "+": operator.pos, "!": operator.not_}
SETTLES: Mapping[str, bool] = {"&&": False, "||": True}
BINDS: Mapping[str, int] = {
    **dict.fromkeys(("*", "/", "%"), 6), **dict.fromkeys(("+", "-"), 5), **dict.fromkeys(("<", ">", "<=", ">="), 4),
    **dict.fromkeys(("==", "!="), 3), "&&": 2, "||": 1,
}  # fmt: skip
"""How closely a sign binds what stands around it."""


Words = list[int | str | None]
"""What is left of an expression: taken from the front, ended by an empty word."""


def evaluated(words: Words) -> int | None:
    """What an expression comes to, its words taken from the front; None where a number is not known or it goes too far."""
    chosen = _bound(words, 1)
    if words[0] != "?":
        return chosen
    words.pop(0)
    first = evaluated(words)
    if words[0] != ":":
        return None
    words.pop(0)
    second = evaluated(words)
    return None if chosen is None else first if chosen else second


def _bound(words: Words, least: int) -> int | None:
    """A number and all that binds it at least so closely."""
    value = _operand(words)
    while (binds := BINDS.get(str(words[0]), 0)) >= least:
        sign = str(words.pop(0))
        other = _bound(words, binds + 1)
        if value is not None and SETTLES.get(sign) is bool(value):  # the right side is not looked at
            value = int(bool(value))
        else:
            value = None if value is None or other is None else _calculated(CALCULATES[sign], value, other)
    return value


def _operand(words: Words) -> int | None:
    word = words[0]
    if word in SIGNS:
        words.pop(0)
        value = _operand(words)
        return None if value is None else int(SIGNS[str(word)](value))
    if word == "(":
        words.pop(0)
        value = evaluated(words)
        return value if words[0] == ")" and words.pop(0) else None
    return None if isinstance(word, str) else words.pop(0)  # type: ignore[return-value]


def _calculated(calculate: Callable[[int, int], int], left: int, right: int) -> int | None:
    try:
        value = int(calculate(left, right))
    except ZeroDivisionError:
        return None
    return value if abs(value) < LARGEST_NUMBER else None


def integer(text: str) -> int | None:
    """A whole number; None for any other text."""
    return int(text) if re.fullmatch(r"\s*[-+]?\d{1,18}\s*", text) else None
