"""Command lines of engines, as deployments: our own scripts, public recipes, and what is refused."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from autotune.auditing.checking import check
from autotune.auditing.commands import read_command
from autotune.auditing.goals import Goals
from autotune.auditing.shell import find_command
from autotune.cli.main import app
from autotune.documents.deployment import Load
from autotune.documents.problem import Problem
from autotune.errors import ProblemError
from autotune.exporters import export
from autotune.predicting.step import predict
from autotune.searching.pools import search
from autotune.serving.predicting import predict_service
from cost_models.catalog import load_model
from cost_models.errors import AutotuneError, CatalogError

RECIPES = Path(__file__).parents[2] / "fixtures" / "recipes"

SCRIPT = """#!/bin/bash
export VLLM_LOG_LEVEL=INFO  # not a knob
MODEL="${MODEL:-deepseek-ai/DeepSeek-R1-0528}"
vllm serve "$MODEL" --port 8200 \\
  --data-parallel-size 32 --enable-expert-parallel --all2all-backend deepep_low_latency --enable-dbo --enable-eplb \\
  --eplb-config '{"window_size": 500, "num_redundant_experts": 32}' --max-num-seqs 256 --kv-cache-dtype fp8
"""


def test_a_vllm_script_is_read():
    found = read_command(SCRIPT, hardware="hgx-h200", isl_tokens=2000, osl_tokens=2000)
    pool = found.deployment.pool
    assert (pool.tp, pool.dp, pool.ep, pool.redundant_experts, pool.batch_per_dp_rank) == (1, 32, 32, 32, 256)
    assert (pool.all2all_backend, pool.overlap, pool.expert_balance.kind) == ("deepep_low_latency", "two_batch", "eplb")
    assert found.deployment.model == "deepseek-r1"
    assert found.deployment.precision.kv_cache == "fp8"
    assert found.ignored == ("--port",)
    assert predict(found.deployment).fits


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("hardware", ["hgx-h200", "gb200-nvl72"])
def test_our_own_scripts_come_back_as_the_plan(engine, hardware):
    plan = search(Problem(hardware=hardware, gpus=16, engine=engine, trials=0)).best
    text = next(script.text for script in export(plan.deployment) if "node" in script.name)
    found = read_command(text, hardware=hardware, isl_tokens=1, osl_tokens=1).deployment
    asked, read = plan.deployment.pool, found.pool
    for name in ("tp", "dp", "ep", "pp", "batch_per_dp_rank", "redundant_experts", "all2all_backend", "overlap", "cuda_graph"):
        assert getattr(read, name) == getattr(asked, name), name
    assert found.phase == plan.deployment.phase
    assert load_model(found.model).parameters() == load_model(plan.deployment.model).parameters()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("--max-num-seqs 256", "--max-numseqs 256", "did you mean --max-num-seqs"),
        ("--max-num-seqs 256", "--max-num-seqs many", "--max-num-seqs needs a number, 'many' was given"),
        ("--enable-dbo", "--enable-dbo --max-num-seqs 8", "--max-num-seqs is given twice"),
        ("--data-parallel-size 32", "--data-parallel-size 0", "whole number of at least 1"),
        ("deepep_low_latency", "deepep", "unknown all-to-all backend 'deepep'"),
        ("DeepSeek-R1-0528", "Mixtral-8x7B", "unknown model"),
        ('"window_size": 500', "window_size", "--eplb-config: not JSON"),
        ("vllm serve", "vllm bench", "no 'vllm serve"),
    ],
)
def test_bad_command_lines_get_one_message(old, new, message):
    with pytest.raises(AutotuneError, match=message):
        read_command(SCRIPT.replace(old, new), hardware="hgx-h200", isl_tokens=2000, osl_tokens=2000)


def test_unfinished_quotes_are_an_error_not_a_traceback():
    with pytest.raises(ProblemError, match="cannot be read as a command line"):
        find_command("vllm serve 'deepseek-ai/DeepSeek-R1")


def read(text, hardware="hgx-h200", **given):
    return read_command(text, hardware=hardware, **{"isl_tokens": 2000, "osl_tokens": 2000, **given})


@pytest.mark.parametrize(
    ("recipe", "hardware", "version", "layout"),
    [
        ("vllm_r1_fp8_8xh200", "hgx-h200", None, "TP8 EP8"),
        ("vllm_v3_2x8h200_dp16", "hgx-h200", "0.11", "DP16 EP16"),
        ("vllm_v3_eplb_8xh200", "hgx-h200", None, "DP8 EP8"),
        ("vllm_r1_fp4_mtp_4xb200", "hgx-b200", "0.15", "TP4"),
        ("sglang_v3_8xh20", "hgx-h20", None, "TP8"),
        ("sglang_v3_mtp_8xh200", "hgx-h200", None, "TP8"),
        ("sglang_r1_gb200_decode48", "gb200-nvl72", None, "DP48 EP48"),
        ("sglang_v3_2x8_mtp", "hgx-h200", None, "DP16 EP16"),
        ("vllm_ascend_r1_2x8", "ascend-910b2", None, "TP4 DP4 EP16"),
        ("vllm_ascend_r1_prefill_2x16", "ascend-910c", None, "TP8 DP2 EP16"),
    ],
)
def test_public_recipes_are_read_checked_predicted_and_written_again(recipe, hardware, version, layout):
    """Their authors ran them: all fit in memory; what the script says again is the same pool."""
    found = read((RECIPES / f"{recipe}.sh").read_text(), hardware, version=version)
    assert found.deployment.pool.layout.label() == layout
    prediction = predict(found.deployment)
    assert prediction.fits
    assert prediction.tokens_per_s > 0
    assert check(found.deployment, Goals()).works
    scripts = export(found.deployment)
    again = read(scripts[0].text, hardware, version=version).deployment
    for name in ("tp", "dp", "ep", "draft_tokens", "cuda_graph", "overlap", "redundant_experts"):
        assert getattr(again.pool, name) == getattr(found.deployment.pool, name), name


def test_the_options_of_an_older_release_are_a_reason_not_to_start():
    """The published GB200 command is of 2025; SGLang 0.5.23 has renamed one of its options and dropped another."""
    found = read((RECIPES / "sglang_r1_gb200_decode48.sh").read_text(), "gb200-nvl72")
    assert [conflict.split(" (")[0] for conflict in found.conflicts] == [
        "SGLang 0.5.23 has no --cuda-graph-bs", "SGLang 0.5.23 has no --prefill-round-robin-balance",
    ]  # fmt: skip
    assert "now --cuda-graph-bs-decode" in found.conflicts[0]
    assert any("SGLang 0.5.16 has all of its options (--engine-version 0.5.16)" in line for line in found.remarks)
    verdict = check(found.deployment, Goals(), found)
    assert not verdict.works
    pool = found.deployment.pool
    assert (pool.batch_per_dp_rank, pool.overlap) == (1024, "single_batch")  # 49,152 sequences over 48 ranks
    assert found.deployment.precision.recipe == "nvfp4"
    assert found.deployment.precision.kv_cache == "fp8"


def test_an_alias_that_stands_for_two_options_means_both():
    pool = read((RECIPES / "sglang_v3_2x8_mtp.sh").read_text()).deployment.pool
    assert (pool.all2all_backend, pool.ep) == ("deepep_low_latency", 16)  # --enable-deepep-moe; DeepEP spreads over all ranks
    assert pool.draft_tokens == 2


def test_what_does_not_divide_is_a_verdict_with_a_way_out():
    """256 experts over 24 ranks leave 16; eight redundant ones make 11 each."""
    found = read("vllm serve deepseek-ai/DeepSeek-R1-0528 -tp 8 -dp 3 -ep --all2all-backend deepep_low_latency --enable-eplb")
    verdict = check(found.deployment, Goals(), found)
    assert "do not divide over 24 ranks; 8 redundant experts would" in verdict.conflicts[0]
    assert verdict.tokens_per_s_per_gpu is None
    assert "redundant_experts 0 -> 8" in verdict.changes[0].changes


def test_deepep_s_buffers_must_hold_the_batch():
    """SGLang's buffers hold 128 tokens of a rank unless a variable says otherwise."""
    text = "python3 -m sglang.launch_server --model-path deepseek-ai/DeepSeek-V3-0324 --tp 16 --dp 16 --enable-dp-attention \\\n"
    text += "  --moe-a2a-backend deepep --max-running-requests 4096 --mem-fraction-static 0.92"
    small = read(text)
    verdict = check(small.deployment, Goals(), small)
    assert "DeepEP's buffers hold 128 tokens of a rank" in verdict.conflicts[0]
    large = read("export SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK=256\n" + text)
    assert not check(large.deployment, Goals(), large).conflicts


