"""Limits that must hold with a probability: a plan is searched with limits tightened by its own error bars.

P(time x error <= limit) >= c where time <= limit / q, q the c-quantile of measured over predicted. Errors differ a little from
plan to plan, so the search is repeated until what it finds holds; q only grows, and the search ends when no plan needs more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from autotune.documents.problem import Problem
from autotune.errors import NoFeasiblePlan

FoundPlan = TypeVar("FoundPlan")
ROUNDS = 8
SLACK = 1e-6
LIMITS = ("tpot_limit_s", "ttft_limit_s", "ttft_p50_limit_s", "ttft_p95_limit_s", "ttft_p99_limit_s")


def quantile(factors: np.ndarray, confidence: float) -> float:
    """The factor that measured times stay below with a probability, at least 1: no limit is loosened."""
    return max(float(np.quantile(factors, confidence)), 1.0)


def tightened(problem: Problem, time_factor: float, rate_factor: float, ttft_factor: float | None = None) -> Problem:
    """The problem with limits that leave room for errors.

    time_factor : of TPOT, or of one prompt; rate_factor : of the throughput that must be reached; ttft_factor : of a service's
    times to first token, the same as `time_factor` where absent.
    """
    factors = {name: time_factor if name in ("tpot_limit_s", "ttft_limit_s") else ttft_factor or time_factor for name in LIMITS}
    limits = {name: limit / factors[name] for name in LIMITS if (limit := getattr(problem, name)) is not None}
    rate = problem.min_tokens_per_s * rate_factor
    return problem.model_copy(update={**limits, "min_tokens_per_s": rate, "confidence": None})


def search_until_sure(
    problem: Problem, search: Callable[[Problem], FoundPlan], needed: Callable[[FoundPlan], tuple[float, float, float]]
) -> tuple[FoundPlan, tuple[float, float, float]]:
    """What a search finds whose limits hold with the problem's confidence, and the factors that it took.

    needed : time, rate and TTFT factors that the found plans' error bars ask for. Raises NoFeasiblePlan where the tightened
    limits leave none.
    """
    factors = (1.0, 1.0, 1.0)
    for _ in range(ROUNDS):
        try:
            found = search(tightened(problem, *factors))
        except NoFeasiblePlan as error:
            if factors == (1.0, 1.0, 1.0):
                raise
            raise NoFeasiblePlan(
                f"no plan holds its limits with {problem.confidence:.0%}: with room for errors, times must be {factors[0]:.2f} "
                f"times below their limits and rates {factors[1]:.2f} times above. {error}"
            ) from error
        wanted = needed(found)
        if all(new <= old * (1 + SLACK) for new, old in zip(wanted, factors, strict=True)):
            return found, factors
        factors = tuple(max(new, old) for new, old in zip(wanted, factors, strict=True))  # type: ignore[assignment]
    return found, factors


def confidence_note(problem: Problem, factors: tuple[float, float, float]) -> str:
    """What the limits became."""
    return (
        f"every limit holds with {problem.confidence:.0%} by the error bars: searched with times {factors[0]:.2f} times below "
        f"theirs{f' (TTFT {factors[2]:.2f})' if factors[2] != factors[0] else ''} and rates {factors[1]:.2f} times above"
    )
