"""Tables of the public silicon databases (Apache-2.0) of one GPU and engine, as a timing table.

GEMMs, dense attention, experts and links come from aiconfigurator-core 0.12.0; recurrent and sparse attention, which it does not
have, and NVFP4 GEMMs of newer releases from its successor aisimulate. What is not installed is left out, and said.
Which file is read for which operator, and whose: kernels that engines share are read from the engine that measured
them best. What each table needs to become rows is in silicon_kernels.py and silicon_links.py; every row left out is counted.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.calibrating import silicon_attention as attention
from autotune.calibrating import silicon_kernels as kernels
from autotune.calibrating import silicon_links as links
from autotune.calibrating.silicon_kernels import TableRows
from autotune.calibrating.timings import TimingTable, collected, merge, require_pandas
from autotune.errors import ProblemError

if TYPE_CHECKING:
    import pandas as pd

SYSTEMS = {"GB200": "gb200", "GB300": "gb300", "B200": "b200_sxm", "B300": "b300_sxm", "H200": "h200_sxm", "H100": "h100_sxm"}
RACKS = ("GB200", "GB300")
"""Scale-up domains of several hosts."""
BLACKWELL = ("GB200", "GB300", "B200", "B300")


@dataclass(frozen=True, slots=True)
class SiliconSource:
    """One kind of table, and whose."""

    family: str
    file: str
    read: Callable[[pd.DataFrame, str], TableRows]
    owner: str | None = None
    """Folder it is read from, whatever the engine; none: the engine's own."""
    versions: int = 1
    """How many versions are read, newest first."""
    gpu: str | None = None
    """Sibling GPU that measured what this one did not; none: the GPU itself."""
    beside: tuple[tuple[str, str], ...] = ()
    """Families and files of the tables that are taken off first, of the same engine and version."""
    package: str = "aiconfigurator_core"
    """Import package that holds the table."""


OWN = (
    SiliconSource("gemm", "gemm_perf.parquet", kernels.gemm_rows, beside=(("quantize", "computescale_perf.parquet"),)),
    SiliconSource("mla", "generation_mla_perf.parquet", kernels.mla_decode_rows),
    SiliconSource("mla_bmm", "mla_bmm_perf.parquet", kernels.absorb_rows),
    SiliconSource("attention", "generation_attention_perf.parquet", kernels.gqa_decode_rows),
    SiliconSource("attention", "context_attention_perf.parquet", kernels.gqa_prefill),
    SiliconSource("comm", "custom_allreduce_perf.parquet", links.all_reduce),
)
SHARED = (
    SiliconSource("moe", "wideep_generation_moe_perf.parquet", kernels.masked_experts, owner="sglang"),
    SiliconSource("moe", "wideep_context_moe_perf.parquet", kernels.contiguous_experts, owner="sglang"),
    SiliconSource("comm", "nccl_perf.parquet", links.gather_and_scatter, owner="nccl"),
    SiliconSource("comm", "wideep_deepep_ll_perf.parquet", links.deepep_low_latency, owner="sglang", versions=2),
    SiliconSource("comm", "wideep_deepep_normal_perf.parquet", links.deepep_normal, owner="sglang", versions=2),
    SiliconSource("comm", "trtllm_alltoall_perf.parquet", links.nvlink_one_sided, owner="trtllm"),
)
"""Libraries that every engine calls."""
NEWER = "aisimulate_core"
NVFP4_GEMM = SiliconSource("gemm", "gemm_perf.parquet", kernels.nvfp4_gemm, package=NEWER)
QUANTISED_BEFORE = ("quantize", "scale_matrix_perf.parquet")
"""Quantising an input of an FP8 GEMM, where the kernel before it (all-reduce with norm, attention, activation) stores FP8."""
RECURRENT = (
    SiliconSource("linear_attention", "gdn_perf.parquet", attention.gated_delta, versions=2, package=NEWER),
    SiliconSource("kda", "kda_perf.parquet", attention.kda, package=NEWER),
    SiliconSource("linear_attention", "mamba2_perf.parquet", attention.mamba2, owner="trtllm", package=NEWER),
)
"""Kinds that the older package has no tables of."""
INSTALL = {
    "aiconfigurator_core": "pip install 'moe-autotune[silicon]'",
    "aisimulate_core": "pip install --no-deps aisimulate==0.13.0.dev202610270000000085",
}
PUBLISHED_AS = {"aiconfigurator_core": "aiconfigurator-core", "aisimulate_core": "aisimulate"}