def test_an_engine_without_a_role_may_have_pipeline_stages():
    """NixlConnector, which hands caches over, takes none; an engine that does both needs no connector."""
    found = read("vllm serve deepseek-ai/DeepSeek-R1-0528 -tp 8 -pp 2")
    assert found.aggregated
    assert not check(found.deployment, Goals(), found).conflicts
    assert "NixlConnector" in check(found.deployment, Goals()).conflicts[0]


def test_sglang_s_prefill_budget_is_shared_by_its_ranks():
    text = "python3 -m sglang.launch_server --model-path deepseek-ai/DeepSeek-V3-0324 --tp 16 --disaggregation-mode prefill "
    assert read(text + "--chunked-prefill-size 32768").deployment.pool.max_batched_tokens == 32768
    shared = read(text + "--dp 16 --enable-dp-attention --moe-a2a-backend deepep --chunked-prefill-size 524288")
    assert shared.deployment.pool.max_batched_tokens == 32768
    assert shared.deployment.phase == "prefill"
    assert read(text).deployment.pool.max_batched_tokens == 8192  # what SGLang takes on 141 GB


def test_the_beginning_of_an_option_is_enough_where_it_is_unique():
    """So say both parsers: vLLM 0.33 takes --max-num-seq; --cuda-graph-bs is the beginning of two options of SGLang 0.5.23."""
    assert read("vllm serve deepseek-ai/DeepSeek-R1-0528 -tp 8 -ep --max-num-seq 7").deployment.pool.batch_per_dp_rank == 7


