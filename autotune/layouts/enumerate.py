"""Admissible layouts of a problem, as rows without a batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from autotune.documents.knobs import LAYOUT_COLUMNS
from autotune.resolving import ResolvedProblem
from cost_models.arrays import Ints
from cost_models.context_parallel import exchange_timed
from cost_models.dispatch import BACKENDS
from cost_models.overlap import OVERLAPS
from cost_models.rows import NO_GRAPH, UNLIMITED, Rows
from cost_models.specs.hardware import HardwareSpec
from cost_models.specs.model import ModelSpec
from cost_models.specs.workload import Workload
from search_spaces.rules import RULES, Subject, legal
from search_spaces.schema import Choice

SPARE_EXPERTS = 32
EPLB_INTERVAL_STEPS = 3000
MAX_TP = 16
MAX_DRAFTS = 8
OFFLOAD_GROUPS = (2, 4, 8)
NO_OFFLOAD = (0, 1, 1)
AGGREGATED_BUDGET = (8192, 32768)
PAGE_TOKENS = 64
"""Token budgets are whole KV pages of every attention backend (SGLang asks for it; at most 63 tokens are lost)."""


@dataclass(frozen=True, slots=True)
class ShardShape:
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


def shard_shapes(model: ModelSpec, hardware: HardwareSpec, gpus: int) -> Iterator[ShardShape]:
    """Every admissible (tp, dp, ep, pp).

    Tensor parallelism stays inside a node when attention is data-parallel (engines place each DP
    rank on one node); pipelines are combined with TP only.
    """
    for size in instance_sizes(hardware, gpus):
        for tp in divisors(size):
            if model.heads % tp or tp > MAX_TP or tp > hardware.scale_up.domain_gpus:
                continue
            for pp in divisors(size // tp):
                dp = size // tp // pp
                if dp > 1 and (pp > 1 or model.moe is None or tp > hardware.gpus_per_node):
                    continue
                if pp > 1 and (size < hardware.gpus_per_node or pp > 8):
                    continue
                for ep in _expert_parallel_sizes(model, tp, dp):
                    yield ShardShape(tp, dp, ep, pp)


def _expert_parallel_sizes(model: ModelSpec, tp: int, dp: int) -> list[int]:
    """Experts spread over the whole group, or every expert sharded over it (one of the two, as engines do)."""
    if model.moe is None:
        return [1]
    group = tp * dp
    spread = [group] if group <= model.moe.experts + SPARE_EXPERTS * 2 else []
    return sorted({1, *spread})


def redundancy_choices(experts: int, ep: int, eplb: bool) -> list[int]:
    """Redundant experts that divide: the fewest, and at least 32 where experts can be rebalanced."""
    fewest = -experts % ep
    if not eplb:
        return [fewest] if fewest == 0 else []
    spare = SPARE_EXPERTS + (-(experts + SPARE_EXPERTS)) % ep
    return sorted({fewest, spare})


def layout_rows(resolved: ResolvedProblem, gpus: int | None = None) -> Rows:
    """All layouts that the engine's rules admit, as rows with a small step; empty when none does.

    gpus : budget, the problem's own when absent.
    """
    rows = _every_row(resolved, gpus or resolved.gpus)
    return rows.take(legal(RULES, rule_subject(resolved, rows))) if len(rows) else rows


def refused_whole(resolved: ResolvedProblem) -> str | None:
    """What the engine says of every layout alike, where one rule refuses them all; none where the rules differ."""
    rows = _every_row(resolved, resolved.gpus)
    subject = rule_subject(resolved, rows)
    rule = next((rule for rule in RULES if len(rows) and rule.applies(subject) and rule.broken(subject).all()), None)
    return rule.because(subject.at(0)) if rule else None


def rule_subject(resolved: ResolvedProblem, rows: Rows) -> Subject:
    """Candidate rows as the engine rules look at them."""
    machine = resolved.machine
    return Subject(
        resolved.engine, resolved.version, machine.model, machine.recipe, machine.hardware, role=resolved.pool, rows=rows,
        asked=resolved.problem.engine_version,
    )  # fmt: skip


def _every_row(resolved: ResolvedProblem, gpus: int) -> Rows:
    """Every combination of a shape with experts, backend, drafts and offload, legal or not."""
    prefill = resolved.phase == "prefill"
    drafts = _draft_options(resolved)
    found: list[tuple[int, ...]] = []
    for shape in shard_shapes(resolved.model, resolved.hardware, gpus):
        sizes = (shape.tp, shape.dp, shape.ep, shape.pp)
        shares = _context_options(resolved, shape.tp)
        for offload in _offload_options(resolved, shape):
            experts = _expert_options(resolved, shape, offloads=offload != NO_OFFLOAD)
            options = itertools.product(shares, experts, _backend_options(resolved, shape), drafts)
            found += [(*sizes, share, *spread, *backend, draft, *offload) for share, spread, backend, draft in options]
    values = np.array(found, dtype=np.int64).reshape(len(found), len(LAYOUT_COLUMNS)).T
    rows = Rows.of(**dict(zip(LAYOUT_COLUMNS, values, strict=True)))
    if resolved.skew is not None:
        rows = rows.replace(skew=resolved.skew.of_rows(rows))
    return rows.replace(
        eplb_interval_steps=np.where((rows.eplb > 0) & (not resolved.loads_map), EPLB_INTERVAL_STEPS, 0),
        graph_tokens=NO_GRAPH if prefill else rows.graph_tokens,
        batched_tokens={"decode": 0, "prefill": PAGE_TOKENS, "serve": aggregated_budget(resolved.problem.workload)}[
            resolved.pool
        ],
    )


def aggregated_budget(workload: Workload) -> int:
    """Tokens per rank and step of an aggregated engine: whole prompts where they are not very long."""
    return int(np.clip(2 ** np.ceil(np.log2(workload.isl_tokens)), *AGGREGATED_BUDGET))


def _draft_options(resolved: ResolvedProblem) -> tuple[int, ...]:
    """Draft tokens of a decode step; a prefill step fills the MTP module's cache once."""
    known = len(resolved.problem.workload.mtp_acceptance)
    if not known:
        return (0,)
    return (1,) if resolved.phase == "prefill" else tuple(range(min(known, MAX_DRAFTS) + 1))


