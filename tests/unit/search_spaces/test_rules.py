"""Engine rules: each with a case that breaks it and one that does not, and the three places that ask them agree."""

from __future__ import annotations

import numpy as np
import pytest

from cost_models.catalog import load_hardware, load_model, load_recipe
from cost_models.dispatch import BACKENDS
from cost_models.overlap import OVERLAPS
from cost_models.rows import Rows
from search_spaces.loader import load_engine
from search_spaces.rules import (
    PAIR_RULES,
    REQUIREMENTS,
    RULES,
    SIZED_RULES,
    Subject,
    findings,
    legal,
    pair_findings,
    unmet,
    written,
)
from search_spaces.rules.shapes import BLOCKS

LOW_LATENCY, NORMAL, ONE_SIDED, GATHERED = (
    BACKENDS.index(name) for name in ("deepep_low_latency", "deepep_normal", "nvlink_one_sided", "allgather_reducescatter")
)


def subject(engine="vllm", version=None, model="deepseek-r1", recipe="fp8-block", hardware="hgx-h200", role="decode",
            options=None, environment=None, **row) -> Subject:  # fmt: skip
    spec = load_engine(engine)
    if isinstance(row.get("backend"), str):
        row["backend"] = BACKENDS.index(row["backend"])
    return Subject(
        spec, version or spec.newest, load_model(model), load_recipe(recipe) if isinstance(recipe, str) else recipe,
        load_hardware(hardware), role, Rows.of(**row),
        options, environment or {},
    )  # fmt: skip


def broken(asked: Subject) -> set[str]:
    return {finding.rule for finding in findings(RULES, asked)}


