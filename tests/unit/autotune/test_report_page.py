"""The page of a run: the numbers of its result, nothing from outside, nothing that a name could smuggle in."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.documents.candidates import Candidates
from autotune.documents.prediction import OperatorLine
from autotune.documents.problem import Problem
from autotune.errors import ProblemError
from autotune.exporters.folders import launches_of
from autotune.layouts.candidates import chance_of
from autotune.report.asking import explain_layout, gpu_time_per_token_s
from autotune.report.page.comparing import compare_runs, render_comparison
from autotune.report.page.folder import page_of
from autotune.report.page.page import RunPage, ShownScript, render_page
from autotune.report.page.tradeoff import data_of, frontier, grouped
from autotune.searching.pools import run_search

LIMIT_BYTES = 1_500_000
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \"quoted\" 'too' \u2028"


@pytest.fixture(scope="module")
def page() -> RunPage:
    problem = Problem(hardware="hgx-h200", gpus=8, trials=0)
    run = run_search(problem)
    return page_of(problem, run.result, run.candidates, ["autotune", "search", "--hw", "hgx-h200"], launches_of(run.result.plans))


def candidates_with(rates: list[float], latencies_s: list[float], violates: list[str]) -> Candidates:
    n = len(rates)
    return Candidates(
        phase="decode",
        latency_limit_s=0.1,
        memory_limit_bytes=1e11,
        layouts=("TP8", "DP8 EP8"),
        layout=tuple(i % 2 for i in range(n)),
        size=(4,) * n,
        gpus=(8,) * n,
        variant=("",) * n,
        latency_s=tuple(latencies_s),
        tokens_per_s_per_gpu=tuple(rates),
        memory_bytes=(1e10,) * n,
        chance=(0.5,) * n,
        violates=tuple(violates),
        operators={
            "experts": tuple(0.75 * t for t in latencies_s),
            "dispatch": tuple(0.5 * t for t in latencies_s),
            "overlap": tuple(-0.25 * t for t in latencies_s),
        },
        groups={"experts": "experts", "dispatch": "dispatch", "overlap": "overlap"},
    )


def text_of(html: str) -> str:
    """What stands outside of script and style elements."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.DOTALL)


def test_the_page_says_what_the_result_says(page: RunPage) -> None:
    html = text_of(render_page(page))
    best = page.result.best
    assert f"<strong>{best.prediction.tokens_per_s_per_gpu:,.0f}</strong>" in html
    for plan in page.result.plans:
        assert f"<td>{plan.label}</td>" in html
    for operator in best.prediction.operators:
        assert f"<td>{operator.name.replace('_', ' ')}</td><td>{operator.time_s * 1e3:.3f} ms</td>" in html
    for text in page.result.assumed:
        assert text in html


def test_the_page_asks_nothing_of_a_network(page: RunPage) -> None:
    html = render_page(page)
    assert not re.findall(r"<script[^>]*\bsrc=", html)
    assert all(link.startswith("#") for link in re.findall(r"\b(?:src|href)=\"([^\"]*)\"", text_of(html)))
    assert "default-src 'none'" in html


def test_names_from_documents_stay_text(page: RunPage) -> None:
    weighed = page.candidates
    assert weighed is not None
    layouts = (HOSTILE, *weighed.layouts[1:])
    hostile = dataclasses.replace(
        page,
        title=HOSTILE,
        candidates=weighed.model_copy(update={"layouts": layouts}),
        scripts=[ShownScript(1, HOSTILE, HOSTILE)],
        command=["autotune", HOSTILE],
    )
    html = render_page(hostile)
    assert HOSTILE[:40] not in html
    assert "<img" not in text_of(html)
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    assert json.loads(found[1])["candidates"]["layouts"][0] == HOSTILE


def test_five_thousand_candidates_fit_one_and_a_half_megabytes(page: RunPage) -> None:
    weighed = page.candidates
    assert weighed is not None
    repeat = np.resize(np.arange(len(weighed)), 5000)
    columns = weighed.model_dump()
    many = {k: tuple(np.array(v, dtype=object)[repeat]) for k, v in columns.items() if isinstance(v, tuple) and k != "layouts"}
    many["operators"] = {name: tuple(np.array(v)[repeat].tolist()) for name, v in weighed.operators.items()}
    html = render_page(dataclasses.replace(page, candidates=Candidates(**{**columns, **many})))
    assert len(html.encode()) <= LIMIT_BYTES


