"""Array helpers shared by the cost models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_CODE = 2**62


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
    code = np.zeros(len(np.atleast_1d(columns[0])), dtype=np.int64)
    size = 1
    for column in columns:
        values, index = np.unique(np.asarray(column), return_inverse=True)
        if len(values) == 1:
            continue
        if size * len(values) >= MAX_CODE:
            kept, code = np.unique(code, return_inverse=True)
            size = len(kept)
        code = code * len(values) + index
        size *= len(values)
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    return first, inverse


def evaluate_distinct(function: Callable[..., Any], *keys: ArrayLike) -> Any:
    """Evaluate `function` once per distinct combination of its keys, then gather.

    keys : (rows,) each, broadcastable. `function` gets one float array per key and returns an
    array or a nested tuple / dict of arrays of that length; the result has the same structure with
    (rows,) arrays. Candidate grids repeat the same few shapes, so this is most of the speed.
    """
    columns = [as_floats(column) for column in np.broadcast_arrays(*[np.atleast_1d(key) for key in keys])]
    if len(columns[0]) == 1:
        return _gather(function(*columns), np.zeros(1, dtype=np.int64), 1)
    first, inverse = distinct_rows(*columns)
    result = function(*[column[first] for column in columns])
    return _gather(result, inverse, len(first))


def _gather(result: Any, inverse: Ints, length: int) -> Any:
    if isinstance(result, dict):
        return {key: _gather(value, inverse, length) for key, value in result.items()}
    if isinstance(result, tuple):
        return tuple(_gather(value, inverse, length) for value in result)
    return np.broadcast_to(as_floats(result), (length,))[inverse]