TWO_BATCH = OVERLAPS.index("two_batch")
FP8_CACHE, BF16_CACHE = (load_recipe("fp8-block").with_kv_cache(dtype) for dtype in ("fp8", "bf16"))
QWEN = {"model": "qwen3-235b-a22b"}
V32 = {"model": "deepseek-v3.2", "tp": 8, "dcp": 8}
NIXL = {"--kv-transfer-config": '{"kv_connector": "NixlConnector"}'}
SPREAD = {"dp": 16, "ep": 16}
SGLANG = {"engine": "sglang"}
TRTLLM = {"engine": "trtllm"}
GRAPHS = "cuda_graph_config.{}"
BLACKWELL = {"hardware": "gb200-nvl72"}
BREAKING = {
    # DeepSeek-V4 is in vLLM's registry from 0.20.0 on
    "architecture_of_the_release": (
        {"model": "deepseek-v4-flash", "recipe": "fp8-block", "version": "0.19"},
        {"model": "deepseek-v4-flash", "recipe": "fp8-block", "version": "0.20"},
    ),
    "heads_divide": ({"tp": 3}, {"tp": 4}),
    "context_ranks_divide": ({"tp": 8, "dcp": 3}, {"tp": 8, "dcp": 8}),
    # 64 query heads on 4 KV heads: tp 8 makes two copies of each, so two ranks may share one, not four
    "context_ranks_of_kv_heads": (
        {**QWEN, "tp": 8, "dcp": 4, "role": "serve"},
        {**QWEN, "tp": 8, "dcp": 2, "role": "serve"},
    ),
    "context_ranks_of_windows": (
        {"model": "gpt-oss-120b", "recipe": "mxfp4", "tp": 16, "dcp": 2, "role": "serve"},
        {"model": "gpt-oss-120b", "recipe": "mxfp4", "tp": 8, "role": "serve"},
    ),
    "context_ranks_of_other_layers": (
        {"model": "minimax-m3", "recipe": "bf16", "tp": 8, "dcp": 2, "role": "serve"},
        {"tp": 8, "dcp": 2, "role": "serve"},
    ),
    "context_ranks_beside_recurrent_layers": (
        {"model": "kimi-linear-48b-a3b", "recipe": "bf16", "tp": 8, "dcp": 8, "version": "0.25"},
        {"model": "kimi-linear-48b-a3b", "recipe": "bf16", "tp": 8, "dcp": 8, "version": "0.26"},
    ),
    "context_ranks_of_an_fp8_latent_cache": (
        {"tp": 8, "dcp": 8, "recipe": "nvfp4", **BLACKWELL, "version": "0.24"},
        {"tp": 8, "dcp": 8, "recipe": "nvfp4", **BLACKWELL, "version": "0.25"},
    ),
    "context_ranks_of_sparse_layers": (
        {**V32, **BLACKWELL, "version": "0.24"},
        {**V32, **BLACKWELL, "version": "0.25"},
    ),
    "context_ranks_of_sparse_layers_on_hopper": ({**V32, "version": "0.28"}, {**V32, "recipe": FP8_CACHE, "version": "0.29"}),
    "context_ranks_of_the_sparse_cache": ({**V32, "recipe": BF16_CACHE}, {**V32, "recipe": FP8_CACHE}),
    # a plan of one side of a pair is written with the connector, a command says so
    "context_ranks_of_the_connector": ({"tp": 8, "dcp": 4}, {"tp": 8, "dcp": 4, "options": {}}),
    "context_ranks_without_two_batches": (
        {"tp": 2, "dp": 8, "ep": 16, "dcp": 2, "backend": LOW_LATENCY, "overlap": TWO_BATCH},
        {"tp": 2, "dp": 8, "ep": 16, "dcp": 2, "backend": LOW_LATENCY},
    ),
    # FlashMLA, which vLLM takes for an FP8 cache on Hopper, verifies one token of a shared context; FlashAttention several
    "context_ranks_with_drafts": (
        {"tp": 8, "dcp": 8, "drafts": 1, "recipe": FP8_CACHE},
        {"tp": 8, "dcp": 8, "drafts": 1, "recipe": BF16_CACHE},
    ),
    "context_ranks_outside_of_graphs": ({"tp": 8, "dcp": 8, "version": "0.11"}, {"tp": 8, "dcp": 8, "version": "0.12"}),
    "context_ranks_on_amd": ({"tp": 8, "dcp": 8, "hardware": "mi300x"}, {"tp": 8, "dcp": 8}),
    "context_ranks_of_sglang": ({**SGLANG, "tp": 8, "dcp": 8}, {**SGLANG, "tp": 8, "dcp": 8, **BLACKWELL}),
    # 4 KV heads: 2 divides them, 8 copies them, 6 does neither
    "kv_heads_divide": ({**QWEN, "tp": 6}, {**QWEN, "tp": 8, "recipe": "bf16"}),
    # 256 + 8 over 24 ranks are 11 each
    "redundant_experts_divide": ({"tp": 8, "dp": 3, "ep": 24}, {"tp": 8, "dp": 3, "ep": 24, "redundant_experts": 8, "eplb": 1}),
    "widths_divide": ({"tp": 10, "model": "gpt-oss-120b", "recipe": "mxfp4", "ep": 1, "dp": 7}, {"tp": 8}),
    # 1,536 / 8 = 192 is one and a half blocks of 128; 1,536 / 4 = 384 is three
    "expert_blocks": ({**QWEN, "tp": 8, "version": "0.24"}, {**QWEN, "tp": 4, "version": "0.24"}),
    # 192, 64 and 4,096 have 64 in common: vLLM 0.33 re-cuts to 64
    "expert_blocks_recut": ({**QWEN, "tp": 8}, {**QWEN, "tp": 8, "ep": 8}),
    # the shared expert: 2,048 / 32 = 64
    "projection_blocks": ({"tp": 32, "ep": 32}, {"tp": 16, "ep": 16}),
    "nvfp4_without_tensor_cores": (
        {**SGLANG, "recipe": "nvfp4-w4a16", "tp": 8, "version": "0.5.8"},
        {"recipe": "nvfp4-w4a16", "tp": 8},
    ),
    "mxfp8_without_tensor_cores": (
        {**SGLANG, "model": "minimax-m3", "recipe": load_recipe("mxfp8").on("hopper"), "tp": 8},
        {**SGLANG, **BLACKWELL, "model": "minimax-m3", "recipe": load_recipe("mxfp8").on("blackwell"), "tp": 4},
    ),
    "eplb_needs_expert_parallelism": ({"tp": 8, "eplb": 1}, {"tp": 8, "ep": 8, "eplb": 1}),
    "redundant_experts_need_eplb": ({**SPREAD, "redundant_experts": 16}, {**SPREAD, "redundant_experts": 16, "eplb": 1}),
    "offload_without_eplb": ({**SPREAD, "eplb": 1, "offload_group_size": 2}, {**SPREAD, "offload_group_size": 2}),
    "offload_is_written": (
        {**SGLANG, "model": "llama-3.1-70b", "recipe": "bf16", "tp": 8, "offload_group_size": 2},
        {**SGLANG, "tp": 8, "ep": 8, "offload_group_size": 2},
    ),
    "eplb_of_the_model": (
        {"model": "gpt-oss-120b", "recipe": "mxfp4", "dp": 8, "ep": 8, "eplb": 1},
        {"model": "gpt-oss-120b", "recipe": "mxfp4", "dp": 8, "ep": 8, **SGLANG, "eplb": 1},
    ),
    "dp_rank_on_one_node": ({"tp": 16, "dp": 2, "ep": 32}, {"tp": 8, "dp": 2, "ep": 16}),
    "local_ranks_fit_the_node": (
        {**SPREAD, "options": {"--data-parallel-size-local": "16"}},
        {**SPREAD, "options": {"--data-parallel-size-local": "8"}},
    ),
    "expert_ranks_are_all_ranks": ({"dp": 16, "ep": 8}, {"dp": 16, "ep": 16}),
    "attention_dp_of_whole_ranks": ({**TRTLLM, "tp": 2, "dp": 4, "ep": 8}, {**TRTLLM, "dp": 8, "ep": 8}),
    "pipeline_hands_over": ({"tp": 8, "pp": 2}, {"tp": 8, "pp": 2, "role": "serve"}),
    "pipeline_drafts": (
        {**SGLANG, "tp": 8, "pp": 2, "drafts": 1, "role": "serve"},
        {**SGLANG, "tp": 8, "pp": 2, "role": "serve"},
    ),
    "backend_offered": ({**SPREAD, "backend": ONE_SIDED, "version": "0.15"}, {**SPREAD, "backend": NORMAL, "graph_tokens": 0}),
    "backend_by_itself": (
        {"engine": "vllm-ascend", "hardware": "ascend-910b2", "recipe": "int8", **SPREAD, "backend": GATHERED},
        {"engine": "vllm-ascend", "hardware": "ascend-910b2", "recipe": "int8", **SPREAD, "backend": LOW_LATENCY},
    ),
    "kernel_token_limit": (
        {**SPREAD, "backend": LOW_LATENCY, "batch": 1100, "version": "0.19"},
        {**SPREAD, "backend": LOW_LATENCY, "batch": 1024, "version": "0.19"},
    ),
    # 1,560 a rank were measured with a newer DeepEP: nothing says that it does not start
    "kernel_token_limit_unsure": (
        {**SPREAD, "backend": LOW_LATENCY, "batch": 1560},
        {**SPREAD, "backend": LOW_LATENCY, "batch": 512, "drafts": 1},
    ),
    "inside_the_domain": (
        {**SPREAD, "backend": ONE_SIDED, "hardware": "hgx-b200", "recipe": "nvfp4"},
        {**SPREAD, "backend": ONE_SIDED, **BLACKWELL, "recipe": "nvfp4"},
    ),
    # 8 ranks that keep every expert in halves
    "alltoall_of_whole_experts": (
        {**TRTLLM, **BLACKWELL, "recipe": "nvfp4", "dp": 8, "ep": 4, "backend": ONE_SIDED},
        {**TRTLLM, **BLACKWELL, "recipe": "nvfp4", "dp": 8, "ep": 8, "backend": ONE_SIDED},
    ),
    "every_rank_its_own_attention": (
        {**SGLANG, **BLACKWELL, "recipe": "nvfp4", "tp": 2, "dp": 4, "ep": 8, "backend": ONE_SIDED},
        {**SGLANG, **BLACKWELL, "recipe": "nvfp4", "dp": 8, "ep": 8, "backend": ONE_SIDED},
    ),
    "without_graphs": ({**SPREAD, "backend": NORMAL}, {**SPREAD, "backend": NORMAL, "graph_tokens": 0}),
    "vendor_of_the_kernel": (
        {**SPREAD, "hardware": "mi355x", "backend": LOW_LATENCY},
        {**SPREAD, "hardware": "mi355x", "backend": GATHERED},
    ),
    "hidden_sizes": (
        {"model": "gpt-oss-120b", "recipe": "mxfp4", "dp": 8, "ep": 8, "backend": LOW_LATENCY},
        {"dp": 8, "ep": 8, "backend": LOW_LATENCY},
    ),
    "expert_ranks_of_the_kernel": (
        {"engine": "vllm-ascend", "hardware": "ascend-910b2", "recipe": "int8", "dp": 24, "ep": 24, "backend": LOW_LATENCY,
         "redundant_experts": 8},
        {"engine": "vllm-ascend", "hardware": "ascend-910b2", "recipe": "int8", "dp": 32, "ep": 32, "backend": LOW_LATENCY},
    ),
    # NVFP4 has no handler of DeepEP's normal dispatch
    "expert_dtypes_of_the_kernel": (
        {**SGLANG, **BLACKWELL, "recipe": "nvfp4", **SPREAD, "backend": NORMAL, "role": "prefill", "batched_tokens": 1024},
        {**SGLANG, **BLACKWELL, "recipe": "fp8-block", **SPREAD, "backend": NORMAL, "role": "prefill", "batched_tokens": 1024},
    ),
    "dbo_needs_deepep": (
        {**SPREAD, "backend": GATHERED, "overlap": OVERLAPS.index("two_batch")},
        {**SPREAD, "backend": LOW_LATENCY, "overlap": OVERLAPS.index("two_batch")},
    ),
    "sbo_needs_deepep": (
        {**SPREAD, "backend": GATHERED, "overlap": OVERLAPS.index("single_batch")},
        {**SPREAD, "backend": LOW_LATENCY, "overlap": OVERLAPS.index("single_batch")},
    ),
    "balancer_with_attention_dp": (
        {**TRTLLM, "tp": 8, "ep": 8, "redundant_experts": 32},
        {**TRTLLM, "dp": 8, "ep": 8, "redundant_experts": 32},
    ),
    "balancer_of_the_kernels": (
        {**TRTLLM, "dp": 8, "ep": 8, "redundant_experts": 32, "options": {"moe_config.backend": "TRITON"}},
        {**TRTLLM, "dp": 8, "ep": 8, "redundant_experts": 32, "options": {"moe_config.backend": "CUTLASS"}},
    ),
    "graph_sizes_agree": (
        {**TRTLLM, "tp": 8, "options": {GRAPHS.format("batch_sizes"): "[1, 64]", GRAPHS.format("max_batch_size"): "128"}},
        {**TRTLLM, "tp": 8, "options": {GRAPHS.format("batch_sizes"): "[1, 128]", GRAPHS.format("max_batch_size"): "128"}},
    ),
    "split_output_with_attention_dp": (
        {**TRTLLM, "tp": 8, "options": {"enable_lm_head_tp_in_adp": "true"}},
        {**TRTLLM, "dp": 8, "options": {"enable_lm_head_tp_in_adp": "true"}},
    ),
    # 98,647 = 1,541 pages of 64 and 23 tokens
    "whole_pages": (
        {**SGLANG, **BLACKWELL, "recipe": "nvfp4", "tp": 4, "role": "prefill", "batched_tokens": 98647},
        {**SGLANG, "tp": 4, "role": "prefill", "batched_tokens": 98647},
    ),
}  # fmt: skip


