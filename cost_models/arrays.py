"""Array helpers shared by the cost models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FEW_ROWS = 64
"""Fewer are evaluated one by one: looking for what they share costs as much."""
LOOKUP_ENTRIES_PER_ROW = 8
"""Longest look-up table per row; beyond it sorting is cheaper."""


def as_floats(values: ArrayLike) -> Floats:
    """As a float array."""
    return np.asarray(values, dtype=np.float64)


def smoothmax(a: ArrayLike, b: ArrayLike, sharpness: float) -> Floats:
    """(a^p + b^p)^(1/p) without overflow: the maximum for large p, the sum for p = 1."""
    a, b = as_floats(a), as_floats(b)
    high = np.maximum(a, b)
    ratio = np.divide(np.minimum(a, b), high, out=np.zeros(np.broadcast_shapes(a.shape, b.shape)), where=high > 0)
    return as_floats(high * (1.0 + ratio**sharpness) ** (1.0 / sharpness))


def ceil_div(a: ArrayLike, b: ArrayLike) -> Floats:
    """Element-wise ceil(a / b)."""
    return as_floats(np.ceil(as_floats(a) / as_floats(b)))


def distinct_rows(*columns: ArrayLike) -> tuple[Ints, Ints]:
    """(first, inverse) of the distinct combinations of equally long columns.

    first : positions of one row of each combination; inverse : (rows,) which combination a row has.
    """
    arrays = [np.atleast_1d(np.asarray(column)) for column in columns]
    varying = [array for array in arrays if not _alike(array)]
    length = len(arrays[0])
    if not varying:
        return np.zeros(min(length, 1), dtype=np.int64), np.zeros(length, dtype=np.int64)
    most = LOOKUP_ENTRIES_PER_ROW * length
    combined, count = _positions(varying[0], most)
    for array in varying[1:]:
        position, more = _positions(array, most)
        if count * more > most:
            combined, count = _ranks(combined, count)
        if count * more > most:
            position, more = _ranks(position, more)
        if count * more > most:
            combined, count = _sorted_ranks(combined * more + position)
        else:
            combined, count = combined * more + position, count * more
    inverse, count = _ranks(combined, count)
    first = np.empty(count, dtype=np.int64)
    first[inverse[::-1]] = np.arange(length - 1, -1, -1)
    return first, inverse


def alike_rows(*columns: ArrayLike) -> Iterator[tuple[tuple[Any, ...], Ints | slice]]:
    """(values, positions) of every distinct combination of equally long columns, in rising order of the values.

    positions : to index with; a slice of everything where all rows are alike.
    """
    arrays = [np.atleast_1d(np.asarray(column)) for column in columns]
    if len(arrays[0]) and all(_alike(array) for array in arrays):
        yield tuple(array[0].item() for array in arrays), slice(None)
        return
    first, inverse = distinct_rows(*arrays)
    combinations = zip(*(array[first].tolist() for array in arrays), strict=True)
    for values, combination in sorted(zip(combinations, range(len(first)), strict=True)):
        yield values, np.flatnonzero(inverse == combination)


def is_one_value(column: NDArray[np.generic]) -> bool:
    """Whether an array is one value, broadcast, without looking at it."""
    return column.strides == (0,)


def _alike(column: NDArray[np.generic]) -> bool:
    """Whether a column has one value only; NaNs are alike."""
    if is_one_value(column) or not len(column):
        return True
    if column[0] != column[-1] and (column[0] == column[0] or column[-1] == column[-1]):
        return False
    return bool((column == column[0]).all() or (column != column).all())


def _positions(column: NDArray[np.generic], most: int) -> tuple[Ints, int]:
    """Integers below a bound in the order of a column's values, equal for equal ones, and that bound, at most `most`.

    Of halves and integers of a short range how far they are above the least, without sorting; else their ranks.
    """
    whole = column if column.dtype == np.int64 else as_floats(column) * 2
    low, high = whole.min(), whole.max()
    if float(high) - float(low) < most:
        apart = whole - low
        position = apart.astype(np.int64, copy=False)
        if position is apart or (position == apart).all():
            return position, int(high - low) + 1
    return _sorted_ranks(column)


def _ranks(positions: Ints, bound: int) -> tuple[Ints, int]:
    """Rank of each position among those that occur, all below a bound, and how many do: by table look-up."""
    present = np.zeros(bound, dtype=np.bool_)
    present[positions] = True
    occurring = np.flatnonzero(present)
    if len(occurring) == bound:
        return positions, bound
    ranks = np.empty(bound, dtype=np.int64)
    ranks[occurring] = np.arange(len(occurring))
    return ranks.take(positions), len(occurring)


def _sorted_ranks(column: NDArray[np.generic]) -> tuple[Ints, int]:
    """Rank of each value among the distinct ones, and how many there are."""
    distinct, index = np.unique(column, return_inverse=True)
    return index, len(distinct)


def distinct_values(values: ArrayLike) -> NDArray[Any]:
    """The distinct values of an array, rising; numpy's own `unique` loads its masked arrays for it, which take 20 ms."""
    ordered = np.sort(np.asarray(values), axis=None)
    new = np.ones(len(ordered), dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    return ordered[new]


def quantile_of(values: ArrayLike, share: float) -> float:
    """Value that a share of all lies below, on the line between its neighbours; numpy's own loads its masked arrays, too."""
    ordered = np.sort(as_floats(values), axis=None)
    at = share * (len(ordered) - 1)
    below, above = ordered[math.floor(at)], ordered[math.ceil(at)]
    return float(below + (above - below) * (at - math.floor(at)))


def evaluate_distinct(function: Callable[..., Any], *keys: ArrayLike) -> Any:
    """Evaluate `function` once per distinct combination of its keys, then gather.

    keys : (rows,) each, broadcastable. `function` gets one float array per key and returns an
    array or a nested tuple / dict of arrays of that length; the result has the same structure with
    (rows,) arrays. Candidate grids repeat the same few shapes, so this is most of the speed; few rows are evaluated as they are.
    """
    columns = [as_floats(column) for column in np.broadcast_arrays(*[np.atleast_1d(key) for key in keys])]
    if len(columns[0]) < FEW_ROWS:
        return _gather(function(*columns), np.arange(len(columns[0])), len(columns[0]))
    first, inverse = distinct_rows(*columns)
    result = function(*[column.take(first) for column in columns])
    return _gather(result, inverse, len(first))


def _gather(result: Any, inverse: Ints, length: int) -> Any:
    if isinstance(result, dict):
        return {key: _gather(value, inverse, length) for key, value in result.items()}
    if isinstance(result, tuple):
        return tuple(_gather(value, inverse, length) for value in result)
    values = as_floats(result)
    return (values if values.shape == (length,) else np.broadcast_to(values, (length,)))[inverse]
