"""Kernel tables of the silicon database -> timing rows: GEMMs, attention, experts.

Traps handled here, each counted: GEMMs below 256 in n or k are other kernels; vLLM fp8_block GEMMs carry an
eager-launch floor; head counts vary with tp_size; `balanced` MoE rows with EP and DeepSeek's group-limited gate
route differently from real traffic; power-law MoE rows name a distribution, not loads, so the busiest rank's loads
are re-created as the collector draws them; SGLang's Hopper context MLA times the absorbed path, which serving does
not take for whole prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autotune.calibrating.operators import CONTIGUOUS, CUTLASS, DEEPGEMM, MASKED

if TYPE_CHECKING:
    import pandas as pd

DTYPES = {"bfloat16": "bf16", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4"}
KV_DTYPES = {"bfloat16": "bf16", "fp8": "fp8"}
SLOW_MLA = {("sglang", "fp8")}
"""On Hopper rows of a fallback kernel, four times slower than BF16; on Blackwell queries are cast and concatenated by PyTorch
beside the kernel, which the engine's step does in one of its own."""
NVFP4 = "nvfp4"
EAGER_GEMM = {("vllm", "fp8_block")}
SMALLEST_GEMM = 256
SMALLEST_SHARE = 0.3
"""Of a row's latency, that taking off another kernel may leave; the two were timed apart."""
SMALLEST_PROMPT = 16
SMALLEST_CONTEXT = 64
HEAD_DIM = 128
MOE_LAYERS = (
    (7168, 2048, 256, 8),  # DeepSeek-V3
    (7168, 2048, 384, 8),  # Kimi K2
    (6144, 2048, 256, 8),  # GLM-5
    (4096, 1536, 128, 8),  # Qwen3-235B-A22B
    (3072, 1536, 256, 8),  # MiniMax-M2
    (2048, 768, 128, 8),  # Qwen3-30B-A3B
)
"""(hidden, width, experts, top k) of the SwiGLU layers that a fit sees together: one kernel, whatever the model."""
GPT_OSS_LAYERS = ((2880, 2880, 128, 4),)
INT4 = "int4_wo"
INT4_LAYERS = ((7168, 2048, 384, 8),)
"""Kimi-K2 alone: other models' rows are of older releases, whose kernels took two to three times as long."""
MOE_DTYPES = {**DTYPES, INT4: "int4_g32", "w4a16_mxfp4": "mxfp4", "w4a8_mxfp4_mxfp8": "mxfp4_mxfp8"}
MOE_SHAPES = {**dict.fromkeys(DTYPES, MOE_LAYERS), **dict.fromkeys(("w4a16_mxfp4", "w4a8_mxfp4_mxfp8"), GPT_OSS_LAYERS)}
"""dtype -> the layers read for it: those of models that are served in it."""
CHOSEN_KERNELS = {"moe_torch_flow_cutlass": CUTLASS, "deepgemm": DEEPGEMM}
"""Sources of TensorRT-LLM's expert rows -> suffix of the dtype."""
TRITON = "sglang_fused_moe_triton"
"""Source of SGLang's rows where TRTLLM-gen takes a layer's routing not (MiniMax-M2 in FP8): half the speed from 128 tokens on."""
MOE_MAX_TOKENS = 16384
MOE_MAX_EP = 8
LOAD_DRAWS = 12
EAGER_EXPERTS_MS = 0.6
EXPERT_KEYS = [
    "operator",
    "dtype",
    "pairs",
    "active_experts",
    "local_experts",
    "input_tokens",
    "moe_tp",
    "hidden",
    "intermediate",
]


@dataclass(frozen=True, slots=True)
class ExpertLoadRows:
    """Busiest rank's load, averaged over draws."""

    pairs: float
    active_experts: float


TableRows = tuple["pd.DataFrame", dict[str, int]]
"""Timing rows, and how many raw rows were left out for which reason."""


def median_of_duplicates(rows: pd.DataFrame, keys: list[str], dropped: dict[str, int]) -> pd.DataFrame:
    """One row per key."""
    merged = rows.groupby(keys, as_index=False).agg({"latency_ms": "median"})
    if len(merged) < len(rows):
        dropped["duplicate keys (median kept)"] = len(rows) - len(merged)
    return merged


