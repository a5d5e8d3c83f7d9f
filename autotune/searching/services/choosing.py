"""Which rows and how many instances: disaggregated pairs by CP-SAT, aggregated engines by enumeration."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from autotune.documents.knobs import VARIANT_COLUMNS
from autotune.documents.plan import SolverSummary
from autotune.layouts.families import Limits, feasible
from autotune.layouts.packing import Domains
from autotune.layouts.pair import Goal, Pair, PairSide, PairSolver
from autotune.layouts.prune import prune
from autotune.layouts.table import LayoutTable, cost_rows
from autotune.resolving import ResolvedProblem
from autotune.searching.services.sides import Pools, SideCandidates
from cost_models.arrays import Floats, Ints, as_floats, distinct_rows
from cost_models.rows import Rows

MILLI = 1000
CENTS = 100


@dataclass(frozen=True, slots=True)
class Chosen:
    """One pool of a candidate service."""

    resolved: ResolvedProblem
    row: Rows
    instances: int
    requests_per_s: float
    """Of all instances."""
    transfer_per_s: float

    @property
    def gpus(self) -> int:
        """Of all instances."""
        return int(self.row.gpus[0]) * self.instances


@dataclass(frozen=True, slots=True)
class Candidate:
    """A service before it is replayed."""

    pools: tuple[Chosen, ...]
    """Prefill and decode, or one aggregated pool."""
    requests_per_s: float
    solver: SolverSummary


def disaggregated(
    pools: Pools, prefill: SideCandidates, decode: SideCandidates, count: int, headroom: float = 1.0
) -> list[Candidate]:
    """The best pairs with distinct layouts, best first; fewer, or none, when there are no more.

    headroom : capacity planned for over the mean rate that is asked for; bursts need it.
    """
    sides = []
    units = []
    for candidates in (prefill, decode):
        closed = candidates is decode and pools.traffic.concurrency is not None
        side, unit = _closed_side(pools, candidates, count) if closed else _open_side(candidates, count)
        sides.append(side)
        units.append(unit)
    if not all(len(side) for side in sides):
        return []
    weights = _gpu_costs(pools)
    sides = [dataclasses.replace(side, gpu_cost=weight) for side, weight in zip(sides, weights, strict=True)]
    budgets = (pools.prefill.gpus, pools.decode.gpus) if pools.own_hardware else pools.decode.gpus
    domain = pools.decode.hardware.scale_up.domain_gpus
    required = int(np.ceil(pools.traffic.rate_per_s * headroom * MILLI)) if pools.traffic.rate_per_s else 0
    domains = None if pools.own_hardware else Domains(pools.decode.gpus, domain)
    solver = PairSolver(Pair(sides[0], sides[1], budgets, domains, required), pools.decode.problem.seed)
    goal: Goal = "total" if pools.decode.problem.objective == "tokens_per_s" else "ratio"
    found: list[Candidate] = []
    while len(found) < count and (selection := solver.best(goal)):
        solver.exclude(selection)
        chosen = tuple(
            Chosen(
                candidates.resolved,
                unit.rows.take(np.array([row])),
                instances,
                int(side.rate[row]) / MILLI * instances / int(side.instances[row]),
                int(side.transfer_rate[row]) / MILLI * instances / int(side.instances[row]),
            )
            for candidates, side, unit, row, instances in zip(
                (prefill, decode), sides, units, selection.rows, selection.instances, strict=True
            )
        )
        found.append(Candidate(chosen, selection.rate / MILLI, selection.summary()))
    return found


def _gpu_costs(pools: Pools) -> tuple[int, int]:
    """What a GPU of each pool costs: cents an hour where prices are given, else 1."""
    problem = pools.decode.problem
    if not (pools.own_hardware and problem.gpu_hour_usd and problem.prefill_gpu_hour_usd):
        return 1, 1
    return max(round(problem.prefill_gpu_hour_usd * CENTS), 1), max(round(problem.gpu_hour_usd * CENTS), 1)


def _open_side(candidates: SideCandidates, count: int) -> tuple[PairSide, LayoutTable]:
    """Rows worth giving to the solver: a unit is one instance, worth what its steps and links both allow."""
    rows = candidates.rows
    worth = np.minimum(candidates.requests_per_s, candidates.transfer_per_s)
    kept = _worth_keeping(dataclasses.replace(rows, instance_tokens_per_s=worth), count)
    chosen = rows.take(kept)
    side = PairSide(
        size=chosen.rows.gpus,
        instances=np.ones(len(kept), dtype=np.int64),
        most_units=chosen.max_instances,
        rate=_milli(candidates.requests_per_s[kept]),
        transfer_rate=_milli(candidates.transfer_per_s[kept]),
        layout=chosen.layout,
    )
    return side, chosen


def _worth_keeping(rows: LayoutTable, count: int) -> Ints:
    if not len(rows):
        return np.zeros(0, dtype=np.int64)
    return prune(rows, keep_layouts=count, sequences_matter=False, latency_matters=False)


def _milli(rate_per_s: Floats) -> Ints:
    return np.asarray(np.floor(np.minimum(rate_per_s, 1e9) * MILLI), dtype=np.int64)


def _closed_side(pools: Pools, candidates: SideCandidates, count: int) -> tuple[PairSide, LayoutTable]:
    """A closed loop fixes the batch by the number of instances: a unit is all instances of a row."""
    options, instances = closed_options(pools, candidates)
    rate = options.instance_tokens_per_s / pools.traffic.osl_tokens * instances
    keyed = dataclasses.replace(options, rows=options.rows.replace(pp=options.rows.pp * instances))  # prune by all GPUs
    kept = _worth_keeping(dataclasses.replace(keyed, instance_tokens_per_s=rate), count)
    chosen = options.take(kept)
    share = candidates.transfer_per_s.min() if len(candidates.transfer_per_s) else 0.0
    side = PairSide(
        size=chosen.rows.gpus,
        instances=instances[kept],
        most_units=np.ones(len(kept), dtype=np.int64),
        rate=_milli(as_floats(rate[kept])),
        transfer_rate=_milli(as_floats(share * instances[kept])),
        layout=chosen.layout,
    )
    return side, chosen


def closed_options(pools: Pools, candidates: SideCandidates) -> tuple[LayoutTable, Ints]:
    """Every layout variant with every number of instances, its batch what the closed loop leaves each rank.

    Returns the feasible rows and their numbers of instances.
    """
    resolved, table = candidates.resolved, candidates.table
    assert pools.traffic.concurrency is not None
    if not len(table):
        return table, np.zeros(0, dtype=np.int64)
    first, _ = distinct_rows(*(getattr(table.rows, name) for name in VARIANT_COLUMNS))
    variants = table.take(first)
    most = np.minimum(np.maximum(variants.max_instances, 0), pools.traffic.concurrency)
    index = np.repeat(np.arange(len(variants)), most)
    instances = np.concatenate([np.arange(1, n + 1) for n in most]) if len(most) else most
    rows = variants.rows.take(index)
    batch = -(-pools.traffic.concurrency // (instances * rows.dp))
    options = cost_rows(resolved, rows.replace(batch=np.maximum(batch, 1)))
    ok = feasible(options, Limits.of(resolved))
    return options.take(ok), instances[ok]


def aggregated(pools: Pools, candidates: SideCandidates, count: int, headroom: float = 1.0) -> list[Candidate]:
    """The best aggregated services with distinct layouts, best first: one row, so every one is looked at."""
    traffic = pools.traffic
    wanted_per_s = traffic.rate_per_s * headroom if traffic.rate_per_s else None
    if traffic.concurrency:
        table, instances = closed_options(pools, candidates)
        rate = table.instance_tokens_per_s / traffic.osl_tokens * instances
        served = rate
    else:
        table, instances = candidates.rows, candidates.rows.max_instances
        rate = candidates.requests_per_s * instances
        if wanted_per_s and len(table):
            instances = np.ceil(wanted_per_s / candidates.requests_per_s).astype(np.int64)
            rate = candidates.requests_per_s * instances
            ok = instances <= table.max_instances
            table, instances, rate = table.take(ok), instances[ok], rate[ok]
        served = np.minimum(rate, wanted_per_s or np.inf)
    if not len(table):
        return []
    gpus = table.rows.gpus * instances
    score = served if pools.decode.problem.objective == "tokens_per_s" else served / gpus
    order = np.lexsort((-rate, -served, -score))  # of equals the one with most room
    found: list[Candidate] = []
    seen: set[int] = set()
    for row in order.tolist():
        if int(table.layout[row]) in seen:
            continue
        seen.add(int(table.layout[row]))
        chosen = Chosen(
            candidates.resolved, table.rows.take(np.array([row])), int(instances[row]), float(rate[row]), float("inf")
        )
        proof = SolverSummary(status="ENUMERATED", objective=float(score[row]), bound=float(score[order[0]]), gap=0.0)
        found.append(Candidate((chosen,), float(served[row]), proof))
        if len(found) == count:
            break
    return found