def test_variables_that_the_version_does_not_read_have_no_effect():
    """VLLM_ALL2ALL_BACKEND was read until 0.15; --all2all-backend took its place."""
    text = (RECIPES / "vllm_v3_2x8h200_dp16.sh").read_text()
    assert read(text, version="0.11").deployment.pool.all2all_backend == "deepep_low_latency"
    newest = read(text)
    assert newest.deployment.pool.all2all_backend == "allgather_reducescatter"
    assert any("does not read VLLM_ALL2ALL_BACKEND" in remark for remark in newest.remarks)


def test_a_batch_limit_is_no_demand():
    """1,024 sequences of 4,000 tokens need 4,000 x 576 x 61 x 2 bytes x 1,024 = 288 GB; the engine takes as many as fit."""
    found = read("vllm serve deepseek-ai/DeepSeek-R1-0528 -tp 8 -ep")
    assert 1 < found.deployment.pool.batch_per_dp_rank < 1024
    assert any("a limit, not a demand" in remark for remark in found.remarks)
    asked = read("vllm serve deepseek-ai/DeepSeek-R1-0528 -tp 8 -ep", size=1024)
    assert asked.deployment.pool.batch_per_dp_rank == 1024
    assert not predict(asked.deployment).fits


def test_a_script_that_does_both_is_a_service_under_a_load():
    found = read("vllm serve deepseek-ai/DeepSeek-R1-0528 -tp 8 -ep", load=Load(rate_per_s=0.5)).deployment
    assert found.phase == "serve"
    assert predict_service(found).tokens_per_s == pytest.approx(0.5 * 2000, rel=0.05)


def test_scripts_set_variables_do_arithmetic_and_redirect():
    text = """
    NODES=2 GPUS=8
    NODES=2
    GPUS=8
    exec python3 -m sglang.launch_server --model-path /ssd/DeepSeek-R1 --tp-size $((NODES * GPUS)) --dp-size $(( ${NODES}*8 )) \\
      --enable-dp-attention --cuda-graph-bs-decode 1 2 4 8 --max-running-requests $((NODES * 512)) > server.log 2>&1
    """
    pool = read(text).deployment.pool
    assert (pool.dp, pool.tp, pool.batch_per_dp_rank) == (16, 1, 64)


def test_quotes_go_on_over_lines_and_text_around_commands_is_left_alone():
    text = """
    cat <<EOF
    it's only a note
    EOF
    docker run --gpus all -e VLLM_LOG_LEVEL=INFO vllm/vllm-openai:v0.33.0 --model deepseek-ai/DeepSeek-R1-0528 -tp 8 \\
      --eplb-config '{
      "window_size": 100
    }' | tee log
    """
    pool = read(text).deployment.pool
    assert pool.tp == 8
    assert pool.flags["eplb_window_steps"] == 100


