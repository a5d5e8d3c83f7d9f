"""Error bars: widths, common draws, and odds that follow from them."""

from __future__ import annotations

import numpy as np
import pytest

from autotune.documents.prediction import OperatorLine, Prediction
from autotune.predicting.uncertainty import (
    BALANCE_SIGMA,
    SHARED_SIGMA,
    compare,
    measurement_values,
    own_sigma,
    step_factors,
    uncertainty,
)
from autotune.validating.cases import published, run_cases
from cost_models.provenance import NORMAL_80


def prediction(*operators: OperatorLine, batch: float = 1000.0) -> Prediction:
    step = sum(line.time_s for line in operators)
    return Prediction(
        tokens_per_s_per_gpu=batch / step,
        tokens_per_s=batch / step,
        tpot_s=step,
        step_s=step,
        accepted_tokens_per_step=1,
        gpus=1,
        concurrency=int(batch),
        context_tokens=1000,
        operators=operators,
        layer_kinds={},
        memory=(),
        memory_total_bytes=0,
        memory_limit_bytes=1,
        kv_capacity_tokens=0,
        kv_sequences=0,
        fits=True,
        bottleneck="",
        calibration="",
    )


def line(name: str, time_s: float, status: str = "measured", **changes) -> OperatorLine:
    return OperatorLine(name=name, time_s=time_s, share=1, bound_s=0, status=status, family=f"{name}.x", **changes)


def test_one_operator_has_the_width_of_its_two_errors():
    sigma = np.hypot(SHARED_SIGMA["measured"], 0.05)
    bars = uncertainty(prediction(line("attention", 0.1, held_out_sigma=0.05))).tpot_s
    assert np.log(bars.high / bars.low) / 2 == pytest.approx(NORMAL_80 * sigma, rel=0.06)
    assert bars.low < 0.1 < bars.high


def test_a_decode_step_is_as_sure_as_the_engines_measured_steps_were():
    plain = prediction(line("attention", 0.1))
    trtllm, sglang = (plain.model_copy(update={"calibration": f"gb200-{engine}"}) for engine in ("trtllm", "sglang"))
    widths = [np.log(bars.high / bars.low) for bars in (uncertainty(p).tpot_s for p in (plain, trtllm, sglang))]
    assert widths[1:] == pytest.approx([0.72 * widths[0], 0.99 * widths[0]])


def test_the_busiest_ranks_operators_share_one_more_error():
    sigma = np.sqrt(SHARED_SIGMA["measured"] ** 2 + 0.05**2 + BALANCE_SIGMA**2)
    bars = uncertainty(prediction(line("experts", 0.1, held_out_sigma=0.05))).tpot_s
    assert np.log(bars.high / bars.low) / 2 == pytest.approx(NORMAL_80 * sigma, rel=0.06)


def test_independent_families_average_out_and_shared_ones_do_not():
    together = [line(f"op{i}", 0.1, held_out_sigma=0.0) for i in range(10)]
    shared = [o.model_copy(update={"family": "one.family"}) for o in together]
    apart, same = (step_factors(prediction(*lines)).std() for lines in (together, shared))
    assert same > 2.5 * apart  # sqrt(10) = 3.2


def test_outside_its_box_an_operator_is_less_sure():
    inside, outside = line("o", 1, held_out_sigma=0.1), line("o", 1, held_out_sigma=0.1, outside_box=("m",))
    assert own_sigma(outside) == pytest.approx(1.5 * own_sigma(inside))
    assert own_sigma(line("o", 1, status="datasheet")) > own_sigma(line("o", 1))


def test_equal_plans_are_never_regretted_and_a_slower_copy_never_wins():
    fast = prediction(line("attention", 0.1))
    slow = prediction(line("attention", 0.1), line("attention2", 0.05, status="assumed"))
    odds = compare([fast, fast, slow], latency_limit_s=0.1)
    assert odds[0].expected_regret == pytest.approx(0, abs=1e-12)
    assert odds[2].best_probability == 0
    assert odds[2].expected_regret > 0.2


def test_odds_of_a_limit_are_a_half_at_the_median_and_rise_with_it():
    plan = prediction(line("attention", 0.1))
    tight, median, loose = (compare([plan], limit)[0].latency_probability for limit in (0.07, 0.1, 0.15))
    assert tight < 0.1
    assert median == pytest.approx(0.5, abs=0.04)
    assert loose > 0.95


def test_bars_repeat():
    plan = prediction(line("attention", 0.1))
    assert uncertainty(plan) == uncertainty(plan)


def test_most_named_published_cases_lie_in_their_interval():
    named = [r for r in run_cases(published()[0]) if r.case.named]
    assert sum(r.covered for r in named) >= 5


def test_the_measurement_worth_most_is_the_one_that_can_change_the_choice():
    # both plans lean on attention alike; they differ in what the rest costs, a measured kernel against a guess
    sure = prediction(line("attention", 0.05), line("gemm", 0.05, held_out_sigma=0.02))
    guess = prediction(line("attention", 0.05), line("offload", 0.05, status="datasheet"))
    values = measurement_values([sure, guess])
    by_family = {v.family: v for v in values}
    assert by_family["attention.x"].regret_reduction < 0.004  # common to both: it cannot change the order
    assert sum(v.variance_share for v in values) < 1.0
    # knowing the guessed kernel of the chosen plan would change the choice; the same plan twice leaves nothing to choose
    odds = measurement_values([guess, sure])
    assert max(v.regret_reduction for v in values + odds) > 0.01
    assert all(v.regret_reduction < 1e-9 for v in measurement_values([sure, sure]))


def test_value_of_information_of_a_normal_error():
    # two plans of equal mean, one with a log error of sd s: choosing after seeing it gains s / sqrt(2 pi) = 4.8 % at 0.12
    plans = [prediction(line(name, 0.1, held_out_sigma=0.0)) for name in ("a", "b")]
    (value,) = [v for v in measurement_values(plans) if v.operators]
    assert value.variance_share == pytest.approx(1, abs=0.01)
    assert value.regret_reduction == pytest.approx(SHARED_SIGMA["measured"] / np.sqrt(2 * np.pi), rel=0.2)