def sources(engine: str, gpu: str) -> tuple[SiliconSource, ...]:
    """Which table is read for which operator of an engine.

    Experts: on Blackwell all three run TRTLLM-gen kernels, of which vLLM's table has a third of the rows and TensorRT-LLM's
    none by that name; its CUTLASS and DeepGEMM rows are kernels of their own, which `moe_config.backend` chooses. MLA: vLLM
    has no kernel tables, SGLang's on Hopper time the absorbed path in prefill, and with FP8 other kernels than its steps run.
    Block-scaled FP8 GEMMs of vLLM carry an eager launch. TensorRT-LLM tunes its GEMMs when it starts, which the collector of its
    NVFP4 table does not (time follows k alone, whatever n: one tile of the fallback): vLLM's are read; and its FP8 layers are
    handed FP8. Collectives over several trays: `_across_nodes`.
    """
    blackwell = gpu in BLACKWELL
    borrowed = [SiliconSource("moe", "moe_perf.parquet", kernels.expert_rows, owner="sglang" if blackwell else engine)]
    foreign_prefill = "sglang" if engine == "sglang" and blackwell else "trtllm"
    borrowed.append(SiliconSource("mla", "context_mla_perf.parquet", kernels.mla_prefill, owner=foreign_prefill))
    int4 = "vllm" if engine == "trtllm" else engine
    borrowed.append(SiliconSource("moe", "moe_perf.parquet", kernels.int4_experts, owner=int4, package=NEWER))
    if engine == "vllm":
        borrowed.append(SiliconSource("mla", "generation_mla_perf.parquet", kernels.mla_decode_rows, owner="trtllm"))
        borrowed.append(SiliconSource("gemm", "gemm_perf.parquet", kernels.block_gemm, owner="trtllm"))
    if engine == "sglang":
        borrowed.append(SiliconSource("mla", "generation_mla_perf.parquet", kernels.fp8_mla_decode, owner="trtllm"))
    if engine == "trtllm" and blackwell:
        borrowed.append(SiliconSource("moe", "moe_perf.parquet", kernels.chosen_experts))
    if gpu in RACKS:
        borrowed += _across_nodes(engine)
    tuned = replace(NVFP4_GEMM, owner="vllm") if engine == "trtllm" else NVFP4_GEMM
    newer = (tuned,) if blackwell else ()
    gemm, *others = OWN
    if engine == "trtllm":
        gemm = replace(gemm, beside=(*gemm.beside, QUANTISED_BEFORE))
    return (gemm, *others, *newer, *SHARED, *borrowed, *attention_sources(engine, blackwell))


def _across_nodes(engine: str) -> tuple[SiliconSource, ...]:
    """Collectives over several trays of a rack, by whichever of GB200 and GB300, which have the same links, timed them."""
    timed = "GB200" if engine == "sglang" else "GB300"
    all_reduce, nccl = links.all_reduce_across_nodes, links.gather_and_scatter_across_nodes
    return (
        SiliconSource("comm", "custom_allreduce_perf.parquet", all_reduce, gpu=timed, package=NEWER),
        SiliconSource("comm", "nccl_perf.parquet", nccl, owner="nccl", gpu="GB200", package=NEWER),
    )


def attention_sources(engine: str, blackwell: bool) -> tuple[SiliconSource, ...]:
    """Tables of recurrent and sparse attention.

    SGLang's prefill modules carry an eager launch of a millisecond, its Hopper decode modules repeat worse than vLLM's of
    the same kernels: vLLM's are read.
    """
    prefill = "vllm" if engine == "sglang" else engine
    decode = prefill if not blackwell else engine
    return (
        *RECURRENT,
        SiliconSource(
            "sparse_attention", "dsa_generation_module_perf.parquet", attention.dsa_decode, owner=decode, package=NEWER
        ),
        SiliconSource("sparse_attention", "dsa_context_module_perf.parquet", attention.dsa_prefill, owner=prefill, package=NEWER),
        *(_compressed(part, phase, prefill) for part in ("csa", "hca") for phase in ("generation", "context")),
        *_block_sparse(engine),
        SiliconSource("mhc", "mhc_module_perf.parquet", attention.hyper_connections, owner=prefill, versions=2, package=NEWER),
    )


