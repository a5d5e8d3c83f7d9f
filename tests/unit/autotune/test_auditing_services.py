"""Verdicts on services: percentiles with odds, what they lack, and measured runs against them."""

import json
import math
from statistics import NormalDist

import pytest
from typer.testing import CliRunner

from autotune.auditing.checking import check
from autotune.auditing.conflicts import conflicts, unlaunchable
from autotune.auditing.goals import Goals
from autotune.auditing.verifying import verify
from autotune.cli.main import app
from autotune.documents.deployment import Deployment, EngineChoice, Pool
from autotune.documents.prediction import SkewedInterval
from autotune.documents.results import dump_yaml
from autotune.errors import ProblemError
from autotune.serving.errors import Spread, probability_below
from autotune.serving.predicting import predict_service


def service(rate_per_s=2.0, decode=None, **prefill):
    return Deployment.model_validate({
        "hardware": "hgx-h200", "model": "deepseek-r1", "precision": "fp8-block", "engine": {"name": "sglang"}, "phase": "serve",
        "workload": {"isl_tokens": 1000, "osl_tokens": 500}, "load": {"rate_per_s": rate_per_s},
        "pools": {
            "prefill": {"tp": 8, "ep": 8, "max_batched_tokens": 8192, "cuda_graph": False, **prefill},
            "decode": {"dp": 8, "ep": 8, "batch_per_dp_rank": 64, "all2all_backend": "deepep_low_latency", **(decode or {})},
        },
    })  # fmt: skip


@pytest.mark.slow
def test_percentiles_are_judged_with_the_odds_of_the_error_bars():
    """At the limit itself: the probability that measured / predicted stays below one."""
    plan = service()
    seen = predict_service(plan)
    verdict = check(
        plan, Goals(ttft_p50_s=seen.ttft_s.p50, ttft_p95_s=100.0, ttft_p99_s=seen.ttft_s.p99 / 2, tpot_s=seen.tpot_s.mean)
    )
    lines = {line.name: line for line in verdict.goals}
    band = seen.intervals.of_ttft("p50")
    side = band.middle / band.low if seen.ttft_s.p50 < band.middle else band.high / band.middle
    odds = NormalDist().cdf(math.log(seen.ttft_s.p50 / band.middle) / math.log(side) * 2.563 / 2)
    assert lines["ttft_p50_s"].probability == pytest.approx(odds, abs=1e-3)
    assert lines["ttft_p95_s"].probability > 0.99
    assert not lines["ttft_p99_s"].met
    assert not verdict.works
    assert [pool.phase for pool in verdict.memory] == ["prefill", "decode"]
    assert all(pool.fits for pool in verdict.memory)


def test_odds_are_a_tenth_and_nine_tenths_at_the_ends_of_the_band():
    band = SkewedInterval(low=1.4, middle=2.2, high=15.0)
    assert probability_below(2.0, 1.4, band) == pytest.approx(0.1, abs=1e-3)
    assert probability_below(2.0, 2.2, band) == pytest.approx(0.5, abs=1e-9)
    assert probability_below(2.0, 15.0, band) == pytest.approx(0.9, abs=1e-3)


def test_a_long_tail_does_not_move_the_middle():
    """Half of the runs stay below 1.1 times predicted, however late the last are; one log-normal from 0.7 to 7.5 said 21 %."""
    for tail in (1.5, 3.0, 7.5):
        assert Spread(0.7, 1.1, tail).probability_below(1.1) == pytest.approx(0.5)
        assert Spread(0.7, 1.1, tail).probability_below(0.7) == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.8, 0.95])
def test_a_quantile_of_a_spread_is_met_with_its_probability(probability):
    spread = Spread(0.7, 1.1, 7.5)
    assert spread.probability_below(spread.quantile(probability)) == pytest.approx(probability)


def test_a_document_saved_without_a_middle_has_the_geometric_one():
    """sqrt(1 x 4) = 2."""
    assert probability_below(1.5, 2.0, SkewedInterval(low=1.0, high=4.0)) == pytest.approx(0.5)


@pytest.mark.slow
def test_an_overloaded_service_needs_more_instances():
    """40 requests/s of 500 tokens are 20,000 tokens/s, more than one decode instance of eight GPUs makes."""
    verdict = check(service(40.0), Goals())
    assert not verdict.works
    assert any("sequences at once" in remark or "keep up" in remark for remark in verdict.remarks)
    assert all("instances" in change.changes[0] for change in verdict.changes if not change.missing)
    assert check(service(2.0), Goals()).works


def test_a_service_that_does_not_fit_says_by_how_much():
    plan = service()
    lone = plan.pools["prefill"].model_copy(update={"tp": 4, "ep": 4})
    verdict = check(plan.model_copy(update={"pools": {**plan.pools, "prefill": lone}}), Goals())
    assert not verdict.fits
    assert verdict.tokens_per_s_per_gpu is None
    assert next(pool for pool in verdict.memory if pool.phase == "prefill").over_bytes > 0
    assert any("more than allowed" in remark for remark in verdict.remarks)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"batch_per_dp_rank": 2048}, "deepep takes 1,024 tokens of a rank and step, the pool has 2,048"),
        ({"overlap": "two_batch", "all2all_backend": "allgather_reducescatter"}, "two_batch overlap works with DeepEP only"),
        ({"all2all_backend": "nvlink_one_sided", "dp": 16, "ep": 16}, "inside one scale-up domain of 8 GPUs"),
        ({"flags": {"all2all_backend": "pplx"}}, "all2all_backend pplx is none of none, deepep, flashinfer"),
        ({"redundant_experts": 3, "ep": 8}, "do not divide over 8 ranks"),
        ({"tp": 3, "dp": 8, "ep": 24}, "tp 3 does not divide 128 attention heads"),
    ],
)
def test_what_the_engine_would_not_start_is_said(changes, reason):
    pool = Pool(**service().pools["decode"].model_dump() | changes)
    plan = service().model_copy(update={"phase": "decode", "pools": {"decode": pool}, "load": None})
    assert any(reason in line for line in conflicts(plan)), conflicts(plan)


