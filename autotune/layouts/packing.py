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
        if max(first_size, second_size) <= self.size:
            return int(self._inside(first_size, first_count, second_size)[first_count])
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
        return int(Domains(whole * self.size + rest, self.size)._inside(1, 0, second_size)[0])

    def most_beside_each(self, first_size: int, largest: int, second_size: int) -> Ints:
        """The same beside 0, 1, ... `largest` of the first, (largest + 1,)."""
        if max(first_size, second_size) <= self.size:
            return self._inside(first_size, largest, second_size)
        return np.array([self.most_beside(first_size, count, second_size) for count in range(largest + 1)])

    def _inside(self, first_size: int, largest: int, second_size: int) -> Ints:
        """The same of two sizes that lie inside domains."""
        best = np.full(largest + 1, IMPOSSIBLE, dtype=np.int64)
        best[0] = 0
        whole, rest = divmod(self.budget, self.size)
        for gpus in [*([self.size] * whole), rest]:
            best = _with_domain(best, gpus, first_size, second_size)
        return best


def _with_domain(best: Ints, gpus: int, first: int, second: int) -> Ints:
    """best[n] : most of the second size with n of the first placed so far; the same with one more domain."""
    result = np.full_like(best, IMPOSSIBLE)
    for placed in range(min(gpus // first, len(best) - 1) + 1):
        beside = (gpus - placed * first) // second
        source = best[: len(best) - placed]
        found = np.where(source == IMPOSSIBLE, IMPOSSIBLE, source + beside)
        result[placed:] = np.maximum(result[placed:], found)
    return result
