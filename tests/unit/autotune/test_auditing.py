"""Verdicts, sensitivities and command lines."""

import json
import math

import pytest
from typer.testing import CliRunner

from autotune.auditing.checking import check
from autotune.auditing.goals import Goals
from autotune.auditing.sensitivity import STEPS, sensitivity
from autotune.auditing.verifying import verify
from autotune.cli.main import app
from autotune.documents.problem import Problem
from autotune.documents.results import dump_yaml
from autotune.errors import ProblemError
from autotune.predicting.step import predict
from autotune.searching.pools import search
from tests.conftest import h20_plan


def test_a_working_plan_works_and_a_goal_s_odds_are_its_error_bars():
    plan = search(Problem(hardware="hgx-h200", gpus=16, trials=0)).best
    rate = plan.prediction.tokens_per_s
    easy, even, hard = (check(plan.deployment, Goals(tokens_per_s=rate * f)) for f in (0.5, 1.0, 2.0))
    assert easy.works
    assert even.works
    assert not hard.works
    odds = [verdict.goals[0].probability for verdict in (easy, even, hard)]
    assert odds[0] > 0.95
    assert 0.3 < odds[1] < 0.7
    assert odds[2] < 0.05
    assert any(f"instances 1 -> {2}" in change.changes[0] or "dp" in change.changes[0] for change in hard.changes)


@pytest.mark.slow
def test_sensitivity_signs_and_the_factor_that_a_goal_takes():
    plan = h20_plan(precision="fp8-block")
    found = sensitivity(plan, predict(plan).tokens_per_s * 1.5)
    effects = {influence.name: influence.effects for influence in found.influences}
    assert found.influences[0].name == "scale-out bandwidth"
    up, down = STEPS.index(0.4), STEPS.index(-0.4)
    for name in ("HBM bandwidth", "FLOPS", "scale-up bandwidth", "scale-out bandwidth"):
        assert effects[name][down] <= 0 <= effects[name][up] + 1e-9
    assert effects["expert imbalance (excess)"][up] < 0 < effects["expert imbalance (excess)"][down]
    assert effects["host link bandwidth"][up] == 0  # decode copies nothing from the host
    needed = {influence.name: influence.needed for influence in found.influences}
    assert needed["scale-out bandwidth"] > 1.5  # more than proportional: other times stay
    assert needed["host link bandwidth"] is None


@pytest.mark.slow
def test_a_prefill_pool_is_varied_as_prefill_whatever_batch_it_names():
    plan = search(Problem(hardware="hgx-h200", gpus=8, target="prefill", trials=0)).best.deployment
    with_batch = sensitivity(plan.with_pool("prefill", batch_per_dp_rank=64))
    assert with_batch.tokens_per_s == sensitivity(plan).tokens_per_s == predict(plan).tokens_per_s
    assert {"prompt length", "tokens per step"} <= {influence.name for influence in with_batch.influences}


@pytest.mark.slow
def test_exit_codes_tell_a_plan_that_does_not_work(tmp_path):
    (tmp_path / "plan.yaml").write_text(dump_yaml(h20_plan().model_dump(mode="json", exclude_none=True)))
    run = CliRunner().invoke(app, ["check", str(tmp_path / "plan.yaml"), "--concurrency", "200", "--context", "32768"])
    assert run.exit_code == 2
    assert "does not work" in run.output
    assert "Smallest changes that make it work" in run.output
    table = CliRunner().invoke(app, ["sensitivity", str(tmp_path / "plan.yaml"), "--throughput", "50000"])
    assert table.exit_code == 0
    assert "cannot" in table.output


def test_what_is_short_is_symmetric():
    verdict = check(h20_plan(), Goals(tpot_s=0.1, tokens_per_s=35_000))
    short = {goal.name: goal.short for goal in verdict.goals}
    assert short["tpot_s"] == pytest.approx(verdict.latency_s / 0.1 - 1)
    assert short["tokens_per_s"] == pytest.approx(35_000 / (verdict.tokens_per_s_per_gpu * 32) - 1)
    assert math.isfinite(sum(short.values()))


