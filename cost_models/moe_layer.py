"""Operators of one MoE layer: router, shared expert, dispatch, routed experts, combine."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models.all_to_all.registry import BY_NAME, rows_whose
from cost_models.all_to_all.routing import expected_destinations, reachable_share
from cost_models.arrays import Floats, alike_rows, as_floats, evaluate_distinct
from cost_models.attention.base import Phase
from cost_models.balance import (
    active_experts_slope,
    busiest_active_experts,
    combined_max_over_mean,
    expected_active_experts,
    in_order_max_over_mean,
    lumped_variance,
    uniform_max_over_mean,
)
from cost_models.chunking import activation_chunks, moe_chunks
from cost_models.dispatch import (
    BACKENDS,
    DispatchCoefficients,
    payload_bytes,
    transfer_bound_s,
    transfer_time_s,
    volumes,
)
from cost_models.expert_kernels import (
    EXPERT_KERNELS,
    GATHERS_FOR_CONTIGUOUS,
    KNOWS_WHOLE_EXPERTS,
    PADDED,
    UNPADDED_SHARDS,
    WHOLE_EXPERTS,
)
from cost_models.grouped_gemm import GroupedGemmCoefficients, grouped_gemm_bound_s, grouped_gemm_time_s
from cost_models.machine import Machine
from cost_models.operators import Timing, matrix_gemm, moe_traffic, tp_all_reduce
from cost_models.overlap import SharedExpertStream, shared_stream_hidden_s
from cost_models.rebalancing import EplbDynamics, moved_bytes, placed_max_over_mean, rebalance_s, stale_max_over_mean
from cost_models.rows import Rows
from cost_models.specs.model import MoeSpec
from cost_models.specs.precision import DTYPES

ROUTER_AND_SHARED = ("router", "router_fp32", "shared_expert")
"""Families of an MoE layer's dense matrices."""
RECORDED_STEPS = 10_000
"""Steps that a recording which experts are placed from once holds: its noise is negligible."""


def popularity(machine: Machine, rows: Rows) -> Floats:
    """Standard deviation of log popularity of single experts: the pool's where it gives one, else the traffic's."""
    return np.where(np.isnan(rows.popularity), machine.popularity_sigma, rows.popularity)


def imbalance(machine: Machine, rows: Rows, tokens: Floats) -> Floats:
    r"""Busiest rank / mean of each row: the given value, or what one distribution of expert popularity makes of the placement.

    .. math::
        1 + \sqrt{(s - 1)^2 + (d - 1)^2 + (u - 1)^2}

    s : skew of the placement at the loads it was made for: recorded, of experts in order (`in_order_max_over_mean`) or
    balanced (`placed_max_over_mean`); d : what loads drifted since then and short windows add to a balanced one
    (`stale_max_over_mean`); u : sampling noise of one step (`uniform_max_over_mean`). Independent causes; EPLB is never
    taken as worse than no EPLB. The four published balancedness points with and without EPLB validate it.
    """
    moe = machine.model.moe
    if moe is None:
        return np.ones(len(rows))
    sigmas = popularity(machine, rows)
    slots = moe.experts + rows.redundant_experts
    in_order, balanced = np.ones(len(rows)), np.ones(len(rows))
    for (sigma,), those in alike_rows(sigmas):
        ranks, held = rows.ep[those], slots[those]
        in_order[those] = in_order_max_over_mean(ranks, held, experts=moe.experts, top_k=moe.top_k, sigma=sigma)
        balanced[those] = placed_max_over_mean(ranks, held, experts=moe.experts, top_k=moe.top_k, sigma=sigma)
    stale = stale_imbalance(machine, rows, tokens)
    placed = np.where(rows.eplb > 0, np.minimum(combined_max_over_mean(balanced, stale), in_order), in_order)
    skew = np.where(np.nan_to_num(rows.skew) > 0, combined_max_over_mean(np.maximum(rows.skew, 1), stale), placed)
    each = tokens * rows.dp / rows.ep  # ranks of tensor-parallel attention all hold the same tokens
    noise = np.ones(len(rows))
    for (shuffled,), those in alike_rows(rows.eplb > 0):
        groups = (1, 1) if shuffled else (moe.groups, moe.top_k_groups)
        noise[those] = uniform_max_over_mean(each[those], rows.ep[those], moe.experts, moe.top_k, *groups)
    return np.where(np.isnan(rows.imbalance), combined_max_over_mean(skew, noise), rows.imbalance)


