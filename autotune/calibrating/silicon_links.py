"""Communication tables of the silicon database -> timing rows: collectives, DeepEP, one-sided NVLink.

Traps handled here, each counted: NCCL and all-reduce sizes are ELEMENTS of the whole buffer; DeepEP columns are
microseconds; DeepEP normal on eight nodes spends milliseconds in `notify`, waiting for stragglers; few SMs are not
how anyone serves; two-sided NVLink rows belong to an older kernel; eager all-reduce rows time the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from autotune.calibrating.silicon_kernels import TableRows, median_of_duplicates
from cost_models.dispatch import payload_bytes
from cost_models.specs.precision import DTYPES

if TYPE_CHECKING:
    import pandas as pd

ELEMENT_BYTES = {"half": 2, "bfloat16": 2, "int8": 1}
NODE_GPUS = 8
GRACE_NODE_GPUS = 4
"""DeepEP rows count nodes."""
SERVED_SMS = 20
"""DeepEP normal's default; engines give it 20-24."""
SERVED_TOP_K = (6, 8)
STRAGGLING_NODES = 8
TRANSFER_KEYS = ["operator", "dtype", "tokens", "ranks", "experts", "top_k", "token_bytes"]


def all_reduce(raw: pd.DataFrame, _engine: str) -> TableRows:
    """Custom all-reduce inside a node, as captured in CUDA graphs."""
    eager = raw.kernel_source.str.contains("eager")
    dropped = {"all_reduce: eager launches": int(eager.sum())}
    kept = raw[~eager]
    rows = kept.assign(
        operator="all_reduce",
        dtype="bf16",
        message_bytes=kept.message_size * kept.allreduce_dtype.map(ELEMENT_BYTES),
        ranks=kept.num_gpus,
        latency_ms=kept.latency,
    )
    return median_of_duplicates(rows, ["operator", "dtype", "message_bytes", "ranks"], dropped), dropped


def all_reduce_across_nodes(raw: pd.DataFrame, engine: str) -> TableRows:
    """All-reduce over more GPUs than a Grace node holds, where engines leave their own kernel for another."""
    return all_reduce(raw[raw.num_gpus > GRACE_NODE_GPUS], engine)


def gather_and_scatter_across_nodes(raw: pd.DataFrame, engine: str) -> TableRows:
    """NCCL over more GPUs than a Grace node holds, which an older release was timed on."""
    return gather_and_scatter(raw[raw.num_gpus > GRACE_NODE_GPUS], engine)


def gather_and_scatter(raw: pd.DataFrame, _engine: str) -> TableRows:
    """NCCL all-gather as dispatch, reduce-scatter as combine."""
    operators = {"all_gather": "allgather_reducescatter.dispatch", "reduce_scatter": "allgather_reducescatter.combine"}
    other = ~raw.op_name.isin(operators)
    dropped = {"nccl: all_reduce and alltoall": int(other.sum())}
    kept = raw[~other]
    rows = kept.assign(
        operator=kept.op_name.map(operators),
        dtype=kept.nccl_dtype,
        tokens=kept.message_size / kept.num_gpus,
        ranks=kept.num_gpus,
        experts=0,
        top_k=1,
        token_bytes=kept.nccl_dtype.map(ELEMENT_BYTES),
        latency_ms=kept.latency,
    )
    return median_of_duplicates(rows, TRANSFER_KEYS, dropped), dropped


def deepep_low_latency(raw: pd.DataFrame, _engine: str) -> TableRows:
    """DeepEP low-latency, FP8 dispatch and BF16 combine."""
    served = raw.num_topk.isin(SERVED_TOP_K)
    return _both_directions(raw[served], "deepep_low_latency", "avg_t_us", {"deepep: top-k not 6 or 8": int((~served).sum())})


def deepep_normal(raw: pd.DataFrame, _engine: str) -> TableRows:
    """DeepEP normal with the SMs that engines give it, FP8 dispatch and BF16 combine."""
    few = (raw.dispatch_sms < SERVED_SMS) | (raw.combine_sms < SERVED_SMS)
    other = ~raw.num_topk.isin(SERVED_TOP_K)
    straggling = raw.node_num >= STRAGGLING_NODES
    dropped = {
        f"deepep: fewer than {SERVED_SMS} SMs": int(few.sum()),
        "deepep: top-k not 6 or 8": int((~few & other).sum()),
        f"deepep normal: {STRAGGLING_NODES} nodes (waits in notify)": int((~few & ~other & straggling).sum()),
    }
    kept = raw[~few & ~other & ~straggling]
    total = {f"{d}_total_us": kept[f"{d}_transmit_us"] + kept[f"{d}_notify_us"] for d in ("dispatch", "combine")}
    return _both_directions(kept.assign(**total), "deepep_normal", "total_us", dropped)


def _both_directions(raw: pd.DataFrame, backend: str, column: str, dropped: dict[str, int]) -> TableRows:
    import pandas as pd

    gpus = np.where(raw.device.str.contains("GB"), GRACE_NODE_GPUS, NODE_GPUS)
    parts = []
    for direction, dtype in (("dispatch", "fp8_block"), ("combine", "bf16")):
        element = DTYPES[dtype].activation_bytes
        carried = payload_bytes(0, 0, 1) * raw.num_topk if direction == "dispatch" else 0
        parts.append(
            raw.assign(
                operator=f"{backend}.{direction}",
                dtype=dtype,
                tokens=raw.num_token,
                ranks=raw.node_num * gpus,
                experts=raw.num_experts,
                top_k=raw.num_topk,
                token_bytes=raw.hidden_size * element + carried,
                latency_ms=raw[f"{direction}_{column}"] / 1e3,
            )
        )
    return median_of_duplicates(pd.concat(parts), TRANSFER_KEYS, dropped), dropped


def nvlink_one_sided(raw: pd.DataFrame, _engine: str) -> TableRows:
    """One-sided NVLink all-to-all: payload by the experts' dtype, combine in BF16.

    Its `balanced` router sends each token to as many distinct ranks as it can: min(EP, top-k). The rows say so by
    one destination that takes all their copies.
    """
    operators = {"alltoall_dispatch": "nvlink_one_sided.dispatch", "alltoall_combine": "nvlink_one_sided.combine"}
    one_sided = raw.kernel_source == "NVLinkOneSided"
    known = raw.op_name.isin(operators)
    dropped = {
        "alltoall: two-sided kernels": int((~one_sided).sum()),
        "alltoall: low-precision combine and prepare": int((one_sided & ~known).sum()),
    }
    kept = raw[one_sided & known]
    dispatch = kept.op_name == "alltoall_dispatch"
    payload = kept.hidden_size * kept.moe_dtype.map(lambda d: DTYPES[d].activation_bytes) + payload_bytes(0, 0, 1) * kept.topk
    rows = kept.assign(
        operator=kept.op_name.map(operators),
        dtype=kept.moe_dtype,
        tokens=kept.num_tokens,
        ranks=kept.moe_ep_size,
        experts=kept.num_experts,
        top_k=1,
        token_bytes=payload.where(dispatch, kept.hidden_size * 2) * np.minimum(kept.topk, kept.moe_ep_size),
        latency_ms=kept.latency,
    )
    return median_of_duplicates(rows, TRANSFER_KEYS, dropped), dropped
