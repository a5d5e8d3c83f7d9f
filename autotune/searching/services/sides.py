"""The pools that a service may consist of: candidate rows with the requests per second they serve."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from autotune.documents.deployment import Load
from autotune.errors import ProblemError
from autotune.layouts.enumerate import rule_subject
from autotune.layouts.families import Limits, feasible
from autotune.layouts.table import LayoutTable, build_table
from autotune.resolving import ResolvedProblem, resolve_problem
from autotune.serving.traffic import as_decoded, as_prefilled, requests_of
from cost_models.arrays import Floats, as_floats
from cost_models.kv_transfer import HandoverCoefficients, handover_bytes_s, link_bytes_per_s
from cost_models.memory import state_bytes
from cost_models.rows import Rows
from cost_models.serving import ServiceCoefficients
from cost_models.specs.workload import Workload
from search_spaces.rules import pair_findings

TTFT_STEPS = {"p50": 1.5, "p95": 1.95, "p99": 2.0}
"""Prefill steps that a prompt waits for and takes: the rest of the one in progress, evenly distributed, and its own."""
DECODE_SIGMAS = 3.0
"""Standard deviations of a Poisson count of sequences that a decode pool keeps free."""
PREFILL_SIGMAS = 1.0
"""The same of the prompts that come during one prefill step."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the service is sent: mean lengths, and the lengths that decode and prefill steps see."""

    asked: Workload
    isl_tokens: float
    osl_tokens: float
    decoded: Workload
    prefilled: Workload
    rate_per_s: float | None
    """Requests that must be served; none where as many as possible."""
    concurrency: int | None
    """Requests in flight of a closed loop."""
    load: Load | None


@dataclass(frozen=True, slots=True)
class Pools:
    """The three kinds of pool, each with its own resolved problem."""

    traffic: Traffic
    prefill: ResolvedProblem
    decode: ResolvedProblem
    aggregated: ResolvedProblem

    @property
    def own_hardware(self) -> bool:
        """Whether prefill runs on hardware of its own."""
        return self.prefill.problem.hardware != self.decode.problem.hardware


def traffic_of(resolved: ResolvedProblem) -> Traffic:
    """Lengths and load of a problem; raises ProblemError for a bad trace."""
    problem, load = resolved.problem, resolved.problem.load
    workload = problem.workload
    if load is None or not (load.trace or load.shortest < 1):
        rate = load.rate_per_s if load else None
        lengths = (float(workload.isl_tokens), float(workload.osl_tokens))
        return Traffic(workload, *lengths, workload, workload, rate, load.concurrency if load else None, load)
    requests = requests_of(workload, load, 1)
    lengths = (float(requests.isl_tokens.mean()), float(requests.osl_tokens.mean()))
    rate = None if load.concurrency else load.rate_per_s or requests.rate_per_s
    if rate is None and not load.concurrency:
        raise ProblemError("all requests of the trace arrive at the same time; give a rate or a concurrency with it")
    return Traffic(
        workload, *lengths, as_decoded(workload, requests), as_prefilled(workload, requests), rate, load.concurrency, load
    )


def pools_of(resolved: ResolvedProblem) -> Pools:
    """The problem of each pool; raises ProblemError for pools that cannot work together."""
    traffic = traffic_of(resolved)
    problem = resolved.problem
    decode = _with_workload(dataclasses.replace(resolved, pool="decode"), traffic.decoded)
    aggregated = _with_workload(dataclasses.replace(resolved, pool="serve"), traffic.decoded)
    prefill = resolved
    if problem.prefill_hardware:
        changes = {
            "hardware": problem.prefill_hardware,
            "gpus": problem.prefill_gpus,
            "precision": problem.prefill_precision,
            "prefill_hardware": None, "prefill_gpus": None, "prefill_precision": None, "prefill_gpu_hour_usd": None,
        }  # fmt: skip
        prefill = resolve_problem(problem.model_copy(update=changes))
        _check_reach(prefill, decode)
        recipe = prefill.machine.recipe.with_kv_cache(decode.machine.recipe.kv_cache)
        prefill = dataclasses.replace(prefill, machine=dataclasses.replace(prefill.machine, recipe=recipe))
    prefill = _with_workload(dataclasses.replace(prefill, pool="prefill"), traffic.prefilled, prompt_limit_s(resolved))
    _check_pair(prefill, decode)
    return Pools(traffic, prefill, decode, aggregated)


def _with_workload(resolved: ResolvedProblem, workload: Workload, ttft_limit_s: float | None = None) -> ResolvedProblem:
    changes: dict[str, object] = {"workload": workload}
    if ttft_limit_s is not None:
        changes["ttft_limit_s"] = ttft_limit_s
    return dataclasses.replace(resolved, problem=resolved.problem.model_copy(update=changes))


def prompt_limit_s(resolved: ResolvedProblem) -> float:
    """Longest prefill of one prompt with which the TTFT limits can hold; raises ProblemError where none can."""
    c = resolved.machine.coefficients("serving", "default", ServiceCoefficients)
    fixed_s = c.frontend_s + resolved.machine.coefficients("kv_transfer", "default", HandoverCoefficients).start_s
    limits = {name: (limit - fixed_s) / TTFT_STEPS[name] for name, limit in resolved.ttft_limits_s.items()}
    if not limits:
        return resolved.problem.ttft_limit_s
    name = min(limits, key=lambda n: limits[n])
    if limits[name] <= 0:
        limit_s = resolved.ttft_limits_s[name]
        raise ProblemError(
            f"TTFT {name.upper()} limit of {limit_s * 1e3:,.0f} ms: {resolved.engine.title} needs {fixed_s * 1e3:,.0f} ms for "
            f"its front end and for handing the KV cache over, before anything is computed; allow more than that"
        )
    return limits[name]