def test_every_rule_has_a_case():
    assert set(BREAKING) == {rule.name for rule in RULES}


@pytest.mark.parametrize("name", BREAKING)
def test_a_rule_is_broken_by_its_case_and_not_by_its_neighbour(name):
    breaks, keeps = BREAKING[name]
    row = breaks if "backend" in breaks or breaks.get("dp", 1) == 1 else {**breaks, "backend": GATHERED}
    found = findings(RULES, subject(**row))
    (text,) = [finding.text for finding in found if finding.rule == name]
    assert len(text) > 20
    row = keeps if "backend" in keeps or keeps.get("dp", 1) == 1 else {**keeps, "backend": GATHERED}
    assert name not in broken(subject(**row))


def test_every_rule_says_where_it_was_read():
    for rule in (*RULES, *PAIR_RULES, *REQUIREMENTS):
        assert len(rule.source) > 15, rule.name
        assert len(rule.says) > 20, rule.name


@pytest.mark.parametrize(
    ("model", "recipe", "tp", "loads"),
    [
        ("qwen3-235b-a22b", "fp8-block", 8, False),  # 192
        ("qwen3-235b-a22b", "fp8-block", 4, True),  # 384
        ("qwen3-235b-a22b", "bf16", 8, True),  # no blocks
        ("qwen3-235b-a22b", "nvfp4", 8, True),  # 192 = 12 x 16
        ("gpt-oss-120b", "mxfp4", 2, True),  # 1,440: kernels pad
        ("gpt-oss-120b", "mxfp4", 8, True),  # 360
        ("deepseek-r1", "fp8-block", 16, True),  # 128
        ("deepseek-r1", "int8", 16, True),
    ],
)
def test_blocks_are_those_of_the_recipe(model, recipe, tp, loads):
    """Experts cut by tensor parallelism alone, in the last vLLM that was read without re-cutting, and in SGLang."""
    for engine, version in (("vllm", "0.24"), ("sglang", None)):
        assert ("expert_blocks" not in broken(subject(engine, version, model, recipe, tp=tp))) == loads