def stale_imbalance(machine: Machine, rows: Rows, tokens: Floats) -> Floats:
    """Busiest rank / mean that loads which wander, and short windows, add to a balanced placement; 1 without one."""
    moe = machine.model.moe
    assert moe is not None
    sigmas = popularity(machine, rows)
    ratio = np.ones(len(rows))
    picks = tokens * rows.dp * moe.top_k
    window = np.where(rows.eplb_interval_steps > 0, np.minimum(rows.eplb_window_steps, rows.eplb_interval_steps), RECORDED_STEPS)
    lag = np.where(rows.eplb_async > 0, machine.model.moe_layers, 0)
    columns = (rows.ep, moe.experts + rows.redundant_experts, picks, window, rows.eplb_interval_steps, lag)
    for (sigma,), those in alike_rows(sigmas):
        ratio[those] = stale_max_over_mean(
            *(np.asarray(column)[those] for column in columns),
            experts=moe.experts,
            top_k=moe.top_k,
            sigma=sigma,
            dynamics=machine.calibration.get("balance", "dynamics", EplbDynamics),
        )
    return np.where(rows.eplb > 0, ratio, 1.0)


def moe_operators(machine: Machine, rows: Rows, tokens: Floats, phase: Phase = "decode") -> dict[str, Timing]:
    """Operators of one MoE layer; dispatch, experts and combine repeat once per MoE DP chunk.

    tokens : per attention-DP rank in this microbatch. With DP attention each TP rank feeds its share
    of the tokens into the experts (sequence-parallel MoE); with TP alone every rank holds all tokens
    and an all-reduce joins the results. phase : prefill may use kernels that a CUDA graph cannot hold.
    """
    moe = machine.model.moe
    assert moe is not None
    spread = rows.dp > 1
    fed = np.where(spread, tokens / rows.tp, tokens)
    iterations, chunk = moe_chunks(fed, rows.moe_chunk_tokens)
    ratio = imbalance(machine, rows, tokens)
    shared_shards = np.where(spread, 1, rows.tp)
    operators = _router_and_shared(machine, fed, as_floats(shared_shards))
    operators["experts"] = _experts(machine, moe, rows, chunk, ratio, phase).scaled(iterations)
    for direction in ("dispatch", "combine"):
        operators[direction] = _transfer(machine, moe, rows, chunk, ratio, direction, phase).scaled(iterations)
    joined = evaluate_distinct(lambda m, t: tp_all_reduce(machine, m, t), tokens, np.where(spread, 1, rows.tp))
    operators["moe_all_reduce"] = Timing(*joined)
    operators["moe_elementwise"] = moe_traffic(machine, fed, "prefill" if phase == "prefill" else "default")
    operators["eplb_moves"] = _rebalance(machine, rows)
    operators["shared_stream"] = _shared_stream(machine, operators, fed)
    return operators


def _shared_stream(machine: Machine, operators: dict[str, Timing], tokens: Floats) -> Timing:
    """What running the shared expert beside the routed ones hides, as a negative time."""
    c = machine.coefficients("shared_expert_stream", "default", SharedExpertStream)
    shared = [timing for name, timing in operators.items() if name.startswith("shared_")]
    time_s, bound_s = (sum((getattr(t, f) for t in shared), np.zeros(len(tokens))) for f in ("time_s", "bound_s"))
    hidden = shared_stream_hidden_s(tokens, time_s, bound_s, operators["experts"].time_s, c)
    return Timing(-hidden, np.zeros(len(tokens)))


def _router_and_shared(machine: Machine, tokens: Floats, shards: Floats) -> dict[str, Timing]:
    matrices = [m for m in machine.model.layer_matrices() if m.family in ROUTER_AND_SHARED]

    def distinct(m: Floats, t: Floats) -> dict[str, tuple[Floats, Floats]]:
        return {matrix.name: matrix_gemm(machine, matrix, m, t) for matrix in matrices}

    return {name: Timing(*pair) for name, pair in evaluate_distinct(distinct, tokens, shards).items()}


