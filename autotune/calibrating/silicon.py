"""Rows of the public silicon database (aiconfigurator-core, Apache-2.0) as a timing table.

Traps handled here, each counted in the report: latencies are milliseconds; GEMMs below 256 in n or k are
other kernels; vLLM fp8_block GEMMs on Blackwell and Hopper carry an eager-launch floor; `balanced` MoE
rows with EP and DeepSeek's group-limited gate route differently from real traffic; power-law MoE rows
name a distribution, not loads, so the busiest rank's loads are re-created as the collector draws them;
head counts vary with tp_size; duplicate keys exist.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autotune.calibrating.timings import TimingTable, checked, merge, require_pandas, sha256_of
from autotune.errors import ProblemError

if TYPE_CHECKING:
    import pandas as pd

SYSTEMS = {"GB200": "gb200", "GB300": "gb300", "B200": "b200_sxm", "B300": "b300_sxm", "H200": "h200_sxm", "H100": "h100_sxm"}
DTYPES = {"bfloat16": "bf16", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4"}
KV_DTYPES = {"bfloat16": "bf16", "fp8": "fp8"}
BLACKWELL = ("GB200", "GB300", "B200", "B300")
SAME_KERNEL = {("moe", "vllm", True): "sglang", ("moe", "trtllm", True): "sglang"}
"""(family, engine, Blackwell) -> engine whose table is read: on Blackwell all three run TRTLLM-gen experts.
vLLM's table has a third of the rows; TensorRT-LLM's FP8 rows time DeepGEMM, whose cost per local expert
(0.4 us x 256) exceeds whole layers of measured TP runs."""
SLOW_MLA = {("sglang", "fp8")}
"""Hopper rows of a fallback kernel, four times slower than BF16."""
EAGER_GEMM = {("vllm", "fp8_block")}
SMALLEST_GEMM = 256
DEEPSEEK_MOE = {"hidden_size": 7168, "inter_size": 2048, "num_experts": 256, "topk": 8}
GPT_OSS_MOE = {"hidden_size": 2880, "inter_size": 2880, "num_experts": 128, "topk": 4}
MOE_SHAPES = {**dict.fromkeys(DTYPES, DEEPSEEK_MOE), "w4a16_mxfp4": GPT_OSS_MOE}
"""dtype -> the layer read for it: the model that is served in it."""
MOE_DTYPES = {**DTYPES, "w4a16_mxfp4": "mxfp4"}
MOE_MAX_TOKENS = 16384
MOE_MAX_EP = 8
LOAD_DRAWS = 12


@dataclass(frozen=True, slots=True)
class Loads:
    """Busiest rank's load, averaged over draws."""

    pairs: float
    active_experts: float


def database_root() -> Path:
    """Folder of the installed database; raises ProblemError when the extra is missing."""
    spec = importlib.util.find_spec("aiconfigurator_core")
    if spec is None or spec.origin is None:
        raise ProblemError("the silicon database is not installed: pip install 'moe-autotune[silicon]'")
    return Path(spec.origin).parent / "systems" / "data"


def read_silicon(gpu: str, engine: str, root: Path | None = None) -> TimingTable:
    """Tables of one GPU and engine; raises ProblemError when there are none."""
    require_pandas()
    if gpu not in SYSTEMS:
        raise ProblemError(f"the silicon database has no {gpu}; it has {', '.join(sorted(SYSTEMS))}")
    base = (root or database_root()) / SYSTEMS[gpu]
    readers = {
        ("gemm", "gemm_perf.parquet"): _gemm,
        ("mla", "generation_mla_perf.parquet"): _mla,
        ("attention", "generation_attention_perf.parquet"): _gqa,
        ("moe", "moe_perf.parquet"): _moe,
    }
    tables = []
    for (family, file), reader in readers.items():
        owner = SAME_KERNEL.get((family, engine, gpu in BLACKWELL), engine)
        for path in _newest_first(base / family / owner, file):
            table = _table(path, gpu, engine, reader)
            if len(table.rows):
                tables.append(table)
                break
    if not tables:
        raise ProblemError(f"the silicon database at {base} has no tables for {engine}")
    return merge(tables)


def _newest_first(folder: Path, file: str) -> list[Path]:
    """Tables of an engine, newest version first; a version may lack the shapes we need."""
    return sorted(folder.glob(f"*/{file}"), reverse=True) if folder.is_dir() else []


def _table(path: Path, gpu: str, engine: str, reader) -> TimingTable:  # type: ignore[no-untyped-def]  # one of four below
    import pandas as pd

    raw = pd.read_parquet(path)
    rows, dropped = reader(raw[raw.latency > 0], engine)
    if (lost := len(raw) - int((raw.latency > 0).sum())) > 0:
        dropped["latency not positive"] = lost
    source = f"aiconfigurator-core {'/'.join(path.parts[-5:])} sha256 {sha256_of(path)}"
    if rows.empty:
        return TimingTable(rows.assign(operator="", dtype="", gpu=gpu, latency_s=0.0), (source,), dropped)
    table = checked(rows.assign(gpu=gpu), str(path), source)
    return TimingTable(table.rows, table.sources, {**table.dropped, **dropped})


