"""How many instances of two sizes lie in scale-up domains together: exact, by dynamic programming over domains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cost_models.arrays import Ints

IMPOSSIBLE = -1


@dataclass(frozen=True, slots=True)
class Domains:
    """A GPU budget as scale-up domains."""

    budget: int
    size: int
    """GPUs of one domain."""

    def most_beside(self, first_size: int, first_count: int, second_size: int) -> int:
        """Most instances of the second size that fit beside `first_count` of the first; -1 where those do not fit.

        An instance lies inside one domain, or takes whole domains for itself.
        """
        whole, rest = divmod(self.budget, self.size)
        if first_size > self.size:
            whole -= first_count * (first_size // self.size)
            first_size, first_count = 1, 0
        if whole < 0:
            return IMPOSSIBLE
        if second_size > self.size:
            beyond_rest = first_count - min(first_count, rest // first_size)
            spare = whole - -(-beyond_rest // (self.size // first_size))
            return spare // (second_size // self.size) if spare >= 0 else IMPOSSIBLE
        best = np.full(first_count + 1, IMPOSSIBLE, dtype=np.int64)
        best[0] = 0
        for gpus in [*([self.size] * whole), rest]:
            best = _with_domain(best, gpus, first_size, second_size)
        return int(best[first_count])


def _with_domain(best: Ints, gpus: int, first: int, second: int) -> Ints:
    """best[n] : most of the second size with n of the first placed so far; the same with one more domain."""
    result = np.full_like(best, IMPOSSIBLE)
    for placed in range(min(gpus // first, len(best) - 1) + 1):
        beside = (gpus - placed * first) // second
        source = best[: len(best) - placed]
        found = np.where(source == IMPOSSIBLE, IMPOSSIBLE, source + beside)
        result[placed:] = np.maximum(result[placed:], found)
    return result