def test_hierarchical_mc2_takes_16_32_or_64_ranks_of_910b2():
    def plan(ranks):
        pool = {
            "dp": ranks,
            "ep": ranks,
            "batch_per_dp_rank": 16,
            "all2all_backend": "deepep_low_latency",
            "redundant_experts": 24,
        }
        return Deployment.model_validate({
            "hardware": "ascend-910b2", "model": "deepseek-r1", "precision": "int8", "engine": {"name": "vllm-ascend"},
            "workload": {"isl_tokens": 2048, "osl_tokens": 2048}, "pools": {"decode": pool},
        })  # fmt: skip

    assert "takes 16, 32, 64 expert-parallel ranks on 910B2, not 40" in conflicts(plan(40))[0]
    assert not any("expert-parallel ranks" in line for line in conflicts(plan(32)))


def test_redundant_experts_without_eplb_cannot_be_launched_with_vllm():
    pool = service().pools["decode"].model_copy(update={"redundant_experts": 8})
    lone = {"phase": "decode", "pools": {"decode": pool}, "load": None, "engine": EngineChoice(name="vllm")}
    assert "with EPLB only" in unlaunchable(service().model_copy(update=lone))[0]


def result(path, plan, ttft=1.0, tpot=1.0, **changes):
    """What SGLang's bench_serving writes of a run so many times slower than predicted."""
    seen = predict_service(plan)
    isl, osl, rate = plan.workload.isl_tokens, plan.workload.osl_tokens, plan.load.rate_per_s
    token_ms = seen.tpot_s.mean * tpot * 1e3
    ttft_ms = {name: getattr(seen.ttft_s, name) * ttft * 1e3 for name in ("mean", "p50", "p99")}
    found = {
        "backend": "sglang", "random_input_len": isl, "random_output_len": osl, "request_rate": rate, "max_concurrency": None,
        "completed": 1000, "total_input_tokens": 1000 * isl, "total_output_tokens": 1000 * osl, "request_throughput": rate,
        "output_throughput": rate * osl, "mean_ttft_ms": ttft_ms["mean"], "median_ttft_ms": ttft_ms["p50"],
        "p99_ttft_ms": ttft_ms["p99"], "mean_tpot_ms": token_ms, "median_tpot_ms": token_ms, "median_itl_ms": token_ms,
        "concurrency": rate * osl * token_ms / 1e3, **changes,
    }  # fmt: skip
    path.write_text(json.dumps(found))
    return path


def test_a_service_run_is_compared_in_ttft_tpot_and_throughput(tmp_path):
    plan = service()
    (point,) = verify([result(tmp_path / "a.jsonl", plan)], plan, Goals(ttft_p99_s=30.0, tpot_s=1e-3))
    lines = {line.name: line for line in point.lines}
    assert set(lines) == {"ttft_s", "ttft_p50_s", "ttft_p99_s", "tpot_s", "tokens_per_s"}
    assert all(abs(line.error) < 0.01 for line in lines.values() if line.name != "tokens_per_s")
    assert all(line.inside for line in lines.values())
    assert lines["ttft_p99_s"].within_limit
    assert lines["tpot_s"].within_limit is False
    assert not point.passed


def test_a_slow_first_token_points_at_the_prefill_side(tmp_path):
    plan = service()
    (point,) = verify([result(tmp_path / "b.jsonl", plan, ttft=20.0)], plan)
    line = next(line for line in point.lines if line.name == "ttft_s")
    assert not line.inside
    assert any(suspect.startswith("prefill: ") for suspect in line.suspects)
    assert any("serving/default" in suspect for suspect in line.suspects)
    assert next(line for line in point.lines if line.name == "tpot_s").inside


def test_results_of_another_gpu_or_of_no_service_are_refused(tmp_path):
    plan = service()
    with pytest.raises(ProblemError, match="was measured on NVIDIA H100 80GB HBM3, the deployment runs on H200"):
        verify([result(tmp_path / "a.jsonl", plan, gpu="NVIDIA H100 80GB HBM3")], plan)
    assert verify([result(tmp_path / "b.jsonl", plan, gpu="NVIDIA H200")], plan)
    (tmp_path / "batch.json").write_text(
        json.dumps({"batch_size": 8, "input_len": 1000, "output_len": 100, "median_decode_latency": 0.02})
    )
    with pytest.raises(ProblemError, match="a service is verified with one of a serving benchmark"):
        verify([tmp_path / "batch.json"], plan)


@pytest.mark.slow
def test_the_commands_take_services(tmp_path):
    plan = service()
    file = tmp_path / "service.yaml"
    file.write_text(dump_yaml(plan.model_dump(mode="json", exclude_none=True)))
    run = CliRunner().invoke(app, ["check", str(file), "--ttft-p99", "20s", "--tpot", "100ms"])
    assert run.exit_code == 0, run.output
    assert "TTFT P99" in run.output
    run = CliRunner().invoke(app, ["verify", str(result(tmp_path / "r.jsonl", plan)), "--deployment", str(file)])
    assert run.exit_code == 0, run.output
    assert "time to first token" in run.output