Rows = tuple["pd.DataFrame", dict[str, int]]


def _median_of_duplicates(rows: pd.DataFrame, keys: list[str], dropped: dict[str, int]) -> pd.DataFrame:
    merged = rows.groupby(keys, as_index=False).agg({"latency_ms": "median"})
    if len(merged) < len(rows):
        dropped["duplicate keys (median kept)"] = len(rows) - len(merged)
    return merged


def _gemm(raw: pd.DataFrame, engine: str) -> Rows:
    dropped: dict[str, int] = {}
    large = (raw.n >= SMALLEST_GEMM) & (raw.k >= SMALLEST_GEMM)
    eager = raw.gemm_dtype.map(lambda d: (engine, d) in EAGER_GEMM)
    known = raw.gemm_dtype.isin(DTYPES)
    dropped["gemm: n or k below 256"] = int((~large).sum())
    dropped["gemm: eager-launch rows (vllm fp8_block)"] = int((large & eager).sum())
    dropped["gemm: dtype not modelled"] = int((large & ~eager & ~known).sum())
    kept = raw[large & ~eager & known]
    rows = kept.assign(operator="dense_gemm", dtype=kept.gemm_dtype.map(DTYPES), latency_ms=kept.latency)
    rows = _median_of_duplicates(rows, ["operator", "dtype", "m", "n", "k"], dropped)
    return rows, dropped


def _mla(raw: pd.DataFrame, engine: str) -> Rows:
    hopper = raw.device.str.contains("H100|H200") & ~raw.device.str.contains("GH")
    slow = hopper & raw.kv_cache_dtype.map(lambda d: (engine, d) in SLOW_MLA)
    dropped = {"mla: fallback kernel (sglang fp8 on Hopper)": int(slow.sum())}
    raw = raw[~slow]
    rows = raw.assign(
        operator="mla_decode",
        dtype=raw.kv_cache_dtype.map(KV_DTYPES),
        sequences=raw.batch_size,
        context_tokens=raw.isl + raw.step,
        heads=raw.num_heads,
        latency_ms=raw.latency,
    )
    return _median_of_duplicates(rows, ["operator", "dtype", "sequences", "context_tokens", "heads"], dropped), dropped


def _gqa(raw: pd.DataFrame, _engine: str) -> Rows:
    kv_heads = raw.num_key_value_heads.where(raw.num_key_value_heads > 0, raw.num_heads)
    context = raw.isl + raw.step
    grouped = (raw.num_heads / kv_heads >= 4) & (raw.head_dim == 128)
    plain = (raw.window_size <= 0) if "window_size" in raw else grouped | True
    known = raw.kv_cache_dtype.isin(KV_DTYPES)
    keep = grouped & plain & known & (context >= 64)
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
    return _median_of_duplicates(rows, keys, dropped), dropped


def _moe(raw: pd.DataFrame, _engine: str) -> Rows:
    shape = np.logical_or.reduce([_is_layer(raw, dtype, layer) for dtype, layer in MOE_SHAPES.items()])
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
    cache: dict[tuple[int, int, int, str, int], Loads] = {}
    for key in sorted(set(draws)):
        experts, top_k, tokens, distribution, ranks = key
        cache[key] = busiest_rank(tokens, float(distribution.rsplit("_", 1)[1]), ranks, rng, experts=experts, top_k=top_k)
    loads = [cache[key] for key in draws]
    rows = kept.assign(
        operator="grouped_gemm",
        dtype=kept.moe_dtype.map(MOE_DTYPES),
        pairs=[load.pairs for load in loads],
        active_experts=[load.active_experts for load in loads],
        local_experts=kept.num_experts / kept.moe_ep_size,
        input_tokens=kept.num_tokens,
        moe_tp=kept.moe_tp_size,
        hidden=kept.hidden_size,
        intermediate=kept.inter_size,
        latency_ms=kept.latency,
    )
    keys = ["operator", "dtype", "pairs", "active_experts", "local_experts", "input_tokens", "moe_tp", "hidden", "intermediate"]
    return _median_of_duplicates(rows, keys, dropped), dropped


def _is_layer(raw: pd.DataFrame, dtype: str, layer: dict[str, int]) -> pd.Series:
    return np.logical_and.reduce([raw.moe_dtype == dtype, *(raw[column] == value for column, value in layer.items())])  # type: ignore[no-any-return]  # a Series


def busiest_rank(tokens: int, alpha: float, ranks: int, rng: np.random.Generator, *, experts: int, top_k: int) -> Loads:
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
    return Loads(float(pairs), float(active))


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