def gemm_rows(raw: pd.DataFrame, engine: str) -> TableRows:
    """Dense GEMMs that serving runs, but NVFP4."""
    newer = raw.gemm_dtype == NVFP4
    rows, dropped = _gemms(raw[~newer], engine)
    return rows, dropped | {"gemm: NVFP4 (read of newer releases)": int(newer.sum())}


def nvfp4_gemm(raw: pd.DataFrame, engine: str) -> TableRows:
    """GEMMs in NVFP4 alone: their kernels became a quarter faster within half a year (CuTe DSL of FlashInfer)."""
    return _gemms(raw[raw.gemm_dtype == NVFP4], engine)


def _gemms(raw: pd.DataFrame, engine: str) -> TableRows:
    dropped: dict[str, int] = {}
    large = (raw.n >= SMALLEST_GEMM) & (raw.k >= SMALLEST_GEMM)
    eager = raw.gemm_dtype.map(lambda d: (engine, d) in EAGER_GEMM).astype(bool)
    known = raw.gemm_dtype.isin(DTYPES)
    dropped["gemm: n or k below 256"] = int((~large).sum())
    dropped["gemm: eager-launch rows (vllm fp8_block)"] = int((large & eager).sum())
    dropped["gemm: dtype not modelled"] = int((large & ~eager & ~known).sum())
    kept = raw[large & ~eager & known]
    rows = kept.assign(operator="dense_gemm", dtype=kept.gemm_dtype.map(DTYPES), latency_ms=kept.latency)
    rows = median_of_duplicates(rows, ["operator", "dtype", "m", "n", "k"], dropped)
    return rows, dropped


def static_scales(raw: pd.DataFrame, scales: pd.DataFrame) -> pd.DataFrame:
    """GEMM rows without a kernel that an FP8 input was timed with and that serving does not run: checkpoints carry its scale.

    scales : `computescale_perf` or `scale_matrix_perf` rows (m, k, latency [ms]) of the same engine, whose FP8 GEMM rows were
    timed with dynamic scales. The nearest k at the nearest m is taken off.
    """
    fp8 = (raw.gemm_dtype == "fp8").to_numpy()
    table = scales[(scales.quant_dtype == "fp8") & (scales.latency > 0)].pivot_table(index="m", columns="k", values="latency")
    if not fp8.any() or table.empty:
        return raw
    filled = table.ffill(axis=1).bfill(axis=1).to_numpy(float)
    axes = ((table.index, "m"), (table.columns, "k"))
    place = [_nearest(axis.to_numpy(float), raw[name].to_numpy(float)) for axis, name in axes]
    latency = raw.latency.to_numpy(float)
    kept = np.maximum(latency - filled[place[0], place[1]], SMALLEST_SHARE * latency)
    return raw.assign(latency=np.where(fp8, kept, latency))


