"""Tables of recurrent and sparse attention in the silicon database -> timing rows.

Recurrent kernels are timed alone. Sparse attention is timed as whole modules, with and without their indexer; rows
with BF16 weights are read, because every calibration prices BF16 GEMMs. Prompts below 16 tokens are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from autotune.calibrating.silicon_kernels import KV_DTYPES, SMALLEST_PROMPT, TableRows, median_of_duplicates

if TYPE_CHECKING:
    import pandas as pd

MLA = {"kv_lora_rank": 512, "qk_rope_dim": 64, "index_dim": 128, "top_k": 2048}
V32 = {**MLA, "hidden": 7168, "q_lora_rank": 1536, "qk_nope_dim": 128, "v_dim": 128, "index_heads": 64}
GLM5 = {**MLA, "hidden": 6144, "q_lora_rank": 2048, "qk_nope_dim": 192, "v_dim": 256, "index_heads": 32}
MODULES = {"DeepseekV32ForCausalLM": V32, "GlmMoeDsaForCausalLM": GLM5}
"""Architecture in the table -> the dimensions that its rows do not state."""
VERIFYING = "verify"
SERIAL_CONVOLUTIONS = ("trtllm",)
"""Engines whose table walks the sequences of a prefill convolution one after the other."""


def gated_delta(raw: pd.DataFrame, engine: str) -> TableRows:
    """Gated delta net kernels of Qwen3-Next's family."""
    return _delta(raw, engine, "gated_delta")


def kda(raw: pd.DataFrame, engine: str) -> TableRows:
    """Kimi delta attention kernels."""
    return _delta(raw, engine, "kda")


def mamba2(raw: pd.DataFrame, _engine: str) -> TableRows:
    """Mamba-2's convolution in decode; the tables do not time its state update and scan."""
    channels = raw.nheads * raw.head_dim + 2 * raw.n_groups * raw.d_state
    rows = raw[raw.phase == "generation"]
    dropped = {"mamba2: prefill convolution (one sequence after the other)": len(raw) - len(rows)}
    return _convolutions(rows, "mamba2", channels[rows.index], dropped)


def _delta(raw: pd.DataFrame, engine: str, kind: str) -> TableRows:
    import pandas as pd

    dropped: dict[str, int] = {}
    verifying = raw.phase == VERIFYING
    short = (raw.phase == "context") & (raw.seq_len < SMALLEST_PROMPT)
    convolution = raw.kernel_source.str.contains("conv1d")
    serial = convolution & (raw.phase == "context") & (engine in SERIAL_CONVOLUTIONS)
    dropped[f"{kind}: verification of drafts"] = int(verifying.sum())
    dropped[f"{kind}: prompts below {SMALLEST_PROMPT}"] = int(short.sum())
    dropped[f"{kind}: prefill convolution (one sequence after the other)"] = int((serial & ~short).sum())
    borrowed = (raw.phase == "context") & raw.kernel_source.str.contains("update|fused_recurrent")
    dropped[f"{kind}: prompts that the decode kernel takes"] = int((borrowed & ~short & ~serial).sum())
    raw = raw[~verifying & ~short & ~serial & ~borrowed]
    convolution = convolution[raw.index]
    channels = 2 * raw.num_k_heads * raw.head_k_dim + raw.num_v_heads * raw.head_v_dim
    first, _ = _convolutions(raw[convolution], kind, channels[convolution], dropped)
    core = raw[~convolution]
    update, scan = core[core.phase == "generation"], core[core.phase == "context"]
    updates = update.assign(
        operator=f"{kind}_update", dtype="fp32", sequences=update.batch_size, query_tokens=update.seq_len,
        state_elements=update.num_v_heads * update.head_k_dim * update.head_v_dim, latency_ms=update.latency,
    )  # fmt: skip
    scans = scan.assign(
        operator=f"{kind}_scan", dtype="fp32", sequences=scan.batch_size, new_tokens=scan.seq_len,
        heads=scan.num_v_heads, latency_ms=scan.latency,
    )  # fmt: skip
    merged = [
        first,
        median_of_duplicates(updates, ["operator", "dtype", "sequences", "query_tokens", "state_elements"], dropped),
        median_of_duplicates(scans, ["operator", "dtype", "sequences", "new_tokens", "heads"], dropped),
    ]
    return pd.concat([part for part in merged if len(part)], ignore_index=True), dropped


