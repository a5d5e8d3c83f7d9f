"""Fleet -> plan: sweep the services that there could be, then choose among them with proof."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autotune.documents.deployment import Load
from autotune.documents.fleet import ClusterUse, FleetPlacement, FleetProblem, FleetResult, NextRack
from autotune.documents.plan import SolverSummary
from autotune.documents.sweep import SweptRow
from autotune.errors import NoFeasiblePlan
from autotune.fleets.allocating import Allocation, Fleet, allocate, budget_needed, growth, racks_needed, unserved_milli
from autotune.fleets.options import MILLI, Asked, Site, asked_of, options_of
from autotune.progress import Progress
from autotune.sweeping.executors import Executor
from autotune.sweeping.running import OnAnswer, sweep
from cost_models.catalog import validated

MOST_MORE_RACKS = 1000
REASON_LENGTH = 240


def fleet(
    problem: FleetProblem | dict[str, Any],
    out: Path | str | None = None,
    *,
    workers: int | None = None,
    executor: str | Executor = "local",
    address: str | None = None,
    on_answer: OnAnswer | None = None,
) -> FleetResult:
    """Serve several models on several clusters, as cheaply as can be proved.

    out : folder of the sweep's journal, so that a restart goes on; workers, executor, address : as of `sweep`. Raises
    NoFeasiblePlan (exit 2) saying how much is missing for which model, AutotuneError (exit 1) for input that makes no sense.
    """
    if isinstance(problem, dict):
        problem = validated(FleetProblem, problem, "fleet")
    progress = Progress()
    asked = asked_of(problem)
    with progress.stage("sweep"):
        scenarios = [one.problem() for one in asked]
        swept = sweep(scenarios, out, workers=workers, executor=executor, address=address, on_answer=on_answer)
    options = options_of(asked, swept.rows)
    chosen = Fleet(problem, tuple(Site.of(cluster) for cluster in problem.clusters), tuple(options))
    _check_every_model_runs(chosen, asked, swept.rows)
    with progress.stage("allocate"):
        found = allocate(chosen)
    if found is None:
        raise NoFeasiblePlan(_what_is_missing(chosen))
    with progress.stage("next rack"):
        racks = [site.cluster.racks + bought for site, bought in zip(chosen.sites, found.bought, strict=True)]
        more = [
            NextRack(cluster=site.cluster.name, growth=growth(chosen, [n + (i == s) for i, n in enumerate(racks)]))
            for s, site in enumerate(chosen.sites)
        ]
        now = growth(chosen, racks)
    return _result(chosen, found, now, more, progress.seconds)


def _result(chosen: Fleet, found: Allocation, now: float, more: list[NextRack], seconds: dict[str, float]) -> FleetResult:
    placements = _placements(chosen, found)
    used = {site.cluster.name: sum(p.gpus for p in placements if p.cluster == site.cluster.name) for site in chosen.sites}
    clusters = [
        ClusterUse(
            name=site.cluster.name,
            hardware=site.cluster.hardware,
            racks=site.cluster.racks + bought,
            bought=bought,
            gpus=site.rack_gpus * (site.cluster.racks + bought),
            used_gpus=used[site.cluster.name],
            usd=bought * (site.cluster.rack_usd or 0.0),
        )
        for site, bought in zip(chosen.sites, found.bought, strict=True)
    ]
    prices = {site.cluster.name: site.cluster.gpu_hour_usd for site in chosen.sites}
    hourly = [used[name] * price for name, price in prices.items() if price is not None]
    return FleetResult(
        placements=placements,
        clusters=tuple(clusters),
        purchase_usd=sum(cluster.usd for cluster in clusters),
        usd_per_hour=sum(hourly) if hourly else None,
        purchase=_summary(found.purchase),
        running=_summary(found.running),
        growth=now,
        next_racks=tuple(more),
        options=len(chosen.options),
        seconds=dict(seconds),
    )


def _summary(proof: Any) -> SolverSummary:
    return SolverSummary(status=proof.status, objective=proof.objective, bound=proof.bound, gap=proof.gap)


def _placements(chosen: Fleet, found: Allocation) -> tuple[FleetPlacement, ...]:
    """Services with their replicas; a model's load is shared out by what they carry."""
    carried: dict[str, float] = {}
    for option, replicas in zip(chosen.options, found.replicas, strict=True):
        carried[option.model.name] = carried.get(option.model.name, 0.0) + replicas * (option.found.requests_per_s or 0.0)
    placements = []
    for option, replicas in zip(chosen.options, found.replicas, strict=True):
        one = option.found
        if not replicas or one.deployment is None:
            continue
        share = (one.requests_per_s or 0.0) / carried[option.model.name] * option.model.rate_per_s
        placements.append(
            FleetPlacement(
                model=option.model.name,
                cluster=option.site.cluster.name,
                replicas=replicas,
                gpus_each=option.gpus,
                label=one.label or "",
                kind=one.kind or "",
                requests_per_s_each=one.requests_per_s or 0.0,
                share_per_s_each=share,
                tpot_s=one.tpot_s or 0.0,
                ttft_p99_s=one.ttft_p99_s or 0.0,
                probability=one.probability if one.probability is not None else 1.0,
                deployment=one.deployment.model_copy(update={"load": Load(rate_per_s=share)}),
            )
        )
    return tuple(placements)


def _check_every_model_runs(chosen: Fleet, asked: list[Asked], rows: tuple[SweptRow, ...]) -> None:
    """Raise NoFeasiblePlan for models that no cluster serves at all, with the reason of the largest size on each."""
    served = {option.model.name for option in chosen.options}
    lines = []
    for model in chosen.problem.models:
        if model.name in served:
            continue
        reasons = {a.site.cluster.name: r.found.message for a, r in zip(asked, rows, strict=True) if a.model.name == model.name}
        texts = [f"{name}: {text.removeprefix('no feasible service. ')[:REASON_LENGTH]}" for name, text in reasons.items()]
        lines.append(
            f"{model.name} ({model.rate_per_s:g} requests/s) meets its limits on no cluster, in no size. {' '.join(texts)}"
        )
    if lines:
        raise NoFeasiblePlan("no fleet serves these loads. " + " ".join(lines))


def _what_is_missing(chosen: Fleet) -> str:
    """How much of which load is not served, and the smallest changes that would serve it."""
    parts = []
    for model, short in zip(chosen.problem.models, unserved_milli(chosen), strict=True):
        if short:
            share = short / MILLI / model.rate_per_s
            parts.append(f"{model.name}: {short / MILLI:,.1f} of {model.rate_per_s:,.1f} requests/s ({share:.0%})")
    ways = []
    if chosen.problem.budget_usd is not None and (needed := budget_needed(chosen)) is not None:
        ways.append(f"a budget of {needed:,.0f} instead of {chosen.problem.budget_usd:,.0f} USD")
    else:
        for s, site in enumerate(chosen.sites):
            if more := racks_needed(chosen, s, MOST_MORE_RACKS):
                ways.append(f"{more:,} more {'rack' if more == 1 else 'racks'} of {site.cluster.name} than there may be")
    changes = "; or ".join(ways) if ways else "none found: other clusters, or looser limits"
    return f"no fleet serves these loads. Missing at least: {'; '.join(parts)}. Smallest changes that serve all: {changes}."
