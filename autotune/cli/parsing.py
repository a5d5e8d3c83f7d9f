"""Values with units, as people type them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from autotune.errors import ProblemError

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
LONGEST_S = 1e6


def duration_s(text: str) -> float:
    """'110ms' -> 0.11; raises ProblemError without a unit."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*(us|ms|s|m)\s*", text)
    if not match:
        raise ProblemError(f"'{text}' is not a duration; write a number with a unit, such as 100ms or 0.1s")
    found = float(match.group(1)) * _SECONDS[match.group(2)]
    if not found <= LONGEST_S:
        raise ProblemError(f"'{text[:40]}' is longer than {LONGEST_S:,.0f} s")
    return found


def acceptance(text: str, model: str, drafter: str | None = None) -> tuple[float, ...]:
    """'0.8,0.6' as rates; a word such as 'coding' as what is published for the model, the drafter's kind and that text."""
    if text[:1].isalpha() and "," not in text:
        from cost_models.acceptance import OWN_MODULE, published_rates
        from cost_models.checkpoints import find_checkpoint
        from cost_models.drafters import find_drafter

        known = find_checkpoint(model)
        found = find_drafter(drafter) if drafter else None
        return published_rates(known.model if known else model, text, found.kind if found else OWN_MODULE)
    return rates(text)


def rates(text: str) -> tuple[float, ...]:
    """'0.8,0.6' -> (0.8, 0.6)."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ProblemError(f"'{text[:80]}' is not a list of numbers such as 0.8,0.6") from error
    if not all(0 <= rate <= 1 for rate in found):
        raise ProblemError(f"'{text[:80]}': rates lie between 0 and 1")
    return found


def limits_of(texts: Sequence[str]) -> dict[str, float]:
    """['ttft-p99=2s', 'tpot=50ms'] -> {'ttft_p99_s': 2.0, 'tpot_s': 0.05}; raises ProblemError for other text."""
    found: dict[str, float] = {}
    for text in texts:
        for part in text.split(","):
            name, given, value = part.partition("=")
            if not given or not name.strip():
                raise ProblemError(f"--slo '{part[:80]}' is not of the form ttft-p99=2s")
            limit_s = duration_s(value)
            if limit_s <= 0:
                raise ProblemError(f"--slo '{part[:80]}': a limit is longer than nothing")
            found[f"{name.strip().replace('-', '_')}_s"] = limit_s
    return found