def _experts(machine: Machine, moe: MoeSpec, rows: Rows, tokens: Floats, ratio: Floats, phase: Phase) -> Timing:
    """Routed experts of the busiest rank for `tokens` fed by each rank."""
    feeding = np.where(rows.dp > 1, rows.group, 1)
    total = tokens * feeding
    pairs = total * moe.top_k / rows.ep * ratio
    entering = _entering_tokens(moe, rows, total, pairs)
    info = machine.dtype_info("experts")
    shape: dict[str, Any] = {
        "hidden": moe.routed_hidden(machine.model.hidden),
        "intermediate": moe.gemm_intermediate,
        "weight_bytes": info.weight_bytes,
        "peak_flops_per_s": machine.peak_flops_per_s("experts"),
        "hbm_bytes_per_s": machine.hbm_bytes_per_s,
    }
    masked = rows_whose(rows.backend, lambda backend: backend.expert_kernel == "masked")
    loops = activation_chunks(entering, np.where(masked, 0, rows.activation_chunk_rows))
    time_s, bound_s = np.zeros(len(rows)), np.zeros(len(rows))
    spread = rows.dp > 1
    slots = (moe.experts + rows.redundant_experts) / rows.ep
    active = _active_experts(moe, total / loops, slots, as_floats(rows.ep), popularity(machine, rows), rows.eplb > 0)
    columns = (pairs / loops, slots, active, entering / loops, rows.moe_tp)
    wide = rows.moe_tp >= UNPADDED_SHARDS
    for (kind, kernel, own, shared, whole), those in alike_rows(rows.backend, rows.expert_kernel, spread, wide, rows.ep > 1):
        landing, held, hit, entered, shards = (as_floats(column[those]) for column in columns)
        hit = np.minimum(hit, landing)
        times = []
        for variant in kernel_variants(machine, BACKENDS[kind], phase, EXPERT_KERNELS[kernel], own, shared, whole):
            c = machine.coefficients("grouped_gemm", variant, GroupedGemmCoefficients)
            cell = {"activation_bytes": info.activation_bytes, "coefficients": c, **shape}
            times.append(grouped_gemm_time_s(landing, held, hit, entered, shards, **cell))
        time_s[those] = np.min(times, axis=0)
        bound_s[those] = grouped_gemm_bound_s(landing, hit, shards, **shape)
    return Timing(time_s * loops, bound_s * np.where(loops > 1, 1, loops))


def _active_experts(
    moe: MoeSpec, tokens: Floats, slots: Floats, ranks: Floats, sigmas: Floats, shuffled: NDArray[np.bool_]
) -> Floats:
    """Experts that get a token on the rank that has most of them.

    tokens : of the whole group; slots : on each rank; shuffled : not in their order, so that no rank holds a whole group of them.
    """
    mean, lumps = np.zeros(len(tokens)), np.zeros(len(tokens))
    for (sigma,), those in alike_rows(sigmas):
        mean[those] = expected_active_experts(tokens[those], slots[those], moe.experts, moe.top_k, sigma)
    for (sigma, mixed), those in alike_rows(sigmas, shuffled):
        if moe.groups > 1 and not mixed:
            slope = active_experts_slope(tokens[those], slots[those], moe.experts, moe.top_k, sigma)
            grouped = (moe.experts, moe.top_k, moe.groups, moe.top_k_groups)
            lumps[those] = lumped_variance(tokens[those], slope, ranks[those], *grouped)
    return busiest_active_experts(mean, slots, ranks, lumps)


def kernel_variants(
    machine: Machine,
    backend: str,
    phase: Phase,
    kernel: str = "auto",
    spread: bool = False,
    wide: bool = False,
    whole: bool = False,
) -> tuple[str, ...]:
    """Expert kernels that a backend can feed; the engine takes the fastest.

    kernel : of EXPERT_KERNELS; spread : whether attention-DP ranks feed it; wide : whether UNPADDED_SHARDS or more ranks share
    each expert; whole : whether experts are spread over ranks. Low-latency dispatch feeds a masked kernel, DeepEP normal a
    contiguous one, every other path the engine's fused one, or in releases that have them the padded one or that of
    WHOLE_EXPERTS; vLLM's prefill after an all-gather, which no CUDA graph captures, may choose the contiguous one too. Some
    engines run the one that they are told to (`Machine.chosen_expert_kernel`).
    """
    dtype = machine.dtype("experts")
    if machine.chooses_expert_kernel:
        variant = machine.chosen_expert_kernel(kernel, spread and phase == "decode")
        return (variant if machine.calibration.has("grouped_gemm", variant) else dtype,)
    exchange, engine = BY_NAME[backend], machine.calibration.applies_to.engine
    wanted: tuple[str, ...] = (dtype,)
    if exchange.expert_kernel != "fused":
        wanted = (f"{dtype}.{exchange.expert_kernel}",)
    elif not wide and machine.calibration.has("grouped_gemm", f"{dtype}.{PADDED}"):
        wanted = (f"{dtype}.{PADDED}",)
    elif whole and engine in KNOWS_WHOLE_EXPERTS and machine.calibration.has("grouped_gemm", f"{dtype}.{WHOLE_EXPERTS}"):
        wanted = (f"{dtype}.{WHOLE_EXPERTS}",)
    elif phase == "prefill" and exchange.graphless_prefill and engine in GATHERS_FOR_CONTIGUOUS:
        wanted = (dtype, f"{dtype}.contiguous")
    known = tuple(variant for variant in wanted if machine.calibration.has("grouped_gemm", variant))
    return known or (dtype,)


