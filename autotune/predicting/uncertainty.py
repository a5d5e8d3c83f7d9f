"""Error bars: Monte Carlo over operator times, with shared and independent errors.

Each operator's time is uncertain in two ways, both log-normal: an error of its own (its shape against
its fit; from the conformal range of held-out rows where there is one) and a bias shared by everything
priced from the same family (the kernel in situ against the kernel measured). Plans share the draws of
their families, so two plans that lean on the same kernel are wrong together, and comparing them is
surer than either number.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from autotune.documents.prediction import (
    Interval,
    MeasurementValue,
    OperatorLine,
    PlanOdds,
    Prediction,
    PrefillPrediction,
    StepPrediction,
    Uncertainty,
)
from autotune.documents.problem import Objective, by_latency
from cost_models.arrays import Floats, as_floats, quantile_of

DRAWS = 2000

SHARED_SIGMA = {"measured": 0.12, "transferred": 0.20, "assumed": 0.35, "datasheet": 0.40}
"""Bias of a family by the status of its coefficients, a kernel in a real step against the same kernel in a
table. Set so that 80 % intervals cover about 80 % of 112 public end-to-end decode points (docs/models/uncertainty.md)."""
OWN_SIGMA = {"measured": 0.08, "transferred": 0.12, "assumed": 0.20, "datasheet": 0.30}
"""Error of one shape where no held-out range is known."""
OUTSIDE_FACTOR = 1.5
"""Own error of an operator outside its measured box, relative to inside."""
BALANCE_SIGMA = 0.06
"""Expert imbalance, shared by the operators of the busiest rank."""
BALANCED = ("experts", "dispatch", "combine")
DECODE_WIDTH = {"sglang": 0.99, "trtllm": 0.72}
"""Width of a decode step's bars by engine, relative to what its operators' errors add up to: what covers 80 % of 41 and 71 public
points (results/2026-11-21_inferencex_decode_study/widths.py). SGLang's releases and options vary more than its kernels. Other
engines, and prefill (11 of 14 published runs inside), as they add up."""


VALUE_DRAWS = 4000
REGRESSION_DEGREE = 3


def measurement_values(predictions: Sequence[StepPrediction], count: int = 5) -> list[MeasurementValue]:
    """The measurements that would tell most about which of the plans is best, most valuable first.

    Expected value of partial perfect information by regression (Strong, Oakley and Brennan, Med. Decis. Making 2014): each
    plan's throughput is regressed on a family's shared error; knowing the error means choosing the plan with the best
    fitted value. Ties, as with a single plan, are broken by the variance explained.
    """
    factors = np.stack([step_factors(prediction, VALUE_DRAWS) for prediction in predictions])
    rates = np.array([[prediction.tokens_per_s_per_gpu] for prediction in predictions]) / factors
    means = rates.mean(axis=1)
    chosen = int(np.argmax(means))
    priced: dict[str, set[str]] = {"balance": set()}
    for line in predictions[chosen].operators:
        priced.setdefault(line.family, set()).add(line.name)
        if line.name in BALANCED:
            priced["balance"].add(line.name)
    values = []
    for family, operators in priced.items():
        if not operators:
            continue
        known = _normal("balance" if family == "balance" else f"family {family}", VALUE_DRAWS)
        basis = np.vander(known, REGRESSION_DEGREE + 1)
        conditional = (basis @ np.linalg.lstsq(basis, rates.T, rcond=None)[0]).T
        gain = float(conditional.max(axis=0).mean() / means[chosen] - 1)
        share = float(conditional[chosen].var() / rates[chosen].var()) if rates[chosen].var() else 0.0
        values.append(
            MeasurementValue(
                family=family, operators=tuple(sorted(operators)), variance_share=share, regret_reduction=max(gain, 0.0)
            )
        )
    return sorted(values, key=lambda v: (-round(v.regret_reduction, 4), -v.variance_share))[:count]


def step_factors(prediction: StepPrediction, draws: int = DRAWS) -> Floats:
    """Step time of each draw over the predicted one, (draws,).

    Draws belong to names, so they are common to all predictions: a family's bias to the family, an
    operator's own error to the operator at its shape (the same time means the same shape).
    """
    balance = BALANCE_SIGMA * _normal("balance", draws)
    total = np.zeros(draws)
    for line in prediction.operators:
        log_factor = SHARED_SIGMA[line.status] * _normal(f"family {line.family}", draws)
        log_factor = log_factor + own_sigma(line) * _normal(f"operator {line.name} {line.family} {line.time_s:.4g}", draws)
        if line.name in BALANCED:
            log_factor = log_factor + balance
        total += line.time_s * np.exp(log_factor)
    factors = np.maximum(total, 0.2 * prediction.step_s) / prediction.step_s
    return as_floats(factors ** _width(prediction))


def _width(prediction: StepPrediction) -> float:
    """Of a decode step priced by an engine's shipped document; 1 of any other."""
    engine = prediction.calibration.rpartition("-")[2]
    return DECODE_WIDTH.get(engine, 1.0) if isinstance(prediction, Prediction) else 1.0


def own_sigma(line: OperatorLine) -> float:
    """Standard deviation of an operator's own log error."""
    known = line.held_out_sigma if line.held_out_sigma is not None else OWN_SIGMA[line.status]
    return known * (OUTSIDE_FACTOR if line.outside_box else 1.0)


def uncertainty(prediction: StepPrediction) -> Uncertainty:
    """80 % intervals of the step, the throughput and, for decode, TPOT."""
    return _uncertainty(prediction, step_factors(prediction))


def _uncertainty(prediction: StepPrediction, factors: Floats) -> Uncertainty:
    low, high = quantile_of(factors, 0.1), quantile_of(factors, 0.9)
    rate = prediction.tokens_per_s_per_gpu
    tpot_s = prediction.tpot_s if isinstance(prediction, Prediction) else None
    return Uncertainty(
        step_s=Interval(low=prediction.step_s * low, high=prediction.step_s * high),
        tokens_per_s_per_gpu=Interval(low=rate / high, high=rate / low),
        tpot_s=None if tpot_s is None else Interval(low=tpot_s * low, high=tpot_s * high),
    )


def compare(
    predictions: Sequence[Prediction | PrefillPrediction],
    latency_limit_s: float,
    objective: Objective = "tokens_per_s_per_gpu",
) -> list[PlanOdds]:
    """Odds of each plan against the others, in the given order: of the best rate, or of the shortest latency by the objective."""
    factors = np.stack([step_factors(prediction) for prediction in predictions])
    worth = [1 / p.latency_s if by_latency(objective) else p.tokens_per_s_per_gpu for p in predictions]
    rates = np.array(worth)[:, None] / factors
    latency = np.array([[prediction.latency_s] for prediction in predictions]) * factors
    best = rates.max(axis=0)
    winners = np.bincount(rates.argmax(axis=0), minlength=len(predictions)) / factors.shape[1]
    return [
        PlanOdds(
            uncertainty=_uncertainty(prediction, factors[i]),
            best_probability=float(winners[i]),
            latency_probability=float(np.mean(latency[i] <= latency_limit_s)),
            expected_regret=float(np.mean(1 - rates[i] / best)),
        )
        for i, prediction in enumerate(predictions)
    ]


def _normal(name: str, draws: int) -> Floats:
    """Standard normal draws that belong to a name."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(draws)
