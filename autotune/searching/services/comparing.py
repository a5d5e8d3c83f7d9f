"""What bounds a service, which kind wins and why, and the trade between speed per user and per GPU."""

from __future__ import annotations

import numpy as np

from autotune.documents.service_plan import Kind, ParetoPoint
from autotune.layouts.explain import row_label
from autotune.layouts.table import LayoutTable
from autotune.searching.services.choosing import Candidate
from autotune.searching.services.evaluating import Evaluated
from autotune.searching.services.sides import Pools, SideCandidates
from cost_models.step import decode_step

NEAR = 0.98
PARETO_POINTS = 12


def service_kind_of(candidate: Candidate) -> Kind:
    """Whether a candidate is one pool or two."""
    return "aggregated" if len(candidate.pools) == 1 else "disaggregated"


def bound_by(pools: Pools, evaluated: Evaluated) -> str:
    """What keeps a service from serving more."""
    candidate = evaluated.candidate
    if pools.traffic.load is not None:
        return "the load asked for"
    if service_kind_of(candidate) == "aggregated":
        near = evaluated.prediction.tpot_s.mean > NEAR * pools.decode.problem.tpot_limit_s
        return "the TPOT limit" if near else "room for the batch to fluctuate"
    prefill, decode = candidate.pools
    limits = {
        "prefill": prefill.requests_per_s,
        "the links that KV caches leave prefill by": prefill.transfer_per_s,
        "decode": decode.requests_per_s,
        "the links that KV caches reach decode by": decode.transfer_per_s,
    }
    tight = [name for name, limit in limits.items() if limit * NEAR <= candidate.requests_per_s]
    return " and ".join(tight) or "whole instances: neither pool is full"


def verdict(pools: Pools, aggregated: Evaluated | None, disaggregated: Evaluated | None) -> str:
    """Which kind wins, by how much and why."""
    if aggregated is None or disaggregated is None:
        only = "disaggregated" if aggregated is None else "aggregated"
        other = "aggregated" if aggregated is None else "disaggregated"
        return f"Only {only} services meet the limits; no {other} one does."
    found = {"Aggregated": aggregated, "Disaggregated": disaggregated}
    rates = {kind: e.prediction.tokens_per_s_per_gpu for kind, e in found.items()}
    winner, loser = sorted(rates, key=lambda kind: -rates[kind])
    gain, ahead, behind = rates[winner] / rates[loser], rates[winner], rates[loser]
    ahead_text = f"{winner} serves {gain:.2f} times as much per GPU: {ahead:,.0f} against {behind:,.0f} tokens/s."
    reasons = _aggregated_reason(pools, aggregated), _disaggregated_reason(pools, disaggregated)
    return " ".join((ahead_text, *reasons))


def _aggregated_reason(pools: Pools, evaluated: Evaluated) -> str:
    """How much of a token's time answers wait for prompts."""
    chosen = evaluated.candidate.pools[0]
    workload = pools.traffic.decoded
    per_rank = evaluated.prediction.decode_sequences / chosen.instances / chosen.row.dp[0]
    row = chosen.row.replace(batch=max(round(per_rank), 1))
    alone_s = float(decode_step(chosen.resolved.machine, row, workload.context_tokens, workload.mtp_acceptance).tpot_s[0])
    tpot_s = evaluated.prediction.tpot_s.mean
    waiting = max(1 - alone_s / tpot_s, 0.0)
    per_gpu = evaluated.prediction.decode_sequences / evaluated.prediction.gpus
    return (
        f"Aggregated: answers wait for prompts {waiting:.0%} of the time ({alone_s * 1e3:.1f} of {tpot_s * 1e3:.1f} ms per token "
        f"are decode), with {per_gpu:,.0f} sequences per GPU."
    )


def _disaggregated_reason(pools: Pools, evaluated: Evaluated) -> str:
    """How full the two pools are."""
    prefill, decode = evaluated.candidate.pools
    rate = evaluated.prediction.requests_per_s
    per_gpu = evaluated.prediction.decode_sequences / decode.gpus
    whole = pools.decode.gpus + (pools.prefill.gpus if pools.own_hardware else 0)
    idle = whole - decode.gpus - prefill.gpus
    left = f", {idle} of {whole} GPUs left over" if idle else ""
    return (
        f"Disaggregated: {prefill.gpus} GPUs prefill and {decode.gpus} decode, at {rate / prefill.requests_per_s:.0%} and "
        f"{rate / decode.requests_per_s:.0%} of the rates planned for them, with {per_gpu:,.0f} sequences per decode GPU{left}."
    )


def pareto(pools: Pools, prefill: SideCandidates, decode: SideCandidates, aggregated: SideCandidates) -> tuple[ParetoPoint, ...]:
    """Best tokens/s/GPU of both kinds over tokens/s per user, before pools are rounded to whole instances.

    TPOT limits aside, the rows are those that meet memory and TTFT. GPUs per request of a pair are the sum of its
    pools' (their rates are equal).
    """
    points = []
    if len(prefill.rows) and len(decode.table):
        fits = decode.table.take(decode.table.memory_bytes <= decode.resolved.memory_limit_bytes)
        gpus_per_rate = float((prefill.rows.rows.gpus / np.minimum(prefill.requests_per_s, prefill.transfer_per_s)).min())
        answered = fits.instance_tokens_per_s / pools.traffic.osl_tokens
        per_gpu = pools.traffic.osl_tokens / (gpus_per_rate + fits.rows.gpus / answered)
        points += _frontier("disaggregated", fits, per_gpu)
    if len(aggregated.table):
        fits = aggregated.table.take(aggregated.table.memory_bytes <= aggregated.resolved.memory_limit_bytes)
        points += _frontier("aggregated", fits, fits.tokens_per_s_per_gpu)
    return tuple(points)


def _frontier(kind: Kind, table: LayoutTable, per_gpu: np.ndarray) -> list[ParetoPoint]:
    """Points that no other beats in both, thinned evenly in the logarithm of the speed per user."""
    placed = table.max_instances >= 1
    rows = np.flatnonzero(placed)
    order = rows[np.argsort(table.latency_s[rows])]
    best = np.maximum.accumulate(per_gpu[order])
    front = order[np.concatenate([[True], best[1:] > best[:-1]])] if len(order) else order
    speed = 1 / table.latency_s[front]
    if len(front) > PARETO_POINTS:
        wanted = np.geomspace(speed.max(), speed.min(), PARETO_POINTS)
        front = front[np.unique([int(np.argmin(np.abs(np.log(speed / w)))) for w in wanted])]
    return [
        ParetoPoint(
            kind=kind,
            tokens_per_s_per_user=float(1 / table.latency_s[row]),
            tokens_per_s_per_gpu=float(per_gpu[row]),
            label=row_label(table, int(row)),
        )
        for row in front
    ]
