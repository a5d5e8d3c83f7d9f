"""Operators of a wide-EP decode step of DeepSeek-V3 at the shapes of that step, beside the public silicon tables.

    python silicon.py > silicon.csv        (needs aiconfigurator-core and aisimulate: docs/timing-table.md)

`predicted / timed` over the rows of 64 to 2,048 tokens a rank. `role` says whether the family was fitted on these tables (then this
is how well the fit does on the shapes that matter) or never saw them: newer and other engines' releases, and whole attention modules.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from autotune.calibrating.silicon import SYSTEMS, database_root, read_silicon
from autotune.documents.deployment import Deployment
from autotune.predicting.step import resolve
from cost_models.arrays import Floats
from cost_models.dispatch import DispatchCoefficients, transfer_time_s, volumes
from cost_models.elementwise import ElementwiseCoefficients
from cost_models.host import HostCoefficients
from cost_models.machine import Machine
from cost_models.operators import gemm, traffic

Result = tuple[str, str, str, Floats]
"""Operator, dtype, role, predicted / timed."""
MACHINES = (("GB200", "gb200-nvl72", "nvfp4"), ("H200", "hgx-h200", "fp8-block"))
ENGINES = ("vllm", "sglang", "trtllm")
TOKENS = (64, 2048)
MATRICES = {
    "q_a_kv_a": (2112, 7168), "q_b": (24576, 1536), "o_proj": (7168, 16384), "shared_gate_up": (4096, 7168), "shared_down": (7168, 2048),
    "router": (256, 7168),
}  # fmt: skip
USED = {"router": ("bf16",)}
NEWEST = {"vllm": "0.31.0", "sglang": "0.5.20"}
"""Later than what was fitted, but for NVFP4, which is read of these."""
TYPES = {"bfloat16": "bf16", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4"}
MODULES = {"vllm": "0.25.0", "trtllm": "1.3.0rc20"}


def machine_of(hardware: str, precision: str, engine: str, cache: str) -> Machine:
    document = {
        "hardware": hardware, "model": "deepseek-r1", "engine": {"name": engine},
        "precision": {"recipe": precision, "kv_cache": cache, "attention_compute": cache},
        "phase": "decode", "workload": {"isl_tokens": 2000, "osl_tokens": 2000},
        "pools": {"decode": {"dp": 8, "ep": 8, "all2all_backend": "allgather_reducescatter", "batch_per_dp_rank": 64}},
    }  # fmt: skip
    return resolve(Deployment.model_validate(document)).machine


def matrices(machine: Machine, rows: pd.DataFrame, role: str, dtypes: tuple[str, ...]) -> Iterator[Result]:
    """Dense GEMMs of a table with columns m, n, k, dtype, latency_s."""
    for name, (n, k) in MATRICES.items():
        for dtype in USED.get(name, dtypes):
            kept = rows[(rows.n == n) & (rows.k == k) & (rows.dtype == dtype) & rows.m.between(*TOKENS)]
            if len(kept):
                time_s, _ = gemm(machine, dtype, kept.m.to_numpy(float), n, k)
                yield name, dtype, role, time_s / kept.latency_s.to_numpy(float)


def cores(machine: Machine, rows: pd.DataFrame, cache: str) -> Iterator[Result]:
    """Attention core and absorption of 128 heads."""
    (kind,) = machine.model.attentions
    one = np.ones(1)
    kept = rows[(rows.operator == "mla_decode") & (rows.dtype == cache) & (rows.heads == 128)]
    kept = kept[kept.sequences.between(*TOKENS) & kept.context_tokens.between(1000, 9000)]
    shapes = zip(kept.sequences, kept.context_tokens, strict=True)
    predicted = [float(kind.decode(machine, np.array([float(b)]), one, one, float(s))["attention"][0][0]) for b, s in shapes]
    yield "attention core", cache, "fitted", np.array(predicted) / kept.latency_s.to_numpy(float)
    kept = rows[(rows.operator == "mla_absorb") & (rows.heads == 128) & rows.tokens.between(*TOKENS)]
    pairs = kept.groupby("tokens").latency_s.sum()
    predicted = [float(kind.absorb(machine, np.array([float(t)]), np.array([128.0]))[0][0]) for t in pairs.index]
    yield "absorb", "bf16", "fitted", np.array(predicted) / pairs.to_numpy(float)


def exchange(machine: Machine, rows: pd.DataFrame) -> Iterator[Result]:
    """Dispatch and combine of 64 to 2,048 tokens a rank over every timed group; all-gathers of as many bytes."""
    for backend in ("allgather_reducescatter", "deepep_low_latency", "nvlink_one_sided"):
        for direction in ("dispatch", "combine"):
            kept = rows[rows.operator == f"{backend}.{direction}"]
            sent = kept.tokens * kept.token_bytes
            gathers = backend == "allgather_reducescatter"
            kept = kept[sent.between(64 * 4096, 2048 * 14336) if gathers else kept.tokens.between(*TOKENS)]
            if len(kept):
                yield direction, backend.replace("_", " "), "fitted", transfers(machine, backend, direction, kept)


def transfers(machine: Machine, backend: str, direction: str, rows: pd.DataFrame) -> Floats:
    """Predicted / timed of each row of one backend and direction."""
    c = machine.coefficients("dispatch", f"{backend}.{direction}", DispatchCoefficients)
    ratios = []
    for (top_k, size), part in rows.groupby(["top_k", "token_bytes"]):
        ranks = part.ranks.to_numpy(float)
        moved = volumes(
            backend, part.tokens.to_numpy(float), ranks, token_bytes=float(size), top_k=int(top_k), groups=1, top_k_groups=1,
            contiguous=False, links=machine.links,
        )  # fmt: skip
        time_s = transfer_time_s(moved, ranks, part.experts.to_numpy(float), 1.0, links=machine.links, coefficients=c)
        ratios.append(time_s / part.latency_s.to_numpy(float))
    return np.concatenate(ratios)


def newer(machine: Machine, gpu: str, engine: str, dtypes: tuple[str, ...]) -> Iterator[Result]:
    """GEMM tables of a later release than the one that was fitted."""
    path = folder(gpu) / "gemm" / engine / NEWEST.get(engine, "none") / "gemm_perf.parquet"
    if path.exists():
        dtypes = tuple(dtype for dtype in dtypes if dtype != "nvfp4")
        raw = pd.read_parquet(path)
        raw = raw.assign(dtype=raw.gemm_dtype.map(TYPES)).groupby(["dtype", "m", "n", "k"], as_index=False).latency.median()
        yield from matrices(machine, raw.assign(latency_s=raw.latency / 1e3), f"{engine} {NEWEST[engine]}", dtypes)


def modules(machine: Machine, gpu: str, engine: str, cache: str, dtype: str) -> Iterator[Result]:
    """Whole attention modules: projections, absorption, core, element-wise kernels and the gaps between them."""
    version = MODULES.get(engine, "none")
    path = folder(gpu) / "mla" / engine / version / "mla_generation_module_perf.parquet"
    if not path.exists():
        return
    raw = pd.read_parquet(path)
    kept = raw[(raw.num_heads == 128) & raw.batch_size.between(*TOKENS) & raw.step.between(1000, 9000)]
    kept = kept[(kept.kv_cache_dtype.map(TYPES) == cache) & (kept.gemm_type.map(TYPES) == dtype)]
    (kind,) = machine.model.attentions
    one, predicted = np.ones(1), []
    c = machine.coefficients("elementwise", "default", ElementwiseCoefficients)
    gap_s = machine.coefficients("host", "default", HostCoefficients).small_kernel_s
    for b, s in zip(kept.batch_size, kept.step + 1, strict=True):
        tokens = np.array([float(b)])
        parts = kind.decode(machine, tokens, one, one, float(s))
        other_s = traffic(machine, tokens, kind.elementwise_elements("decode", one), 0.0, c.query_passes, c)[0]
        predicted.append(float(sum(time_s[0] for time_s, _ in parts.values()) + other_s[0]) + gap_s * (len(parts) + 1))
    if len(kept):
        yield (
            "attention module",
            f"{dtype}, {cache} cache",
            f"{engine} {version}",
            np.array(predicted) / (kept.latency / 1e3).to_numpy(float),
        )


def folder(gpu: str) -> Path:
    root = database_root("aisimulate_core")
    assert root is not None, "pip install --no-deps aisimulate==0.13.0.dev202610270000000085"
    return root / SYSTEMS[gpu]


def main() -> None:
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["gpu", "engine", "operator", "dtype", "tables", "rows", "median", "low_80", "high_80"])
    for gpu, hardware, precision in MACHINES:
        caches = ("bf16", "fp8")
        dense = ("bf16", "nvfp4") if gpu == "GB200" else ("fp8_block",)
        for engine in ENGINES:
            table = read_silicon(gpu, engine).rows
            machine = machine_of(hardware, precision, engine, "fp8" if gpu == "GB200" else "bf16")
            gemms = table[table.operator == "dense_gemm"]
            results = [*matrices(machine, gemms, "fitted", dense), *newer(machine, gpu, engine, dense), *exchange(machine, table)]
            for cache in caches:
                if gpu == "H200" and cache == "fp8":
                    continue
                other = machine_of(hardware, precision, engine, cache)
                results += [*cores(other, table, cache)][: 2 if cache == caches[0] else 1]
                own = machine_of(hardware, "bf16" if gpu == "GB200" else precision, engine, cache)
                results += modules(own, gpu, engine, cache, "bf16" if gpu == "GB200" else "fp8_block")
            for operator, dtype, role, ratio in results:
                low, middle, high = np.quantile(ratio, (0.1, 0.5, 0.9))
                out.writerow([gpu, engine, operator, dtype, role, len(ratio), f"{middle:.3f}", f"{low:.3f}", f"{high:.3f}"])


if __name__ == "__main__":
    main()
