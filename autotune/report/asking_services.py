"""Questions about a service, answered from the plans that its search ranked."""

from __future__ import annotations

import re

from autotune.documents.service_plan import ServicePlan, ServiceResult
from autotune.errors import ProblemError
from autotune.report.asking import SIZE, Explanation, explain_layout, fits_sizes
from autotune.report.page.page import RunPage

KIND = re.compile(r"\b(disaggregated|aggregated)\b", re.IGNORECASE)


def explain_run(page: RunPage, asked: str) -> Explanation:
    """Answer `--why` for any run; raises ProblemError as `explain_layout` and `explain_service` do."""
    return explain_service(page.result, asked) if isinstance(page.result, ServiceResult) else explain_layout(page, asked)


def explain_service(result: ServiceResult, asked: str) -> Explanation:
    """Answer `--why aggregated` or `--why tp8` with the best ranked service of that kind, or with a pool of that layout.

    A service search keeps its ranked plans, not every candidate: raises ProblemError where the question cannot be read
    and, with what is known, where no ranked plan fits it.
    """
    kinds = {word.lower() for word in KIND.findall(asked)}
    wanted = {name.upper(): int(size) for name, size in SIZE.findall(asked)}
    rest = SIZE.sub("", KIND.sub("", asked)).strip(" ,+")
    if rest or len(kinds) > 1 or not (kinds or wanted):
        raise ProblemError(
            f"cannot read {asked!r}; of a service ask aggregated, disaggregated, or a pool's sizes like tp8 or 'dp48 ep48'"
        )
    fitting = [plan for plan in result.plans if _fits(plan, kinds, wanted)]
    if not fitting:
        ranked = "; ".join(plan.label for plan in result.plans)
        raise ProblemError(
            f"no ranked service is {asked}, and the run keeps no others, so what it would lose is not known. "
            f"Ranked: {ranked}. The search said: {result.verdict}"
        )
    return _answer(result.best, min(fitting, key=lambda plan: plan.rank), asked)


def _fits(plan: ServicePlan, kinds: set[str], wanted: dict[str, int]) -> bool:
    return (not kinds or plan.kind in kinds) and (not wanted or any(fits_sizes(pool.label, wanted) for pool in plan.pools))


def _answer(best: ServicePlan, plan: ServicePlan, asked: str) -> Explanation:
    rate, best_rate = plan.prediction.tokens_per_s_per_gpu, best.prediction.tokens_per_s_per_gpu
    breaks = [limit.name for limit in plan.objectives if not limit.met]
    if plan.prediction.overloaded:
        breaks.append("carrying the load")
    return Explanation(
        asked=asked,
        layout=plan.label,
        feasible=plan.meets_limits,
        tokens_per_s_per_gpu=rate,
        latency_s=plan.prediction.tpot_s.mean,
        relative=rate / best_rate - 1,
        differences_s={},
        breaks=tuple(breaks),
        text=_text(best, plan, breaks),
    )


def _text(best: ServicePlan, plan: ServicePlan, breaks: list[str]) -> str:
    mine, other = plan.prediction, best.prediction
    text = f"{plan.label} ({plan.kind}) on {mine.gpus:,} GPUs: {mine.tokens_per_s_per_gpu:,.0f} tokens/s/GPU"
    if breaks:
        text += f", but it breaks: {', '.join(breaks)}"
    if plan.rank == best.rank:
        return f"{text}. It is the best that was ranked. What keeps it from serving more: {plan.bound_by}."
    relative = mine.tokens_per_s_per_gpu / other.tokens_per_s_per_gpu - 1
    text += (
        f". It is number {plan.rank}; the best is {best.label} ({best.kind}) on {other.gpus:,} GPUs. Beside it: "
        f"{relative:+.1%} tokens/s/GPU, TTFT P99 {(mine.ttft_s.p99 - other.ttft_s.p99) * 1e3:+,.0f} ms, "
        f"mean TPOT {(mine.tpot_s.mean - other.tpot_s.mean) * 1e3:+,.2f} ms"
    )
    if plan.usd_per_million_tokens is not None and best.usd_per_million_tokens is not None:
        text += f", {plan.usd_per_million_tokens - best.usd_per_million_tokens:+,.3f} USD per million output tokens"
    return f"{text}. What keeps it from serving more: {plan.bound_by}; the best: {best.bound_by}."