def test_the_blocks_of_an_expert_are_divided_with_a_way_out():
    (finding,) = findings(RULES, subject(version="0.24", tp=8, **QWEN))
    assert "1,536 / 8 ranks = 192 is not divisible by the 128-wide scale blocks" in finding.text
    assert "expert parallelism keeps experts whole, and 4 ranks would divide" in finding.text  # 384; 6 divide no 64 heads
    assert finding.stops
    assert "vllm#17569" in finding.source


def test_a_layout_that_the_newest_vllm_re_cuts_is_no_refusal_but_has_no_price():
    (finding,) = findings(RULES, subject(tp=8, **QWEN))
    assert (finding.rule, finding.effect, finding.stops) == ("expert_blocks_recut", "unpriced", False)
    assert "releases before 0.29 refuse to load it" in finding.text


def test_groups_of_int4_and_tiles_of_nvfp4_are_blocks_too():
    assert {BLOCKS[name] for name in ("int4_g32", "int4_g128", "nvfp4")} == {32, 128, 16}


def test_whole_columns_are_filtered_at_once():
    """TP4, TP8 and TP8 EP8 of a model with experts of 1,536: only the second cuts blocks."""
    rows = {"tp": [4, 8, 8], "ep": [1, 1, 8]}
    assert legal(RULES, subject(version="0.24", **QWEN, **rows)).tolist() == [True, False, True]
    assert legal(RULES, subject(version="0.24", model="qwen3-235b-a22b", recipe="bf16", **rows)).all()


