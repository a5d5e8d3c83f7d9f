"""A Gaussian process over log(measured / predicted): what some measurements say of the model's error everywhere else.

The prior mean is the model's own prediction and its known bias, the prior spread its published error band: few measurements
correct a calibrated model, so nothing here needs many. A part of the error is common to all candidates (a slower host, another
clock), the rest fades with distance. Two numbers, how large the error is and how much of it is common, are chosen by the
marginal likelihood on a small grid. Formulas: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2.25-2.30 and
5.12 (leave-one-out).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from autotune.tuning.guessing import PriorBand
from cost_models.arrays import Floats, as_floats

AMPLITUDES = (1.0, 2.0)
"""Of the error, over the published band's."""
COMMON = (0.3, 0.6)
"""Share of the error's variance that all candidates have in common."""
SMALLEST_SIGMA = 0.05
"""A prior narrower than this would not be moved by what is measured."""


@dataclass(frozen=True, slots=True)
class RatioBelief:
    """Normal distributions of log(measured / predicted), (candidates,) each."""

    mean: Floats
    sigma: Floats


@dataclass(frozen=True, slots=True)
class RatioProcess:
    """One quantity's process, conditioned on measurements."""

    points: Floats
    """(measured, features)."""
    scale: float
    common: float
    mean: float
    weights: Floats
    """K^-1 (y - mean), (measured,)."""
    inverse: Floats
    """K^-1, (measured, measured)."""
    observed: Floats
    """(measured,)."""

    def at(self, points: Floats) -> RatioBelief:
        """Belief at other points, (candidates, features)."""
        if not len(self.points):
            return RatioBelief(as_floats(np.full(len(points), self.mean)), as_floats(np.full(len(points), self.scale)))
        across = _covariance(points, self.points, self.scale, self.common)
        mean = self.mean + across @ self.weights
        variance = self.scale**2 - np.einsum("ij,jk,ik->i", across, self.inverse, across)
        return RatioBelief(as_floats(mean), as_floats(np.sqrt(np.maximum(variance, 1e-10))))

    def left_out(self) -> Floats:
        """What each measurement would have been believed to be without itself, (measured,)."""
        return as_floats(self.observed - self.weights / np.diag(self.inverse))


def ratio_process(points: Floats, observed: Floats, noise: Floats, prior: PriorBand) -> RatioProcess:
    """Condition on log ratios; noise : standard deviation of each, (measured,)."""
    sigma = max(prior.sigma, SMALLEST_SIGMA)
    if not len(observed):
        return RatioProcess(points, sigma, 0.5, prior.mean, np.zeros(0), np.zeros((0, 0)), observed)
    options = [(sigma * amplitude, common) for amplitude, common in itertools.product(AMPLITUDES, COMMON)]
    fitted = [_fitted(points, observed, noise, prior.mean, scale, common) for scale, common in options]
    return max(fitted, key=lambda pair: pair[0])[1]


def _fitted(
    points: Floats, observed: Floats, noise: Floats, mean: float, scale: float, common: float
) -> tuple[float, RatioProcess]:
    """Log marginal likelihood and process of one choice."""
    matrix = _covariance(points, points, scale, common) + np.diag(np.maximum(noise, 1e-3) ** 2)
    factor = np.linalg.cholesky(matrix)
    whitened = np.linalg.solve(factor, observed - mean)
    inverse = np.linalg.inv(matrix)
    likelihood = float(-0.5 * whitened @ whitened - np.log(np.diag(factor)).sum())
    weights = as_floats(inverse @ (observed - mean))
    return likelihood, RatioProcess(points, scale, common, mean, weights, as_floats(inverse), observed)


def _covariance(one: Floats, other: Floats, scale: float, common: float) -> Floats:
    """A part that all have in common, and one that fades with the squared distance."""
    squared = ((one[:, None, :] - other[None, :, :]) ** 2).sum(axis=2)
    return as_floats(scale**2 * (common + (1 - common) * np.exp(-0.5 * squared)))
