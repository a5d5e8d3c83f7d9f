"""Which calibration entry priced an operator, and whether its inputs were inside the measured box."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cost_models import context_parallel, hyper_connections
from cost_models.attention.base import OperatorSource, Phase
from cost_models.calibration import Entry
from cost_models.dispatch import BACKENDS
from cost_models.expert_kernels import EXPERT_KERNELS, UNPADDED_SHARDS
from cost_models.machine import Machine
from cost_models.moe_layer import kernel_variants
from cost_models.prefill import PromptBatch
from cost_models.rows import Rows

NORMAL_80 = 1.2816
"""Half-width of the central 80 % of a normal distribution in standard deviations."""
HOST_OPERATORS = ("host", "launch_gaps", "output_processing_wait", "pipeline_hops")

RANKS_SIGMA = {"all_reduce": 0.3}
"""Standard deviation of the log error that every doubling of a group beyond the timed ones adds. All-reduce: NCCL's ring would
start after 200 us on 72 ranks, a reduction in the switch after 50; which one it takes was timed up to 16."""
OTHER_RANKS_SIGMA = 0.08
"""The same of other transfers: fits on up to 16 ranks miss 32 and 64 by 9 and 16 % (results/2026-11-21_kernel_models_study)."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an operator's coefficients come from."""

    family: str
    variant: str
    status: str
    outside: tuple[str, ...]
    """Inputs outside the measured box, each as text."""
    held_out_sigma: float | None = None
    """Spread of log(measured / predicted) on held-out rows: half its central 80 % over 1.28."""


def operator_provenance(machine: Machine, rows: Rows, context_tokens: float) -> dict[str, Provenance]:
    """Provenance of every operator of the first row of a decode step."""
    tokens = float(rows.batch[0] * (1 + rows.drafts[0]))
    inputs = {"sequences": float(rows.batch[0]), "context_tokens": context_tokens, "tp": float(rows.tp[0])}
    inputs["dcp"] = float(rows.dcp[0])
    return _all_checked(machine, _shared_sources(machine, rows, tokens, "decode"), "decode", inputs)


def prefill_provenance(machine: Machine, rows: Rows, batch: PromptBatch) -> dict[str, Provenance]:
    """Provenance of every operator of the first row of a prefill step."""
    inputs = {
        "sequences": float(batch.sequences[0]),
        "new_tokens": float(batch.new_tokens[0]),
        "prefix_tokens": float(batch.prefix_tokens[0]),
        "tp": float(rows.tp[0]),
    }
    return _all_checked(machine, _shared_sources(machine, rows, float(batch.tokens[0]), "prefill"), "prefill", inputs)


def _all_checked(
    machine: Machine, shared: Mapping[str, OperatorSource], phase: Phase, inputs: Mapping[str, float]
) -> dict[str, Provenance]:
    """The shared operators and those of the model's attention kinds."""
    sources = dict(shared)
    for kind in machine.model.attentions:
        sources |= kind.sources(machine.recipe, phase, inputs)
    return {name: _checked(machine, *source) for name, source in sources.items()}


def _shared_sources(machine: Machine, rows: Rows, tokens: float, phase: Phase) -> dict[str, OperatorSource]:
    """Operators that both phases have, on `tokens` per attention-DP rank."""
    sources: dict[str, OperatorSource] = {}
    tp = float(rows.tp[0])
    for matrix in machine.model.matrices():
        if matrix.family not in ("experts", "embedding"):
            inputs = {"m": tokens, "n": float(matrix.rank_n(tp)), "k": float(matrix.rank_k(tp))}
            sources[matrix.name] = ("dense_gemm", machine.dtype(matrix.family), inputs)
    for name in ("elementwise", "moe_elementwise"):
        sources[name] = ("elementwise", "prefill" if phase == "prefill" else "default", {})
    for name in ("tp_all_reduce", "norm_all_reduce", "ffn_all_reduce", "moe_all_reduce"):
        sources[name] = ("all_reduce", machine.all_reduce_variant, {"ranks": tp})
    if rows.dcp[0] > 1:
        sources |= context_parallel.exchange_sources(float(rows.dcp[0]))
    backend = BACKENDS[int(rows.backend[0])]
    ranks = float(rows.group[0])
    if machine.model.moe:
        slots = machine.model.moe.experts + float(rows.redundant_experts[0])
        kernel = EXPERT_KERNELS[int(rows.expert_kernel[0])]
        experts = {"input_tokens": tokens, "local_experts": slots / float(rows.ep[0])}
        told = (kernel, bool(rows.dp[0] > 1), bool(rows.moe_tp[0] >= UNPADDED_SHARDS), bool(rows.ep[0] > 1))
        sources["experts"] = ("grouped_gemm", kernel_variants(machine, backend, phase, *told)[-1], experts)
        sources["shared_stream"] = ("shared_expert_stream", "default", {})
        sources["eplb_moves"] = ("balance", "dynamics", {})
    if backend != "none":
        for direction in ("dispatch", "combine"):
            sources[direction] = ("dispatch", f"{backend}.{direction}", {"ranks": ranks, "tokens": tokens})
        sources["overlap"] = ("overlap", backend, {})
    if machine.model.residual_streams > 1:
        sources[hyper_connections.FAMILY] = (hyper_connections.FAMILY, "post", {"tokens": tokens})
    for name in HOST_OPERATORS:
        sources[name] = ("host", "default", {})
    sources["sampling"] = ("host", "default", {})
    if rows.offload_group_size[0]:
        sources["offload_stall"] = ("offload", "default", {})
    return sources


def _checked(machine: Machine, family: str, variant: str, inputs: Mapping[str, float]) -> Provenance:
    entry: Entry = machine.entry(family, variant)
    outside = []
    for name, (low, high) in entry.box.items():
        value = inputs.get(name)
        if value is not None and not low <= value <= high:
            outside.append(f"{name} {value:,.0f} outside {low:,.0f}-{high:,.0f}")
    sigma = _held_out_sigma(entry)
    if sigma is not None:
        sigma = math.hypot(sigma, RANKS_SIGMA.get(family, OTHER_RANKS_SIGMA) * _octaves_beyond(entry, inputs))
    return Provenance(family, variant, entry.status, tuple(outside), sigma)


def _octaves_beyond(entry: Entry, inputs: Mapping[str, float]) -> float:
    """How many times the group of ranks doubles from the largest one that was timed."""
    if "ranks" not in entry.box or "ranks" not in inputs:
        return 0.0
    return max(math.log2(max(inputs["ranks"], 1.0) / max(entry.box["ranks"][1], 1.0)), 0.0)


def _held_out_sigma(entry: Entry) -> float | None:
    if entry.fit is None or entry.fit.measured_over_predicted_80 is None:
        return None
    low, high = entry.fit.measured_over_predicted_80
    return math.log(high / low) / (2 * NORMAL_80)
