"""Robust fits of positive coefficients to measured times, with a held-out split by shape.

Residuals are logarithms of predicted / measured, the loss is soft-L1, coefficients are searched in
log space inside bounds, and weak priors keep what the data does not determine near its start.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cost_models.arrays import Floats, as_floats
from cost_models.errors import AutotuneError

Mask = NDArray[np.bool_]

METHOD = "soft-L1 least squares on log residuals"
LOSS_SCALE = 0.1
HELD_OUT_SHARE = 0.2
MAX_ROWS = 2500
MIN_ROWS_PER_COEFFICIENT = 3
PRIOR_WEIGHT = 0.3
INTERVAL_80 = (0.1, 0.9)


class FitError(AutotuneError):
    """Measurements that cannot carry a fit: too few, or not positive."""


@dataclass(frozen=True, slots=True)
class Coefficient:
    """Start, bounds and prior width (standard deviation of the logarithm) of one coefficient."""

    start: float
    low: float
    high: float
    prior: float = 1.0


@dataclass(frozen=True, slots=True)
class Fit:
    """Fitted coefficients and how well they do on shapes they never saw."""

    values: dict[str, float]
    ci95: dict[str, tuple[float, float]]
    points: int
    held_out: int
    median_error: float
    p90_error: float
    bias: float
    """Geometric mean of predicted / measured on held-out rows, minus one."""
    cost: float
    """Robust loss at the solution, to choose between fits of the same rows [-]."""
    ratio_80: tuple[float, float]
    """Measured / predicted that 80 % of held-out rows lie between (conformal interval)."""
    ratios: Floats
    """Measured / predicted of every held-out row."""


def held_out_mask(shapes: Sequence[Sequence[float]], share: float = HELD_OUT_SHARE) -> Mask:
    """Rows whose shape is held out; equal shapes stay together and the split never changes between runs.

    shapes : one tuple per row, e.g. (n, k) so that all m of a weight matrix are held out together.
    """
    limit = int(share * 2**32)
    return np.array([zlib.crc32(repr(tuple(float(x) for x in shape)).encode()) < limit for shape in shapes], dtype=np.bool_)


def fit_model(
    time_s: Callable[..., Floats],
    kind: Callable[..., Any],
    columns: Sequence[ArrayLike],
    measured_s: ArrayLike,
    coefficients: Mapping[str, Coefficient],
    shape: Sequence[int],
    held_out: Mask | None = None,
    fixed: Mapping[str, float] = MappingProxyType({}),
) -> Fit:
    """Fit a cost model `time_s(*columns, coefficients=kind(...))`, whole shapes held out.

    columns : the model's positional inputs, broadcast together; shape : positions of those whose values, in
    this order, name a shape; held_out : rows to judge the fit on instead, to test extrapolation; fixed : coefficients that are
    given, not fitted; the fit's values end with them.
    """
    inputs = [as_floats(x) for x in np.broadcast_arrays(*columns)]

    def predict_s(values: Mapping[str, float], rows: NDArray[np.int64]) -> Floats:
        return time_s(*(column[rows] for column in inputs), coefficients=kind(**fixed, **values))

    shapes = np.stack([inputs[position] for position in shape], axis=1).tolist()
    judged = held_out_mask(shapes) if held_out is None else held_out
    fit = fit_coefficients(predict_s, measured_s, coefficients, judged)
    return replace(fit, values={**fit.values, **fixed})


def fit_coefficients(
    predict_s: Callable[[Mapping[str, float], NDArray[np.int64]], Floats],
    measured_s: ArrayLike,
    coefficients: Mapping[str, Coefficient],
    held_out: Mask,
) -> Fit:
    """Fit `predict_s(values, rows)` to measured times.

    predict_s : coefficient values and row positions -> predicted seconds. Raises FitError for times that
    are not positive and for fewer than three training rows per coefficient.
    """
    from scipy.optimize import least_squares

    measured = as_floats(measured_s)
    if not np.all(np.isfinite(measured)) or np.any(measured <= 0):
        bad = int(np.sum(~np.isfinite(measured) | (measured <= 0)))
        raise FitError(f"{bad} of {len(measured)} latencies are not positive numbers")
    train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    needed = MIN_ROWS_PER_COEFFICIENT * len(coefficients)
    if len(train) < needed or not len(test):
        counts = f"{len(train)} rows to fit and {len(test)} held out"
        raise FitError(f"{counts}; {len(coefficients)} coefficients need {needed} and 1")
    rows = _sampled(train)
    names = list(coefficients)
    start, low, high = (np.log([getattr(coefficients[n], f) for n in names]) for f in ("start", "low", "high"))
    width = np.array([coefficients[n].prior for n in names])

    def residuals(x: Floats) -> Floats:
        predicted = predict_s(dict(zip(names, np.exp(x), strict=True)), rows)
        errors = np.log(np.maximum(predicted, 1e-12) / measured[rows])
        return np.concatenate([errors, PRIOR_WEIGHT * (x - start) / width])

    solution = least_squares(residuals, start, bounds=(low, high), loss="soft_l1", f_scale=LOSS_SCALE, x_scale=0.1)
    values = {name: float(value) for name, value in zip(names, np.exp(solution.x), strict=True)}
    predicted = predict_s(values, test)
    ratio = predicted / measured[test]
    error = np.abs(ratio - 1)
    return Fit(
        values=values,
        ci95=_intervals(names, solution.x, np.asarray(solution.jac), residuals(solution.x)[: len(rows)], low, high),
        points=len(rows),
        held_out=len(test),
        median_error=float(np.median(error)),
        p90_error=float(np.quantile(error, 0.9)),
        bias=float(np.exp(np.mean(np.log(ratio))) - 1),
        cost=float(solution.cost),
        ratios=1 / ratio,
        ratio_80=tuple(float(x) for x in np.quantile(1 / ratio, INTERVAL_80)),  # type: ignore[arg-type]  # two quantiles
    )


def _sampled(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most MAX_ROWS rows, the same every time."""
    if len(rows) <= MAX_ROWS:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, MAX_ROWS, replace=False))


def _intervals(
    names: list[str], x: Floats, jacobian: Floats, errors: Floats, low: Floats, high: Floats
) -> dict[str, tuple[float, float]]:
    """95 % intervals from the Jacobian at the solution, with the spread estimated robustly, inside the bounds."""
    spread = 1.4826 * float(np.median(np.abs(errors - np.median(errors))))
    covariance = spread**2 * np.linalg.pinv(jacobian.T @ jacobian)
    half = 1.96 * np.sqrt(np.maximum(np.diag(covariance), 0))
    lower, upper = np.exp(np.maximum(x - half, low)), np.exp(np.minimum(x + half, high))
    return {name: (float(a), float(b)) for name, a, b in zip(names, lower, upper, strict=True)}
