"""Errors over a set of cases: size, bias, ranking, coverage, and whether the right choice would be made."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from autotune.errors import ProblemError
from autotune.validating.cases import CaseResult
from cost_models.arrays import Floats, as_floats
from cost_models.specs.base import Spec

NORMAL_95 = 1.96


class Summary(Spec):
    """Errors of tokens/s/GPU over a set of cases."""

    cases: int
    mean_absolute_error: float
    median_absolute_error: float
    bias: float
    worst: float
    rank_correlation: float | None
    """Spearman's, of predicted and measured throughput; none below three cases."""
    covered: int
    """Cases whose measured throughput lies in the 80 % interval."""
    coverage_low: float
    """95 % interval of the coverage itself (Wilson)."""
    coverage_high: float
    tpot_mean_absolute_error: float | None
    tpot_median_absolute_error: float | None
    ttft_median_absolute_error: float | None


class Decision(Spec):
    """Alternatives that were measured against each other."""

    name: str
    measured_best: str
    predicted_best: str
    regret: float
    """Relative throughput lost by choosing the predicted best."""

    @property
    def right(self) -> bool:
        return self.measured_best == self.predicted_best


def summarise(results: Sequence[CaseResult]) -> Summary:
    """Errors of tokens/s/GPU over the given results; raises ProblemError when there are none."""
    if not results:
        raise ProblemError("no cases to summarise")
    errors = np.array([result.throughput_error for result in results])
    predicted = [result.prediction.tokens_per_s_per_gpu for result in results]
    measured = [result.case.measured.tokens_per_s_per_gpu for result in results]
    covered = sum(result.covered for result in results)
    low, high = wilson(covered, len(results))
    tpot = np.abs([e for e in (result.tpot_error for result in results) if e is not None])
    ttft = np.abs([e for e in (result.ttft_error for result in results) if e is not None])
    return Summary(
        cases=len(errors),
        mean_absolute_error=float(np.abs(errors).mean()),
        median_absolute_error=float(np.median(np.abs(errors))),
        bias=float(errors.mean()),
        worst=float(errors[np.argmax(np.abs(errors))]),
        rank_correlation=spearman(predicted, measured) if len(results) > 2 else None,
        covered=covered,
        coverage_low=low,
        coverage_high=high,
        tpot_mean_absolute_error=float(tpot.mean()) if len(tpot) else None,
        tpot_median_absolute_error=float(np.median(tpot)) if len(tpot) else None,
        ttft_median_absolute_error=float(np.median(ttft)) if len(ttft) else None,
    )


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson, JASA 1927)."""
    share = hits / trials
    centre = share + NORMAL_95**2 / (2 * trials)
    half = NORMAL_95 * math.sqrt(share * (1 - share) / trials + NORMAL_95**2 / (4 * trials**2))
    scale = 1 + NORMAL_95**2 / trials
    return max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0)


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Correlation of ranks; ties share their mean rank."""
    return float(np.corrcoef(_ranks(as_floats(a)), _ranks(as_floats(b)))[0, 1])


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    upper = np.cumsum(counts)
    return as_floats((upper - (counts - 1) / 2)[inverse])


def decisions(results: Sequence[CaseResult]) -> list[Decision]:
    """What the predictions would have chosen among measured alternatives.

    Cases of the same deployment are one alternative, with their mean; without a second there is nothing to choose.
    """
    groups: dict[str, dict[str, list[CaseResult]]] = {}
    for result in results:
        if result.case.decision:
            alternatives = groups.setdefault(result.case.decision, {})
            alternatives.setdefault(result.case.deployment.model_dump_json(), []).append(result)
    return [_decision(name, list(group.values())) for name, group in groups.items() if len(group) > 1]


def _decision(name: str, alternatives: list[list[CaseResult]]) -> Decision:
    measured = [float(np.mean([r.case.measured.tokens_per_s_per_gpu for r in group])) for group in alternatives]
    best = int(np.argmax(measured))
    chosen = int(np.argmax([group[0].prediction.tokens_per_s_per_gpu for group in alternatives]))
    return Decision(
        name=name,
        measured_best=alternatives[best][0].case.id,
        predicted_best=alternatives[chosen][0].case.id,
        regret=1 - measured[chosen] / measured[best],
    )