def _convolutions(raw: pd.DataFrame, kind: str, channels: pd.Series, dropped: dict[str, int]) -> TableRows:
    decoding = raw.phase == "generation"
    rows = raw.assign(
        operator=decoding.map({True: f"{kind}_convolution.decode", False: f"{kind}_convolution.prefill"}),
        dtype="bf16",
        sequences=raw.batch_size,
        new_tokens=raw.seq_len,
        channels=channels,
        state_taps=decoding.astype(int) * (raw.d_conv - 1),
        latency_ms=raw.latency,
    )
    keys = ["operator", "dtype", "sequences", "new_tokens", "channels", "state_taps"]
    return median_of_duplicates(rows, keys, dropped), dropped


def dsa_decode(raw: pd.DataFrame, _engine: str) -> TableRows:
    """Sparse attention modules in decode."""
    return _modules(raw, "dsa_decode", lambda kept: {"context_tokens": kept.step + 1})


def dsa_prefill(raw: pd.DataFrame, _engine: str) -> TableRows:
    """Sparse attention modules over prompts."""
    return _modules(
        raw[raw.isl >= SMALLEST_PROMPT], "dsa_prefill", lambda kept: {"new_tokens": kept.isl, "prefix_tokens": kept.step}
    )


def _modules(raw: pd.DataFrame, operator: str, tokens: Callable[[pd.DataFrame], dict[str, pd.Series]]) -> TableRows:
    known = raw.architecture.isin(MODULES) & raw.kv_cache_dtype.isin(KV_DTYPES)
    plain = raw.gemm_type == "bfloat16"
    dropped = {
        f"{operator}: other architectures or cache dtypes": int((~known).sum()),
        f"{operator}: weights in other dtypes than BF16": int((known & ~plain).sum()),
    }
    kept = raw[known & plain]
    dims = {name: kept.architecture.map({arch: module[name] for arch, module in MODULES.items()}) for name in V32}
    rows = kept.assign(
        operator=operator,
        dtype=kept.kv_cache_dtype.map(KV_DTYPES),
        sequences=kept.batch_size,
        heads=kept.num_heads,
        computes_index=(~kept.op_name.str.contains("skip")).astype(int),
        latency_ms=kept.latency,
        **dims,
        **tokens(kept),
    )
    keys = ["operator", "dtype", "sequences", "heads", "computes_index", *dims, *tokens(kept)]
    return median_of_duplicates(rows, keys, dropped), dropped


V4 = {"head_dim": 512, "rope_dim": 64, "o_lora_rank": 1024, "window_tokens": 128}
V4_MODELS = {
    "DeepSeek-V4-Flash": {**V4, "hidden": 4096, "q_lora_rank": 1024, "top_k": 512},
    "DeepSeek-V4-Pro": {**V4, "hidden": 7168, "q_lora_rank": 1536, "top_k": 1024},
}
"""Part of a model's name in the table -> the dimensions that its rows do not state."""
HEADS_PER_GROUP = 8
INDEXED = {4: {"index_heads": 64, "index_dim": 128}, 128: {"index_heads": 0, "index_dim": 0}}


def compressed_decode(raw: pd.DataFrame, _engine: str) -> TableRows:
    """Compressed attention modules of DeepSeek-V4 in decode."""
    return _compressed(raw, "compressed_decode", lambda kept: {"context_tokens": kept.step + 1})


def compressed_prefill(raw: pd.DataFrame, _engine: str) -> TableRows:
    """Compressed attention modules of DeepSeek-V4 over prompts."""
    long = raw[raw.isl >= SMALLEST_PROMPT]
    return _compressed(long, "compressed_prefill", lambda kept: {"new_tokens": kept.isl, "prefix_tokens": kept.step})


