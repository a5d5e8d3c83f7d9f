"""Programs whose output follows from their words."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence

from autotune.auditing.bash.arithmetic import integer

MOST_COUNTED = 10_000
"""Numbers of one seq."""


def _echoed(arguments: Sequence[str]) -> str:
    return " ".join(word for word in arguments if word not in ("-n", "-e")) + ("" if "-n" in arguments[:1] else "\n")


def _formatted(arguments: Sequence[str]) -> str | None:
    """What printf prints; None for formats beyond %s and %d."""
    if not arguments:
        return ""
    form = arguments[0].replace("\\n", "\n").replace("\\t", "\t")
    places = re.findall(r"%(.)", form)
    if set(places) - {"s", "d", "%"}:
        return None
    values, once = list(arguments[1:]), len([place for place in places if place != "%"])
    rounds = max(-(-len(values) // once), 1) if once else 1
    waiting = iter(values)
    return re.sub(r"%(.)", lambda m: "%" if m[1] == "%" else next(waiting, ""), form * rounds)


def _counted(arguments: Sequence[str]) -> str | None:
    """What seq prints, FIRST, STEP and LAST being whole numbers."""
    numbers = [integer(word) for word in arguments]
    if None in numbers or not 1 <= len(numbers) <= 3:
        return None
    first, step, last = [1, 1, *numbers] if len(numbers) == 1 else [numbers[0], 1, numbers[1]] if len(numbers) == 2 else numbers
    if not step or abs((last or 0) - (first or 0)) // abs(step) > MOST_COUNTED:
        return None
    return "".join(f"{n}\n" for n in range(first or 0, (last or 0) + (1 if step > 0 else -1), step))


PRINTS: Mapping[str, Callable[[Sequence[str]], str | None]] = {
    "echo": _echoed,
    "printf": _formatted,
    "seq": _counted,
    "dirname": lambda words: posixpath.dirname(words[-1]) or "." if words and "$" not in words[-1] else None,
    "basename": lambda words: posixpath.basename(words[0]) if len(words) == 1 and "$" not in words[0] else None,
}
"""Programs whose output follows from their words; None where it does not."""