def test_groups_are_shares_of_the_step() -> None:
    # 0.75 experts + 0.5 dispatch - 0.25 hidden = 1 step
    weighed = candidates_with([100.0], [0.05], [""])
    assert grouped(weighed) == {"experts": [750], "dispatch": [500], "hidden by overlap": [-250]}
    assert data_of(weighed)["step_ms"] == [50.0]


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50), st.sampled_from(["", "", "gpu_memory"])), min_size=1, max_size=40)
)
def test_the_frontier_is_what_nothing_beats(points: list[tuple[int, int, str]]) -> None:
    weighed = candidates_with([float(p[0]) for p in points], [p[1] / 100 for p in points], [p[2] for p in points])
    feasible = [i for i, p in enumerate(points) if not p[2]]
    beaten = {
        i
        for i in feasible
        for j in feasible
        if points[j][0] >= points[i][0] and points[j][1] <= points[i][1] and points[j][:2] != points[i][:2]
    }
    found = frontier(weighed)
    assert {points[i][:2] for i in found} == {points[i][:2] for i in feasible if i not in beaten}
    assert len({points[i][:2] for i in found}) == len(found)


def line(name: str, status: str, own: float, family: str = "") -> OperatorLine:
    return OperatorLine(name=name, time_s=1.0, share=1.0, bound_s=0.0, status=status, family=family, held_out_sigma=own)


def test_a_limit_equal_to_the_prediction_is_even_odds_and_one_sigma_above_is_84_per_cent() -> None:
    # one operator: sigma^2 = 0.12^2 (shared, measured) + 0.05^2 (own) = 0.13^2
    operators = {"attention": np.array([0.05, 0.05])}
    latency_s = np.array([0.05, 0.05 * math.exp(-0.13)])
    assert chance_of(operators, [line("attention", "measured", 0.05, "mla_decode")], latency_s, 0.05) == pytest.approx(
        [0.5, 0.8413], abs=1e-4
    )


def test_shared_errors_of_one_family_add_before_they_are_squared() -> None:
    # two operators of one family, half the step each: (0.5 * 0.12 + 0.5 * 0.12)^2 = 0.12^2; of two families: 0.12^2 / 2
    operators = {"q_b": np.array([0.02]), "o_proj": np.array([0.02])}
    latency_s = np.array([0.04])
    limit_s = 0.04 * math.exp(0.12)
    one = chance_of(
        operators, [line("q_b", "measured", 0.0, "gemm"), line("o_proj", "measured", 0.0, "gemm")], latency_s, limit_s
    )
    two = chance_of(operators, [line("q_b", "measured", 0.0, "a"), line("o_proj", "measured", 0.0, "b")], latency_s, limit_s)
    assert one == pytest.approx([0.8413], abs=1e-4)
    assert two == pytest.approx([0.9214], abs=1e-4)  # Phi(sqrt 2)


def test_gpu_time_per_token_adds_up_to_one_over_the_rate() -> None:
    weighed = candidates_with([100.0, 80.0], [0.05, 0.04], ["", ""])
    for i, rate in enumerate((100.0, 80.0)):
        assert sum(gpu_time_per_token_s(weighed, i).values()) == pytest.approx(1 / rate)


def test_a_layout_is_explained_by_what_it_spends(page: RunPage) -> None:
    answer = explain_layout(page, "tp8")
    assert answer.layout.startswith("TP8")  # what was not asked is free
    assert explain_layout(page, "tp8 dcp1").layout in ("TP8", "TP8 EP8")
    weighed = page.candidates
    assert weighed is not None
    best = max(rate for rate, bad in zip(weighed.tokens_per_s_per_gpu, weighed.violates, strict=True) if not bad)
    assert answer.relative == pytest.approx(answer.tokens_per_s_per_gpu / best - 1)
    if answer.feasible:
        assert sum(answer.differences_s.values()) == pytest.approx(1 / answer.tokens_per_s_per_gpu - 1 / best, rel=0.02)


@pytest.mark.parametrize("asked", ["", "fast", "ep8; rm -rf", "tp3"])
def test_a_question_that_names_no_layout_weighed_is_refused(page: RunPage, asked: str) -> None:
    with pytest.raises(ProblemError):
        explain_layout(page, asked)


def test_runs_are_compared_where_they_differ(page: RunPage) -> None:
    other = dataclasses.replace(page, title="other")
    assert compare_runs([page, other]).settings == ()
    deployment = page.result.best.deployment
    faster = page.result.best.model_copy(update={"deployment": deployment.model_copy(update={"hardware": "gb200-nvl72"})})
    changed = dataclasses.replace(other, result=page.result.model_copy(update={"plans": (faster,)}))
    comparison = compare_runs([page, changed])
    assert comparison.settings == (("hardware", "hgx-h200", "gb200-nvl72"),)
    assert "gb200-nvl72" in text_of(render_comparison([page, changed]))
