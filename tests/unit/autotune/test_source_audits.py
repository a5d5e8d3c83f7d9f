"""Published plans whose arithmetic does not hold, recomputed: DeepSeek-V3 on 32 H20 with 25 GbE, DeepSeek-R1 on Ascend 910B2.

The first is a sizing document for vLLM (35,000-45,000 tokens/s, 200 sessions of 32K claimed), the second an analysis of 16, 40
and 64 cards (320, 4,793 and 58,000 tokens/s claimed); results/2026-11-22_h20_study and _ascend_study have the rest.
"""

import pytest

from autotune.auditing.checking import check
from autotune.auditing.commands import read_command
from autotune.auditing.conflicts import conflicts, unlaunchable
from autotune.auditing.goals import Goals
from autotune.documents.deployment import Deployment
from autotune.documents.problem import Problem
from autotune.documents.results import dump_yaml
from autotune.exporters import export
from autotune.predicting.step import predict
from autotune.searching.services.searching import search_services
from cost_models.catalog import load_hardware, load_model, load_recipe
from tests.conftest import H20, h20_plan


def test_the_h20_document_s_memory_does_not_add_up():
    """58 x 256 x 3 x 7168 x 2048 = 653.9e9 expert parameters: 40.9 GB per GPU in BF16 at EP32, and 34 GB of all ranks."""
    verdict = check(h20_plan(), Goals())
    lines = {line.name: line.bytes for line in verdict.memory[0].lines}
    assert lines["expert weights"] == pytest.approx(58 * 256 * 3 * 7168 * 2048 * 2 / 32, rel=1e-3)
    assert lines["expert weights"] + lines["other weights"] == pytest.approx(75e9, rel=0.02)
    # 576 elements per token and layer, once, no times two: 7 sequences of 32,768 tokens in 61 layers of 2 bytes, and the spread
    # of sequences at independent points of 512 output tokens
    assert lines["kv_cache"] == pytest.approx(7 * 32768 * 576 * 61 * 2, rel=0.01)
    assert not verdict.works
    assert verdict.memory[0].over_bytes > 5e9
    assert "precision bf16 -> fp8-block" in {change.changes[0] for change in verdict.changes}
    assert all(not change.missing for change in verdict.changes)


def test_the_h20_document_s_network_bounds_it_ten_times_below_its_goal():
    """A token sends 58 layers x 7168 x (1 + 2) bytes x 3 other nodes = 3.7 MB; a node 3.1 GB/s: under 3,400 tokens/s."""
    node_bytes_per_s = load_hardware("h20-4node-25gbe").scale_out_bytes_per_s * 8
    bound = 4 * node_bytes_per_s / (58 * 7168 * 3 * 3)
    assert bound == pytest.approx(3342, rel=0.01)
    prediction = predict(h20_plan(precision="fp8-block"))
    assert prediction.tokens_per_s < bound
    verdict = check(h20_plan(), Goals(tokens_per_s=35_000, concurrency=200))
    met = {goal.name: goal.met for goal in verdict.goals}
    assert met == {"tokens_per_s": False, "concurrency": True}
    assert verdict.changes[0].missing  # nothing looked at reaches it
    assert "tokens_per_s" in verdict.changes[0].missing


def test_flop_per_token_is_a_thousandth_of_the_document_s():
    """2 x 7168 x 512 is 7.3e6, not 7.3e9: 69.5 TFLOP should read 2 x 37e9 = 74 GFLOP, plus attention."""
    flop = 2 * load_model("deepseek-v3").active_parameters()
    assert flop == pytest.approx(74e9, rel=0.02)
    assert 69.5e12 / flop == pytest.approx(950, rel=0.02)


def test_routed_experts_are_97_percent_of_the_parameters():
    """58 x 256 x 3 x 7168 x 2048 = 653.9e9 of 671e9, not 436e9."""
    model = load_model("deepseek-v3")
    experts = 58 * model.moe.experts * 3 * model.hidden * model.moe.intermediate
    assert experts == pytest.approx(653.9e9, rel=1e-3)
    assert experts / model.parameters() == pytest.approx(0.97, abs=0.01)


def test_the_mla_cache_is_stored_once():
    """512 + 64 elements per token and layer: 200 x 32,768 x 576 x 61 x 2 bytes = 461 GB, 14.4 GB on each of 32 GPUs, not 25.6."""
    token_bytes = float(load_model("deepseek-v3").state_bytes(1, load_recipe("bf16")))
    assert token_bytes == 576 * 61 * 2
    assert 200 * 32768 * token_bytes == pytest.approx(461e9, rel=2e-3)
    assert 200 * 32768 * token_bytes / 32 == pytest.approx(14.4e9, rel=1e-2)


def test_fp8_weights_fit_and_so_would_bf16_on_48(tmp_path):
    assert not check(h20_plan(), Goals()).fits
    assert check(h20_plan(precision="fp8-block"), Goals()).fits
    larger = load_hardware("h20-4node-25gbe").model_copy(update={"nodes": 6})
    (tmp_path / "h20.yaml").write_text(dump_yaml(larger.model_dump(mode="json", exclude_none=True)))
    pool = {**H20["pools"]["decode"], "dp": 48, "ep": 48, "redundant_experts": 32, "batch_per_dp_rank": 5}
    assert predict(h20_plan(hardware=str(tmp_path / "h20.yaml"), pools={"decode": pool})).fits


def test_nvlink_of_900_gb_per_s_counts_both_directions():
    assert load_hardware("h20-4node-25gbe").scale_up.bytes_per_s.value == 450e9


