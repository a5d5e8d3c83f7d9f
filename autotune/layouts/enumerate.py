"""Admissible layouts of a problem, as rows without a batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from autotune.problem import ResolvedProblem
from cost_models.arrays import Ints
from cost_models.dispatch import BACKENDS
from cost_models.overlap import OVERLAPS
from cost_models.rows import UNLIMITED, Rows
from cost_models.specs.hardware import HardwareSpec
from cost_models.specs.model import ModelSpec
from search_spaces.schema import Choice

BATCH_GRID_LARGEST = 8192
BATCH_STEPS_PER_OCTAVE = 4
MIN_EXPERT_WIDTH = 128
"""Narrowest shard of an expert: one 128-wide scale block."""
SPARE_EXPERTS = 32
EPLB_INTERVAL_STEPS = 3000
MAX_TP = 16


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one layout."""

    tp: int
    dp: int
    ep: int
    pp: int


def divisors(n: int) -> list[int]:
    """Divisors of n, ascending."""
    return [d for d in range(1, n + 1) if n % d == 0]


def instance_sizes(hardware: HardwareSpec, gpus: int) -> list[int]:
    """GPU counts of one instance: part of a node or whole nodes, inside a domain or whole domains."""
    node, domain = hardware.gpus_per_node, hardware.scale_up.domain_gpus
    return [
        size
        for size in range(1, gpus + 1)
        if (node % size == 0 if size <= node else size % node == 0) and (size <= domain or size % domain == 0)
    ]