def _block_sparse(engine: str) -> tuple[SiliconSource, ...]:
    """Tables of MiniMax-M3's modules: vLLM's for SGLang too.

    SGLang's carry an eager launch of a millisecond in prefill, and jump by 0.3 ms from 512 sequences on in decode.
    TensorRT-LLM's are not read: on Hopper they time a fallback that scores every pair (2.3 s of a layer at 1,024 sequences of
    32,768 tokens, against 2.4 ms), and on Blackwell eager launches of 2 to 3 ms in prefill.
    """
    if engine == "trtllm":
        return ()
    return (
        SiliconSource("msa", "msa_generation_module_perf.parquet", attention.block_sparse_decode, owner="vllm", package=NEWER),
        SiliconSource("msa", "msa_context_module_perf.parquet", attention.block_sparse_prefill, owner="vllm", package=NEWER),
    )


def _compressed(part: str, phase: str, owner: str) -> SiliconSource:
    """A table of DeepSeek-V4's modules: csa with an indexer, hca without."""
    read = attention.compressed_decode if phase == "generation" else attention.compressed_prefill
    return SiliconSource("sparse_attention", f"dsv4_{part}_{phase}_module_perf.parquet", read, owner=owner, package=NEWER)


def database_root(package: str) -> Path | None:
    """Folder of an installed database; none where the package is missing."""
    spec = importlib.util.find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "systems" / "data"


def read_silicon(gpu: str, engine: str, root: Path | None = None) -> TimingTable:
    """Tables of one GPU and engine; raises ProblemError when there are none.

    root : folder to read all of them from, instead of the installed packages.
    """
    require_pandas()
    if gpu not in SYSTEMS:
        raise ProblemError(f"the silicon database has no {gpu}; it has {', '.join(sorted(SYSTEMS))}")
    roots = {package: root or database_root(package) for package in INSTALL}
    if not any(roots.values()):
        raise ProblemError(f"no silicon database is installed: {' and '.join(INSTALL.values())}")
    chosen = [(source, base) for source in sources(engine, gpu) if (base := roots[source.package])]
    tables = [table for source, base in chosen for table in _tables(base, source, gpu, engine)]
    if not tables:
        raise ProblemError(f"the silicon database has no tables of {gpu} for {engine}")
    table = merge(tables)
    missing = {f"{PUBLISHED_AS[name]} is not installed: {INSTALL[name]}": 1 for name, base in roots.items() if base is None}
    return TimingTable(table.rows, {**table.dropped, **missing})


def _tables(base: Path, source: SiliconSource, gpu: str, engine: str) -> list[TimingTable]:
    """The newest versions of a table that hold rows we need."""
    owner = source.owner or engine
    found: list[TimingTable] = []
    for path in _newest_first(base / SYSTEMS[source.gpu or gpu] / source.family / owner, source.file):
        table = _table(path, gpu, owner, source)
        found += [table] if len(table.rows) else []
        if len(found) == source.versions:
            break
    return found


def _newest_first(folder: Path, file: str) -> list[Path]:
    """Tables of releases; builds that are named by a commit have no place in the order and are left out."""
    from packaging.version import Version

    released = [path for path in folder.glob(f"*/{file}") if path.parent.name[:1].isdigit()]
    return sorted(released, key=lambda path: Version(path.parent.name), reverse=True)


def _table(path: Path, gpu: str, engine: str, source: SiliconSource) -> TimingTable:
    import pandas as pd

    raw = pd.read_parquet(path)
    dropped: dict[str, int] = {}
    if "latency" in raw and (lost := int((~(raw.latency > 0)).sum())):
        dropped["latency not positive"] = lost
        raw = raw[raw.latency > 0]
    for family, file in source.beside:
        beside = path.parents[3] / family / path.parent.parent.name / path.parent.name / file
        raw = kernels.static_scales(raw, pd.read_parquet(beside)) if beside.exists() else raw
    rows, left_out = source.read(raw, engine)
    return collected(path, rows, dropped | left_out, gpu, f"{PUBLISHED_AS[source.package]} {'/'.join(path.parts[-5:])}")