def test_rules_of_a_size_are_those_that_change_with_it():
    for rule in RULES:
        sizes = {"batch": [1, 5000], "batched_tokens": [64, 4999]}
        for role in ("decode", "prefill"):
            asked = subject("sglang", hardware="gb200-nvl72", role=role, dp=8, ep=8, backend=LOW_LATENCY, **sizes)
            asked = asked if rule.engines != ("vllm",) else subject(role=role, dp=8, ep=8, backend=LOW_LATENCY, **sizes)
            if rule.applies(asked):
                answers = rule.broken(asked)
                assert rule in SIZED_RULES or bool(answers[0]) == bool(answers[1]), rule.name


RUNNERS = [
    ("nvfp4", LOW_LATENCY, "flashinfer_cutedsl"),
    ("bf16", LOW_LATENCY, "deep_gemm"),
    ("fp8-block", LOW_LATENCY, None),
    ("nvfp4", ONE_SIDED, "flashinfer_cutlass"),
    ("fp8-block", ONE_SIDED, "deep_gemm"),
    ("bf16", ONE_SIDED, "flashinfer_cutlass"),
    ("nvfp4", GATHERED, None),
]


@pytest.mark.parametrize(("recipe", "backend", "runner"), RUNNERS)
def test_sglang_s_expert_runner_is_written_and_missed(recipe, backend, runner):
    plan = subject("sglang", recipe=recipe, hardware="gb200-nvl72", dp=8, ep=8, backend=backend)
    assert dict(written(plan).options).get("--moe-runner-backend") == ((runner,) if runner else None)
    silent = subject("sglang", recipe=recipe, hardware="gb200-nvl72", dp=8, ep=8, backend=backend, options={})
    assert ("moe_runner" in {finding.rule for finding in unmet(silent)}) == (runner is not None)
    told = subject("sglang", recipe=recipe, hardware="gb200-nvl72", dp=8, ep=8, backend=backend,
                   options={"--moe-runner-backend": runner or "auto"})  # fmt: skip
    assert "moe_runner" not in {finding.rule for finding in unmet(told)}


