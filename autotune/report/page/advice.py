"""Sizing in words: how many of what, what bounds it next, and what to check first."""

from __future__ import annotations

from autotune.documents.plan import Plan
from autotune.documents.prediction import Prediction
from autotune.documents.results import Result
from autotune.documents.service_plan import ServicePlan, ServiceResult
from cost_models.specs.layout import Layout

UNSURE = 0.8
"""Odds below which a limit deserves a word."""
NEARLY_FULL = 0.97
"""Share of the memory limit that counts as full."""
BUSY = 0.9
SECONDS_PER_HOUR = 3600.0


def layout_words(layout: Layout, *, moe: bool = True) -> list[str]:
    """What a layout's letters mean for this plan."""
    words = []
    if layout.tp > 1:
        words.append(f"TP{layout.tp}: every attention matrix is cut over {layout.tp} GPUs, which all-reduce after each layer")
    if layout.dcp > 1:
        words.append(
            f"DCP{layout.dcp}: {layout.dcp} of those GPUs share the tokens of every sequence; they exchange queries and parts of "
            "the outputs, and hold as many times the sequences"
        )
    if layout.dp > 1:
        words.append(
            f"DP{layout.dp}: {layout.dp} groups hold their own sequences and KV cache; attention needs no talk between them"
        )
    if layout.ep > 1:
        words.append(
            f"EP{layout.ep}: each of {layout.ep} ranks keeps whole experts; tokens travel to them (dispatch) and back (combine)"
        )
    if moe and layout.ep == 1 and layout.tp * layout.dp > 1:
        words.append(f"experts cut over {layout.moe_tp_ranks} GPUs: every GPU works on every token that they share")
    if layout.pp > 1:
        words.append(f"PP{layout.pp}: {layout.pp} stages of layers, each on its own GPUs; a token passes all of them")
    return words or ["one GPU holds the whole model; instances are independent copies"]


def sizing(result: Result) -> list[str]:
    """Replicas, GPUs, concurrency, what the letters mean and what bounds the best plan."""
    best = result.best
    return _service_sizing(best) if isinstance(best, ServicePlan) else _pool_sizing(best)


def _pool_sizing(plan: Plan) -> list[str]:
    pool, prediction = plan.deployment.pool, plan.prediction
    lines = [f"{pool.instances} instance{'s' if pool.instances > 1 else ''} of {pool.layout.gpus} GPUs"]
    if isinstance(prediction, Prediction):
        each = prediction.concurrency / pool.instances
        lines[0] += f", {each:,.0f} sequences each ({pool.batch_per_dp_rank} per data-parallel rank)"
    lines += layout_words(pool.layout)
    full = prediction.memory_total_bytes / prediction.memory_limit_bytes
    what = (
        "memory is full: more sequences need more GPUs or a smaller cache" if full > NEARLY_FULL else f"memory is {full:.0%} full"
    )
    lines.append(f"the next bottleneck: {prediction.bottleneck}; {what}")
    return lines


def _service_sizing(plan: ServicePlan) -> list[str]:
    lines = []
    for summary in plan.pools:
        pool = plan.deployment.pools[summary.phase]
        load = plan.prediction.requests_per_s / summary.planned_requests_per_s
        lines.append(
            f"{summary.phase}: {summary.label} on {summary.gpus} GPUs of {summary.hardware}, "
            f"{load:.0%} of the rate that it was planned for"
        )
        if summary.phase != "prefill":
            seen = plan.prediction
            lines[-1] += (
                f"; {seen.decode_sequences / pool.instances:,.0f} sequences decode at once on each instance, "
                f"{seen.decode_slots / pool.instances:,.0f} fit"
            )
        lines += [f"{summary.phase}: {words}" for words in layout_words(pool.layout)]
    lines.append(f"what keeps it from serving more: {plan.bound_by}")
    if plan.usd_per_million_tokens:
        per_hour = plan.usd_per_million_tokens * plan.prediction.tokens_per_s * SECONDS_PER_HOUR / 1e6
        lines.append(
            f"{plan.usd_per_million_tokens:,.2f} USD per million output tokens, {per_hour:,.2f} USD an hour at the prices given"
        )
    return lines


def first_checks(result: Result) -> list[str]:
    """What a newcomer should look at before believing it, most important first."""
    best = result.best
    found = [f"assumed: {text}" for text in result.assumed]
    if isinstance(best, Plan):
        outside = sorted({line.name for line in best.prediction.operators if line.outside_box})
        weak = sorted({line.name for line in best.prediction.operators if line.status in ("assumed", "datasheet")})
        if best.odds.latency_probability < UNSURE:
            found.insert(
                0, f"the latency limit holds with {best.odds.latency_probability:.0%} only: ask for a tighter one, or measure"
            )
        if outside:
            found.append(f"priced outside of what was measured: {', '.join(outside)}")
        if weak:
            found.append(f"priced without a measurement on this GPU: {', '.join(weak)}")
    else:
        found[:0] = [f"{o.name} holds with {o.probability:.0%} only" for o in best.objectives if o.probability < UNSURE]
        if best.prediction.prefill_busy > BUSY:
            found.append(f"prefill is busy {best.prediction.prefill_busy:.0%} of the time: bursts will queue")
    kind = (
        "bench.sh beside the scripts sends the planned load"
        if isinstance(result, ServiceResult)
        else "start one instance and compare a step"
    )
    found.append(f"before relying on it: {kind}, and `autotune verify` says whether what you measure lies inside the bars")
    return found