def _context_options(resolved: ResolvedProblem, tp: int) -> tuple[int, ...]:
    """Ranks that share the tokens of sequences, where they hold the same keys; prompts alone gain nothing by it."""
    known = resolved.engine.has("context_ranks", resolved.version) and exchange_timed(resolved.machine)
    most = resolved.model.context_ranks(tp) if known and resolved.phase != "prefill" else 1
    return tuple(n for n in divisors(tp) if n <= most)


def _offload_options(resolved: ResolvedProblem, shape: ShardShape) -> tuple[tuple[int, int, int], ...]:
    """(group size, layers in it, prefetch step): none, or one layer of every few where prefill can hide the copies.

    The flag search refines what is chosen here. A decode step is far too short to hide them, and engines number layers
    within a pipeline stage.
    """
    possible = resolved.phase == "prefill" and shape.pp == 1
    if not possible or not resolved.engine.has("offload_group_size", resolved.version):
        return (NO_OFFLOAD,)
    return (NO_OFFLOAD, *((group, 1, 1) for group in OFFLOAD_GROUPS))


def _expert_options(resolved: ResolvedProblem, shape: ShardShape, *, offloads: bool) -> list[tuple[int, int]]:
    """(redundant experts, EPLB on) of a shape; without rebalancing beside weight offload, which no engine takes together."""
    model = resolved.model
    if model.moe is None or shape.ep == 1:
        return [(0, 0)]
    plain = [(spare, 0) for spare in redundancy_choices(model.moe.experts, shape.ep, eplb=False)]
    mapped = resolved.loads_map and resolved.engine.maps_hold_copies
    if shape.dp == 1 or (offloads and not resolved.loads_map) or not (mapped or rebalances(resolved)):
        return plain
    balanced = [(spare, 1) for spare in redundancy_choices(model.moe.experts, shape.ep, eplb=True)]
    return [*balanced, *plain] if offloads else balanced or plain


def rebalances(resolved: ResolvedProblem) -> bool:
    """Whether the engine version rebalances the experts of this model at all."""
    if not resolved.engine.has("enable_eplb", resolved.version):
        return False
    probe = Rows.of(dp=2, ep=2, eplb=1, eplb_interval_steps=EPLB_INTERVAL_STEPS)
    return bool(legal([rule for rule in RULES if rule.name == "eplb_of_the_model"], rule_subject(resolved, probe))[0])


def _backend_options(resolved: ResolvedProblem, shape: ShardShape) -> list[tuple[int, int, int]]:
    """(backend, overlap, largest graph) of a shape."""
    none = OVERLAPS.index("none")
    if shape.dp == 1:
        return [(BACKENDS.index("none"), none, UNLIMITED)]
    options = []
    for choice in resolved.engine.backend_choices(resolved.version):
        if not backend_priced(choice, shape, resolved):
            continue
        graph = NO_GRAPH if choice.needs_graph_off else UNLIMITED
        backend = choice.model_in(resolved.phase)
        options += [(BACKENDS.index(backend), OVERLAPS.index(overlap), graph) for overlap in overlaps_for(backend, resolved)]
    return options


def backend_priced(choice: Choice, shape: ShardShape, resolved: ResolvedProblem) -> bool:
    """Whether a backend can be priced on a shape; what the engine takes of it is up to its rules."""
    backend = choice.model_in(resolved.phase)
    if shape.ep == 1:
        return backend == "allgather_reducescatter"
    known = resolved.machine.calibration.has("dispatch", f"{backend}.dispatch")
    # an engine that prefills and decodes through one kernel needs one that takes whole prompts
    mixes = resolved.pool != "serve" or choice.prefill_model is not None or not choice.max_tokens
    return known and mixes


def backend_admissible(choice: Choice, row: Rows, resolved: ResolvedProblem) -> bool:
    """Whether a backend is taken by the engine, and priced, in the place of a row's own."""
    shape = ShardShape(int(row.tp[0]), int(row.dp[0]), int(row.ep[0]), int(row.pp[0]))
    if not backend_priced(choice, shape, resolved):
        return False
    graph = NO_GRAPH if choice.needs_graph_off else UNLIMITED
    changed = row.replace(backend=BACKENDS.index(choice.model_in(resolved.phase)), overlap=0, graph_tokens=graph)
    unsized = [rule for rule in RULES if not rule.sized]
    return bool(legal(unsized, rule_subject(resolved, changed))[0])


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
        if limit := choice.max_tokens_in(resolved.phase):
            limits[BACKENDS.index(choice.model)] = limit
    return limits