def test_dotted_options_are_parts_of_their_document():
    text = "vllm serve deepseek-ai/DeepSeek-R1-0528 -dp 8 -ep --enable-eplb --eplb-config.num_redundant_experts 8"
    assert read(text).deployment.pool.redundant_experts == 8


def test_replicas_without_dp_attention_are_instances():
    """SGLang's --dp-size alone starts copies of the whole tensor-parallel engine."""
    pool = read("python -m sglang.launch_server --model-path deepseek-ai/DeepSeek-V3-0324 --tp 8 --dp-size 2").deployment.pool
    assert (pool.tp, pool.dp, pool.instances) == (8, 1, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vllm serve deepseek-ai/DeepSeek-R1-0528 -tp 8\n  --enable-expert-parallel", "does not end in a backslash"),
        ("vllm serve deepseek-ai/DeepSeek-R1-0528 \\ # layout\n  -tp 8", "does not end in a backslash"),
        ("vllm serve deepseek-ai/DeepSeek-R1-0528 --tensor-paralel-size 8", "did you mean --tensor-parallel-size"),
        ("vllm serve deepseek-ai/DeepSeek-R1-0528 --no-such-thing-at-all 8", "no release of vLLM"),
        ("vllm serve deepseek-ai/DeepSeek-R1-0528 -tp", "-tp needs a value"),
        ("vllm serve meta-llama/Llama-3.1-70B-Instruct --speculative-config {bad", "--speculative-config: not JSON"),
        ("vllm serve deepseek-ai/DeepSeek-R1-0528 --gpu-memory-utilization 9", "must lie between 0.1 and 0.99"),
        ("vllm serve deepseek-ai/DeepSeek-R1-0528 --gpu-memory-utilization nan", "must lie between"),
        ("vllm serve -tp 8", "names no model"),
        ("python -m sglang.launch_server --model-path deepseek-ai/DeepSeek-V3-0324 --tp $((N*8))", "whole number of at least 1"),
        ("python -m sglang.launch_server --tp 8 --attn-dp-size 3 --model deepseek-ai/DeepSeek-V3-0324", "do not divide"),
    ],
)
def test_commands_that_the_shell_or_the_engine_would_refuse(text, message):
    with pytest.raises(ProblemError, match=message):
        read(text)


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("VLLM_ENABLE_MOE_DP_CHUNK=maybe", "is on or off"),
        ("VLLM_MOE_DP_CHUNK_SIZE=lots", "needs a number, 'lots' was given"),
        ("VLLM_MOE_DP_CHUNK_SIZE=-5", "must lie between"),
    ],
)
def test_variables_with_nonsense_are_an_error(variable, message):
    text = f"export {variable}\nvllm serve deepseek-ai/DeepSeek-R1-0528 -dp 8 -ep --all2all-backend deepep_low_latency"
    with pytest.raises(ProblemError, match=message):
        read(text, version="0.13")


def test_a_version_that_is_not_known_is_named():
    with pytest.raises(CatalogError, match="vllm version"):
        read("vllm serve deepseek-ai/DeepSeek-R1-0528", version="0.10")


def test_goals_that_do_not_apply_are_refused_not_ignored(tmp_path):
    (tmp_path / "serve.sh").write_text("vllm serve deepseek-ai/DeepSeek-R1-0528 -tp 8 -ep")
    run = CliRunner().invoke(app, ["check", str(tmp_path / "serve.sh"), "--hw", "hgx-h200", "--ttft-p99", "2s"])
    assert run.exit_code == 1
    assert "judged as a service with --rate or --clients" in str(run.exception)


@pytest.mark.parametrize(
    ("version", "options", "servers"),
    [
        ("0.33", "", 16),  # one for every rank
        ("0.33", "--data-parallel-hybrid-lb", 16),
        ("0.13", "--data-parallel-hybrid-lb", 2),  # one for each of two nodes
        ("0.13", "", 1),
        ("0.33", "--api-server-count 4", 4),
        ("0.33", "--api-server-count 4 --data-parallel-hybrid-lb", 8),
    ],
)
def test_answers_are_shared_by_the_api_servers_that_the_engine_starts(version, options, servers):
    ranks = "--data-parallel-size 16 --data-parallel-size-local 8 --enable-expert-parallel"
    text = f"vllm serve deepseek-ai/DeepSeek-R1 {ranks} {options}"
    found = read_command(text, hardware="hgx-h200", version=version, isl_tokens=1000, osl_tokens=1000)
    assert found.deployment.pool.api_servers == servers