def test_kimi_s_tokenizer_is_code_of_its_own():
    for engine in ("vllm", "sglang"):
        plan = subject(engine, model="kimi-k2", tp=16)
        assert "--trust-remote-code" in written(plan).options
        (finding,) = unmet(subject(engine, model="kimi-k2", tp=16, options={"--tp-size": "16"}))
        assert finding.rule == "trust_remote_code"
        assert not unmet(subject(engine, model="kimi-k2", tp=16, options={"--trust-remote-code": None}))
    assert not written(subject(tp=8)).options


def test_tensorrt_llm_s_needs_are_fields_of_its_settings():
    """Prompts are computed without the overlap scheduler; a tokenizer of the checkpoint's own is allowed by a field."""
    prefill = {"engine": "trtllm", "tp": 8, "role": "prefill", "batched_tokens": 64}
    asked = {"cache_transceiver_config.backend": ("DEFAULT",), "disable_overlap_scheduler": ("true",)}
    assert dict(written(subject(**prefill)).options) == asked
    handed = {"cache_transceiver_config.backend": "UCX"}
    (finding,) = unmet(subject(**prefill, options={**handed, "disable_overlap_scheduler": "false"}))
    assert (finding.rule, finding.stops) == ("prefill_without_overlapped_steps", False)
    (finding,) = unmet(subject(**prefill, options={"disable_overlap_scheduler": "true"}))
    assert (finding.rule, finding.stops) == ("caches_are_handed_over", True)
    assert not unmet(subject(**prefill, options={**handed, "disable_overlap_scheduler": "true"}))
    assert dict(written(subject("trtllm", model="kimi-k2", tp=16, role="serve")).options) == {"trust_remote_code": ("true",)}


