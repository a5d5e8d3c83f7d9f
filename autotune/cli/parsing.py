"""Values with units, as people type them."""

from __future__ import annotations

import re

from autotune.errors import ProblemError

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


def duration_s(text: str) -> float:
    """'110ms' -> 0.11; raises ProblemError without a unit."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*(us|ms|s|m)\s*", text)
    if not match:
        raise ProblemError(f"'{text}' is not a duration; write a number with a unit, such as 100ms or 0.1s")
    return float(match.group(1)) * _SECONDS[match.group(2)]


def rates(text: str) -> tuple[float, ...]:
    """'0.8,0.6' -> (0.8, 0.6)."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ProblemError(f"'{text}' is not a list of numbers such as 0.8,0.6") from error
