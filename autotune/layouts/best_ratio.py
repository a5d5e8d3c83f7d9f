"""The most requests per cost of two pools: every number of units of every pair of rows that could be better than the best so far.

Given a row of each pool and the units of the first, only two numbers of units of the second can be best: the one with which
the pools just balance, rounded down and up. Pairs of rows are bounded by the ratio of pools that balance exactly.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cost_models.arrays import Floats, Ints, distinct_values

if TYPE_CHECKING:
    from autotune.layouts.pair import Pair, PairSide

ROUNDING = 1e-9
"""Ratios of floating point that are closer than this are compared as whole numbers."""


class RateAndCost(NamedTuple):
    """Requests that a pair serves [mHz], and what its GPUs cost."""

    rate: int
    cost: int

    def beats(self, other: RateAndCost | None) -> bool:
        """Whether it serves more per cost."""
        return other is None or self.rate * other.cost > other.rate * self.cost


def best_ratio(pair: Pair, excluded: Collection[tuple[int, int]] = ()) -> RateAndCost | None:
    """The largest ratio of rate to cost of a pair that fits the GPUs and the domains; None where none serves anything.

    excluded : (prefill layout, decode layout) that are out.
    """
    bounds = _bounds(pair)
    for prefill, decode in excluded:
        bounds[np.ix_(pair.prefill.layout == prefill, pair.decode.layout == decode)] = 0.0
    placed = _Placed(pair)
    best: RateAndCost | None = None
    for row in np.argsort(-bounds.max(axis=0)).tolist():
        least = best.rate / best.cost * (1 - ROUNDING) if best else 0.0
        rows = np.flatnonzero(bounds[:, row] > least)
        if not len(rows):  # no bound is above zero beside a row that serves less than the resolution
            continue
        found = _best_with(pair, rows, row, least, placed)
        if found and found.beats(best):
            best = found
    return best


def unit_rate(side: PairSide) -> Ints:
    """Requests that a unit of each row serves and hands over [mHz]."""
    return np.minimum(side.rate, side.transfer_rate)


def unit_cost(side: PairSide) -> Ints:
    """What the GPUs of a unit of each row cost."""
    return side.gpu_cost * side.size * side.instances


def _bounds(pair: Pair) -> Floats:
    """Ratio of each (prefill row, decode row) if units could be divided at will."""
    sides = (pair.prefill, pair.decode)
    with np.errstate(divide="ignore"):
        per_rate = [unit_cost(side) / unit_rate(side) for side in sides]
    return np.asarray(1.0 / np.add.outer(*per_rate), dtype=np.float64)


def _best_with(pair: Pair, rows: Ints, decode_row: int, least: float, placed: _Placed) -> RateAndCost | None:
    """The best of some prefill rows beside one decode row; None where none reaches the ratio `least`."""
    prefill, decode = pair.prefill, pair.decode
    most = np.maximum(prefill.most_units[rows], 0)
    row = np.repeat(rows, most)
    units = np.arange(1, len(row) + 1) - np.repeat(np.cumsum(most) - most, most)
    served = unit_rate(prefill)[row] * units
    each = int(unit_rate(decode)[decode_row])
    wanted = pair.required_rate
    balanced = [np.full(len(row), -(-wanted // each))] if wanted else [served // each, served // each + 1]
    beside = np.concatenate(balanced)
    row, units, served = (np.tile(column, len(balanced)) for column in (row, units, served))
    beside = np.minimum(beside, _within_budgets(pair, row, units, decode_row))
    open_, *_ = _worth(pair, row, units, beside, served, decode_row, least)
    row, units, served, beside = row[open_], units[open_], served[open_], beside[open_]
    beside = np.minimum(beside, placed.most_units(row, units, decode_row))
    open_, rate, cost = _worth(pair, row, units, beside, served, decode_row, least)
    return _largest(rate[open_], cost[open_])


def _worth(
    pair: Pair, row: Ints, units: Ints, beside: Ints, served: Ints, decode_row: int, least: float
) -> tuple[NDArray[np.bool_], Ints, Ints]:
    """(whether a combination reaches the ratio `least`, its rate, its cost)."""
    rate = np.minimum(served, beside * int(unit_rate(pair.decode)[decode_row]))
    cost = units * unit_cost(pair.prefill)[row] + beside * int(unit_cost(pair.decode)[decode_row])
    enough = rate >= max(pair.required_rate, 1)
    if pair.required_rate:
        rate = np.minimum(rate, pair.required_rate)
    return np.asarray((beside > 0) & enough & (rate > least * cost)), rate, cost


def _largest(rate: Ints, cost: Ints) -> RateAndCost | None:
    """The best of some, exactly."""
    if not len(rate):
        return None
    ratio = rate / cost
    close = np.flatnonzero(ratio >= ratio.max() * (1 - ROUNDING))
    best: RateAndCost | None = None
    for one in sorted({RateAndCost(int(rate[i]), int(cost[i])) for i in close.tolist()}):
        best = one if one.beats(best) else best
    return best


def _within_budgets(pair: Pair, row: Ints, units: Ints, decode_row: int) -> Ints:
    """Units of a decode row that the GPUs beside each number of prefill units hold, -1 or less where those do not fit."""
    taken = units * (pair.prefill.size * pair.prefill.instances)[row]
    each, most = int(pair.decode.size[decode_row] * pair.decode.instances[decode_row]), int(pair.decode.most_units[decode_row])
    if isinstance(pair.budgets, int):
        room = (pair.budgets - taken) // each
    else:
        room = np.where(taken <= pair.budgets[0], pair.budgets[1] // each, -1)
    return np.asarray(np.minimum(room, most), dtype=np.int64)


class _Placed:
    """Units beside each other in scale-up domains, by pair of sizes; each pair of sizes is looked at once."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.known: dict[tuple[int, int], Ints] = {}

    def most_units(self, row: Ints, units: Ints, decode_row: int) -> Ints:
        """Units of a decode row that the domains hold beside each number of units of prefill rows."""
        if self.pair.domains is None:
            return np.full(len(row), int(self.pair.decode.most_units[decode_row]))
        most = np.zeros(len(row), dtype=np.int64)
        sizes, count = self.pair.prefill.size[row], units * self.pair.prefill.instances[row]
        for size in distinct_values(sizes).tolist():
            mine = sizes == size
            most[mine] = self._instances(size, int(self.pair.decode.size[decode_row]))[count[mine]]
        return np.asarray(most // self.pair.decode.instances[decode_row], dtype=np.int64)

    def _instances(self, first: int, second: int) -> Ints:
        if (first, second) not in self.known:
            assert self.pair.domains is not None
            side = self.pair.prefill
            largest = int(np.max((side.most_units * side.instances)[side.size == first]))
            self.known[first, second] = self.pair.domains.most_beside_each(first, largest, second)
        return self.known[first, second]