def shapes(model: ModelSpec, hardware: HardwareSpec, gpus: int) -> Iterator[Shape]:
    """Every admissible (tp, dp, ep, pp).

    Tensor parallelism stays inside a node when attention is data-parallel (engines place each DP
    rank on one node); pipelines are combined with TP only.
    """
    for size in instance_sizes(hardware, gpus):
        for tp in divisors(size):
            if model.attention.heads % tp or tp > MAX_TP or tp > hardware.scale_up.domain_gpus:
                continue
            for pp in divisors(size // tp):
                dp = size // tp // pp
                if dp > 1 and (pp > 1 or model.moe is None or tp > hardware.gpus_per_node):
                    continue
                if pp > 1 and (size < hardware.gpus_per_node or pp > 8):
                    continue
                for ep in _expert_parallel_sizes(model, tp, dp):
                    yield Shape(tp, dp, ep, pp)


def _expert_parallel_sizes(model: ModelSpec, tp: int, dp: int) -> list[int]:
    """Experts spread over the whole group, or every expert sharded over it (one of the two, as engines do)."""
    if model.moe is None:
        return [1]
    group = tp * dp
    sizes = {group} if group <= model.moe.experts + SPARE_EXPERTS * 2 else set()
    width = model.moe.intermediate / group
    if width >= MIN_EXPERT_WIDTH and width % MIN_EXPERT_WIDTH == 0:
        sizes.add(1)
    return sorted(sizes)


def redundancy_choices(experts: int, ep: int, eplb: bool) -> list[int]:
    """Redundant experts that divide: the fewest, and at least 32 where experts can be rebalanced."""
    fewest = -experts % ep
    if not eplb:
        return [fewest] if fewest == 0 else []
    spare = SPARE_EXPERTS + (-(experts + SPARE_EXPERTS)) % ep
    return sorted({fewest, spare})


def batch_grid(largest: int = BATCH_GRID_LARGEST) -> Ints:
    """Batch sizes: four per octave, multiples of eight from 16 on."""
    raw = 2 ** np.arange(0, np.log2(largest) + 1e-9, 1 / BATCH_STEPS_PER_OCTAVE)
    stepped = np.where(raw >= 16, np.round(raw / 8) * 8, np.round(raw))
    return np.unique(stepped.astype(np.int64))


def layout_rows(resolved: ResolvedProblem, gpus: int | None = None) -> Rows:
    """All admissible layouts as rows with batch 1; empty when no layout divides.

    gpus : budget, the problem's own when absent.
    """
    model, hardware = resolved.model, resolved.hardware
    columns: dict[str, list[int]] = {
        name: [] for name in ("tp", "dp", "ep", "pp", "redundant_experts", "backend", "overlap", "eplb", "drafts", "graph_tokens")
    }
    drafts = (0, 1, 2, 3) if resolved.problem.workload.mtp_acceptance else (0,)
    for shape in shapes(model, hardware, gpus or resolved.gpus):
        for spare, eplb in _expert_options(resolved, shape):
            for backend, overlap, graph in _backend_options(resolved, shape):
                for draft in drafts:
                    values = (shape.tp, shape.dp, shape.ep, shape.pp, spare, backend, overlap, eplb, draft, graph)
                    for name, value in zip(columns, values, strict=True):
                        columns[name].append(value)
    rows = Rows.of(**{name: np.array(values, dtype=np.int64) for name, values in columns.items()})
    return rows.replace(eplb_interval_steps=np.where(rows.eplb > 0, EPLB_INTERVAL_STEPS, 0))


def _expert_options(resolved: ResolvedProblem, shape: Shape) -> list[tuple[int, int]]:
    """(redundant experts, EPLB on) of a shape."""
    model = resolved.model
    if model.moe is None or shape.ep == 1:
        return [(0, 0)]
    eplb = shape.dp > 1 and resolved.engine.has("enable_eplb", resolved.version)
    plain = [(spare, 0) for spare in redundancy_choices(model.moe.experts, shape.ep, eplb=False)]
    balanced = [(spare, 1) for spare in redundancy_choices(model.moe.experts, shape.ep, eplb=True)] if eplb else []
    return balanced or plain


def _backend_options(resolved: ResolvedProblem, shape: Shape) -> list[tuple[int, int, int]]:
    """(backend, overlap, largest graph) of a shape."""
    none = OVERLAPS.index("none")
    if shape.dp == 1:
        return [(BACKENDS.index("none"), none, UNLIMITED)]
    options = []
    for choice in resolved.engine.backend_choices(resolved.version):
        if not backend_admissible(choice, shape, resolved):
            continue
        graph = 0 if choice.needs_graph_off else UNLIMITED
        code = BACKENDS.index(choice.model)
        options += [(code, OVERLAPS.index(overlap), graph) for overlap in overlaps_for(choice.model, resolved)]
    return options


def backend_admissible(choice: Choice, shape: Shape, resolved: ResolvedProblem) -> bool:
    """Whether a backend runs on a shape: expert parallelism, domain, hidden size, coefficients."""
    if shape.ep == 1:
        return choice.model == "allgather_reducescatter"
    inside = shape.tp * shape.dp <= resolved.hardware.scale_up.domain_gpus
    built = not choice.hidden_sizes or resolved.model.hidden in choice.hidden_sizes
    known = resolved.machine.calibration.has("dispatch", f"{choice.model}.dispatch")
    spread = shape.tp == 1 or not choice.needs_full_dp
    return built and known and spread and (inside or not choice.within_domain)


def overlaps_for(backend: str, resolved: ResolvedProblem) -> list[str]:
    """Overlap modes the engine offers with a backend."""
    modes = ["none"]
    if backend in ("deepep_low_latency", "deepep_normal") and resolved.engine.has("enable_dbo", resolved.version):
        modes.append("two_batch")
    if backend == "deepep_low_latency" and resolved.engine.has("enable_sbo", resolved.version):
        modes.append("single_batch")
    return modes


def token_limits(resolved: ResolvedProblem) -> Ints:
    """Tokens per rank and step that each backend's kernels accept, by backend code."""
    limits = np.full(len(BACKENDS), UNLIMITED, dtype=np.int64)
    for choice in resolved.engine.backend_choices(resolved.version):
        if choice.max_tokens:
            limits[BACKENDS.index(choice.model)] = choice.max_tokens
    return limits