@pytest.mark.parametrize(
    ("prefill", "decode", "names"),
    [
        ({"hardware": "hgx-h200"}, {"hardware": "gb200-nvl72", "recipe": "nvfp4"}, {"pair_of_one_checkpoint"}),
        ({"recipe": "fp8-block"}, {"recipe": "bf16"}, {"pair_of_one_checkpoint"}),
        ({"hardware": "hgx-h20"}, {"hardware": "hgx-h200"}, set()),
    ],
)
def test_pools_of_a_vllm_pair_share_checkpoint_and_generation(prefill, decode, names):
    found = pair_findings(subject(role="prefill", tp=8, batched_tokens=64, **prefill), subject(tp=8, **decode))
    assert {finding.rule for finding in found} - {"pair_of_one_cache_dtype"} == names
    assert not {f.rule for f in pair_findings(subject("sglang", tp=8, role="prefill"), subject("sglang", tp=8))}


def test_a_silent_command_starts_all_its_ranks_on_one_node():
    assert "local_ranks_fit_the_node" in broken(subject(dp=16, ep=16, backend=GATHERED, options={"--data-parallel-size": "16"}))
    other = {"--data-parallel-size": "16", "--data-parallel-address": "10.0.0.1"}
    assert "local_ranks_fit_the_node" not in broken(subject(dp=16, ep=16, backend=GATHERED, options=other))


def test_pages_are_those_of_the_attention_backend():
    """FlashMLA keeps pages of 64 tokens on any GPU, FA3 of one; --page-size says it outright."""
    asked = {"role": "prefill", "tp": 8, "batched_tokens": 1000}
    assert "whole_pages" not in broken(subject("sglang", **asked))
    assert "whole_pages" in broken(subject("sglang", options={"--attention-backend": "flashmla"}, **asked))
    assert "whole_pages" in broken(subject("sglang", options={"--page-size": "16"}, **asked))
    assert "whole_pages" not in broken(subject("sglang", options={"--page-size": "8"}, **asked))


def test_masks_have_the_length_of_the_rows():
    rows = {"tp": [1, 2, 4, 8], "dp": [8, 4, 2, 1], "ep": 8, "backend": [LOW_LATENCY, LOW_LATENCY, GATHERED, 0]}
    for engine in ("vllm", "sglang", "vllm-ascend", "trtllm"):
        hardware, recipe = ("ascend-910b2", "int8") if engine == "vllm-ascend" else ("hgx-h200", "fp8-block")
        for role in ("decode", "prefill", "serve"):
            asked = subject(engine, hardware=hardware, recipe=recipe, role=role, batched_tokens=64, **rows)
            for rule in RULES:
                if rule.applies(asked):
                    mask = rule.broken(asked)
                    assert mask.shape == (4,), rule.name
                    assert mask.dtype == np.bool_, rule.name


def test_pages_of_block_sparse_attention_are_its_blocks():
    plan = {"model": "minimax-m3", "recipe": "bf16", "tp": 8}
    assert dict(written(subject(**plan)).options)["--block-size"] == ("128",)
    assert "--block-size" not in dict(written(subject(tp=8)).options)
    (finding,) = [found for found in unmet(subject(**plan, options={"--block-size": "64"})) if found.rule == "pages_are_blocks"]
    assert (finding.effect, "--block-size 128 is missing" in finding.text) == ("refused", True)
    assert not unmet(subject(**plan, options={"--block-size": "128"}))


def test_two_batch_overlap_of_sglang_works_between_gathers_too():
    """With attention DP and experts that are not spread, since 0.5.15 (server_args.py): not refused, and not timed."""
    asked = {**SGLANG, "tp": 1, "dp": 8, "backend": GATHERED, "overlap": TWO_BATCH}
    effects = {version: findings(RULES, subject(version=version, **asked)) for version in ("0.5.12", "0.5.16")}
    assert [f.effect for f in effects["0.5.12"] if f.rule == "dbo_needs_deepep"] == ["refused"]
    assert [f.effect for f in effects["0.5.16"] if f.rule == "dbo_needs_deepep"] == ["untimed"]
    spread = findings(RULES, subject(**asked | {"ep": 8}))
    assert [f.effect for f in spread if f.rule == "dbo_needs_deepep"] == ["refused"]
