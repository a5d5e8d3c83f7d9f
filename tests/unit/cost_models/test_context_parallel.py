"""Ranks that share the tokens of sequences: bytes, kernels and memory by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cost_models.attention.gqa import GqaSpec
from cost_models.catalog import calibration_for, load_hardware, load_model, load_recipe
from cost_models.context_parallel import COMBINE, GATHER
from cost_models.drafters import find_drafter
from cost_models.host import HostCoefficients
from cost_models.machine import Machine
from cost_models.memory import decode_memory, state_bytes
from cost_models.prefill import prefill_step
from cost_models.provenance import operator_provenance
from cost_models.rows import Rows
from cost_models.specs.workload import Workload
from cost_models.step import decode_step

NVLINK = 450e9
HBM = 4.8e12


def machine(model: str = "deepseek-r1", recipe: str = "fp8-block", hardware: str = "hgx-h200", engine: str = "vllm") -> Machine:
    found = load_hardware(hardware)
    return Machine(load_model(model), found, load_recipe(recipe), calibration_for(found.gpu.name, engine))


def layer(step, name: str):
    """Of the first group of layers, which are latent in DeepSeek-R1."""
    return step.layers[0].operators[name]


def test_a_rank_receives_the_queries_and_outputs_of_the_others():
    step = decode_step(machine(), Rows.of(tp=8, batch=32, dcp=8), 32_000)
    own_queries = 32 * 16 * (512 + 64) * 2  # sequences, heads of a rank, absorbed width, BF16
    assert layer(step, GATHER).bound_s[0] == pytest.approx(7 * own_queries / NVLINK)
    own_outputs, own_lse = 32 * 16 * 512 * 2, 32 * 128 * 4  # partial outputs and log-sum-exps are of all 128 heads
    weighed = 2 * 32 * 128 * 512 * 2 / HBM  # read and written once
    assert layer(step, COMBINE).bound_s[0] == pytest.approx(7 * (own_outputs + own_lse) / NVLINK + weighed)


def test_sglang_sends_the_log_sum_exp_with_the_outputs():
    step = decode_step(machine(engine="sglang"), Rows.of(tp=8, batch=32, dcp=8), 32_000)
    packed = 32 * 16 * (512 * 2 + 4)  # of the heads that the receiver keeps: an eighth of what is gathered
    assert layer(step, COMBINE).bound_s[0] == pytest.approx(7 * packed / NVLINK + 2 * 32 * 128 * 512 * 2 / HBM)


@pytest.mark.parametrize(
    ("model", "engine", "dcp", "kernels", "layers"),
    [("deepseek-r1", "vllm", 8, 3, 61), ("deepseek-r1", "sglang", 8, 2, 61), ("qwen3-235b-a22b", "vllm", 2, 3 + 2, 94)],
)
def test_small_kernels_pack_weigh_and_unpack(model, engine, dcp, kernels, layers):
    on = machine(model, engine=engine)
    step = decode_step(on, Rows.of(tp=8, batch=8, dcp=[1, dcp]), 4_000)
    gaps = step.operators["launch_gaps"].time_s
    each = on.coefficients("host", "default", HostCoefficients).small_kernel_s
    assert gaps[1] - gaps[0] == pytest.approx(kernels * layers * each)


def test_a_rank_attends_with_all_heads_of_its_group_to_its_share_of_the_latents():
    rows = Rows.of(tp=8, batch=32, dcp=[1, 8])
    bound = layer(decode_step(machine(), rows, 32_000), "attention").bound_s
    latents = 32 * 32_000 * 576 * 2  # bytes of all tokens
    peak = machine().peak_flops_per_s("attention_compute")
    flops = 2 * 32 * 32_000 * 16 * (2 * 512 + 64)  # as many: 8 x heads, an eighth of the tokens
    assert bound[0] == pytest.approx(max(latents / HBM, flops / peak))
    assert bound[1] == pytest.approx(max(latents / 8 / HBM, flops / peak))


def test_it_pays_at_long_contexts_and_costs_at_short_ones():
    rows = Rows.of(tp=8, batch=32, dcp=[1, 8])
    short, long = (decode_step(machine(), rows, tokens).tpot_s for tokens in (2_000, 100_000))
    assert short[1] > short[0]
    assert long[1] < 0.7 * long[0]


def test_memory_holds_as_many_times_the_sequences():
    rows, workload = Rows.of(tp=8, batch=16, dcp=[1, 2, 8]), Workload(isl_tokens=30_000, osl_tokens=1_000)
    memory = decode_memory(machine(), rows, workload)
    cache = memory.lines["kv_cache"]
    assert cache == pytest.approx(cache[0] / np.array([1, 2, 8]))
    room = 60e9
    assert memory.sequence.fitting(room)[2] == pytest.approx(8 * memory.sequence.fitting(room)[0], rel=0.1)
    # queries and outputs of 128 heads instead of 16, absorbed, in BF16, of 16 tokens
    more = memory.lines["activations"][2] - memory.lines["activations"][0]
    assert more == pytest.approx(16 * (128 - 16) * 2 * 576 * 2)
    assert memory.lines["other weights"][2] == memory.lines["other weights"][0]


def test_what_is_handed_over_is_a_share_for_each_rank():
    whole, share = state_bytes(machine(), Rows.of(tp=8, dcp=[1, 4]), 10_000)
    assert whole == pytest.approx(61 * 10_000 * 576 * 2)
    assert share == pytest.approx(whole / 4)


def test_prompts_gather_the_latents_of_their_prefix_and_nothing_without_one():
    rows = Rows.of(tp=8, batched_tokens=8_000, dcp=8)
    cold = prefill_step(machine(), rows, Workload(isl_tokens=8_000, osl_tokens=1))
    assert layer(cold, GATHER).time_s[0] == 0
    assert COMBINE not in cold.operators
    warm = prefill_step(machine(), rows, Workload(isl_tokens=32_000, osl_tokens=1, prefix_cache_hit_rate=0.75))
    held = 24_000 / 8 * 576 * 2  # of the one prompt of a step, on each rank
    assert layer(warm, GATHER).bound_s[0] == pytest.approx(7 * held / NVLINK)


def test_prompts_of_grouped_heads_exchange_queries_and_outputs_over_a_prefix():
    qwen = machine("qwen3-235b-a22b")  # 64 query heads on 4 KV heads: two ranks of eight hold the same
    rows = Rows.of(tp=8, batched_tokens=2_000, dcp=2)
    step = prefill_step(qwen, rows, Workload(isl_tokens=8_000, osl_tokens=1, prefix_cache_hit_rate=0.75))
    own = 2_000 * 8 * 128 * 2  # new tokens, heads of a rank, width, BF16
    assert layer(step, GATHER).bound_s[0] == pytest.approx(own / NVLINK)
    cold = prefill_step(qwen, rows, Workload(isl_tokens=2_000, osl_tokens=1))
    assert layer(cold, GATHER).time_s[0] == layer(cold, COMBINE).time_s[0] == 0


def test_grouped_heads_share_what_their_copies_hold():
    kind = GqaSpec(heads=64, kv_heads=4, head_dim=128)
    assert kind.context_ranks([1, 2, 4, 8, 16]).tolist() == [1, 1, 1, 2, 4]
    step = decode_step(machine("qwen3-235b-a22b"), Rows.of(tp=8, batch=64, dcp=[1, 2]), 30_000)
    assert layer(step, "attention").bound_s == pytest.approx(64 * 30_000 * 2 * 128 * 2 / HBM / np.array([1, 2]))


def test_a_sparse_rank_scores_its_own_keys_and_attends_to_its_share_of_the_chosen():
    sparse = machine("deepseek-v3.2", hardware="hgx-b200")
    step = decode_step(sparse, Rows.of(tp=8, batch=8, dcp=[1, 8]), 64_000)
    hbm = sparse.hbm_bytes_per_s
    index = layer(step, "indexer").bound_s
    assert index[0] == pytest.approx(8 * 64_000 * 132 / hbm)  # an FP8 key of 128 and its scale
    assert index[1] == pytest.approx(index[0] / 8)
    chosen = layer(step, "sparse_attention").bound_s
    flops_s = 2 * 8 * 2_048 * 16 * (2 * 512 + 64) / sparse.hardware.gpu.peak_flops_per_s("bf16")
    kept = sparse.dtype_info("kv_cache").weight_bytes * 576 * 8 * 2_048 / hbm
    assert chosen == pytest.approx([max(kept, flops_s), max(kept / 8, flops_s)])
    candidates, queries = 8 * 2_048 * 8, 8 * 16 * 576 * 2  # score and position of 2,048 tokens of every sequence
    link = sparse.links.scale_up_bytes_per_s
    assert layer(step, GATHER).bound_s[1] == pytest.approx(7 * (candidates + queries) / link)


def test_recurrent_state_stays_whole_beside_what_is_shared():
    hybrid = machine("kimi-linear-48b-a3b", "bf16")
    assert hybrid.model.context_ranks(8) == 8
    whole, shared = state_bytes(hybrid, Rows.of(tp=8, dcp=[1, 8]), 100_000)
    fixed = sum(n * float(k.state_bytes(100_000, 8, hybrid.recipe)) for k, n in hybrid.model.attentions.items() if k.fixed_state)
    assert shared - fixed == pytest.approx((whole - fixed) / 8)


def test_windows_and_compressed_streams_are_not_shared():
    for name in ("gpt-oss-120b", "deepseek-v4-pro", "minimax-m3"):
        assert load_model(name).context_ranks(16) == 1


def test_a_drafter_keeps_its_cache_on_every_rank():
    target = machine("kimi-k2.5", "int4")
    drafting = dataclasses.replace(target, drafter=find_drafter("lightseekorg/kimi-k2.5-eagle3-mla"))
    with_it = state_bytes(drafting, Rows.of(tp=8, drafts=1, dcp=[1, 8]), 50_000)
    without = state_bytes(target, Rows.of(tp=8, drafts=1, dcp=[1, 8]), 50_000)
    own = with_it - without
    assert own[0] == own[1] > 0


def test_the_exchange_is_priced_by_the_collectives_that_were_timed():
    found = operator_provenance(machine(), Rows.of(tp=8, batch=8, dcp=8), 8_000)
    assert (found[GATHER].family, found[GATHER].variant) == ("dispatch", "allgather_reducescatter.dispatch")
    assert found[COMBINE].status == "measured"
    assert not found[COMBINE].outside  # 2 to 8 ranks were timed
    beyond = operator_provenance(machine(), Rows.of(tp=16, batch=8, dcp=16), 8_000)
    assert beyond[COMBINE].outside == ("ranks 16 outside 2-8",)
