"""Kernel timings published with InferSim (alibaba/InferSim bench_data, Apache-2.0) as a timing table.

Paths say operator and GPU (gemm/h20/data.csv); times are microseconds of single kernels: DeepGEMM FP8 with block
scales, FlashInfer MLA and GQA decode, FlashAttention-3 prefill. Traps handled: GEMM rows hold no activation quantise,
expert rows no permute (so they are `*_kernel` operators); a batch of experts is two timings, gate/up and down; FP8
GEMMs narrower than 256 are other kernels; decode attention was timed eagerly; one file lacks its header.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.calibrating.operators import CONTIGUOUS, MASKED
from autotune.calibrating.timings import TimingTable, collected, merge, require_pandas
from autotune.errors import ProblemError
from cost_models.reading import RESULT, is_folder, read_text, reading, shortened

if TYPE_CHECKING:
    import pandas as pd

SMALLEST_GEMM = 256
GQA_HEAD_DIM = 128
SMALLEST_GROUP = 4
EAGER_FLOOR_US = 40
"""Decode kernels were timed without CUDA graphs: below this the CPU is what was measured."""
DECODE_HEADER = ["dtype", "kv_dtype", "batch_size", "kv_len", "latency_us", "mfu"]
"""One of the files lacks it."""
FILE = re.compile(
    r"(?P<kind>gemm|grouped_gemm_decode|grouped_gemm_prefill|m[hl]a_decode|mla_prefill)_(?P<gpu>h20|h800)_(?P<rest>.+)"
)


def read_infersim(folder: Path, gpu: str) -> TimingTable:
    """Every table of one GPU in a folder; raises ProblemError when there are none."""
    require_pandas()
    with reading(folder, "cannot be read", ProblemError):
        if not is_folder(folder):
            raise ProblemError(f"{shortened(folder)}: no such folder")
    tables = []
    for path in sorted(folder.rglob("*.csv")):
        match = FILE.fullmatch("_".join(path.relative_to(folder).with_suffix("").parts))
        if match and match["gpu"].upper() == gpu:
            tables.append(_table(path, gpu, match["kind"], match["rest"]))
    if not tables:
        raise ProblemError(f"{folder}: no InferSim tables of {gpu} (files such as gemm/{gpu.lower()}/data.csv)")
    return merge(tables)


def _table(path: Path, gpu: str, kind: str, rest: str) -> TimingTable:
    import pandas as pd

    readers = {"gemm": _gemm, "mla_decode": _mla_decode, "mha_decode": _gqa_decode, "mla_prefill": _mla_prefill}
    with reading(path, f"not an InferSim table of {kind}", ProblemError):
        text = read_text(path, RESULT)
        raw = pd.read_csv(io.StringIO(text))
        if kind.endswith("a_decode") and "dtype" not in raw:
            raw = pd.read_csv(io.StringIO(text), names=DECODE_HEADER)
        rows, dropped = readers[kind](raw, rest) if kind in readers else _experts(raw, kind.endswith("decode"))
    return collected(path, rows, dropped, gpu, f"alibaba/InferSim bench_data {path.name} of {kind}")


def _gemm(raw: pd.DataFrame, _rest: str) -> tuple[pd.DataFrame, dict[str, int]]:
    wide = (raw.n >= SMALLEST_GEMM) & (raw.k >= SMALLEST_GEMM)
    rows = raw[wide].assign(operator="dense_gemm_kernel", dtype="fp8_block")
    return rows.drop(columns="mfu"), {"infersim gemm: n or k below 256": int((~wide).sum())}


def _mla_decode(raw: pd.DataFrame, rest: str) -> tuple[pd.DataFrame, dict[str, int]]:
    rows, dropped = _decode_rows(raw, "mla_decode")
    return rows.assign(heads=int(rest.split("-")[0])), dropped


def _gqa_decode(raw: pd.DataFrame, rest: str) -> tuple[pd.DataFrame, dict[str, int]]:
    heads, kv_heads, head_dim = (int(part) for part in rest.split("-"))
    if head_dim != GQA_HEAD_DIM or heads / kv_heads < SMALLEST_GROUP:
        return raw.head(0), {"infersim gqa: other head sizes or fewer than 4 query heads per KV head": len(raw)}
    rows, dropped = _decode_rows(raw, "gqa_decode")
    return rows.assign(heads=heads, kv_heads=kv_heads, head_dim=head_dim), dropped


def _decode_rows(raw: pd.DataFrame, operator: str) -> tuple[pd.DataFrame, dict[str, int]]:
    floored = raw.latency_us < EAGER_FLOOR_US
    renamed = (
        raw[~floored]
        .drop(columns=["dtype", "mfu"])
        .rename(columns={"kv_dtype": "dtype", "batch_size": "sequences", "kv_len": "context_tokens"})
    )
    return renamed.assign(operator=operator), {
        f"infersim {operator}: below {EAGER_FLOOR_US} us (eager launch)": int(floored.sum())
    }


def _mla_prefill(raw: pd.DataFrame, rest: str) -> tuple[pd.DataFrame, dict[str, int]]:
    renamed = raw.drop(columns="mfu").rename(columns={"seq_len": "new_tokens"})
    heads = int(rest.split("-")[0])
    return renamed.assign(operator="mla_prefill", sequences=1, prefix_tokens=0, heads=heads), {}


def _experts(raw: pd.DataFrame, masked: bool) -> tuple[pd.DataFrame, dict[str, int]]:
    """Decode files time the masked kernel, prefill files the contiguous one; loads are spread within 30 %."""
    idle = raw.tokens_per_expert < 1
    kept = raw[~idle]
    rows = kept[["hidden_size", "intermediate_size"]].rename(
        columns={"hidden_size": "hidden", "intermediate_size": "intermediate"}
    )
    return rows.assign(
        operator="grouped_gemm_kernel",
        dtype="fp8_block" + (MASKED if masked else CONTIGUOUS),
        pairs=kept.tokens_per_expert * kept.num_local_experts,
        local_experts=kept.num_local_experts,
        moe_tp=1,
        latency_us=kept.up_proj_us + kept.down_proj_us,
    ), {"infersim experts: less than one token per expert": int(idle.sum())}