def _check_reach(prefill: ResolvedProblem, decode: ResolvedProblem) -> None:
    """Pools on different hardware hand KV caches over the network between them."""
    kinds = [_network(r.hardware.scale_out.technology) for r in (prefill, decode)]
    if not kinds[0] & kinds[1]:
        names = [f"{r.hardware.name} has {r.hardware.scale_out.technology}" for r in (prefill, decode)]
        raise ProblemError(f"the pools cannot reach each other: {names[0]}, {names[1]}; choose hardware on one kind of network")
    if prefill.hardware.gpu.vendor != decode.hardware.gpu.vendor:
        raise ProblemError(f"the pools cannot share a model in one engine: {prefill.hardware.name} and {decode.hardware.name}")


def _check_pair(prefill: ResolvedProblem, decode: ResolvedProblem) -> None:
    """The engine exchanges KV caches between the pools; raises ProblemError with its rule where it does not."""
    for finding in pair_findings(rule_subject(prefill, Rows.of()), rule_subject(decode, Rows.of())):
        raise ProblemError(f"the pools cannot exchange KV caches: {finding.line()}")


def _network(technology: str) -> set[str]:
    """InfiniBand, or Ethernet (which RoCE runs on), or both."""
    found = {"InfiniBand"} if "InfiniBand" in technology else set()
    return found | ({"Ethernet"} if any(word in technology for word in ("RoCE", "Ethernet")) else set())


@dataclass(frozen=True, slots=True)
class SideCandidates:
    """Feasible rows of one pool, (rows,)."""

    resolved: ResolvedProblem
    table: LayoutTable
    """Everything that was costed."""
    rows: LayoutTable
    """What satisfies the limits."""
    requests_per_s: Floats
    """Of one instance, as the traffic's fluctuations allow."""
    transfer_per_s: Floats
    """Requests whose KV cache one instance's links hand over; infinite for an aggregated one."""


def prefill_candidates(pools: Pools) -> SideCandidates:
    """Prefill rows: as many requests as their steps take, less what must be free for Poisson arrivals."""
    resolved = pools.prefill
    table, rows = _feasible_rows(resolved)
    rate = rows.instance_tokens_per_s / new_tokens(pools, resolved)
    if pools.traffic.concurrency is None:
        rate = rate * planned_share(pools, resolved, rows.rows)
    return SideCandidates(resolved, table, rows, as_floats(rate), transfer_per_s(pools, resolved, rows))


def decode_candidates(pools: Pools) -> SideCandidates:
    """Decode rows at their batch, less what must be free for it to fluctuate."""
    resolved = pools.decode
    table, rows = _feasible_rows(resolved)
    return SideCandidates(resolved, table, rows, _answered(pools, resolved, rows), transfer_per_s(pools, resolved, rows))


def aggregated_candidates(pools: Pools) -> SideCandidates:
    """Aggregated rows at their batch."""
    table, rows = _feasible_rows(pools.aggregated)
    return SideCandidates(pools.aggregated, table, rows, _answered(pools, pools.aggregated, rows), np.full(len(rows), np.inf))


def _feasible_rows(resolved: ResolvedProblem) -> tuple[LayoutTable, LayoutTable]:
    table = build_table(resolved)
    return table, table.take(feasible(table, Limits.of(resolved))) if len(table) else table


def _answered(pools: Pools, resolved: ResolvedProblem, rows: LayoutTable) -> Floats:
    share = planned_share(pools, resolved, rows.rows)
    return as_floats(rows.instance_tokens_per_s / pools.traffic.osl_tokens * share)


def new_tokens(pools: Pools, resolved: ResolvedProblem) -> float:
    """Of a mean prompt, without its cached prefix."""
    return max(pools.traffic.isl_tokens * (1 - resolved.problem.workload.prefix_cache_hit_rate), 1.0)


def planned_share(pools: Pools, resolved: ResolvedProblem, rows: Rows) -> Floats:
    """Share of what an instance's full steps give that a service is planned for, (rows,): Poisson arrivals need the rest.

    Of n sequences that decode, DECODE_SIGMAS standard deviations stay free: 1 - 3 / sqrt(n + 9). Of the n prompts of a
    prefill step PREFILL_SIGMAS: 1 - 1 / sqrt(n + 1).
    """
    if resolved.pool == "prefill":
        prompts = np.maximum(rows.batched_tokens * rows.dp / new_tokens(pools, resolved), 1.0)
        return as_floats(1 - PREFILL_SIGMAS / np.sqrt(prompts + 1))
    return as_floats(1 - DECODE_SIGMAS / np.sqrt(rows.batch * rows.dp + DECODE_SIGMAS**2))


def transfer_per_s(pools: Pools, resolved: ResolvedProblem, table: LayoutTable) -> Floats:
    """Requests per second whose KV cache an instance's links hand over, (rows,).

    A cached prefix is handed over too. Pools of one scale-up domain use its links, others one NIC share per GPU. Every
    tensor-parallel rank takes its own shard; latent caches are not sharded, so each takes a copy.
    """
    hardware, rows = resolved.hardware, table.rows
    one_domain = not pools.own_hardware and pools.decode.gpus <= hardware.scale_up.domain_gpus
    c = resolved.machine.coefficients("kv_transfer", "default", HandoverCoefficients)
    prompt_bytes = state_bytes(resolved.machine, rows, pools.traffic.isl_tokens)
    return as_floats(rows.dp / handover_bytes_s(prompt_bytes, link_bytes_per_s(hardware, one_domain), c))