def _nearest(knots: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Position of the knot nearest to each value in the logarithm."""
    return np.asarray(np.abs(np.log(values)[:, None] - np.log(knots)[None, :]).argmin(axis=1), dtype=np.intp)


def block_gemm(raw: pd.DataFrame, engine: str) -> TableRows:
    """FP8 GEMMs with block scales alone, for engines whose own rows are unusable."""
    return _gemms(raw[raw.gemm_dtype == "fp8_block"], engine)


def fp8_mla_decode(raw: pd.DataFrame, engine: str) -> TableRows:
    """MLA decode with an FP8 cache alone, for engines whose own rows are unusable."""
    return mla_decode_rows(raw[raw.kv_cache_dtype == "fp8"], engine)


def mla_decode_rows(raw: pd.DataFrame, engine: str) -> TableRows:
    """Absorbed MLA decode."""
    slow = raw.kv_cache_dtype.map(lambda d: (engine, d) in SLOW_MLA).astype(bool)
    dropped = {"mla: other kernels than the engine's step runs (sglang fp8)": int(slow.sum())}
    raw = raw[~slow]
    rows = raw.assign(
        operator="mla_decode",
        dtype=raw.kv_cache_dtype.map(KV_DTYPES),
        sequences=raw.batch_size,
        context_tokens=raw.isl + raw.step,
        heads=raw.num_heads,
        latency_ms=raw.latency,
    )
    return median_of_duplicates(rows, ["operator", "dtype", "sequences", "context_tokens", "heads"], dropped), dropped


def absorb_rows(raw: pd.DataFrame, _engine: str) -> TableRows:
    """The two absorbing batched GEMMs of MLA, one row each, in BF16.

    FP8 rows time SGLang's quantise kernel with it, five times what the BF16 kernel takes, which no published step shows; those of
    TensorRT-LLM are the BF16 kernel.
    """
    other = raw.bmm_dtype != "bfloat16"
    kept = raw[~other]
    rows = kept.assign(operator="mla_absorb", dtype="bf16", tokens=kept.num_tokens, heads=kept.num_heads, latency_ms=kept.latency)
    dropped = {"mla_bmm: FP8 rows": int(other.sum())}
    return median_of_duplicates(rows, ["operator", "dtype", "op_name", "tokens", "heads"], dropped), dropped


def gqa_decode_rows(raw: pd.DataFrame, _engine: str) -> TableRows:
    """GQA decode."""
    kv_heads = _kv_heads(raw)
    context = raw.isl + raw.step
    keep = _grouped_heads(raw) & (context >= SMALLEST_CONTEXT)
    dropped = {"gqa: other head sizes, fewer than 4 query heads per KV head, windows, context below 64": int((~keep).sum())}
    kept = raw[keep]
    rows = kept.assign(
        operator="gqa_decode",
        dtype=kept.kv_cache_dtype.map(KV_DTYPES),
        sequences=kept.batch_size,
        context_tokens=context[keep],
        heads=kept.num_heads,
        kv_heads=kv_heads[keep],
        latency_ms=kept.latency,
    )
    keys = ["operator", "dtype", "sequences", "context_tokens", "heads", "kv_heads", "head_dim"]
    return median_of_duplicates(rows, keys, dropped), dropped


def _kv_heads(raw: pd.DataFrame) -> pd.Series:
    """KV heads; zero in the table means one per query head."""
    return raw.num_key_value_heads.where(raw.num_key_value_heads > 0, raw.num_heads)


def _grouped_heads(raw: pd.DataFrame) -> pd.Series:
    """Rows of today's GQA models: 128-wide heads, 4 or more per KV head, no window, a cache dtype we model."""
    grouped = (raw.num_heads / _kv_heads(raw) >= 4) & (raw.head_dim == HEAD_DIM)
    plain = (raw.window_size <= 0) if "window_size" in raw else grouped | True
    return grouped & plain & raw.kv_cache_dtype.isin(KV_DTYPES)


def mla_prefill(raw: pd.DataFrame, _engine: str) -> TableRows:
    """Un-absorbed context MLA; the kernels compute in FP8 where the cache is FP8."""
    absorbed = (raw.kernel_source == "flash_attention") & raw.device.str.contains("H100|H200")
    short = raw.isl < SMALLEST_PROMPT
    dropped = {
        "mla prefill: absorbed path (sglang on Hopper)": int(absorbed.sum()),
        f"mla prefill: prompts below {SMALLEST_PROMPT}": int((~absorbed & short).sum()),
    }
    return _prefill_rows(raw[~absorbed & ~short], "mla_prefill", [], dropped)


def gqa_prefill(raw: pd.DataFrame, _engine: str) -> TableRows:
    """Causal GQA over whole prompts."""
    keep = _grouped_heads(raw) & (raw.isl >= SMALLEST_PROMPT)
    dropped = {"gqa prefill: other head sizes, fewer than 4 query heads per KV head, windows, short prompts": int((~keep).sum())}
    return _prefill_rows(raw[keep], "gqa_prefill", ["head_dim"], dropped)


def _prefill_rows(raw: pd.DataFrame, operator: str, more_keys: list[str], dropped: dict[str, int]) -> TableRows:
    rows = raw.assign(
        operator=operator,
        dtype=raw.kv_cache_dtype.map(KV_DTYPES),
        sequences=raw.batch_size,
        new_tokens=raw.isl,
        prefix_tokens=raw.step,
        heads=raw.num_heads,
        latency_ms=raw.latency,
    )
    keys = ["operator", "dtype", "sequences", "new_tokens", "prefix_tokens", "heads", *more_keys]
    return median_of_duplicates(rows, keys, dropped), dropped


def expert_rows(raw: pd.DataFrame, _engine: str) -> TableRows:
    """Routed experts of the busiest rank under power-law loads, by one kernel: Triton's rows of dtypes that no other times."""
    fallback = raw.kernel_source == TRITON
    elsewhere = fallback & raw.moe_dtype.isin(raw[~fallback].moe_dtype)
    rows, dropped = _power_law_experts(raw[~elsewhere], MOE_SHAPES)
    return rows, {**dropped, "moe: Triton, where the other layers of the dtype run another kernel": int(elsewhere.sum())}


def chosen_experts(raw: pd.DataFrame, _engine: str) -> TableRows:
    """Experts as TensorRT-LLM runs them on Blackwell where `moe_config.backend` asks for CUTLASS or DeepGEMM.

    The variant is named after the kernel (`nvfp4.cutlass`); rows of gated layers only, power-law loads as `expert_rows`.
    """
    chosen = raw.kernel_source.isin(CHOSEN_KERNELS)
    kept = raw[chosen]
    rows, dropped = _power_law_experts(kept.assign(kernel=kept.kernel_source.map(CHOSEN_KERNELS)), MOE_SHAPES)
    return rows, {**dropped, "moe: other kernels": int((~chosen).sum())}


def int4_experts(raw: pd.DataFrame, _engine: str) -> TableRows:
    """Experts with INT4 weights in groups of 32 and BF16 activations (Marlin)."""
    return _power_law_experts(raw[raw.moe_dtype == INT4], {INT4: INT4_LAYERS})


def _power_law_experts(raw: pd.DataFrame, shapes: Mapping[str, tuple[tuple[int, int, int, int], ...]]) -> TableRows:
    """Rows of the layers given; a column `kernel` is the suffix of the dtype."""
    shape = np.logical_or.reduce([_is_layer(raw, dtype, layer) for dtype, layers in shapes.items() for layer in layers])
    power = raw.distribution.str.startswith("power_law")
    small = (raw.num_tokens <= MOE_MAX_TOKENS) & (raw.moe_ep_size <= MOE_MAX_EP)
    dropped = {
        "moe: other models or dtypes": int((~shape).sum()),
        "moe: balanced rows (another gate)": int((shape & ~power).sum()),
        f"moe: above {MOE_MAX_TOKENS} tokens or EP {MOE_MAX_EP}": int((shape & power & ~small).sum()),
    }
    kept = raw[shape & power & small]
    rng = np.random.default_rng(0)
    draws = list(zip(kept.num_experts, kept.topk, kept.num_tokens, kept.distribution, kept.moe_ep_size, strict=True))
    cache: dict[tuple[int, int, int, str, int], ExpertLoadRows] = {}
    for key in sorted(set(draws)):
        experts, top_k, tokens, distribution, ranks = key
        cache[key] = busiest_rank(tokens, float(distribution.rsplit("_", 1)[1]), ranks, rng, experts=experts, top_k=top_k)
    loads = [cache[key] for key in draws]
    pairs, active = [load.pairs for load in loads], [load.active_experts for load in loads]
    loaded = kept.assign(pairs=pairs, active_experts=active, input_tokens=kept.num_tokens)
    return _expert_rows(loaded, loaded.get("kernel", ""), dropped)


def _expert_rows(loaded: pd.DataFrame, kernel: str | pd.Series, dropped: dict[str, int]) -> TableRows:
    """Raw rows with their loads (pairs, active_experts, input_tokens) -> timing rows; kernel : suffix of the dtype."""
    rows = loaded.assign(
        operator="grouped_gemm",
        dtype=loaded.moe_dtype.map(MOE_DTYPES) + kernel,
        local_experts=loaded.num_experts / loaded.moe_ep_size,
        moe_tp=loaded.moe_tp_size,
        hidden=loaded.hidden_size,
        intermediate=loaded.inter_size,
        latency_ms=loaded.latency,
    )
    return median_of_duplicates(rows, EXPERT_KEYS, dropped), dropped


def _with_even_loads(raw: pd.DataFrame) -> pd.DataFrame:
    """Raw rows with the pairs of the group dealt out evenly."""
    pairs = raw.num_tokens * raw.topk / raw.moe_ep_size
    return raw.assign(pairs=pairs, active_experts=np.minimum(pairs, raw.num_experts / raw.moe_ep_size))


def masked_experts(raw: pd.DataFrame, _engine: str) -> TableRows:
    """Experts behind DeepEP low-latency (masked DeepGEMM); uniform rows deal the pairs out evenly over the group."""
    uniform = raw.distribution == "uniform"
    kept = _with_even_loads(raw[uniform])
    enough = kept.pairs >= 1
    dropped = {
        "masked experts: skewed rows (loads not recorded)": int((~uniform).sum()),
        "masked experts: less than one pair on the rank": int((~enough).sum()),
    }
    return _expert_rows(kept[enough].assign(input_tokens=kept.pairs), MASKED, dropped)


def contiguous_experts(raw: pd.DataFrame, _engine: str) -> TableRows:
    """Experts behind DeepEP normal (contiguous DeepGEMM); every rank is handed all tokens of the group.

    Launched eagerly: rows at the launch floor time the CPU.
    """
    uniform = raw.distribution == "uniform"
    launched = raw.latency < EAGER_EXPERTS_MS
    dropped = {
        "contiguous experts: skewed rows (loads not recorded)": int((~uniform).sum()),
        f"contiguous experts: below {EAGER_EXPERTS_MS} ms (eager launch)": int((uniform & launched).sum()),
    }
    kept = _with_even_loads(raw[uniform & ~launched])
    return _expert_rows(kept.assign(input_tokens=kept.num_tokens), CONTIGUOUS, dropped)


def _is_layer(raw: pd.DataFrame, dtype: str, layer: tuple[int, int, int, int]) -> pd.Series:
    sizes = zip(("hidden_size", "inter_size", "num_experts", "topk"), layer, strict=True)
    return np.logical_and.reduce([raw.moe_dtype == dtype, *(raw[column] == size for column, size in sizes)])  # type: ignore[no-any-return]  # a Series


def busiest_rank(tokens: int, alpha: float, ranks: int, rng: np.random.Generator, *, experts: int, top_k: int) -> ExpertLoadRows:
    """Loads of the busiest rank, drawn as the database's collector draws them, averaged over draws.

    Expert loads are i.i.d. from a power law on [1, 0.8 x tokens], or on [0.01, 2] where there is no more than one
    pair per expert; they are scaled to tokens x top_k, rounded, and what is missing goes to the largest.
    """
    low, high = (1.0, 0.8 * tokens) if tokens * top_k > experts else (0.01, 2.0)
    exponent = 1 - alpha
    totals = np.zeros(2)
    for _ in range(LOAD_DRAWS):
        draw = ((high**exponent - low**exponent) * rng.random(experts) + low**exponent) ** (1 / exponent)
        loads = _rounded(draw / draw.sum() * tokens * top_k)
        by_rank = np.minimum(loads, tokens).reshape(ranks, -1)
        busiest = by_rank[int(np.argmax(by_rank.sum(axis=1)))]
        totals += (busiest.sum(), (busiest > 0).sum())
    pairs, active = totals / LOAD_DRAWS
    return ExpertLoadRows(float(pairs), float(active))


def _rounded(exact: NDArray[np.float64]) -> NDArray[np.float64]:
    """Whole loads with the same sum: the largest gain what rounding loses, the smallest lose what it gains."""
    loads = np.rint(exact)
    missing = round(float(exact.sum() - loads.sum()))
    largest_first = np.argsort(-loads, kind="stable")
    if missing >= 0:
        np.add.at(loads, largest_first[np.arange(missing) % len(loads)], 1)
        return loads
    for expert in largest_first[missing:]:
        loads[expert if loads[expert] > 0 else np.argmax(loads)] -= 1
    return loads