def _entering_tokens(moe: MoeSpec, rows: Rows, total: Floats, pairs: Floats) -> Floats:
    """Rows that the expert kernel's permute and finalise touch."""
    share = reachable_share(rows.ep, moe.groups, moe.top_k_groups, contiguous=rows.eplb == 0)
    hit = expected_destinations(moe.top_k, rows.ep, share) / rows.ep
    gathered = rows_whose(rows.backend, lambda backend: not backend.point_to_point)
    copied = rows_whose(rows.backend, lambda backend: backend.copies_per_expert)
    return as_floats(np.where(gathered, total, np.where(copied, pairs, total * hit)))


def _transfer(machine: Machine, moe: MoeSpec, rows: Rows, tokens: Floats, ratio: Floats, direction: str, phase: Phase) -> Timing:
    """Tokens on their way to the experts, or what becomes of them on their way back."""
    links = machine.links
    hidden = moe.routed_hidden(machine.model.hidden)
    elements = _element_bytes(machine, rows, direction, phase)
    slots = moe.experts + rows.redundant_experts
    time_s, bound_s = np.zeros(len(rows)), np.zeros(len(rows))
    for (kind, element), those in alike_rows(rows.backend, elements):
        backend, processors = BACKENDS[kind], rows.all2all_processors[those]
        if backend == "none":
            continue
        if phase == "prefill" and BY_NAME[backend].gathers and _adds_up(machine):
            group = as_floats(rows.group[those])
            time_s[those], bound_s[those] = tp_all_reduce(machine, tokens[those] * group, group)
            continue
        moved = volumes(
            backend, tokens[those], rows.group[those],
            token_bytes=payload_bytes(hidden, element, moe.top_k) if direction == "dispatch" else hidden * element,
            top_k=moe.top_k, groups=moe.groups, top_k_groups=moe.top_k_groups, contiguous=rows.eplb[those] == 0, links=links,
        )  # fmt: skip
        c = machine.coefficients("dispatch", f"{backend}.{direction}", DispatchCoefficients)
        skew = ratio[those] if BY_NAME[backend].point_to_point else 1.0
        time_s[those] = transfer_time_s(
            moved, rows.group[those], slots[those], skew, links=links, coefficients=c, processors=processors
        )
        bound_s[those] = transfer_bound_s(moved, links)
    return Timing(time_s, bound_s)


def _adds_up(machine: Machine) -> bool:
    """Whether prompts are gathered by adding up buffers that are zero but for a rank's own tokens, and results likewise.

    SGLang, whose ranks have prompts of different lengths (layers/dp_attention.py, DpPaddingMode.SUM_LEN), but for NVFP4: there
    FlashInfer's CUTLASS experts exchange quantised tokens of unequal numbers (layers/moe/utils.py).
    """
    return machine.calibration.applies_to.engine == "sglang" and machine.dtype("experts") != "nvfp4"


def _element_bytes(machine: Machine, rows: Rows, direction: str, phase: Phase) -> Floats:
    """Bytes of an element that travels: of the recipe's dtype, but whole BF16 where the expert kernel quantises by itself."""
    stored = np.full(len(rows), float(machine.dtype_info(direction).activation_bytes))
    if direction != "dispatch" or not machine.chooses_expert_kernel:
        return stored

    def whole(kernels: Floats, spread: Floats) -> Floats:
        pairs = zip(kernels.astype(int), spread > 0, strict=True)
        return as_floats([machine.sends_bf16_to(EXPERT_KERNELS[kernel], bool(own)) for kernel, own in pairs])

    quantised_there = evaluate_distinct(whole, rows.expert_kernel, (rows.dp > 1) & (phase == "decode"))
    return as_floats(np.where(quantised_there, float(DTYPES["bf16"].activation_bytes), stored))


def _rebalance(machine: Machine, rows: Rows) -> Timing:
    """Placing and moving experts, spread over the steps between two rebalances, per layer."""
    moe = machine.model.moe
    assert moe is not None
    dynamics = machine.calibration.get("balance", "dynamics", EplbDynamics)
    expert_bytes = moe.expert_parameters(machine.model.hidden) * machine.dtype_info("experts").weight_bytes
    slots = moe.experts + rows.redundant_experts
    links = machine.links
    bandwidth = np.where(rows.ep <= links.domain_gpus, links.scale_up_bytes_per_s, links.scale_out_bytes_per_s)
    received = moved_bytes(slots / rows.ep, expert_bytes, dynamics)
    moved_s = rebalance_s(received, slots, bandwidth, machine.hbm_bytes_per_s, rows.eplb_async, dynamics)
    dynamic = (rows.eplb > 0) & (rows.eplb_interval_steps > 0)
    per_step = np.where(dynamic, moved_s / np.maximum(rows.eplb_interval_steps, 1), 0.0)
    return Timing(as_floats(per_step), np.zeros(len(rows)))
