"""How much runs of one configuration differ, and how often a configuration is worth running again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from autotune.documents.tuned import RATE, Quantities

PRIOR_SIGMA = {RATE: 0.02, "tpot_s": 0.02}
"""Of one run, relative, until repeats say better; repeated public runs of one configuration differ by 3 to 17 % between machines,
by less on one."""
PRIOR_SIGMA_TAIL = 0.06
"""The same of times to first token."""
PRIOR_RUNS = 2.0
"""Repeats that the prior counts for."""
MOST_RUNS = 3
CLOSE = 2.0
"""Standard errors within which two results are not told apart."""


def run_sigma(runs: Iterable[Sequence[Quantities]], quantity: str) -> float:
    """Standard deviation of the log of one run, pooled over configurations that were run more than once [-]."""
    prior = PRIOR_SIGMA.get(quantity, PRIOR_SIGMA_TAIL)
    squares, freedom = PRIOR_RUNS * prior**2, PRIOR_RUNS
    for repeated in runs:
        logs = [math.log(run[quantity]) for run in repeated if run.get(quantity, 0) > 0]
        if len(logs) > 1:
            mean = sum(logs) / len(logs)
            squares += sum((value - mean) ** 2 for value in logs)
            freedom += len(logs) - 1
    return math.sqrt(squares / freedom)


def mean_quantities(runs: Sequence[Quantities]) -> Quantities:
    """Geometric means of what every run has."""
    if not runs:
        return {}
    shared = [name for name in runs[0] if all(run.get(name, 0) > 0 for run in runs)]
    return {name: math.exp(sum(math.log(run[name]) for run in runs) / len(runs)) for name in shared}


def worth_another(
    runs: Sequence[Quantities],
    others: Sequence[Sequence[Quantities]],
    limits: Mapping[str, float],
    best: float | None,
    first: bool,
) -> bool:
    """Whether one more run of a configuration would tell whether it is the best, or meets a limit.

    others : runs of all configurations, from which the noise is known; best : rate of the best other one that meets the limits;
    first : nothing is known of this machine's noise yet.
    """
    if len(runs) >= MOST_RUNS:
        return False
    if first and len(runs) < 2:
        return True
    mean = mean_quantities(runs)
    error = CLOSE / math.sqrt(len(runs))
    hopeless = best is not None and mean[RATE] < best * math.exp(-error * run_sigma(others, RATE) * math.sqrt(2))
    if hopeless:
        return False
    for name, limit in limits.items():
        if name in mean and mean[name] > limit * math.exp(error * run_sigma(others, name)):
            return False  # clearly over a limit
    near_limit = any(
        abs(math.log(mean[name] / limit)) < error * run_sigma(others, name) for name, limit in limits.items() if name in mean
    )
    near_best = best is not None and abs(math.log(mean[RATE] / best)) < error * run_sigma(others, RATE) * math.sqrt(2)
    return near_limit or near_best