@pytest.mark.slow
def test_kernels_and_latency_have_the_signs_they_must():
    plan = search(Problem(hardware="gb200-nvl72", gpus=8, trials=0)).best.deployment
    effects = {influence.name: influence.effects for influence in sensitivity(plan).influences}
    up, down = STEPS.index(0.4), STEPS.index(-0.4)
    assert effects["kernel efficiency"][down] < 0 < effects["kernel efficiency"][up]
    assert effects["network latency"][up] < 0 < effects["network latency"][down]
    # slower kernels are at most as slow as the share that leaves: 40 % less speed, 1 / 0.6 of the time
    assert effects["kernel efficiency"][down] > 0.6 - 1


@pytest.mark.slow
def test_a_goal_names_precisions_and_gpus():
    """Throughput of identical instances adds up: ceil(goal / one instance's) of them."""
    plan = search(Problem(hardware="gb200-nvl72", gpus=8, trials=0)).best.deployment
    rate = predict(plan).tokens_per_s
    ways = {way.change: way for way in sensitivity(plan, 2.5 * rate).ways}
    assert ways["instances 1 -> 3"].gpus == 24
    assert ways["instances 1 -> 3"].tokens_per_s == pytest.approx(3 * rate)
    assert ways["instances 1 -> 3"].reached
    assert not ways["precision nvfp4 -> bf16"].reached
    faster = sensitivity(plan, rate, limit_latency_s=predict(plan).tpot_s / 2).ways[-1]
    assert faster.reached
    assert faster.latency_s <= predict(plan).tpot_s / 2
    assert "batch_per_dp_rank" in faster.change


@pytest.mark.slow
def test_gpus_beyond_the_cluster_are_counted_and_said():
    way = sensitivity(h20_plan(precision="fp8-block"), 35_000).ways[-1]
    assert way.gpus > 32
    assert "the cluster has 32 GPUs" in way.change


def bench(path, plan, factor, **changes):
    """What `vllm bench serve` writes of a run `factor` times slower than predicted."""
    pool = plan.pool
    sequences = pool.batch_per_dp_rank * pool.dp * pool.instances
    token_s = predict(plan).tpot_s * factor
    isl, osl = plan.workload.isl_tokens, plan.workload.osl_tokens
    result = {
        "model_id": "deepseek-ai/DeepSeek-V3-0324", "completed": 1000,
        "total_input_tokens": 1000 * isl, "mean_tpot_ms": token_s * 1e3,
        "total_output_tokens": 1000 * osl, "median_tpot_ms": token_s * 1e3, "median_itl_ms": token_s * 1e3,
        "output_throughput": sequences / token_s, "max_concurrency": sequences, **changes,
    }  # fmt: skip
    path.write_text(json.dumps(result))
    return path


def test_a_run_is_inside_its_bars_or_points_somewhere(tmp_path):
    plan = search(Problem(hardware="hgx-h200", gpus=16, trials=0)).best.deployment
    (point,) = verify([bench(tmp_path / "a.json", plan, 1.0)], plan, Goals(tpot_s=1.0))
    (as_predicted,) = point.lines
    assert point.passed
    assert as_predicted.error == pytest.approx(0.0, abs=0.01)
    assert as_predicted.inside
    assert as_predicted.within_limit
    assert not as_predicted.suspects
    (point,) = verify([bench(tmp_path / "b.json", plan, 2.0)], plan, Goals(tpot_s=0.01))
    (slow,) = point.lines
    assert not point.passed
    assert not slow.inside
    assert slow.within_limit is False
    assert "of the variance" in slow.suspects[0]


def test_runs_of_another_model_and_truncated_files_are_refused(tmp_path):
    plan = search(Problem(hardware="hgx-h200", gpus=16, trials=0)).best.deployment
    with pytest.raises(ProblemError, match="is a run of Qwen/Qwen3-8B, the deployment serves deepseek-v3"):
        verify([bench(tmp_path / "a.json", plan, 1.0, model_id="Qwen/Qwen3-8B")], plan)
    (tmp_path / "cut.json").write_text('{"median_tpot_ms": 12, "comple')
    with pytest.raises(ProblemError, match="truncated"):
        verify([tmp_path / "cut.json"], plan)
    (tmp_path / "other.json").write_text('{"hello": 1}')
    with pytest.raises(ProblemError, match="no benchmark result in it"):
        verify([tmp_path / "other.json"], plan)