def test_expert_parallelism_spans_tensor_and_data_parallel_ranks():
    """ "TP must be 1 with EP" is not so: EP = TP x DP in vLLM."""
    pool = {**H20["pools"]["decode"], "tp": 2, "dp": 16, "batch_per_dp_rank": 14}
    plan = h20_plan(precision="fp8-block", pools={"decode": pool})
    assert not conflicts(plan)
    assert not unlaunchable(plan)
    wrong = h20_plan(precision="fp8-block", pools={"decode": {**pool, "ep": 16, "moe_tp": 2}})
    assert "EP size is tp x dp = 32" in unlaunchable(wrong)[0]


def test_nodes_after_the_first_get_their_rank_and_the_first_s_address():
    text = export(h20_plan(precision="fp8-block"))[0].text
    for option in ("--data-parallel-size-local 8", "--data-parallel-start-rank", "--data-parallel-address"):
        assert option in text


def test_eplb_s_settings_live_in_one_document_now():
    text = "vllm serve deepseek-ai/DeepSeek-V3-0324 -dp 32 -ep --enable-eplb "
    given = {"hardware": "h20-4node-25gbe", "isl_tokens": 2000, "osl_tokens": 2000}
    now = read_command(text + "--eplb-config.num_redundant_experts 32", **given)
    assert now.deployment.pool.redundant_experts == 32
    assert not now.conflicts
    before = read_command(text + "--num-redundant-experts 32", **given)
    assert "vLLM 0.33.0 has no --num-redundant-experts" in before.conflicts[0]
    assert "now --eplb-config.num_redundant_experts" in before.conflicts[0]
    assert before.deployment.pool.redundant_experts == 32


def ascend(precision, **pool):
    return Deployment.model_validate(
        {
            "hardware": "ascend-910b2", "model": "deepseek-r1", "precision": precision, "engine": {"name": "vllm-ascend"},
            "workload": {"isl_tokens": 2048, "osl_tokens": 2048},
            "pools": {"decode": {"batch_per_dp_rank": 16, "all2all_backend": "deepep_low_latency", **pool}},
        }
    )  # fmt: skip


def test_deepseek_r1_in_bf16_does_not_fit_sixteen_910b2_and_int8_does():
    """671e9 parameters of 2 bytes are 1,342 GB; sixteen cards hold 1,024. A document divides by 8 twice: 21 GB a card."""
    spec = load_model("deepseek-r1")
    assert spec.parameters() * 2 == pytest.approx(1342e9, rel=0.001)
    assert (spec.layers, spec.hidden, spec.heads, spec.vocab) == (61, 7168, 128, 129280)
    bf16, int8 = (check(ascend(precision, tp=8, dp=2, ep=16), Goals()) for precision in ("bf16", "int8"))
    weights = sum(line.bytes for line in bf16.memory[0].lines if line.name.endswith("weights"))
    assert weights > 1342e9 / 16  # more than an even share: what attention data parallelism replicates
    assert not bf16.fits
    assert int8.fits


def test_int8_over_sixteen_cards_needs_tensor_parallel_attention_for_room():
    """Experts 654e9 / 16 = 41 GB; the other 17e9 parameters whole on every card (DP16), or an eighth of most (TP8)."""
    whole, sharded = (check(ascend("int8", ep=16, **split), Goals()) for split in ({"dp": 16}, {"tp": 8, "dp": 2}))
    lines = [{line.name: line.bytes for line in verdict.memory[0].lines} for verdict in (whole, sharded)]
    assert lines[0]["expert weights"] == lines[1]["expert weights"] == pytest.approx(654e9 / 16, rel=0.01)
    assert lines[0]["other weights"] > 2 * lines[1]["other weights"]


def test_a_card_of_tp8_would_hold_168_gb_of_bf16():
    """1,342 GB over eight cards; the document divides by eight twice."""
    assert load_model("deepseek-r1").parameters() * 2 / 8 == pytest.approx(168e9, rel=0.01)
    assert load_hardware("ascend-910b2").gpu.hbm_nominal_bytes.value * 16 == 1024e9


def test_one_figure_for_the_memory_s_bandwidth_and_for_a_token_s_work():
    """400, 1,200 and 2,000 GB/s, 2 x 671e9 and 2 x 37e9: the card has 1,600, a token takes its active parameters."""
    assert load_hardware("ascend-910b2").gpu.hbm_bytes_per_s.value == 1.6e12
    assert 2 * load_model("deepseek-r1").active_parameters() == pytest.approx(2 * 37e9, rel=0.02)


def test_forty_ranks_are_none_that_the_engine_s_kernel_takes():
    plan = ascend("int8", tp=8, dp=5, ep=40, batch_per_dp_rank=64, redundant_experts=24, all2all_backend="deepep_low_latency")
    assert "takes 16, 32, 64 expert-parallel ranks on 910B2, not 40" in check(plan, Goals()).conflicts[0]


@pytest.mark.slow
def test_no_service_on_64_cards_comes_near_58000_tokens_per_s():
    """A whole cluster's prefill times a batch of 96 is no throughput: prompts and answers share the cards."""
    problem = Problem(
        hardware="ascend-910b2", model="deepseek-r1", target="serve", gpus=64, trials=0, ttft_p99_limit_s=5.0, tpot_limit_s=0.1,
        workload={"isl_tokens": 2048, "osl_tokens": 2048},
    )  # fmt: skip
    found = search_services(problem).best
    assert found.prediction.intervals.tokens_per_s_per_gpu.high * 64 < 58_000 / 2
