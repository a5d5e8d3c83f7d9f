"""The README says what the code does."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from autotune.documents.problem import Problem
from autotune.report.tables import error_bars
from autotune.searching.pools import search
from autotune.validating.cases import published, run_cases
from autotune.validating.statistics import decisions, summarise
from cost_models.catalog import calibration_names, hardware_names, model_names

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_published_decode_deployments_stay_within_reach():
    decode, _, _ = published()
    named = [r for r in run_cases(decode) if r.case.named]
    assert {r.case.id for r in named} == {
        "vllm-gb200-decode-ep8",
        "vllm-h200-decode-ep32",
        "sglang-h100-decode-ep72-2k",
        "sglang-gb200p1-decode-2k",
        "sglang-gb200p2-decode-2k-fp4",
        "sglang-gb200p2-decode-2k-fp8",
        "deepseek-h800-profile-decode",
    }
    assert summarise(named).mean_absolute_error < 0.08
    assert all(abs(r.throughput_error) < 0.12 for r in named)


@pytest.mark.slow
def test_published_prefill_deployments_stay_within_reach_and_in_order():
    _, prefill, _ = published()
    results = run_cases(prefill)
    named = [r for r in results if r.case.named]
    assert summarise(named).mean_absolute_error < 0.12
    # NVFP4 on GB200 is the worst: those releases' experts took a quarter longer than today's tables (breakdowns study)
    assert all(abs(r.throughput_error) < 0.23 for r in named)
    assert all(r.prediction.fits for r in results)
    assert all(decision.right for decision in decisions(results))  # two-batch overlap pays at 2,048 to 8,192 tokens


def test_the_sample_output_is_what_the_main_job_prints():
    best = search(Problem(hardware="gb200-nvl72")).best
    p = best.prediction
    assert f"\n{best.label}\n{p.tokens_per_s_per_gpu:,.0f} tokens/s/GPU   TPOT {p.tpot_s * 1e3:.1f} ms" in README
    assert f"bottleneck: {p.bottleneck}" in README
    assert error_bars(best.odds.uncertainty) in README


def test_its_one_picture_is_of_the_main_job_as_it_is_now():
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    drawn = float(pytest.importorskip("PIL.Image").open(ROOT / picture).text["tokens_per_s_per_gpu"])
    now = search(Problem(hardware="gb200-nvl72")).best.prediction.tokens_per_s_per_gpu
    assert drawn == pytest.approx(now, rel=0.05), "python scripts/picture.py makes it again"


def test_the_page_of_operators_is_what_its_study_writes():
    writer = runpy.run_path(str(ROOT / "results" / "2026-11-21_breakdowns_study" / "page.py"))
    assert (ROOT / "docs" / "operators.md").read_text() == writer["page"]()


def test_both_command_lines_are_in_the_readme_and_ci_runs_the_same_tests():
    assert ".venv/bin/autotune search --hw gb200-nvl72 --target decode" in README
    assert "&& scripts/test" in README
    assert "scripts/test" in (ROOT / ".ci" / "run").read_text()


def test_counts_in_the_changelog_are_true():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert f"{len(hardware_names())} machines and {len(model_names())} models" in text
    assert f"{len(calibration_names())} calibration documents" in text


def test_documents_named_in_docstrings_exist():
    import re

    sources = [p for package in ("cost_models", "autotune", "search_spaces") for p in (ROOT / package).rglob("*.py")]
    named = {name for p in sources for name in re.findall(r"docs/[\w/.-]+\.md", p.read_text())}
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