def _compressed(raw: pd.DataFrame, operator: str, tokens: Callable[[pd.DataFrame], dict[str, pd.Series]]) -> TableRows:
    named = raw.model.map(lambda name: next((key for key in V4_MODELS if key in name), None))
    known = named.notna() & (raw.gemm_type == "fp8_block") & (raw.kv_cache_dtype == "fp8") & raw.compress_ratio.isin(INDEXED)
    dropped = {f"{operator}: other models, weights or caches": int((~known).sum())}
    kept, which = raw[known], named[known]
    dims = {name: which.map({key: model[name] for key, model in V4_MODELS.items()}) for name in V4_MODELS["DeepSeek-V4-Pro"]}
    dims |= {name: kept.compress_ratio.map({ratio: own[name] for ratio, own in INDEXED.items()}) for name in INDEXED[4]}
    dims |= {"ratio": kept.compress_ratio, "o_groups": (kept.num_heads // HEADS_PER_GROUP).clip(lower=1)}
    dims["top_k"] = dims["top_k"].where(dims["index_heads"] > 0, 0)
    rows = kept.assign(
        operator=operator,
        dtype=kept.compress_ratio.map({4: "fp8.indexed", 128: "fp8.whole"}),
        sequences=kept.batch_size,
        heads=kept.num_heads,
        latency_ms=kept.latency,
        **dims,
        **tokens(kept),
    )
    return median_of_duplicates(rows, ["operator", "dtype", "sequences", "heads", *dims, *tokens(kept)], dropped), dropped


M3 = {"head_dim": 128, "hidden": 6144, "block_tokens": 128, "top_blocks": 16, "index_dim": 128}
M3_HEADS = (8, 16, 32, 64)
"""Query heads of a rank at TP 8 to 1; tables have others, of which the KV heads are not stated."""
M3_GROUP = 16
"""Query heads of a KV head, which has one index head."""


def block_sparse_decode(raw: pd.DataFrame, _engine: str) -> TableRows:
    """Block-sparse attention modules of MiniMax-M3 in decode."""
    return _block_sparse(raw, "block_sparse_decode", lambda kept: {"context_tokens": kept.step + 1})


def block_sparse_prefill(raw: pd.DataFrame, _engine: str) -> TableRows:
    """Block-sparse attention modules of MiniMax-M3 over prompts."""
    long = raw[raw.isl >= SMALLEST_PROMPT]
    return _block_sparse(long, "block_sparse_prefill", lambda kept: {"new_tokens": kept.isl, "prefix_tokens": kept.step})


def _block_sparse(raw: pd.DataFrame, operator: str, tokens: Callable[[pd.DataFrame], dict[str, pd.Series]]) -> TableRows:
    known = raw.num_heads.isin(M3_HEADS) & raw.kv_cache_dtype.isin(KV_DTYPES)
    plain = raw.gemm_type == "bfloat16"
    dropped = {
        f"{operator}: head counts of no rank, or other caches": int((~known).sum()),
        f"{operator}: weights in other dtypes than BF16": int((known & ~plain).sum()),
    }
    kept = raw[known & plain]
    groups = (kept.num_heads // M3_GROUP).clip(lower=1)
    rows = kept.assign(
        operator=operator,
        dtype=kept.kv_cache_dtype.map(KV_DTYPES),
        sequences=kept.batch_size,
        heads=kept.num_heads,
        kv_heads=groups,
        index_heads=groups,
        latency_ms=kept.latency,
        **M3,
        **tokens(kept),
    )
    keys = ["operator", "dtype", "sequences", "heads", "kv_heads", "index_heads", *M3, *tokens(kept)]
    return median_of_duplicates(rows, keys, dropped), dropped


def hyper_connections(raw: pd.DataFrame, _engine: str) -> TableRows:
    """Mixing of residual streams before and after both blocks of a layer; rows of one block are left out."""
    parts = raw.op_name.isin(("pre", "post")) & (raw.num_sites == 2)
    dropped = {"hyper-connections: other operators, or one block": int((~parts).sum())}
    kept = raw[parts]
    rows = kept.assign(
        operator="hyper_connections." + kept.op_name.astype(str),
        dtype="bf16",
        tokens=kept.num_tokens,
        hidden=kept.hidden_size,
        streams=kept.hc_mult,
        latency_ms=kept.latency,
    )
    return median_of_duplicates(rows, ["operator", "dtype", "tokens", "hidden", "streams"], dropped), dropped
