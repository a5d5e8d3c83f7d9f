"""Statistics, decisions and the results folder of a validation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from autotune.validating.cases import CaseFile, CaseResult, published, run_cases
from autotune.validating.report import csv_text, write_folder
from autotune.validating.statistics import decisions, spearman, summarise, wilson


@pytest.fixture(scope="module")
def prefill() -> tuple[CaseFile, list[CaseResult]]:
    cases = published()[1]
    return cases, run_cases(cases)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=30))
def test_rank_correlation_is_scipys(pairs):
    a, b = (list(map(float, column)) for column in zip(*pairs, strict=True))
    if len(set(a)) > 1 and len(set(b)) > 1:
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)


def test_wilson_interval_of_eight_in_ten():
    # textbook value: 0.490 to 0.943
    assert wilson(8, 10) == pytest.approx((0.490, 0.943), abs=1e-3)
    assert wilson(0, 5)[0] == 0
    assert wilson(5, 5)[1] == pytest.approx(1)


def test_summary_of_known_errors(prefill):
    results = prefill[1]
    errors = np.array([r.throughput_error for r in results])
    summary = summarise(results)
    assert summary.mean_absolute_error == pytest.approx(np.abs(errors).mean())
    assert summary.bias == pytest.approx(errors.mean())
    assert abs(summary.worst) == pytest.approx(np.abs(errors).max())
    assert summary.coverage_low < summary.covered / summary.cases < summary.coverage_high


def test_a_wrong_choice_costs_what_the_best_measured_more(prefill):
    results = [r for r in prefill[1] if r.case.decision == "two-batch overlap at 8192 tokens"]
    assert all(d.right and d.regret == 0 for d in decisions(results))
    # swap what was measured: the predicted best is now the worse one
    low, high = sorted(results, key=lambda r: r.case.measured.tokens_per_s_per_gpu)
    swapped = [
        low.model_copy(update={"case": low.case.model_copy(update={"measured": high.case.measured})}),
        high.model_copy(update={"case": high.case.model_copy(update={"measured": low.case.measured})}),
    ]
    (decision,) = decisions(swapped)
    assert not decision.right
    expected = 1 - low.case.measured.tokens_per_s_per_gpu / high.case.measured.tokens_per_s_per_gpu
    assert decision.regret == pytest.approx(expected)


@pytest.mark.slow
def test_the_folder_holds_a_row_per_case_a_readme_and_pictures(prefill, tmp_path):
    written = write_folder(tmp_path / "v", [prefill], "2026-01-01", "0.1.0")
    assert {p.name for p in written} == {"cases.csv", "README.md", "predicted_against_measured.png", "residuals.png"}
    assert csv_text(prefill[1]).count("\n") == len(prefill[1]) + 1
    assert all(p.stat().st_size > 500 for p in written)
    assert "residuals.png" in (tmp_path / "v" / "README.md").read_text()
